"""The kernels of CPUs: compiled by numba for the CPU that they run on, with matrix products by BLAS."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array, compute_dtype
from pipeline.kernels import chains, choice, counts, gaussian, nearest, topics
from pipeline.kernels.arena import ArenaPool
from pipeline.kernels.base import (
    ChainSums,
    CountsProblem,
    CountsSums,
    GaussianProblem,
    GaussianSums,
    LloydSums,
    TopicsProblem,
    TopicsSums,
)
from pipeline.kernels.bounds import BoundsCache
from pipeline.kernels.pruned import near_joint


class CpuKernels:
    """Kernels (`pipeline.kernels.base.Kernels`) with a pool of scratch memory that all calls share.

    A pickled object is a few bytes. It unpickles as the process's own object, so that the tasks of a worker process
    share one pool, from pass to pass.
    """

    def __init__(self) -> None:
        self._arenas = ArenaPool()
        self._bounds = BoundsCache()

    def __reduce__(self) -> tuple[Any, ...]:
        return of_this_process, ()

    def gaussian_pass(self, problem: GaussianProblem, x: Array, weight: Array | None) -> GaussianSums:
        with self._arenas.checkout() as arena:
            return gaussian.gaussian_pass(problem, x, weight, arena, self._bounds)

    def gaussian_log_joint(self, problem: GaussianProblem, x: Array) -> Array:
        with self._arenas.checkout() as arena:
            return gaussian.gaussian_log_joint(problem, x, arena)

    def gaussian_near_joint(self, problem: GaussianProblem, x: Array, ranks: int) -> Array | None:
        x = np.ascontiguousarray(x, dtype=compute_dtype(x.dtype))
        with self._arenas.checkout() as arena:
            return near_joint(problem, x, ranks, arena, self._bounds)

    def gaussian_implementations(self, problem: GaussianProblem, dtype: np.dtype[Any]) -> dict[str, list[int]]:
        return choice.implementations(problem, compute_dtype(dtype))

    def counts_pass(self, problem: CountsProblem, x: Any, weight: Array | None) -> CountsSums:
        return counts.counts_pass(problem, x, weight)

    def counts_log_joint(self, problem: CountsProblem, x: Any) -> Array:
        return counts.counts_log_joint(problem, x)

    def topics_pass(self, problem: TopicsProblem, x: Any, weight: Array | None) -> TopicsSums:
        with self._arenas.checkout() as arena:
            return topics.topics_pass(problem, x, weight, arena)

    def chain_pass(
        self, log_density: Array, starts: Array, weight: Array, initial: Array, transitions: Array
    ) -> ChainSums:
        with self._arenas.checkout() as arena:
            return chains.chain_pass(log_density, starts, weight, initial, transitions, arena)

    def best_path(self, log_density: Array, starts: Array, initial: Array, transitions: Array) -> Array:
        return chains.best_path(log_density, starts, initial, transitions)

    def lloyd_pass(self, x: Array, weight: Array | None, centers: Array, shift: Array, first: int = 0) -> LloydSums:
        return nearest.lloyd_pass(x, weight, centers, shift, first)

    def nearest(self, x: Any, centers: Array, shift: Array) -> tuple[Array, Array]:
        return nearest.nearest(x, centers, shift)

    def identity(self) -> list[str]:
        import numpy  # noqa: F401  both must be loaded, or threadpoolctl does not see their BLAS
        import scipy.linalg  # noqa: F401
        from llvmlite.binding import get_host_cpu_name
        from threadpoolctl import threadpool_info

        libraries = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
        names = {f"{lib['internal_api']} {lib.get('architecture', 'unknown')}" for lib in libraries}
        return sorted({f"compiled {get_host_cpu_name()}", *names})


@cache
def of_this_process() -> CpuKernels:
    """The object that this process uses unless it is handed another one."""
    return CpuKernels()


KERNELS = of_this_process()
