"""An M-step from sums of sufficient statistics alone, without a further read of the rows.

If log p(x, z | θ) = η_z(θ)·t(x, z) - A_z(θ) + h(x, z), it is affine in t for each z: its values at a few rows with affinely
independent t (anchors) determine it at all others, up to h. So

    Q(θ) - Q(θ₀) = Σ_z Σ_i a_iz [log p(x_iz, z | θ) - log p(x_iz, z | θ₀)],    Σ_i a_iz (1, t(x_iz, z)) = (N_z, S_z)

with the sums N_z of responsibilities and S_z of statistics, whatever η and A are. Newton's method maximizes it: for natural
parameters that is Newton's method on the log-partition function A. [Wainwright and Jordan 2008, sec. 3.6]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.linalg import qr

from pipeline.arrays.dtypes import Array
from pipeline.errors import InputError
from pipeline.models.ascent import newton_step
from pipeline.models.autodiff.compiled import compiled, layout_of, on_tile, shapes_of
from pipeline.models.autodiff.declare import JaxModel

AFFINE = 1e-7  # relative: how far the log joint may be from affine in the statistics
SPARE = 2  # times as many anchors as statistics: rounding averages out
STEPS, HALVINGS = 100, 40
CONVERGED = 1e-20  # of the total weight: squared length of the last step


def anchors_of(model: JaxModel, sample: Array, start: Array, other: Array) -> Array:
    """Return rows whose statistics span those of the sample, for each label: (k, r, d).

    Parameters
    ----------
    sample : array, shape (m, d)
    start, other : array, shape (p,)
        Two parameters, without constraints.

    Raises
    ------
    InputError
        If the log joint is not affine in the statistics.
    """
    m, d = sample.shape
    shapes = shapes_of(model, d)
    k, zeros = max(1, shapes.n_labels), np.zeros(m)
    tile = on_tile(model, d, ("joint",), m)
    joint, moved = (tile(u, u, sample, zeros, zeros.astype(np.int64) - 1)["joint"] for u in (start, other))
    statistics = _statistics(model, sample)
    r = SPARE * (statistics.shape[2] + 1)
    found = np.empty((k, r, d))
    for z in range(k):
        possible = np.flatnonzero(np.isfinite(joint[:, z]) & np.isfinite(moved[:, z]))
        if not len(possible):
            raise InputError(f"{type(model).__name__}: label {z} is possible for no row of a sample. Leave it out.")
        t = np.column_stack([np.ones(len(possible)), statistics[possible, z]])
        scale = np.maximum(np.abs(t).max(axis=0), np.finfo(float).tiny)
        order = qr((t / scale).T, mode="economic", pivoting=True)[2]
        chosen = possible[order[np.arange(r) % len(order)]]
        found[z] = sample[chosen]
        change = moved[possible, z] - joint[possible, z]
        fit = t / scale @ np.linalg.lstsq(t / scale, change, rcond=None)[0]
        worst = int(np.abs(change - fit).argmax())
        if abs(change[worst] - fit[worst]) > AFFINE * max(1.0, float(np.abs(change).max())):
            raise InputError(
                f"{type(model).__name__}.statistics: log_joint is not affine in them: for label {z} and row "
                f"{sample[possible[worst]]} it changes by {change[worst]:.6g} between two parameters, where they give "
                f"{fit[worst]:.6g}. Name the statistics that are missing, or leave `statistics` out."
            )
    return found


def _statistics(model: JaxModel, x: Array) -> Array:
    """Statistics of rows for each label, flat, (n, k, m)."""
    n, d = x.shape
    shapes = shapes_of(model, d)
    k = max(1, shapes.n_labels)

    def build(jax: Any) -> Any:
        def function(rows: Any) -> dict[str, Any]:
            return {name: jax.numpy.asarray(each) for name, each in jax.vmap(model.statistics)(rows).items()}  # type: ignore[attr-defined]

        return function

    found = compiled((model, d, "statistics", n), build, [((n, d), np.float64)])(x)
    return np.concatenate([found[name].reshape(n, k, -1) for name, _ in shapes.statistics], axis=2)


class Fit:
    """The expected log joint as a function of the parameters, for given sums.

    Parameters
    ----------
    model : JaxModel
    anchors : array, shape (k, r, d)
    counts : array, shape (k,)
        Sums of responsibilities.
    sums : mapping of str to array, shape (k, ...)
        Sums of the statistics.
    """

    def __init__(self, model: JaxModel, anchors: Array, counts: Array, sums: Mapping[str, Array]) -> None:
        k, r, d = anchors.shape
        self._anchors, self._counts = anchors, counts
        layout = layout_of(model, d)
        at_anchors = _statistics(model, anchors.reshape(k * r, d)).reshape(k, r, k, -1)
        wanted = np.concatenate([np.reshape(each, (k, -1)) for each in sums.values()], axis=1)
        self._shares = np.empty((k, r))
        for z in range(k):
            t = np.column_stack([np.ones(r), at_anchors[z, :, z]])
            target = np.concatenate([counts[z : z + 1], wanted[z]])
            scale = np.maximum(np.abs(t).max(axis=0), np.finfo(float).tiny)
            self._shares[z] = np.linalg.lstsq((t / scale).T, target / scale, rcond=None)[0]

        def build(jax: Any) -> Any:
            jnp = jax.numpy

            def value(u: Any, shares: Any, x: Any) -> Any:
                p = layout.named(layout.from_real(u, jnp))

                def of_label(z: int) -> Any:
                    return jax.vmap(lambda row: jnp.atleast_1d(jnp.asarray(model.log_joint(p, row), dtype=float))[z])(
                        x[z]
                    )

                joint = jnp.stack([of_label(z) for z in range(k)])
                return jnp.where(shares != 0, shares * joint, 0.0).sum()

            def function(u: Any, shares: Any, x: Any) -> dict[str, Any]:
                return {
                    "value": value(u, shares, x),
                    "gradient": jax.grad(value)(u, shares, x),
                    "hessian": jax.hessian(value)(u, shares, x),
                }

            return function

        shapes = [(each, np.float64) for each in ((layout.size,), (k, r), (k, r, d))]
        self._compiled = compiled((model, d, "expected", r), build, shapes)

    def __call__(self, u: Array) -> dict[str, Array]:
        """Return value, gradient (p,) and hessian (p, p) at parameters, up to a constant in value."""
        return self._compiled(u, self._shares, self._anchors)

    def maximum(self, u: Array, free: Array) -> Array:
        """Return parameters at least as good as u, by Newton's method with step halving. free : indices that may move."""
        now, weight = self(u), float(np.abs(self._counts).sum())
        for _ in range(STEPS):
            step = np.zeros_like(u)
            step[free] = newton_step(now["gradient"][free], -now["hessian"][np.ix_(free, free)])
            promised = float(now["gradient"] @ step)
            if not promised > CONVERGED * weight:
                return u
            for _ in range(HALVINGS):
                trial = self(u + step)
                if trial["value"] >= now["value"] and np.isfinite(trial["gradient"]).all():
                    break
                step *= 0.5
            else:
                return u
            u, now = u + step, trial
        return u
