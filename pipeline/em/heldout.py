"""Held-out rows: whole units chosen by a keyed hash, and jobs that leave them out.

A unit (a picture, a document, else a row) is held out if the hash of its index is below the share. Jobs see its rows with
weight 0, so row indices stay valid. The E-step of the final parameters adds their log-likelihood: no row is read twice.
Patches of one picture overlap and are not independent, so whole pictures are held out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows
from pipeline.data.source import Source
from pipeline.errors import InputError
from pipeline.keyed import uniform
from pipeline.models.base import Expectation, weighted_total

HELD_OUT_STREAM = 2
LOOKED_AT = 2**20  # units, to see whether some are held out and some are not

SumJobs = Callable[..., list[Any]]  # of a list of jobs, and of what else says which chunks


@dataclass(frozen=True)
class Units:
    """Which rows are held out. start : (n_units,) int64 first row of each unit, or None if each row is a unit."""

    share: float
    seed: int
    start: Array | None = None

    @classmethod
    def of(cls, source: Source, share: float, seed: int) -> Units | None:
        """Return the units of a source; None if nothing is held out.

        Raises
        ------
        InputError
            If all units or none would be held out.
        """
        if share == 0:
            return None
        units = cls(share, seed, source.units())
        n = source.n_rows if units.start is None else len(units.start)
        out = int(units.chosen(np.arange(min(n, LOOKED_AT))).sum())
        if out in (0, min(n, LOOKED_AT)):
            what = "rows" if units.start is None else "units" if source.pictures() is None else "pictures"
            raise InputError(
                f"select.heldout: {share:g} holds {'none' if out == 0 else 'all'} of {n} {what} out, expected at least one "
                "on either side. Change the share, or fit.random_state, which decides which ones they are."
            )
        return units

    def chosen(self, unit: Array) -> Array:
        """Return whether units are held out, shape (n,), bool. unit : (n,) int64, indices."""
        return uniform(self.seed, HELD_OUT_STREAM, unit) < self.share

    def held_out(self, start: int, stop: int) -> Array:
        """Return whether rows start:stop are held out, shape (stop - start,), bool."""
        rows = np.arange(start, stop)
        return self.chosen(rows if self.start is None else np.searchsorted(self.start, rows, side="right") - 1)


@stored
@dataclass(frozen=True)
class HeldOut(Additive):
    """Held-out rows, weighted.

    weight : sum of weights.  log_likelihood : total nats, or a bound below it.  words, log_coefficient : of bags of words, their
    number and the log multinomial coefficients in the log-likelihood; else None.
    """

    weight: float
    log_likelihood: float
    words: float | None = None
    log_coefficient: float | None = None


@dataclass(frozen=True)
class HeldOutRows:
    """Attachment: the log-likelihood of the held-out rows, which the E-step itself sees with weight 0."""

    name: ClassVar[str] = "held_out"

    def of(self, model: Any, params: Any, rows: Rows, found: Expectation, kernels: Any) -> HeldOut:
        assert rows.whole is not None and rows.weight is not None, "rows are held out by OnTheOthers"
        weight = np.ones(rows.n) if rows.whole.weight is None else rows.whole.weight
        out = (weight > 0) & (rows.weight == 0)
        if rows.units is not None:
            return self._of_units(model, params, rows, weight, out, kernels)
        x, w = rows.x[out], weight[out]
        score = model.score_rows(params, x, kernels)
        of_words = [float(w @ each) for each in model.words_of(x) or ()]
        return HeldOut(float(w.sum()), weighted_total(w, score), *of_words)

    def _of_units(self, model: Any, params: Any, rows: Rows, weight: Array, out: Array, kernels: Any) -> HeldOut:
        """As of rows: the likelihood of a row depends on the others of its unit."""
        assert rows.units is not None
        lengths = np.diff(rows.units, append=rows.n)
        chosen = np.maximum.reduceat(out, rows.units)
        if not chosen.any():
            return HeldOut(0.0, 0.0)
        of_rows = np.repeat(chosen, lengths)
        bad, label = (None if column is None else column[of_rows] for column in (rows.bad, rows.label))
        units = np.append(0, np.cumsum(lengths[chosen])[:-1])
        own = Rows(rows.x[of_rows], weight[of_rows], 0, bad, label, units=units)
        evidence = model.e_step(params, own, kernels).evidence
        return HeldOut(evidence.weight, evidence.log_likelihood)

    def nbytes(self, model: Any) -> int:
        return 32


@dataclass(frozen=True)
class OnTheOthers:
    """A job that sees held-out rows with weight 0."""

    job: Callable[[Rows, Any], Any]
    units: Units

    def __call__(self, rows: Rows, kernels: Any) -> Any:
        out = self.units.held_out(rows.start, rows.start + rows.n)
        weight = np.ones(len(out)) if rows.weight is None else rows.weight
        return self.job(replace(rows, weight=np.where(out, 0.0, weight), whole=rows), kernels)


def without(units: Units | None, sum_jobs: SumJobs) -> SumJobs:
    """Return a function that sums jobs over the rows that are not held out."""
    if units is None:
        return sum_jobs
    return lambda jobs, *of: sum_jobs([OnTheOthers(job, units) for job in jobs], *of)
