"""Small files that stand for much, and files that never end: refused at once, with nothing written."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.config.syntax import parse
from pipeline.data import text_lines
from pipeline.errors import InputError
from tests.jobs import blobs, files, refused, write_config

SECONDS = 10.0  # on a busy machine; a fraction of one on an idle machine


def refused_at_once(folder: Path, config: dict[str, Any], *options: str) -> str:
    """The message of `check` and of `run`, which come at once and leave nothing behind."""
    (folder / "c.yaml").write_text(yaml.safe_dump({**config, "output": {"path": str(folder / "run")}}))
    before, began = sorted(os.listdir(folder)), time.monotonic()
    said = refused("check", folder / "c.yaml", *options)
    refused("run", folder / "c.yaml", *options)
    assert time.monotonic() - began < SECONDS and sorted(os.listdir(folder)) == before
    return said


NAMES = {
    "npy": "x.npy",
    "csv": "x.csv",
    "parquet": "x.parquet",
    "idx": "x.idx",
    "docword": "x.txt",
    "images": "x.png",
    "zarr": "x.zarr",
}


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
@pytest.mark.parametrize("source", NAMES)
def test_pipes_and_devices_are_no_input(tmp_path: Path, source: str, kind: str) -> None:
    """Nobody writes to the pipe, and /dev/zero never ends: no source opens them."""
    if source == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / NAMES[source]
    os.mkfifo(path) if kind == "a pipe" else path.symlink_to("/dev/zero")
    model = {"family": "multinomial"} if source == "docword" else {}
    refused_at_once(tmp_path, {"data": {"source": source, "path": str(path)}, "model": model})


@pytest.mark.parametrize("where", ["data.weights", "data.labels", "fit.init_path", "data.vocabulary"])
def test_nor_are_they_columns_starts_or_words(tmp_path: Path, where: str) -> None:
    """Whatever else a config names is opened in the same way."""
    np.save(tmp_path / "x.npy", blobs())
    pipe = tmp_path / ("p.npz" if where == "fit.init_path" else "p.npy")
    os.mkfifo(pipe)
    config: dict[str, Any] = {"data": {"source": "npy", "path": str(tmp_path / "x.npy")}, "model": {}, "fit": {}}
    if where == "data.vocabulary":
        (tmp_path / "d.txt").write_text("2\n2\n2\n1 1 1\n2 2 1\n")
        config["data"] = {"source": "docword", "path": str(tmp_path / "d.txt"), "cache": str(tmp_path / "cache")}
        config["model"] = {"family": "multinomial"}
        (tmp_path / "cache").mkdir()
    if where == "fit.init_path":
        config["fit"] = {"init": "explicit"}
    section, key = where.split(".")
    config[section] = {**config[section], key: str(pipe)}
    assert "is a pipe" in refused_at_once(tmp_path, config)


def test_a_config_is_a_file_of_some_size(tmp_path: Path) -> None:
    """Not a pipe or a device, and no gigabytes."""
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "huge.yaml").touch()
    os.truncate(tmp_path / "huge.yaml", 2**40)
    for path, said in (
        (tmp_path / "pipe.yaml", "is a pipe"),
        ("/dev/zero", "is a pipe"),
        (tmp_path / "huge.yaml", "bytes"),
    ):
        assert said in refused("check", path)


def test_aliases_that_stand_for_billions_of_values_are_refused() -> None:
    """Also those of keys, and an anchor inside itself; a few aliases are as good as ever."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for last, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]")
    for text in ("\n".join(lines), "a: &a [*a]", "a: &a {b: {c: *a}}"):
        with pytest.raises(InputError, match="aliases"):
            parse(text, "c.yaml")
    assert parse("a: &a [1, 2]\nb: *a\nc: {<<: {d: *a}}", "c.yaml")[0] == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


