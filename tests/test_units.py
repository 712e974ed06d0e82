"""Rows that belong together: chunks that hold them whole for models that ask, and held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

import pipeline
from pipeline.data.column import MemoryColumn
from pipeline.data.units import UnitSource, unit_starts
from pipeline.em.heldout import Units
from pipeline.errors import InputError
from tests.jobs import Interrupt, command, job, refused, write_config, write_rows
from tests.laws.common import ArraySource

FAMILY = '''
from typing import ClassVar, Literal
import numpy as np
from dataclasses import dataclass
from pipeline.arrays.packing import stored
from pipeline.models.families.poisson import Poisson, PoissonSection
from pipeline.models.mixture import Mixture


@stored
@dataclass(frozen=True)
class PerUnit(Mixture):
    """A mixture that fails where units are not whole."""

    def e_step(self, params, rows, kernels):
        assert rows.units[0] == 0 and rows.units[-1] < rows.n
        assert (rows.x[rows.units, 0] == 1).all() and (np.delete(rows.x[:, 0], rows.units) == 0).all()
        return super().e_step(params, rows, kernels)


class PerUnitSection(PoissonSection):
    family: Literal["per-unit"] = "per-unit"
    by_unit: ClassVar[bool] = True
    methods: ClassVar[tuple[str, ...]] = ("em",)

    def build(self, summary, assignment):
        return PerUnit(super().build(summary, assignment).component, assignment)
'''


@st.composite
def cut(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Lengths of units, and chunk bounds of the same rows."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    n = sum(lengths)
    inner = sorted(draw(st.sets(st.integers(1, n - 1), max_size=6))) if n > 1 else []
    return lengths, [0, *inner, n]


@given(case=cut(), sparse=st.booleans())
def test_chunks_hold_whole_units_and_every_row_once(case: Any, sparse: bool) -> None:
    """However units and stored chunks lie; a unit is in one chunk, with its first row."""
    lengths, bounds = case
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    x = np.column_stack([numbers, np.arange(len(numbers))]).astype(float)
    starts = unit_starts(MemoryColumn(numbers), len(numbers))
    source = UnitSource(ArraySource(csr_array(x) if sparse else x, np.array(bounds)), starts, whole=True)
    read = [source.read(i) for i in range(source.n_chunks)]
    dense = [part.toarray() if sparse else part for part in read]
    np.testing.assert_array_equal(np.concatenate(dense), x)
    seen = [set(part[:, 0]) for part in dense]
    assert sum(map(len, seen)) == len(lengths)
    for i, part in enumerate(dense):
        first = source.units_of(int(source.bounds[i]), int(source.bounds[i + 1]))
        assert [part[j, 0] for j in first] == sorted(seen[i]) and first[0] == 0


def test_numbers_that_come_again_are_refused() -> None:
    """With the number and the row; a unit is what follows each other. The numbers themselves may be any."""
    with pytest.raises(InputError, match="got number 7 again at row 4"):
        unit_starts(MemoryColumn(np.array([7, 7, 3, 3, 7])), 5)
    assert unit_starts(MemoryColumn(np.array([9, 9, -3, 3, 3, 3])), 6).tolist() == [0, 2, 3]


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    """Counts in a store of small chunks, the number of each row's unit, and these numbers."""
    rng = np.random.default_rng(0)
    numbers = np.repeat(np.arange(60), rng.integers(1, 12, 60))
    x = rng.poisson(3.0, size=(len(numbers), 3)).astype(float)
    x[:, 0] = np.append(True, np.diff(numbers) > 0)
    np.save(tmp_path / "units.npy", numbers)
    return write_rows(tmp_path / "x.zarr", x, rows=25), tmp_path / "units.npy", numbers


def test_a_family_that_asks_gets_whole_units(stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through run and predict; without units it is refused, and units that nothing uses are."""
    from pipeline.data import source

    monkeypatch.setattr(source, "TARGET_BYTES", 25 * 24)
    rows, units, _ = stored
    (tmp_path / "family.py").write_text(FAMILY)
    (tmp_path / "other.py").write_text(FAMILY.replace("@stored", ""))
    model = {"family": "python", "path": f"{tmp_path / 'family.py'}:PerUnitSection", "n_components": 2}
    fit = {"init": "random", "method": "em"}
    config = write_config(tmp_path / "c.yaml", rows, data={"units": str(units)}, model=model, fit=fit)
    assert command("run", config, "--output", tmp_path / "run").code == 0
    write_config(tmp_path / "none.yaml", rows, model=model, fit=fit)
    assert "data.units: got none" in refused("run", tmp_path / "none.yaml", "--output", tmp_path / "none")
    model["path"] = model["path"].replace("family.py", "other.py")
    config = write_config(tmp_path / "other.yaml", rows, data={"units": str(units)}, model=model, fit=fit)
    assert ".PerUnit is not a class that is stored" in refused("run", config, "--output", tmp_path / "other")
    unused = write_config(tmp_path / "unused.yaml", rows, data={"units": str(units)})
    assert "data.units: is for select.heldout above 0" in refused("check", unused)


def test_other_units_are_other_data(stored: Any, tmp_path: Path) -> None:
    """A run that was stopped is not resumed with other units: other rows would be held out."""
    rows, units, numbers = stored
    config = job(rows, data={"units": str(units)}, select={"heldout": 0.3}, model={"n_components": 2})
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config, tmp_path / "run", listeners=[Interrupt("pass", 2)])
    np.save(units, numbers // 2)
    assert "units: was " in refused("resume", tmp_path / "run")


def test_units_are_held_out_together(stored: Any, tmp_path: Path) -> None:
    """As the hash of their index says: the rows left out are whole units, and the fit knows their weight."""
    rows, units, numbers = stored
    config = job(rows, data={"units": str(units)}, select={"heldout": 0.3}, model={"n_components": 2})
    out = Units.of(config.open_chunks().source, 0.3, config.fit.random_state)
    held = out.held_out(0, len(numbers))
    assert all(len(set(held[numbers == unit])) == 1 for unit in set(numbers)) and 0 < held.sum() < len(held)
    found = pipeline.open_run(pipeline.run(config, tmp_path / "run"))
    assert found.attrs["candidates"][0]["heldout_weight"] == held.sum()
