"""When to stop a run, and the reason in words.

A run stops when the objective per row moved by less than tol, strictly, so that tol = 0 never stops it. Slow convergence, a
plateau and the end of an extrapolation step satisfy this too. So a certified run also requires that at three iterations in
a row the estimated distance to the maximum in the Fisher metric is below sqrt(2 left), with left a tenth of tol. Then the
remaining gain, the length of the M-step and the next gain of plain EM are below left, sqrt(2 left) and left per row. (Aitken's
estimate alone stopped 5 of 12 runs too early, by up to 23 tol; three in a row 3 of 12; this rule, of tol itself, none.)

Newton's and quasi-Newton steps aim at the maximum itself: half the square of their length is what is left to gain.

A model may have its own rule (`LatentModel.converged`; K-means: scikit-learn's). An iteration with a reset, and the one after
it, never stop a run: the objectives cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.em.certificate import remaining_distance
from pipeline.em.run import Run

LEFT = 0.1  # of tol: what a certified run may still gain is an error where runs are compared
IN_A_ROW = 3  # iterations: one of three is the end of an extrapolation step, the others are EM's own
NEGLIGIBLE = 1e-4  # of the distance allowed: of float32 rows, steps as short as that are rounding, and have no rate


class Limits(NamedTuple):
    """max_iter : iterations at most.  tol : nats per row (K-means: relative to the variance).  asked : whether someone asks to stop."""

    max_iter: int
    tol: float
    asked: Callable[[], bool] = lambda: False


def stop_reason(before: Run, after: Run, limits: Limits, certified: bool = False) -> str | None:
    """Return why a run stops, beginning with `converged` or `stopped`; None to go on.

    Parameters
    ----------
    before, after : Run
        Around the last M-step.
    limits : Limits
    certified : bool
        Whether the remaining gain must be below a tenth of tol too.
    """
    same_labels = before.label_hash is not None and before.label_hash == after.label_hash
    reason = after.model.converged(before.params, after.params, same_labels, limits.tol)
    if reason is None and after.model.has_bound:
        reason = _by_objective(before, after, limits.tol, certified)
    if reason is None and len(after.history) >= limits.max_iter:
        reason = f"stopped: max_iter = {limits.max_iter} iterations reached"
    if reason is None and limits.asked():
        reason = "stopped: a callback asked for it"
    return reason and reason + _certificate(after)


def gained(before: Run, after: Run) -> float:
    """Return the change of the objective in the last iteration, nats per row; NaN if it cannot be compared."""
    if not (before.history and before.settled and after.settled):
        return np.nan
    now, then = after.history[-1], before.history[-1]
    return abs(now.objective - then.objective) / now.weight


def _by_objective(before: Run, after: Run, tol: float, certified: bool) -> str | None:
    moved = gained(before, after)
    if moved < tol and (not certified or _is_near(after, tol)):
        return f"converged: the objective moved by {moved:.3g} nats per row, less than tol = {tol:g}"
    return None


def _is_near(run: Run, tol: float) -> bool:
    if run.model.ascent is not None and run.model.ascent.is_newton:
        return run.history[-1].remaining_gain < LEFT * tol
    allowed = np.sqrt(2.0 * LEFT * tol)
    latest = run.history[-IN_A_ROW:]
    near = (
        remaining_distance(e.fisher_norm, e.remaining_gain) < allowed or e.fisher_norm < NEGLIGIBLE * allowed
        for e in latest
    )
    return len(latest) == IN_A_ROW and all(near)


def _certificate(run: Run) -> str:
    """The remaining gain in words, if it is known."""
    last = run.history[-1]
    if not np.isfinite(last.remaining_gain):
        return ""
    rate = "" if np.isnan(last.rate) else f", rate {last.rate:.3g}"
    gain = f"about {last.remaining_gain:.2g} nats per row are left to gain"
    if last.remaining_gain == 0:
        gain = "less than can be computed is left to gain"
    return f"; {gain} (Fisher norm {last.fisher_norm:.2g}{rate})"
