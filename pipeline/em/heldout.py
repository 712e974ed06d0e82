"""Rows held out of a fit: whole units by a keyed hash, and jobs that leave them out.

A unit (a picture, a document, else a row) is held out where the hash of its index is below the share. Jobs see
the rows of such units with weight 0, so row numbers keep their meaning, and an E-step of finished parameters adds
their log-likelihood: no row is read twice. Patches of one picture overlap, so half a picture would give itself away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.data.chunks import Chunk
from pipeline.data.source import Source
from pipeline.em.loop import EStep
from pipeline.errors import InputError
from pipeline.keyed import uniform
from pipeline.models.base import weighted_total
from pipeline.models.stats import HeldOut

HELD_OUT_STREAM = 2
LOOKED_AT = 2**20  # units, to see whether some are held out and some are not

SumJobs = Callable[..., list[Any]]  # of a list of jobs, and of what else says which chunks


@dataclass(frozen=True)
class Units:
    """Which rows are held out. start : (n_units,) int64 first row of each unit, or None where each row is one."""

    share: float
    seed: int
    start: Array | None = None

    @classmethod
    def of(cls, source: Source, share: float, seed: int) -> Units | None:
        """Those of a source; None where nothing is held out. Raises InputError unless both sides have a unit."""
        if share == 0:
            return None
        pictures = source.pictures()
        units = cls(share, seed, None if pictures is None else pictures[1])
        n = source.n_rows if units.start is None else len(units.start)
        out = int(units.chosen(np.arange(min(n, LOOKED_AT))).sum())
        if out in (0, min(n, LOOKED_AT)):
            what = "rows" if units.start is None else "pictures"
            raise InputError(
                f"select.heldout: {share:g} holds {'none' if out == 0 else 'all'} of {n} {what} out, expected at least one "
                "on either side. Change the share, or fit.random_state, which decides which ones they are."
            )
        return units

    def chosen(self, unit: Array) -> Array:
        """(n,) bool: whether units are held out. unit : (n,) int64, their indices."""
        return uniform(self.seed, HELD_OUT_STREAM, unit) < self.share

    def held_out(self, start: int, stop: int) -> Array:
        """(stop - start,) bool: whether rows are held out."""
        rows = np.arange(start, stop)
        return self.chosen(rows if self.start is None else np.searchsorted(self.start, rows, side="right") - 1)


@dataclass(frozen=True)
class OnTheOthers:
    """A job on the rows that are not held out; a final E-step says how likely it finds those that are."""

    job: Callable[[Chunk], Any]
    units: Units

    def __call__(self, chunk: Chunk) -> Any:
        """The job's value for one chunk."""
        out = self.units.held_out(chunk.start, chunk.start + chunk.x.shape[0])
        weight = np.ones(len(out)) if chunk.weight is None else chunk.weight
        found = self.job(replace(chunk, weight=np.where(out, 0.0, weight)))
        if not (isinstance(self.job, EStep) and self.job.final):
            return found
        model, params, x, weight = self.job.model, self.job.params, chunk.x[out], weight[out]
        tiles = model.assign(params, x)
        log_likelihood = sum(weighted_total(weight[rows], labels.log_density) for rows, labels in tiles)
        return replace(found, held_out=HeldOut(float(weight.sum()), float(log_likelihood)))


def without(units: Units | None, sum_jobs: SumJobs) -> SumJobs:
    """The same sums over the rows that are not held out."""
    if units is None:
        return sum_jobs
    return lambda jobs, *of: sum_jobs([OnTheOthers(job, units) for job in jobs], *of)
