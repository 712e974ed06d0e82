"""What plain values mean in a config: YAML 1.2, not 1.1; and that what we write reads as what was written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.syntax import parse, written
from pipeline.errors import InputError
from pipeline.jobconfig import Config, validate

OF_ANY = "engine: {scheduler: hpc, profiles: {hpc: {kind: slurm, options: {it: %s}}}}"


def load(text: str) -> Config:
    """The config of a YAML text."""
    return validate(*_parsed(f"data: {{source: npy, path: a.npy}}\n{text}"))


def _parsed(text):
    raw, lines = parse(text, "c.yaml")
    return raw, (), "c.yaml", lines


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, text) for text in ("12:00:00", "04:00:00", "1:30", "012345", "010", "08", "1_000", "0b11")),
        *((text, text) for text in ("yes", "No", "on", "off", "y", "tRUE", "2024-01-31", "=", "<<", ".")),
        *((text, True) for text in ("true", "True", "TRUE")),
        *((text, None) for text in ("null", "~", "Null")),
        ("0o17", 15),
        ("0x1F", 31),
        ("+12", 12),
        ("-0", 0),
        ("1e3", 1000.0),
        ("1.5E-3", 0.0015),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.INF", float("-inf")),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text, value):
    """Where any value may stand, it is what YAML 1.2 says; and whole numbers that begin with 0 stay text."""
    found = load(OF_ANY % text).engine.profiles["hpc"].options["it"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("model: {n_components: 010}", ("model", "n_components"), (10,)),
        ("fit: {tol: 1e-3}", ("fit", "tol"), 0.001),
        ("fit: {random_state: 1_000}", ("fit", "random_state"), 1000),
        ("fit: {moves: off}", ("fit", "moves"), "off"),
        ("output: {labels: no}", ("output", "labels"), False),
        ("output: {path: 007}", ("output", "path"), "007"),
    ],
)
def test_an_option_reads_what_was_meant(text, key, value):
    """A number is decimal, yes and no answer a question, and text is as it was written."""
    section, name = key
    assert str(getattr(getattr(load(text), section), name)).endswith(str(value))


@pytest.mark.parametrize(
    "text",
    [
        "model: {n_components: 1:30}",
        "model: {n_components: yes}",
        "model: {n_components: true}",
        "model: {n_components: [2, true]}",
        "fit: {tol: true}",
        "engine: {workers: true}",
        "engine: {memory: true}",
        "output: {keep_iterations: [true]}",
        "output: {path: true}",
        "engine: {memory: 1.2.3GB}",
        "engine: {memory: %s}" % ("9" * 400),
    ],
)
def test_no_number_is_made_of_what_is_none(text):
    """true is not 1, and 1:30 is not 90."""
    with pytest.raises(InputError, match=r"expected|size"):
        load(text)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.from_regex(r"[-+0-9:._eExXob~<=]{1,9}", fullmatch=True)
    | st.sampled_from(["yes", "No", "on", "null", "~", "True", "2024-01-31", "1e3", "0o7", ".nan", "=", "<<"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_what_is_written_reads_as_itself(value):
    """Text that looks like a number is quoted, so that config.yaml of a run says what the run was given."""
    read = parse(written({"it": value}), "c.yaml")[0]["it"]
    assert repr(read) == repr(value)
