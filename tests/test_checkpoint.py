"""Checkpoints: whole or not there, verified when read, and never taken for what they are not."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import InputError, StorageError
from pipeline.outputs import checkpoint
from pipeline.outputs.checkpoint import KEPT, State, generations, load, save

DTYPES = ["<f8", "<f4", "<i8", "<i4", "<u8", "|b1", "|u1"]


def state(value: float = 1.0) -> State:
    """A small state that can be told from others."""
    return State(
        {"a/x": np.full((3, 2), value), "empty": np.zeros((0, 4)), "scalar": np.array(value)}, {"value": value}
    )


def newest(folder: Path) -> tuple[int, float, list[str]]:
    """Number and value of what loads, and the warnings on the way."""
    warnings: list[str] = []
    generation, found = load(folder, warnings.append)
    return generation, found.facts["value"], warnings


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
    for generation in range(KEPT + 3):
        save(tmp_path, generation, state(generation))
    assert [path.name for path in generations(tmp_path)] == [f"gen-{g:06d}" for g in range(3, KEPT + 3)]
    assert newest(tmp_path) == (KEPT + 2, KEPT + 2, [])


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
    with pytest.raises(InputError, match="no checkpoint yet"):
        load(tmp_path, pytest.fail)
    save(tmp_path, 1, state())
    save(tmp_path, 2, state())
    for path in generations(tmp_path):
        (path / "zarr.json").write_text("{}")
    warnings: list[str] = []
    with pytest.raises(StorageError, match="2 checkpoints, none of them whole"):
        load(tmp_path, warnings.append)
    assert len(warnings) == 2


class Died(Exception):
    """Stands for the end of the process; a KeyboardInterrupt would end zarr's own thread and hang the test."""


OPERATIONS = [
    "os.replace",
    "os.fsync",
    "pathlib.Path.mkdir",
    "pathlib.Path.write_text",
    "shutil.rmtree",
    "zarr.open_group",
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_dying_at_any_step_leaves_the_old_or_the_new_one(tmp_path, operation):
    """Whichever call of a file-system operation is the last one, a whole generation loads, and saving again works."""
    import importlib

    home, _, name = operation.rpartition(".")
    owner = Path if home == "pathlib.Path" else importlib.import_module(home)
    original, nth = getattr(owner, name), 0
    before = tmp_path / "before"
    for generation in range(KEPT + 1):
        save(before, generation, state(generation))
    while True:
        nth += 1
        folder = shutil.copytree(before, tmp_path / f"{nth}")
        calls = 0

        def dies(*arguments, nth=nth, **options):
            nonlocal calls
            calls += 1
            if calls == nth:
                raise Died
            return original(*arguments, **options)

        with mock.patch.object(owner, name, dies):
            try:
                save(folder, KEPT + 1, state(KEPT + 1))
            except Died:
                pass
            else:
                break
        generation, value, warnings = newest(folder)
        assert generation == value and generation in (KEPT, KEPT + 1) and warnings == []
        save(folder, KEPT + 1, state(KEPT + 1))
        assert newest(folder) == (KEPT + 1, KEPT + 1, [])
        assert not list(folder.glob(".*"))
        shutil.rmtree(folder)
    assert nth > 1, f"{operation} was never called"


def test_a_full_disk_is_said(tmp_path):
    """An error of the disk names the checkpoint and says that the earlier ones are intact."""
    save(tmp_path, 1, state(1.0))
    with (
        mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")),
        pytest.raises(StorageError, match=r"gen-000002.*No space left.*intact"),
    ):
        save(tmp_path, 2, state(2.0))
    assert newest(tmp_path) == (1, 1.0, [])
