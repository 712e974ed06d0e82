"""Scratch memory is reused, and never shared by two threads."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.kernels.arena import CACHE_LINE, Arena, ArenaPool
from pipeline.kernels.cpu import KERNELS, CpuKernels


def test_an_array_has_the_memory_of_the_one_before_it():
    """Same name, same memory, also for other shapes and dtypes; other names have memory of their own."""
    arena = Arena()
    first = arena.array("a", (100, 3), np.dtype(np.float64))
    other = arena.array("b", (100, 3), np.dtype(np.float64))
    again = arena.array("a", (50,), np.dtype(np.float32))
    assert first.ctypes.data == again.ctypes.data and not np.shares_memory(first, other)
    larger = arena.array("a", (1000, 3), np.dtype(np.float64))
    assert larger.shape == (1000, 3)
    assert np.shares_memory(larger, arena.array("a", (100, 3), np.dtype(np.float64)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (0, 5), (257, 19)])
def test_arrays_begin_at_a_cache_line(shape, dtype):
    """Contiguous, writable, and aligned."""
    found = Arena().array("a", shape, np.dtype(dtype))
    assert found.shape == shape and found.dtype == dtype and found.flags.c_contiguous and found.flags.writeable
    assert found.size == 0 or found.ctypes.data % CACHE_LINE == 0


def test_no_two_threads_have_one_arena():
    """Eight threads write and look again; the pool ends with as many arenas as there were blocks at the same time."""
    pool, together = ArenaPool(), threading.Barrier(8)

    def work(number: int) -> bool:
        together.wait(30)
        intact = True
        for turn in range(300):
            with pool.checkout() as arena, pool.checkout() as inner:
                mine = arena.array("a", (64,), np.dtype(np.int64))
                mine[:] = 1000 * number + turn
                intact &= arena is not inner
                inner.array("a", (64,), np.dtype(np.int64))[:] = -1
                intact &= bool((mine == 1000 * number + turn).all())
        return intact

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))
    assert len(pool._free) <= 16 and len(set(map(id, pool._free))) == len(pool._free)


def test_an_arena_comes_back_after_an_error():
    """What a block raises does not lose its memory."""
    pool = ArenaPool()
    with pytest.raises(ZeroDivisionError), pool.checkout() as arena:
        raise ZeroDivisionError
    with pool.checkout() as again:
        assert again is arena


def test_kernels_pickle_without_their_memory_and_are_one_object_in_a_process():
    """A few bytes, however much was used; what tasks of one process unpickle shares one pool."""
    kernels = CpuKernels()
    with kernels._arenas.checkout() as arena:
        arena.array("a", (2**20,), np.dtype(np.float64))
    sent = pickle.dumps(kernels)
    assert len(sent) < 200
    assert pickle.loads(sent) is pickle.loads(sent) is KERNELS
