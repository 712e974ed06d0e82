"""Checkpoints: whole or not there, verified when read, and never taken for what they are not."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

import pipeline
from pipeline.errors import InputError, StorageError
from pipeline.outputs import checkpoint
from pipeline.outputs.checkpoint import STORED, State, generations, load, number, save
from pipeline.outputs.state import LAYOUT
from tests.jobs import Files, Interrupt, blobs, files, job, refused, write_rows

DTYPES = ["<f8", "<f4", "<i8", "<i4", "<u8", "|b1", "|u1"]


def state(value: float = 1.0) -> State:
    """A small state that differs from others."""
    return State(
        {"a/x": np.full((3, 2), value), "empty": np.zeros((0, 4)), "scalar": np.array(value)}, {"value": value}
    )


def newest(folder: Path) -> tuple[int, float, list[str]]:
    """Number and value of what loads, and the warnings on the way."""
    warnings: list[str] = []
    generation, found = load(folder, warnings.append)
    return generation, found.facts["value"], warnings


@pytest.mark.full
@settings(max_examples=30, deadline=None)
@given(
    arrays=st.dictionaries(
        st.sampled_from(["a", "b/c", "b/d/e", "known/mean"]),
        st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))),
    ),
    facts=st.dictionaries(st.text(), st.none() | st.integers() | st.floats(allow_nan=False) | st.text()),
)
def test_what_is_saved_is_loaded(tmp_path_factory, arrays, facts):
    """Arrays of any shape and type and JSON facts come back bit by bit."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with mock.patch("os.fsync"):
        save(folder, 7, State(arrays, facts))
    generation, found = load(folder, pytest.fail)
    assert generation == 7 and found.facts == facts and set(found.arrays) == set(arrays)
    for name, value in arrays.items():
        assert found.arrays[name].dtype == value.dtype and found.arrays[name].shape == value.shape
        assert found.arrays[name].tobytes() == value.tobytes()


def test_the_newest_few_are_kept(tmp_path):
    """Old generations are pruned, the newest loads."""
    for generation in range(STORED + 3):
        save(tmp_path, generation, state(generation))
    assert [path.name for path in generations(tmp_path)] == [f"gen-{g:06d}" for g in range(3, STORED + 3)]
    assert newest(tmp_path) == (STORED + 2, STORED + 2, [])


def test_the_same_state_gives_the_same_bytes(tmp_path):
    """Nothing in a checkpoint depends on when or where it was written."""
    one, other = save(tmp_path / "a", 1, state()), save(tmp_path / "b", 1, state())
    assert checkpoint.sums(one) == checkpoint.sums(other)


def damages(folder: Path) -> list[Path]:
    """Every file of a generation."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_any_damage_to_any_file_is_found(tmp_path):
    """A flipped bit, a lost byte, an empty, an absent or an additional file: the generation before is loaded instead."""
    save(tmp_path, 1, state(1.0))
    save(tmp_path, 2, state(2.0))
    path = tmp_path / "gen-000002"
    for file in damages(path):
        whole = file.read_bytes()
        flipped = bytes([whole[0] ^ 1]) + whole[1:]
        for damaged in (flipped, whole[:-1], b""):
            file.write_bytes(damaged)
            generation, value, warnings = newest(tmp_path)
            assert (generation, value) == (1, 1.0) and "gen-000002 is damaged" in warnings[0], file
        file.unlink()
        assert newest(tmp_path)[0] == 1, file
        file.write_bytes(whole)
    (path / "more").write_text("x")
    assert newest(tmp_path)[0] == 1
    (path / "more").unlink()
    assert newest(tmp_path) == (2, 2.0, [])


def test_when_none_is_whole_the_run_does_not_start_again_in_silence(tmp_path):
    """All damaged is an error of storage that counts them; none at all means that there is nothing to resume."""
    with pytest.raises(InputError, match="got no checkpoint"):
        load(tmp_path, pytest.fail)
    save(tmp_path, 1, state())
    save(tmp_path, 2, state())
    for path in generations(tmp_path):
        (path / "zarr.json").write_text("{}")
    warnings: list[str] = []
    with pytest.raises(StorageError, match="got 2 damaged checkpoints"):
        load(tmp_path, warnings.append)
    assert len(warnings) == 2


class Died(Exception):
    """Stands for the end of the process; a KeyboardInterrupt would end zarr's own thread and hang the test."""


OPERATIONS = [(os, "replace"), (os, "fsync"), (Path, "mkdir"), (Path, "write_text"), (shutil, "rmtree"), (os, "unlink")]


