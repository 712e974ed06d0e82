"""Paths of a config: expanded and absolute as soon as it is read, and URLs only where they are read."""

from pathlib import Path

import numpy as np
import pytest

from pipeline import workflow
from pipeline.config.paths import absolute
from pipeline.errors import InputError
from pipeline.jobconfig import template, to_plain, validate
from pipeline.outputs.run_directory import RunDirectory


def refused(**sections: object) -> str:
    """What a config is refused with."""
    with pytest.raises(InputError) as refusal:
        validate({"data": {"source": "npy", "path": "a.npy"}, **sections})
    return str(refusal.value)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a home folder and a variable."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a.npy", "a.npy"),
        ("./b/../a.npy", "a.npy"),
        ("~/a.npy", "home/a.npy"),
        ("${PLACE}/a.npy", "place/a.npy"),
        ("$PLACE", "$PLACE"),
        ("a~b", "a~b"),
    ],
)
def test_a_path_is_expanded_and_absolute(here, written, meant):
    """~ and ${VARIABLE} stand for what they are; what is absolute stays so."""
    assert absolute(written) == str(here / meant) == absolute(absolute(written))


def test_every_path_of_a_config_is_absolute(here):
    """Whatever names a file or folder in config.yaml means the same from any working directory."""
    config = validate(
        {
            "data": {
                "source": "docword",
                "path": "d",
                "vocabulary": "~/v",
                "cache": "c",
                "weights": "w",
                "labels": "l",
            },
            "fit": {"init": "labels", "init_path": "i"},
            "engine": {"scheduler_file": "s", "security": {"ca_file": "a", "cert": "${PLACE}", "key": "k"}},
        }
    )
    data, security = config.data, config.engine.security
    found = [data.path, data.vocabulary, data.cache, data.weights, data.labels, config.fit.init_path]
    found += [config.engine.scheduler_file, security.ca_file, security.cert, security.key, config.output.path]
    assert all(path.startswith(str(here)) for path in found)
    assert validate(to_plain(config)).data == data
    assert "path: runs/run" in template()


def test_photographs_and_columns_are_no_paths(here):
    """Names that stand for something else stay as they are."""
    assert validate({"data": {"source": "images", "path": "photographs"}}).data.path == "photographs"
    assert validate({"data": {"source": "images", "path": "./photographs"}}).data.path == str(here / "photographs")
    data = validate({"data": {"source": "parquet", "path": "a", "weights": "w", "labels": "l.npy"}}).data
    assert (data.weights, data.labels) == ("w", str(here / "l.npy"))


@pytest.mark.parametrize("path", ["", "a\0b", "${NO_SUCH_VARIABLE}/a", "~no-such-user/a", "\ud800"])
def test_what_cannot_be_a_path_is_refused(here, path):
    """Nothing is written into a folder named ~ or ${X}."""
    assert "output.path: got" in refused(output={"path": path})
    with pytest.raises(InputError, match="run directory: got"):
        RunDirectory(path)


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("output", {"path": "s3://bucket/run"}),
        ("data", {"source": "docword", "path": "s3://b/d", "cache": "s3://b/cache"}),
        ("engine", {"scheduler_file": "http://host/file"}),
    ],
)
def test_a_url_is_refused_where_it_is_not_read(section, keys):
    """It would be a local folder named s3:."""
    assert "expected a local path" in refused(**{section: keys})


def test_output_is_expanded_wherever_it_is_given(here):
    """run, predict and resume take the same spellings as the config; nothing else is written."""
    np.save(here / "a.npy", np.random.default_rng(0).normal(size=(60, 2)))
    (here / "home").mkdir()
    config = validate(
        {
            "data": {"source": "npy", "path": "a.npy"},
            "model": {"family": "kmeans", "n_components": 2},
            "fit": {"method": "em"},
        }
    )
    for output in ("s3://bucket/run", Path("s3://bucket/run")):
        with pytest.raises(InputError):
            workflow.run(config, output)
    workflow.run(config, "~/x")
    assert workflow.resume("~/x") == here / "home" / "x" and workflow.predict("~/x").exists()
    stored = RunDirectory("~/x").read_config()["config"]
    assert (stored["output"]["path"], stored["data"]["path"]) == (str(here / "home" / "x"), str(here / "a.npy"))
    assert sorted(path.name for path in here.iterdir()) == ["a.npy", "home"]
