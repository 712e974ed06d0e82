"""Rows boundaries and row order change a pass by rounding only; workers and neighbours change not one bit."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.chunks import Chunks
from pipeline.engine.passes import Engine
from pipeline.engine.tree import below, shard_level, sum_of, tree_sum
from tests.laws.common import (
    FAMILIES,
    ArraySource,
    any_problem,
    assigned,
    cases,
    chunks_of,
    close,
    close_params,
    examples,
    fit,
    job,
    same_bits,
    shards,
    sum_over,
)


def add(a, b):
    """Plus."""
    return a + b


@pytest.mark.parametrize("family", FAMILIES)
@examples(20)
@given(data=st.data())
def test_a_fit_does_not_depend_on_chunks(family, data):
    """Several iterations over other chunks end in the same parameters, labels and number of iterations."""
    model, params, x, weight, bounds = data.draw(cases(family))
    whole, events = fit(model, params, chunks_of(x, None, weight), 6)
    parts, again = fit(model, params, chunks_of(x, bounds, weight), 6)
    assert [event.reset.component for event in events] == [event.reset.component for event in again]
    assert len(whole.history) == len(parts.history)
    if not events:
        close_params(model, parts.params, whole.params, 1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_computed_alike_in_any_chunk_of_the_same_tiles(family):
    """Log-densities of a row do not follow its neighbours beyond rounding."""
    model, params, x, _ = any_problem(family, 12)
    together = assigned(model, params, x).score
    alone = np.concatenate([assigned(model, params, x[i : i + 1]).score for i in range(x.shape[0])])
    close(alone, together, 1e-13)


def test_shard_levels_do_not_change_a_bit():
    """For 1 to 300 chunks and every level, subtrees summed apart and then together are the plain tree, to the bit."""
    values = np.random.default_rng(0).normal(size=300) * 10.0 ** np.random.default_rng(1).uniform(-8, 8, 300)
    for n in range(1, 301):
        leaves = [float(v) for v in values[:n]]
        plain = tree_sum(leaves, add)
        for level in range(int(np.ceil(np.log2(n))) + 2):
            parts = [tree_sum(leaves[first:stop], add) for first, stop in shards((0, n), level)]
            assert tree_sum(parts, add) == plain


def test_sums_of_several_levels_do_not_change_a_bit():
    """For 1 to 300 chunks, tasks that each sum several levels of the tree give the plain tree, to the bit."""
    values = np.random.default_rng(0).normal(size=300) * 10.0 ** np.random.default_rng(1).uniform(-8, 8, 300)

    def total(span, width, levels):
        if span[1] - span[0] <= width:
            return tree_sum(values[slice(*span)].tolist(), add)
        return sum_of(span, {one: total(one, width, levels) for one in below(span, width, levels)}, add)

    for n in (*range(1, 40), 255, 256, 257, 300):
        plain = tree_sum(values[:n].tolist(), add)
        assert all(total((0, n), width, levels) == plain for width in (1, 4) for levels in (1, 2, 4))


def test_tree_is_the_one_drawn():
    """A sequence splits at the largest power of two below its length: that is what the docstring draws."""

    def split(leaves):
        if len(leaves) == 1:
            return leaves[0]
        half = 1 << (len(leaves) - 1).bit_length() - 1
        return f"({split(leaves[:half])} {split(leaves[half:])})"

    for n in range(1, 80):
        leaves = [str(i) for i in range(n)]
        assert tree_sum(leaves, lambda a, b: f"({a} {b})") == split(leaves)


def test_tree_holds_few_leaves_at_a_time():
    """Never more than log2(n) + 2 partial sums are alive, so memory does not grow with the chunks."""
    alive = [0, 0]

    def leaves():
        for _ in range(1000):
            alive[0] += 1
            alive[1] = max(alive)
            yield 1

    def merge(a, b):
        alive[0] -= 1
        return a + b

    assert tree_sum(leaves(), merge) == 1000
    assert alive[1] <= np.log2(1000) + 2


def test_tree_refuses_nothing_to_sum():
    """A sum of no leaves has no value: the error says so."""
    with pytest.raises(ValueError, match="got no leaves"):
        tree_sum([], add)


@examples(200)
@given(n=st.integers(1, 10**5), workers=st.integers(1, 256), seconds=st.floats(0, 100))
def test_shards_are_aligned_and_enough(n, workers, seconds):
    """Shards cover the chunks once, are aligned powers of two, and leave several for each worker when there are."""
    level = shard_level(n, workers, seconds)
    width = 1 << level
    spans = list(shards((0, n), level))
    assert spans[0][0] == 0 and spans[-1][1] == n
    assert all(first % width == 0 and stop - first <= width for first, stop in spans)
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert -(-n // width) >= min(n, workers * 4) or level == 0
    assert level == 0 or seconds * width <= 20.0


@pytest.mark.parametrize("family", FAMILIES)
@examples(20)
@given(data=st.data())
def test_jobs_beside_it_change_no_bit(family, data):
    """A job's sum is the same alone, first, last, and beside jobs of other sizes."""
    model, params, x, weight, bounds = data.draw(cases(family))
    chunks = chunks_of(x, bounds, weight)
    one, other = job(model, params), job(model, params, final=True)
    alone = sum_over(chunks, [one])[0]
    same_bits(sum_over(chunks, [other, one])[1], alone)
    same_bits(sum_over(chunks, [one, one, other])[0], alone)


def test_a_failing_chunk_is_the_error_of_the_pass():
    """What a chunk raises in a thread reaches the caller as it is."""
    chunks = Chunks(ArraySource(np.zeros((10, 2)), [0, 5, 10]))

    def refuse(rows, kernels):
        if rows.start:
            raise RuntimeError("the second chunk")
        return 0

    with pytest.raises(RuntimeError, match="the second chunk"):
        Engine(workers=2).sum_over(chunks, [refuse])