class Checkpoints(RuleBasedStateMachine):
    """Saves, deaths, damage and loads in any order, against a record of what each generation was when it was whole.

    A job is what it loaded last, or saved since; a death in the middle of a save makes it load again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp())
        self.folder, self.scratch = self.top / "checkpoints", self.top / "scratch"
        self.at, self.value = 0, 0.0
        self.written: dict[int, Files] = {}  # what is in each generation, as it was saved last

    def teardown(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.top)

    def whole(self) -> list[int]:
        """Generations that are as they were written."""
        found = map(number, generations(self.folder))
        return [g for g in found if files(self.folder / f"gen-{g:06d}") == self.written[g]]

    def next_state(self) -> State:
        """What the next save writes; its bytes are recorded before, for a death may leave all of them or none."""
        self.value += 1.0
        found = state(self.value)
        self.written[self.at + 1] = files(save(self.scratch, self.at + 1, found, keep=1))
        return found

    @rule(keep=st.sampled_from([1, 2, 3, None]))
    def save(self, keep: int | None) -> None:
        """The new generation is whole, none is newer, and of the others there are as many as are kept."""
        before = [g for g in map(number, generations(self.folder)) if g <= self.at]
        save(self.folder, self.at + 1, self.next_state(), keep)
        self.at += 1
        expected = [*before, self.at] if keep is None else [*before, self.at][-keep:]
        assert [number(path) for path in generations(self.folder)] == expected
        assert self.at in self.whole() and not list(self.folder.glob(".*"))

    @rule(keep=st.sampled_from([1, 2, None]), operation=st.sampled_from(OPERATIONS), nth=st.integers(1, 12))
    def die(self, keep: int | None, operation: tuple[Any, str], nth: int) -> None:
        """Whatever the last thing was that a save did: where there was a whole generation there is one."""
        had, found = self.whole(), self.next_state()
        owner, name = operation
        original, calls = getattr(owner, name), 0

        def dies(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise Died
            return original(*arguments, **options)

        with mock.patch.object(owner, name, dies), suppress(Died):
            save(self.folder, self.at + 1, found, keep)
        assert self.whole() or not had
        self.load()

    @precondition(lambda self: generations(self.folder))
    @rule(data=st.data(), how=st.sampled_from(["flip", "cut", "empty", "remove", "add"]))
    def damage(self, data: st.DataObject, how: str) -> None:
        """Any file of any generation; never back to what it was."""
        path = data.draw(st.sampled_from(generations(self.folder)), label="generation")
        found = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "more")
        if not found:
            return
        file = data.draw(st.sampled_from(found), label="file")
        content = file.read_bytes()
        if how == "add":
            (path / "more").write_bytes(b"x")
        elif how == "remove":
            file.unlink()
        else:
            flipped = bytes([(byte + 1) % 256 for byte in content[-1:]])  # done twice, it is damage still
            file.write_bytes({"flip": content[:-1] + flipped, "cut": content[:-1], "empty": b""}[how])

    @rule()
    def load(self) -> None:
        """The newest whole one, and a word on each newer; none whole is an error, and a new beginning."""
        whole, present = self.whole(), list(map(number, generations(self.folder)))
        warnings: list[str] = []
        if whole:
            self.at, found = load(self.folder, warnings.append)
            assert self.at == whole[-1] and found.arrays["scalar"] == found.facts["value"] > 0
            assert len(warnings) == sum(g > self.at for g in present)
            return
        with pytest.raises(StorageError if present else InputError):
            load(self.folder, warnings.append)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.at = 0


@pytest.mark.full
class TestCheckpoints(Checkpoints.TestCase):
    """The machine, run."""

    settings = settings(max_examples=20, stateful_step_count=10, deadline=None)

    @pytest.fixture(autouse=True)
    def _no_flushing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "fsync", lambda _: None)


def test_a_full_disk_is_said(tmp_path):
    """An error of the disk names the checkpoint and says that the earlier ones are intact."""
    save(tmp_path, 1, state(1.0))
    with (
        mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")),
        pytest.raises(StorageError, match=r"gen-000002.*No space left.*intact"),
    ):
        save(tmp_path, 2, state(2.0))
    assert newest(tmp_path) == (1, 1.0, [])


def test_checkpoints_of_another_version_are_refused(tmp_path):
    """With both layouts and what to do, exit 3, and the run stays as it is."""
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(job(write_rows(tmp_path / "x.zarr", blobs())), run, listeners=[Interrupt("pass", 3)])
    newest = generations(run / "checkpoints")[-1]
    found = load(run / "checkpoints", print)[1]
    for layout in (None, LAYOUT - 1, LAYOUT + 1):
        shutil.rmtree(run / "checkpoints")
        save(run / "checkpoints", number(newest), State(found.arrays, {**found.facts, "layout": layout}))
        before = files(run / "checkpoints")
        said = refused("resume", run, code=3)
        assert f"got layout {layout}, expected {LAYOUT}: another version of em-pipeline wrote it" in said
        assert files(run / "checkpoints") == before
