"""Configs that anything may have been written into: valid, or refused with what is wrong; never a bug, never a hang.

Each case follows from its seed, which is in the name of the test and in its failure; EM_FUZZ_SEED moves all of them.
"""

from __future__ import annotations

import copy
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.config.syntax import written
from pipeline.errors import PipelineError
from pipeline.fitting.plan import memory_plan, plan_job
from pipeline.jobconfig import Config, load_config, template, to_plain, validate
from tests.jobs import blobs

FIRST = int(os.environ.get("EM_FUZZ_SEED", "0"))
SECONDS = float(os.environ.get("EM_FUZZ_SECONDS", "10"))
TOKENS = [
    "-",
    "?",
    ":",
    ",",
    "[",
    "]",
    "{",
    "}",
    "#",
    "&",
    "*",
    "!",
    "|",
    ">",
    "'",
    '"',
    "%",
    "@",
    "`",
    "\t",
    "\n",
    "\r",
    "\x00",
    "\x85",
    "\u2028",
    "\ufeff",
    "�",
    "é",
    "字",
    "😀",
    "~",
    "${HOME}",
    "${X}",
    "!!python/object:os.system",
    "!!binary",
    "!!set",
    "<<:",
    "*a",
    "&a",
    "---",
    "...",
    "1e999",
    "-0",
    "0x",
    "0o9",
    ".inf",
    ".nan",
    "1_0",
    "12:00",
    "2024-01-01",
    "null",
    "true",
    "yes",
    "=",
    "<<",
    "%YAML",
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -1e-300, 1e300, float("inf"), float("nan")),
    *(
        "",
        " ",
        "auto",
        "~",
        "~nobody/x",
        "${X}",
        "a\0b",
        "\ud800",
        "x" * 5000,
        "s3://b/k",
        "../..",
        "/dev/null",
        "/",
        "1e3",
        "010",
    ),
    *([], [[]], [None], [1, 2, 3], [True], ["a", 1], {}, {"a": {}}, {"": None}, {1: 2}, {"path": "x"}, [[1.0] * 3] * 3),
]
KEYS: list[Any] = [
    "",
    "K",
    "n_clusters",
    "path",
    "a.b",
    "data",
    "\ud800",
    "x" * 5000,
    None,
    True,
    0,
    1.5,
    "<<",
    "seed:5",
]


def places(raw: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a config."""
    found = [at] if at else []
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, value in items:
        found += places(value, (*at, key))
    return found


def edited(raw: Any, rng: random.Random) -> Any:
    """A config with a few values, keys and sections replaced, removed, or put elsewhere."""
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        at = rng.choice(places(raw) or [()])
        if not at:
            return copy.deepcopy(rng.choice(VALUES))
        inner = raw
        for key in at[:-1]:
            inner = inner[key]
        what = rng.random()
        if what < 0.65:
            inner[at[-1]] = copy.deepcopy(rng.choice(VALUES))
        elif what < 0.75:
            del inner[at[-1]]
        elif isinstance(inner, dict):
            inner[rng.choice(KEYS)] = copy.deepcopy(inner[at[-1]]) if what < 0.85 else copy.deepcopy(rng.choice(VALUES))
        else:
            inner.append(copy.deepcopy(rng.choice(VALUES)))
    return raw


def mangled(text: str, rng: random.Random) -> bytes:
    """A YAML text with pieces inserted, cut, moved or flipped."""
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        i, j = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        what = rng.random()
        if what < 0.5:
            text = text[:i] + rng.choice(TOKENS) + text[i:]
        elif what < 0.7:
            text = text[:i] + text[min(j, i + 40) :]
        elif what < 0.8:
            text = text[:i] + text[i : i + 30] * 3 + text[i:]
        else:
            text = text[:i] + rng.choice(TOKENS) * rng.choice([1, 50, 2000]) + text[i:]
    found = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.2 and found:
        i = rng.randrange(len(found))
        found = found[:i] + bytes([rng.randrange(256)]) + found[i + 1 :]
    return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, weights and configs to start from."""
    folder = tmp_path_factory.mktemp("desk")
    np.save(folder / "x.npy", blobs(60))
    np.save(folder / "w.npy", np.ones(60))
    (folder / "d.txt").write_text("2\n4\n3\n1 1 2\n1 3 1\n2 2 4\n")
    (folder / "x.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    return folder


def starting_points() -> list[dict[str, Any]]:
    """Valid configs of all kinds."""
    x = {
        "data": {"source": "npy", "path": "x.npy", "weights": "w.npy"},
        "output": {"path": "run"},
    }
    return [
        {**x, "model": {"n_components": [2, 3], "covariance_type": ["full", "diag"], "prior": {"shrinkage": 1.0}}},
        {
            **x,
            "preprocess": [{"kind": "center"}, {"kind": "pca", "n_components": 2, "whiten": True}],
            "model": {"family": "kmeans"},
        },
        {
            "data": {"source": "docword", "path": "d.txt"},
            "model": {"family": "multinomial", "n_components": 2},
        },
        {
            "data": {"source": "csv", "path": "x.csv"},
            "fit": {"method": "em", "n_init": 2},
            "select": {"heldout": 0.2},
        },
        {
            **x,
            "engine": {"scheduler": "hpc", "profiles": {"hpc": {"kind": "slurm", "options": {"walltime": "12:00:00"}}}},
        },
        {
            "data": {
                "source": "synthetic",
                "n_rows": 50,
                "mixture": {"weights": [0.5, 0.5], "means": [[0.0], [9.0]], "covariances": [[[1.0]], [[1.0]]]},
            }
        },
        *(yaml.safe_load(template(family)) for family in ("gaussian", "kmeans", "multinomial")),
    ]


def opened(config: Config) -> None:
    """What a job does before its first pass."""
    config = config.resolved()
    assert validate(to_plain(config)).model == config.model
    chunks = config.open_chunks()
    memory_plan(plan_job(config, chunks), chunks)


def tried(path: Path, seed: str) -> None:
    """Load, plan and open a config within the time, of this process: others may be at work."""
    began = time.process_time()
    try:
        opened(load_config(path))
    except PipelineError as error:
        assert error.exit_code in (2, 3) and str(error), seed
    except Exception as error:
        raise AssertionError(f"{seed}: {type(error).__name__}: {error}\n{path.read_bytes()[:3000]!r}") from error
    assert time.process_time() - began < SECONDS, f"{seed}: took {time.process_time() - began:.0f} s"


def configs(path: Path, seed: int, cases: int) -> None:
    """Try configs that follow from a seed."""
    for case in range(cases):
        rng = random.Random(f"{seed}-{case}")
        raw = rng.choice(starting_points())
        if rng.random() < 0.6:
            text = written(edited(raw, rng)).encode("utf-8", "surrogatepass")
        else:
            text = mangled(written(raw), rng)
        path.write_bytes(text)
        tried(path, f"seed {seed}, case {case}")


@pytest.mark.parametrize("seed", range(FIRST, FIRST + 3))
def test_any_config_is_valid_or_refused(desk, tmp_path, monkeypatch, seed):
    """Values of every type at every place, and texts with pieces inserted, cut, repeated and flipped."""
    monkeypatch.chdir(desk)
    configs(tmp_path / "c.yaml", seed, 15)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST + 100, FIRST + 112))
def test_many_configs_are_valid_or_refused(desk, tmp_path, monkeypatch, seed):
    """The same with other seeds."""
    monkeypatch.chdir(desk)
    configs(tmp_path / "c.yaml", seed, 100)
