"""Mistakes of people who begin: each ends with what came, what was expected and what to do, without a traceback."""

from __future__ import annotations

import gzip
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.jobs import blobs, command, files, write_config

X = "data: {source: npy, path: x.npy}\n"


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder of someone who tries things out: rows, a folder of pictures, a config, a finished run."""
    folder = tmp_path_factory.mktemp("desk")
    np.save(folder / "x.npy", blobs())
    np.save(folder / "wide.npy", blobs(d=5))
    (folder / "packed.npy").write_bytes(gzip.compress((folder / "x.npy").read_bytes()))
    (folder / "table.csv").write_text("a,b\n1,2\n2,3\n")
    (folder / "photo").mkdir()
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save(folder / "photo" / "cat.png")
    (folder / "empty").mkdir()
    config = write_config(folder / "job.yaml", Path("x.npy"), fit={"max_iter": 1}, output={"path": "runs/first"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command("run", config.name).code == 0
    return folder


# What was typed (a text with a line break is a config), what has to be said, and the exit code where it is not 2.
MISTAKES: dict[str, tuple[list[str], Any]] = {
    # words
    "a command": (["rn", "job.yaml"], "No such command 'rn'. Did you mean 'run'?"),
    "an option": (["run", "job.yaml", "--ouput", "there"], ["No such option", "--ouput"]),
    "no config": (["run"], "Missing argument 'CONFIG'"),
    "a family": (
        ["config", "gausian"],
        ["expected one of ", "gaussian, ", "; did you mean gaussian?"],
    ),
    # keys
    "a section": (
        ["run", X + "modle: {n_components: 2}\n"],
        "line 2: modle: there is no such key; did you mean model?",
    ),
    "a key": (["run", X + "fit:\n  max_itr: 2\n"], "line 3: fit.max_itr: there is no such key; did you mean max_iter?"),
    "another library's key": (["run", X + "model: {n_clusters: 3}\n"], "did you mean n_components?"),
    "its key in another section": (["run", X + "model: {seed: 3}\n"], "did you mean fit.random_state?"),
    "a key of another section": (
        ["run", X + "model: {max_iter: 3}\n"],
        "model.max_iter: there is no such key; it belongs to fit.",
    ),
    "a key without a section": (
        ["run", X + "n_components: 3\n"],
        "n_components: there is no such key; it belongs to model.",
    ),
    "a misspelt one of another section": (["run", X + "model: {max_iterr: 3}\n"], "did you mean fit.max_iter?"),
    "nothing like any": (
        ["run", X + "output: {zzz: 3}\n"],
        "expected one of path, copy_to, storage_options, labels, top_k",
    ),
    "keys not indented": (
        ["run", "data:\nsource: npy\npath: x.npy\n"],
        [
            "data: got nothing, expected keys of its own, indented below it",
            "source: there is no such key; it belongs to data.",
        ],
    ),
    "a key twice": (["run", X + "data: {path: y.npy}\n"], "line 2: data is given twice, first in line 1"),
    # YAML
    "a tab": (["run", "data:\n\tsource: npy\n"], "line 2, column 1: 'source: npy' cannot be read as YAML. A tab"),
    "no space after a colon": (
        ["run", "data:\n  source:npy\n  path: x.npy\n"],
        "line 2, column 10: 'source:npy' cannot be read as YAML. A space is missing after the colon: write `source: npy`",
    ),
    "no space, last": (
        ["run", "data:\n  source: npy\n  path:x.npy\n"],
        "line 3, column 8: 'path:x.npy' cannot be read as YAML. A space is missing",
    ),
    "no space, alone": (
        ["run", "data:\n  source:npy\n"],
        "data: got 'source:npy', expected keys of its own, indented below it, such as data: {source: bundled}; a space is missing",
    ),
    "no space in braces": (
        ["run", "data: {source:npy, path: x.npy}\n"],
        "data.source:npy: there is no such key; a space is missing",
    ),
    "a brace": (
        ["run", "data: {source: npy, path: x.npy\nmodel: {n_components: 2}\n"],
        "line 2, column 6: 'model: {n_components: 2}' cannot be read as YAML. The { of line 1 is not closed",
    ),
    "indented too deep": (
        ["run", "data:\n  source: npy\n   path: x.npy\n"],
        "line 3, column 8: 'path: x.npy' cannot be read as YAML. It is indented deeper than the line above",
    ),
    "a quote": (
        ["run", "data:\n  path: 'x.npy\n"],
        'line 2, column 9: "path: \'x.npy" cannot be read as YAML. The quote that begins here does not end',
    ),
    "a star": (
        ["run", "data:\n  path: *.png\n"],
        "line 2, column 10: 'path: *.png' cannot be read as YAML. Put the value in quotes",
    ),
    "a colon in a value": (
        ["run", "data:\n  path: a: b\n"],
        "line 2, column 10: 'path: a: b' cannot be read as YAML. A second colon",
    ),
    "only words": (
        ["run", "cluster my photos\n"],
        "got 'cluster my photos', expected sections such as data: and model:",
    ),
    # values
    "a family of others": (
        ["run", X + "model: {family: gmm}\n"],
        ["model.family: got 'gmm', expected ", "poisson, python", "did you mean gaussian?"],
    ),
    "an init": (["run", X + "fit: {init: kmeans++}\n"], "did you mean k-means++?"),
    "a shape": (
        ["run", X + "model: {covariance_type: diagonal}\n"],
        "model.covariance_type: got 'diagonal', expected full, tied, diag or spherical; did you mean diag?",
    ),
    "a source": (["run", "data: {source: image, path: photo}\n"], "did you mean images?"),
    "words for a number": (
        ["run", X + "model: {n_components: ten}\n"],
        "line 2: model.n_components: got 'ten', expected a whole number, such as 8.",
    ),
    "half a component": (
        ["run", X + "model: {n_components: 2.5}\n"],
        "got 2.5, expected a whole number, such as 8.",
    ),
    "a negative number": (["run", X + "fit: {max_iter: -3}\n"], "fit.max_iter: got -3, expected at least 1."),
    "neither yes nor no": (["run", X + "output: {labels: maybe}\n"], "got 'maybe', expected true or false."),
    "one side of a patch": (
        ["run", "data: {source: images, path: photo, patch: {size: 8}}\n"],
        "data.patch.size: got 8, expected a list such as [8, 8].",
    ),
    "three sides of a patch": (
        ["run", "data: {source: images, path: photo, patch: {size: [8, 8, 3]}}\n"],
        "got [8, 8, 3], expected a list such as [8, 8].",
    ),
    "a value for a section": (
        ["run", "data: {source: npy, path: x.npy}\nmodel: kmeans\n"],
        "model: got 'kmeans', expected keys of its own, indented below it, such as model: {family: kmeans}.",
    ),
    "a step that is no list": (
        ["run", X + "preprocess: {kind: pca}\n"],
        "preprocess: got {kind: pca}, expected a list, such as [{kind: pca}].",
    ),
    "a step that is a word": (
        ["run", X + "preprocess: [pca]\n"],
        "preprocess.0: got 'pca', expected keys of its own, indented below it, such as {kind: pca}.",
    ),
    "a size": (["run", X + "engine: {memory: 4 gigs}\n"], "'4 gigs' is not a size; write for example 1GiB"),
    "a scheduler": (["run", X + "engine: {scheduler: thread}\n"], "did you mean threads?"),
    "no path": (["run", "data: {source: npy}\n"], "data.path: is missing"),
    "labels from nowhere": (["run", X + "fit: {init: labels}\n"], "fit.init_path: is missing"),
    "two mistakes": (
        ["run", X + "modle: {}\nfit: {tol: -1}\n"],
        ["2 mistakes.", "line 2: modle", "line 3: fit.tol: got -1, expected at least 0."],
    ),
    # files
    "a config's name": (["run", "jop.yaml"], "config jop.yaml: does not exist; did you mean job.yaml?"),
    "a folder for a config": (
        ["run", "photo"],
        "config photo: is a folder, expected a YAML file. `em-pipeline config > job.yaml` writes one",
    ),
    "data for a config": (["run", "x.npy"], "config x.npy: is not text, expected a YAML file."),
    "a folder's name": (
        ["run", "data: {source: images, path: photos/}\n"],
        "photos: does not exist; did you mean photo/?",
    ),
    "a folder's name above": (["run", "data: {source: images, path: photos/cat.png}\n"], "did you mean photo/cat.png?"),
    "a file's name": (
        ["run", "data: {source: zarr, path: tabel.csv}\n"],
        "tabel.csv: does not exist; did you mean table.csv?",
    ),
    "no such file at all": (
        ["run", "data: {source: csv, path: /nowhere/q.csv}\n"],
        "/nowhere/q.csv: does not exist: there is no nowhere in /.",
    ),
    "a folder for a file": (
        ["run", "data: {source: npy, path: photo}\n"],
        "photo: is a folder, expected a file. Name a file in it; a folder of pictures is read by data.source: images",
    ),
    "a file for a store": (
        ["run", "data: {source: zarr, path: x.npy}\n"],
        "x.npy: is a file, expected a zarr store, which is a folder.",
    ),
    "no pictures": (["run", "data: {source: images, path: empty}\n"], "empty: has no pictures (.apng, .bmp"),
    "a packed file": (
        ["run", "data: {source: npy, path: packed.npy}\n"],
        "packed.npy: is not an .npy file, it begins with b'\\x1f\\x8b",
    ),
    "text for an array": (["run", "data: {source: npy, path: table.csv}\n"], "text is read by data.source: csv"),
    "an array for text": (["run", "data: {source: csv, path: x.npy}\n"], "It is an .npy file: set data.source to npy."),
    "bundled data": (
        ["run", "data: {source: bundled, path: digit}\n"],
        "expected digits or photographs for source bundled; did you mean digits?",
    ),
    "weights": (
        ["run", "data: {source: npy, path: x.npy, weights: y.npy}\n"],
        "y.npy: does not exist; did you mean x.npy?",
    ),
    "parameters": (
        ["run", X + "fit: {init: explicit, init_path: q.npz}\n"],
        "q.npz: does not exist; relative paths start from",
    ),
    "more components than rows": (
        ["run", X + "model: {n_components: 601}\n"],
        "model.n_components: 601, but there are 600 rows. Set it to at most 600.",
    ),
    "patches larger than pictures": (
        ["run", "data: {source: images, path: photo, patch: {size: [64, 64]}}\n"],
        "is 32 x 32 pixels, expected at least one patch of 64 x 64",
    ),
    "an output below a file": (
        ["run", "job.yaml", "--output", "x.npy/run"],
        ("output x.npy/run: cannot be written", 3),
    ),
    "an output that is a file": (
        ["run", "job.yaml", "--output", "x.npy"],
        "output x.npy: got a path that exists and is not a run directory",
    ),
    "an output with a run in it": (["run", "job.yaml"], "output runs/first: contains a finished run. Use --overwrite"),
    # --set
    "no section": (["run", "job.yaml", "--set", "max_iter=3"], "did you mean fit.max_iter=3?"),
    "no equals sign": (
        ["run", "job.yaml", "--set", "fit.max_iter:3"],
        "expected section.key=value, such as fit.max_iter=50.",
    ),
    "a key of --set": (
        ["run", "job.yaml", "--set", "fitt.tol=1"],
        "--set fitt.tol=1: fitt: there is no such key; did you mean fit?",
    ),
    "a value of --set": (
        ["run", "job.yaml", "--set", "fit.init=kmeans"],
        "--set fit.init=kmeans: fit.init: got 'kmeans'",
    ),
    "YAML of --set": (["run", "job.yaml", "--set", "fit.tol=[1"], "The [ of line 1 is not closed"),
    # runs
    "a run's name": (
        ["status", "runs/frist"],
        "runs/frist: is not a run directory: it does not exist; did you mean runs/first/?",
    ),
    "the folder of runs": (
        ["status", "runs"],
        "runs: is not a run directory (it has no config.yaml of a run). runs/first is one.",
    ),
    "an empty folder": (
        ["status", "empty"],
        "empty: is not a run directory (it has no config.yaml of a run). Give the folder of a run",
    ),
    "a config for a run": (["resume", "job.yaml"], "job.yaml: is not a run directory: it is a file."),
    "another model": (
        ["resume", "runs/first", "--set", "model.n_components=4"],
        ["model.n_components: was 3, now 4", "Resume without the change"],
    ),
    "other features": (
        ["predict", "runs/first", "--set", "data.path=wide.npy", "--output", "out"],
        "rows have 5 features, the model was fitted to 3.",
    ),
    "another fit": (
        ["predict", "runs/first", "--set", "fit.tol=1"],
        "expected data.…, engine.…, output.top_k, output.write_back or model.path",
    ),
    "a report of nothing": (["report", "empty"], "a report needs a finished model"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained(desk, tmp_path, monkeypatch, name):
    """In few lines, with its exit code, and nothing is written."""
    words, said = MISTAKES[name]
    said, code = said if isinstance(said, tuple) else (said, 2)
    folder = shutil.copytree(desk, tmp_path / "desk")
    monkeypatch.chdir(folder)
    if any("\n" in word for word in words):
        (folder / "c.yaml").write_text(words[1])
        words = [words[0], "c.yaml", "--output", "out"]
    before = files(folder)
    outcome = command(*words)
    shown = re.sub(r"\s+", " ", outcome.err.replace("│", " "))
    assert outcome.code == code
    for piece in [said] if isinstance(said, str) else said:
        assert piece in shown, outcome.err
    assert len(outcome.err.splitlines()) <= 6 and files(folder) == before


def test_numbers_are_read_as_people_write_them(desk, monkeypatch):
    """1e-3 is a number, which YAML 1.1 takes for text, and so is 1e2 where a whole number is meant."""
    from pipeline.jobconfig import load_config, validate

    monkeypatch.chdir(desk)
    Path("n.yaml").write_text(
        "fit: {tol: 1e-3, max_iter: 1e2}\ndata: {source: npy, path: x.npy, storage_options: {a: 1e-3, b: 1.5E+2, c: e5, d: 1e}}\n"
    )
    found = load_config("n.yaml", ["model.reg_covar=1e-5"])
    assert (found.fit.tol, found.fit.max_iter, found.model.reg_covar) == (1e-3, 100, 1e-5)
    assert found.data.storage_options == {"a": 1e-3, "b": 150.0, "c": "e5", "d": "1e"}
    Path("nothing.yaml").touch()
    assert validate({}) == load_config("nothing.yaml")
