"""BLAS: one thread, and which kernels it runs; both decide bits.

Products change in the last digit between one and two threads and between kernel sets (Haswell, SkylakeX,
Zen, ...), so every process computes under one thread, and the kernel set is recorded and compared.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import InputError


def single_thread() -> Any:
    """A context in which BLAS and OpenMP libraries of this process use one thread."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def kernel_set() -> list[str]:
    """What this process multiplies with, such as ["openblas Zen"]."""
    import numpy  # noqa: F401  both must be loaded, or threadpoolctl does not see their BLAS
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_info

    libraries = [lib for lib in threadpool_info() if lib["user_api"] == "blas"]
    return sorted({f"{lib['internal_api']} {lib.get('architecture', 'unknown')}" for lib in libraries})


def check_same_kernels(mine: list[str], others: dict[str, list[str]]) -> None:
    """Refuse a mixture of kernel sets: the same chunk would give other bits on another worker."""
    for name, theirs in others.items():
        if theirs != mine:
            core = mine[0].split()[-1]
            raise InputError(
                f"worker {name} multiplies with {theirs}, this process with {mine}; results would depend on who computes "
                f"what. Start every process with the same kernels: export OPENBLAS_CORETYPE={core}"
            )
