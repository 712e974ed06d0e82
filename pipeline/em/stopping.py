"""When to stop, and why, in words.

Mixtures: the objective per row moved by less than tol, strictly, so that tol = 0 never stops a run early.
K-means: as scikit-learn's KMeans (no label changed, or the centres moved by at most tol x variance, squared).
An iteration with a reset, and the one after it, never stop a run: the objective is then not comparable.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.em.run import Run
from pipeline.models.kmeans import KMeans


class Limits(NamedTuple):
    """max_iter : M-steps at most.  tol : nats per row (K-means: relative to the variance)."""

    max_iter: int
    tol: float


def stop_reason(before: Run, after: Run, limits: Limits) -> str | None:
    """A sentence, beginning with `converged` or `stopped`, or None to go on.

    before, after : the run around its last M-step.
    """
    converged = _kmeans if isinstance(after.model, KMeans) else _mixture
    reason = converged(before, after, limits.tol)
    if reason is None and len(after.history) >= limits.max_iter:
        reason = f"stopped: max_iter = {limits.max_iter} iterations reached"
    return reason and reason + _certificate(after)


def _certificate(run: Run) -> str:
    """What the last step says of those that would follow, where it says anything."""
    last = run.history[-1]
    if not np.isfinite(last.left):
        return ""
    return f"; about {last.left:.2g} nats per row are left to gain (Fisher norm {last.fisher_norm:.2g}, rate {last.rate:.3g})"


def _mixture(before: Run, after: Run, tol: float) -> str | None:
    if not (before.history and before.settled and after.settled):
        return None
    total = float(after.history[-1].n_effective.sum())
    moved = abs(after.history[-1].objective - before.history[-1].objective) / total
    if moved < tol:
        return f"converged: the objective moved by {moved:.3g} nats per row, less than tol = {tol:g}"
    return None


def _kmeans(before: Run, after: Run, tol: float) -> str | None:
    assert isinstance(after.model, KMeans)
    if before.label_key is not None and before.label_key == after.label_key:
        return "converged: no label changed"
    moved = float(((after.params.centers - before.params.centers) ** 2).sum())
    allowed = tol * after.model.variance
    if moved <= allowed:
        return f"converged: the centres moved by {moved:.3g} squared, at most tol x variance = {allowed:.3g}"
    return None