HUGE = 10**9
NUMBERS: dict[str, Any] = {
    "engine.workers": HUGE,
    "engine.profiles": {"p": {"workers": HUGE}},
    "engine.memory": 1,
    "model.n_components": HUGE,
    "fit.n_init": HUGE,
}


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_that_no_machine_has_are_refused(tmp_path: Path, key: str) -> None:
    """Each is compared with a bound, or with what the plan says it takes."""
    np.save(tmp_path / "x.npy", blobs())
    section, name = key.split(".")
    config = {"data": {"source": "npy", "path": str(tmp_path / "x.npy")}, section: {name: NUMBERS[key]}}
    refused_at_once(tmp_path, config)


DOCWORDS = {
    "many documents": "10000000000\n5\n1\n1 1 1\n",
    "many words": "5\n10000000000\n1\n1 1 1\n",
    "a document far away": "10000000000\n5\n100000000\n9999999999 1 1\n",
    "many counts": "5\n5\n1000000000000000000\n1 1 1\n",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("text", DOCWORDS.values(), ids=DOCWORDS)
def test_a_docword_file_does_not_say_how_much_is_written(tmp_path: Path, text: str, packed: bool) -> None:
    """The numbers of its first lines are compared with what follows, packed or not."""
    path = tmp_path / ("d.txt.gz" if packed else "d.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    refused_at_once(tmp_path, {"data": {"source": "docword", "path": str(path)}, "model": {"family": "multinomial"}})


@pytest.mark.parametrize(
    "text", ["1,2\n" * 3 + "1" * 200, "1" * 200, "#" * 200 + "\n1,2"], ids=["last", "first", "comment"]
)
def test_a_line_without_end_is_no_line_of_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """It is not held in memory until it ends: gigabytes of one digit are a few megabytes once packed."""
    monkeypatch.setattr(text_lines, "LINE_BYTES", 100)
    monkeypatch.setattr(text_lines, "_BLOCK", 50)
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.encode()))
    config = {"data": {"source": "csv", "path": str(tmp_path / "x.csv.gz")}}
    assert "has a line of more than 100 bytes" in refused_at_once(tmp_path, config)


@pytest.mark.parametrize("source", ["npy", "idx"])
def test_a_header_is_compared_with_the_size_of_the_file(tmp_path: Path, source: str) -> None:
    """A table of exabytes in a hundred bytes."""
    path = tmp_path / "x"
    if source == "idx":
        path.write_bytes(bytes([0, 0, 0x0E, 2, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]))
    else:
        with path.open("wb") as file:
            header = {"descr": "<f8", "fortran_order": False, "shape": (10**15, 1000)}
            np.lib.format.write_array_header_1_0(file, header)
    config, began = write_config(tmp_path / "c.yaml", path, data={"source": source}), time.monotonic()
    refused("check", config, code=3 if source == "idx" else 2)
    assert time.monotonic() - began < SECONDS


def test_postscript_under_another_name_is_no_picture(tmp_path: Path) -> None:
    """Pillow would hand it to Ghostscript."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    config = {"data": {"source": "images", "path": str(tmp_path)}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert "no picture that Pillow reads" in refused("check", tmp_path / "c.yaml", code=3)


def test_pipes_in_a_run_directory_are_refused(tmp_path: Path) -> None:
    """Whichever of its files they stand for, and whatever the command."""
    import pipeline
    from tests.jobs import command, job

    np.save(tmp_path / "x.npy", blobs())
    pipeline.run(job(tmp_path / "x.npy"), tmp_path / "run")
    for name in [name for name in files(tmp_path / "run") if name.count("/") == 0 or "manifest" in name]:
        whole = (tmp_path / "run" / name).read_bytes()
        (tmp_path / "run" / name).unlink()
        os.mkfifo(tmp_path / "run" / name)
        for word in ("status", "report", "resume", "predict"):
            assert command(word, tmp_path / "run").code in (2, 3), (word, name)
        (tmp_path / "run" / name).unlink()
        (tmp_path / "run" / name).write_bytes(whole)
