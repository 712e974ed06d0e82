"""Gaussian passes: the SIMD implementation, prepared and called, or GEMM with Cholesky (kernels/choice.py)."""

from __future__ import annotations

import numpy as np

from pipeline.arrays.dtypes import Array, compute_dtype
from pipeline.kernels.arena import Arena
from pipeline.kernels.base import GaussianProblem, GaussianSums
from pipeline.kernels.bounds import BoundsCache
from pipeline.kernels.choice import FLOAT32_CONDITION, uses_simd
from pipeline.kernels.features import DIAGONAL, NONE, PAIRS, SPHERE
from pipeline.kernels.gemm import gemm_log_joint, gemm_pass
from pipeline.kernels.pruned import counted, pruned_pass
from pipeline.kernels.simd import simd_joint, simd_pass, whole
from pipeline.kernels.simd_sums import LEAST_GATHERED, TILE


def gaussian_pass(
    problem: GaussianProblem, x: Array, weight: Array | None, arena: Arena, bounds: BoundsCache
) -> GaussianSums:
    """See `Kernels.gaussian_pass`."""
    x = np.ascontiguousarray(x, dtype=compute_dtype(x.dtype))
    pruned = pruned_pass(problem, x, weight, arena, bounds)
    if pruned is not None:
        return pruned
    every = counted(problem, len(x))
    if not uses_simd(problem):
        return gemm_pass(problem, x, weight, arena)._replace(skipped=every)
    k, d = problem.means.shape
    matrices, e = problem.shape.kind in (PAIRS, NONE), whole(d)
    log_norm, sum_w, sum_x = np.empty(len(x)), np.zeros(k), np.zeros((k, e))
    sum_xx = np.zeros((k, e, e) if matrices else (k, 1, d))
    x, high, low, factor, log_scale = _simd_arguments(problem, x)
    gathers = k if matrices and problem.shape.per_component and d >= LEAST_GATHERED else 0  # tied ones have no moments
    entropy = simd_pass(
        x,
        np.empty(0) if weight is None else weight,
        high,
        low,
        factor,
        log_scale,
        problem.hard,
        problem.shape.per_component,
        log_norm,
        sum_w,
        sum_x,
        sum_xx,
        arena.array("simd", (2 * d + e + k + 8, TILE), x.dtype),
        arena.array("waiting rows", (gathers, TILE), np.dtype(np.int32)),
        arena.array("their shares", (gathers, TILE), x.dtype),
        arena.array("copied rows", (TILE, d), x.dtype),
    )
    sum_xx = problem.shape.from_lanes(sum_xx[:, :d, :d])
    return GaussianSums(log_norm, problem.means, sum_w, sum_x[:, :d], sum_xx, entropy, every)


def gaussian_log_joint(problem: GaussianProblem, x: Array, arena: Arena) -> Array:
    """See `Kernels.gaussian_log_joint`."""
    x = np.ascontiguousarray(x, dtype=compute_dtype(x.dtype))
    if not uses_simd(problem):
        return gemm_log_joint(problem, x, arena)
    k, d = problem.means.shape
    out = np.empty((len(x), k))
    x, high, low, factor, log_scale = _simd_arguments(problem, x)
    diagonal = problem.shape.kind in (DIAGONAL, SPHERE)
    scratch = arena.array("simd", (d + whole(d) + k + 1, TILE), x.dtype)
    simd_joint(x, high, low, factor, log_scale, diagonal, out, scratch)
    return out


def _simd_arguments(problem: GaussianProblem, x: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Rows, the means in two parts, factors and log scales as the SIMD kernels take them."""
    k, d = problem.means.shape
    if (problem.condition > FLOAT32_CONDITION).any():  # one kernel serves all components
        x = x.astype(np.float64, copy=False)
    dtype = x.dtype
    high = problem.means.astype(dtype, order="C")
    low = (problem.means - high).astype(dtype, order="C")
    if dtype == np.float64:
        low = low[:0]  # nothing is left
    factor = problem.shape.lane_factors(problem.factors, k, d).astype(dtype, order="C")
    return np.ascontiguousarray(x), high, low, factor, problem.log_scale.astype(dtype)
