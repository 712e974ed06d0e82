"""Vectors in registers against numpy: exp, log, sums, choices, and what views refuse."""

import numpy as np
import pytest
from numba.core.errors import TypingError
from scipy.special import logsumexp

from pipeline.kernels.compiling import exact_kernel
from pipeline.kernels.exponential import exp, log, lowest
from pipeline.kernels.softmax import padded, softmax_rows
from pipeline.kernels.vectors import (
    WIDE_BYTES,
    add,
    columns,
    element,
    fma,
    highest,
    lines,
    narrow,
    put,
    spread,
    total,
    view,
    where_equal,
    where_less,
    wide,
    wide_lanes,
)

DTYPES = [np.float32, np.float64]


@exact_kernel
def apply(a, out, which):
    """out <- exp or log of a, vector by vector."""
    source, target = view(a), view(out)
    for t in range(0, a.size, wide_lanes(source)):
        v = wide(source, t)
        put(target, t, exp(v) if which == 0 else log(v))


@exact_kernel
def mixed(a, b, out):
    """Every other operation once, on the first vector of each line."""
    x, y, target = view(a), view(b), view(out)
    for i in range(lines(x)):
        v, w = wide(x, (i, 0)), wide(y, (i, 0))
        put(target, (i, 0), fma(v, w, spread(1.0, v)))
        put(target, (i, wide_lanes(x)), where_less(v, w, v - w, v / w))
        put(target, (i, 2 * wide_lanes(x)), where_equal(v, element(x, (i, 1), v), v * w, v + w))
        put(target, (i, 3 * wide_lanes(x)), lowest(v))
        add(target, (i, columns(target) - 1), total(narrow(x, (i, 0))))
        add(target, (i, columns(target) - 2), highest(v))


@pytest.mark.parametrize("dtype", DTYPES)
def test_exp_and_log_err_by_little_more_than_their_rounding(dtype):
    """Against long double, over all of their range; exp of the lowest it takes is 0, of 0 it is 1."""
    eps, rng = np.finfo(dtype).eps, np.random.default_rng(0)
    floor = -50.0 if dtype == np.float32 else -708.0
    v = np.concatenate([[0.0, floor, -1e-30], rng.uniform(floor, 0, 2**15 - 3)]).astype(dtype)
    out = np.empty_like(v)
    apply(v, out, 0)
    expected = np.exp(v.astype(np.longdouble))
    expected[v == dtype(floor)] = 0
    assert (out[0], out[1]) == (1.0, 0.0)
    if dtype == np.float32:  # of rows that are small too: subnormal products are slow
        assert out[out > 0].min() * 1e-8**2 > np.finfo(dtype).tiny
    assert (np.abs(out - expected) <= 2 * eps * expected).all()
    v = np.exp(np.concatenate([[0.0], rng.uniform(-80, 80, 2**15 - 2), [1e-9]])).astype(dtype)
    out = np.empty_like(v)
    apply(v, out, 1)
    expected = np.log(v.astype(np.longdouble))
    assert out[0] == 0.0
    assert (np.abs(out - expected) <= 3 * eps * np.maximum(np.abs(expected), eps)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_are_those_of_numpy(dtype):
    """Products, choices, broadcasts and sums, line by line of a matrix."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3, 64)).astype(dtype)
    width = WIDE_BYTES // np.dtype(dtype).itemsize
    out = np.zeros((3, 5 * width), dtype)
    mixed(a, b, out)
    assert (out[:, 3 * width : 4 * width] == (-50 if dtype == np.float32 else -708)).all()
    v, w = a[:, :width], b[:, :width]
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(out[:, :width], v * w + 1, rtol=0, atol=8 * eps)
    np.testing.assert_array_equal(out[:, width : 2 * width], np.where(v < w, v - w, v / w))
    np.testing.assert_array_equal(out[:, 2 * width : 3 * width], np.where(v == a[:, [1]], v * w, v + w))
    np.testing.assert_allclose(out[:, -1], a[:, : width // 2].sum(axis=1), rtol=0, atol=16 * eps)
    np.testing.assert_array_equal(out[:, -2], v.max(axis=1))


def test_a_view_of_an_array_that_is_not_contiguous_is_refused():
    """Its numbers would be taken from the wrong places."""
    with pytest.raises(TypingError, match="expected a C-contiguous array"):
        apply(np.zeros(64)[::2], np.zeros(32), 0)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 7, 16, 50])
def test_responsibilities_are_those_of_scipy(k, dtype, hard):
    """Log-sum-exp, responsibilities and entropy; rows of weight 0 add nothing, and columns that fill up become 0."""
    rng = np.random.default_rng(k)
    width = padded(k, np.dtype(dtype).itemsize)
    joint = np.full((20, width), np.nan, dtype)
    joint[:, :k] = rng.normal(scale=5, size=(20, k))
    joint[3, 0] = -np.inf if k > 1 else 0.0
    weight, log_norm = rng.uniform(0.5, 2, 20) * (np.arange(20) != 5), np.empty(20)
    before = joint[:, :k].astype(np.float64)
    entropy = softmax_rows(joint, k, weight, hard, log_norm)
    expected = logsumexp(before, axis=1)
    tolerance = 40 * np.finfo(dtype).eps
    np.testing.assert_allclose(log_norm, expected, rtol=0, atol=tolerance * 20)
    resp = np.exp(before - expected[:, None])
    if hard:
        np.testing.assert_array_equal(joint[:, :k] > 0, (before == before.max(axis=1)[:, None]) & (weight > 0)[:, None])
        assert entropy == 0
    else:
        np.testing.assert_allclose(joint[:, :k], weight[:, None] * resp, rtol=0, atol=tolerance * 20)
        bits = -(resp * np.where(resp > 0, np.log(np.maximum(resp, 1e-300)), 0)).sum(axis=1)
        np.testing.assert_allclose(entropy, weight @ bits, rtol=tolerance * 20, atol=tolerance * 20)
    assert not joint[:, k:].any()
    assert not joint[5].any()
