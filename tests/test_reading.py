"""Reading ahead and keeping change when chunks are read, never what is computed."""

import threading
import time

import numpy as np
import pytest

from pipeline.data.chunks import Chunks
from pipeline.data.memory import MemorySource
from pipeline.engine import reading
from pipeline.engine.passes import Engine
from pipeline.engine.reading import ChunkCache, in_turn
from pipeline.errors import InputError
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.lloyd import Lloyd
from tests.laws.common import ArraySource


class SlowLoad:
    """Loads numbers, slowly; remembers what was asked for, and by which thread."""

    def __init__(self):
        self.asked = []

    def __call__(self, i):
        self.asked.append((i, threading.get_ident()))
        time.sleep(0.002)
        if i == 13:
            raise OSError("chunk 13 is damaged")
        return i


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_chunks_come_once_and_in_order(n, ahead):
    """Each index is loaded once, whether the next one is loaded by another thread or not."""
    load = SlowLoad()
    assert list(in_turn(load, range(n), ahead)) == list(range(n))
    assert [i for i, _ in load.asked] == list(range(n))
    others = {thread for _, thread in load.asked} - {threading.get_ident()}
    assert len(others) == (ahead and n > 1)


def test_the_next_chunk_is_read_while_one_computes_and_no_other():
    """Whoever computes on chunk i finds chunk i + 1 on its way, and chunk i + 2 not begun."""
    load = SlowLoad()
    for i in in_turn(load, range(6), True):
        deadline = time.monotonic() + 10
        while len(load.asked) < min(i + 2, 6) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.005)
        assert len(load.asked) == min(i + 2, 6)


def test_no_thread_reads_a_chunk_that_is_alone_or_in_memory(monkeypatch):
    """To start one takes longer than to slice an array."""

    def refused(*workers):
        raise AssertionError("a thread was started")

    monkeypatch.setattr(reading, "ThreadPoolExecutor", refused)
    assert list(in_turn(lambda i: i, [3], True)) == [3]
    chunks = Chunks(MemorySource(np.ones((3 * 2**20, 1))), clean=True)
    assert chunks.n_chunks > 2 and chunks.chunk_bytes > reading.WORTH_BYTES
    assert Engine(workers=2).sum_over(chunks, [lambda rows, kernels: rows.x.sum()]) == [3 * 2**20]


def test_an_error_comes_with_its_chunk_and_who_stops_early_waits_for_one_read_at_most():
    """The chunks before a damaged one are computed; after a stop, no further chunk is read."""
    seen = []
    with pytest.raises(OSError, match="chunk 13"):
        collect(seen, in_turn(SlowLoad(), range(20), True))
    assert seen == list(range(13))
    load = SlowLoad()
    chunks = in_turn(load, range(100), True)
    next(chunks)
    chunks.close()
    count = len(load.asked)
    time.sleep(0.01)
    assert len(load.asked) == count <= 3


def collect(seen, chunks):
    """Append each chunk as it comes, so that those before an error are kept."""
    for chunk in chunks:
        seen.append(chunk)


class Counting(ArraySource):
    """A source that counts how often each chunk is read."""

    reads: dict[int, int]

    def read(self, i):
        """Chunk i."""
        self.reads[i] = self.reads.get(i, 0) + 1
        return super().read(i)


def counting(n_rows=1000, rows=100):
    """Rows in ten chunks of 100 x 3 float64."""
    x = np.random.default_rng(0).normal(size=(n_rows, 3))
    source = Counting(x, np.arange(0, n_rows + 1, rows))
    source.reads = {}
    return x, source


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (2400 * 4 + 1000, 4), (10**9, 10)])
def test_kept_chunks_are_read_once_and_sums_stay_the_same(limit, kept):
    """As many chunks as the limit holds are read in the first pass only; another set of rows starts again."""
    x, source = counting()
    chunks, engine = Chunks(source), Engine(workers=2, cache_bytes=limit)
    sums = [engine.sum_over(chunks, [ColumnSums()])[0] for _ in range(3)]
    assert all((total == sums[0]).all() for total in sums)
    np.testing.assert_allclose(sums[0], x.sum(axis=0))
    assert sorted(source.reads.values()) == [1] * kept + [3] * (10 - kept)
    engine.sum_over(Chunks(source), [ColumnSums()])
    assert sum(source.reads.values()) == kept + 3 * (10 - kept) + 10


class ColumnSums:
    """A job: sums of the columns of a chunk."""

    def __call__(self, rows, kernels):
        """(d,)."""
        return rows.x.sum(axis=0)


def test_a_kept_chunk_is_the_chunk_itself():
    """The second load gives the very arrays of the first."""
    _, source = counting()
    chunks, kept = Chunks(source), ChunkCache(10**6)
    assert kept.load(chunks, 3) is kept.load(chunks, 3)


def test_keeping_is_for_threads():
    """Processes do not share what they keep, so the option is refused there, not ignored."""
    engine = {"scheduler": "local", "keep_decoded": True}
    with pytest.raises(InputError, match="only threads share a cache"):
        validate({"data": {"source": "npy", "path": "x.npy"}, "model": {"n_components": 2}, "engine": engine})


def test_rows_that_a_pass_has_found_clean_are_not_looked_through_again():
    """After the profiling pass bad rows are known: where there are none, chunks say so at no cost; else they are set aside."""
    x, source = counting()
    x[5, 1] = np.nan
    chunks = Chunks(source)
    assert chunks.load(0).bad.sum() == 1 and chunks.load(1).bad is None
    assert chunks.after_profile(None, 1).load(0).bad.sum() == 1
    assert chunks.after_profile(None, 0).load(0).bad is None  # told so


def test_a_row_that_turns_bad_after_the_profile_ends_kmeans_with_its_number():
    """Chunks known to be clean are not looked through, but no NaN gets into an inertia without a word."""
    x, source = counting()
    model = Lloyd(2, np.zeros(3))
    params = model.params_from_arrays({"centers": x[:2].copy()})
    x[105, 1] = np.nan
    rows = Chunks(source).after_profile(None, 0).load(1)
    with pytest.raises(InputError, match="row 105: its distance is NaN"):
        model.e_step(params, rows, KERNELS)
