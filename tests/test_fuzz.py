"""Run directories that anything may have happened to: no command calls it a bug, hangs, or takes memory without bound.

Each case follows from its seed, which is in the name of the test; EM_FUZZ_SEED moves all of them.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline
from pipeline.outputs import checkpoint
from tests.jobs import Interrupt, blobs, command, job, write_rows

FIRST = int(os.environ.get("EM_FUZZ_SEED", "0"))
SECONDS, BYTES = 10, 2**30
COMMANDS = ("status", "report", "resume", "predict")
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    10**18,
    1.5,
    float("nan"),
    "",
    "x",
    "../../x",
    [],
    [1],
    {},
    {"x": 1},
    [[]],
    "1" * 400,
]
TEXTS = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"x",
    b"\0" * 64,
    b"[" * 100_000,
    "é\u2028\n".encode("utf-16"),
    b"\xff" * 1000,
    b"1e999",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, one that was stopped in its fit, one in its labels, and labels of other rows."""
    folder = tmp_path_factory.mktemp("fuzz")
    config = job(write_rows(folder / "x.zarr", blobs(200), rows=50), fit={"max_iter": 3}, engine={"memory": "2GiB"})
    pipeline.run(config, folder / "whole")
    for name, event in (("fit", "checkpoint"), ("labels", "labelled")):
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(config, folder / name, listeners=[Interrupt(event)])
    assert command("predict", folder / "whole", "--output", folder / "others").code == 0
    return folder


class TooLong(BaseException):
    """A command did not end in time."""


@contextmanager
def bounded() -> Iterator[None]:
    """A block that may take some seconds, and memory to some bound."""

    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) * 1024 < BYTES


def spoil(run: Path, rng: random.Random) -> str:
    """Do something to one of its files; what was done."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    small = [path for path in files if path.suffix in (".json", ".yaml", ".jsonl")]
    path = rng.choice(small if rng.random() < 0.6 else files)
    ways = [_removed, _cut, _flipped, _replaced, _another, _folder, _device, _pipe]
    way = rng.choice([*ways, *[_edited] * 6] if path in small else ways)
    return f"{way.__name__}: {path.relative_to(run)}: {way(path, rng, files)}"


def _removed(path: Path, rng: random.Random, files: list[Path]) -> None:
    path.unlink()


def _cut(path: Path, rng: random.Random, files: list[Path]) -> int:
    size = rng.randrange(path.stat().st_size + 1)
    os.truncate(path, size)
    return size


def _flipped(path: Path, rng: random.Random, files: list[Path]) -> int:
    content = bytearray(path.read_bytes() or b"\0")
    at = rng.randrange(len(content))
    content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return at


def _replaced(path: Path, rng: random.Random, files: list[Path]) -> bytes:
    text = rng.choice(TEXTS)
    path.write_bytes(text)
    return text[:20]


def _another(path: Path, rng: random.Random, files: list[Path]) -> str:
    other = rng.choice(files)
    path.write_bytes(other.read_bytes())
    return str(other)


def _folder(path: Path, rng: random.Random, files: list[Path]) -> None:
    path.unlink()
    path.mkdir()


def _device(path: Path, rng: random.Random, files: list[Path]) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _pipe(path: Path, rng: random.Random, files: list[Path]) -> None:
    path.unlink()
    os.mkfifo(path)


def _edited(path: Path, rng: random.Random, files: list[Path]) -> str:
    """One value of a file is another; the sums of a checkpoint are made to fit, as a stranger would."""
    text = path.read_text()
    if path.suffix == ".yaml":
        head, _, body = text.partition("\n")
        done, value = _changed(yaml.safe_load(body), rng)
        path.write_text(f"{head}\n{yaml.safe_dump(value)}")
    elif path.suffix == ".jsonl":
        lines = text.splitlines()
        i = rng.randrange(len(lines))
        done, value = _changed(json.loads(lines[i]), rng)
        lines[i] = json.dumps(value)
        path.write_text("\n".join(lines) + "\n")
    else:
        done, value = _changed(json.loads(text), rng)
        path.write_text(json.dumps(value))
        generation = next((folder for folder in path.parents if folder.name.startswith("gen-")), None)
        if generation is not None and path.name != "manifest.json":
            (generation / "manifest.json").write_text(json.dumps(checkpoint.sums(generation)))
    return done


def _changed(value: Any, rng: random.Random) -> tuple[str, Any]:
    """The value with one part of it replaced, removed or doubled."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value, key=str) if isinstance(value, dict) else range(len(value)))
        if rng.random() < 0.15:
            del value[key]
            return f"without {key}", value
        done, value[key] = _changed(value[key], rng)
        return f"{key}.{done}", value
    other = rng.choice(VALUES)
    return f"{str(value)[:30]} is {str(other)[:30]}", other


def attack(runs: Path, folder: Path, seed: int, change: Callable[[Path, random.Random], str] = spoil) -> None:
    """Spoil a copy of a run, and use every command on it: each ends in time, with an exit code that is no bug."""
    rng = random.Random(seed)
    name = rng.choice(("whole", "fit", "fit", "labels", "others"))
    for word in COMMANDS:
        run = folder / f"{name}-{word}"
        shutil.copytree(runs / name, run)
        done = change(run, random.Random(seed))
        try:
            with bounded():
                outcome = command(word, run)  # asserts that it is no bug
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {word} of {name}, {done}: {error!r:.1500}") from error
        assert outcome.code in (0, 2, 3, 75), (seed, word, done, outcome)
        shutil.rmtree(run)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + 8))
def test_a_spoiled_run_directory_is_no_bug(runs: Path, tmp_path: Path, seed: int) -> None:
    """Whatever was removed, cut, flipped, replaced or edited."""
    attack(runs, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FIRST + 1000, FIRST + 1300, 10))
def test_many_spoiled_run_directories_are_no_bug(runs: Path, tmp_path: Path, seed: int) -> None:
    """The same, ten seeds a test."""
    for each in range(seed, seed + 10):
        attack(runs, tmp_path, each)
