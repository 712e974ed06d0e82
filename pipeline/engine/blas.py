"""BLAS: one thread, and which kernels it runs; both decide bits.

Products change in the last digit between one and two threads and between kernel sets (Haswell, SkylakeX,
Zen, ...), so every process computes under one thread, and the kernel set is recorded and compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import InputError

CORE_TYPE = "OPENBLAS_CORETYPE"
_AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
_ASK = (
    "import numpy, threadpoolctl as t;"
    "print(*(i.get('architecture') for i in t.threadpool_info() if i['internal_api'] == 'openblas'))"
)


def choose_kernels(cpu_info: Path = Path("/proc/cpuinfo")) -> None:
    """Give this process, and those that it starts, OpenBLAS's AVX-512 kernels where the CPU has the instructions.

    On a CPU that it does not know OpenBLAS falls back to its Haswell kernels, at half the speed. Its choice is fixed
    when NumPy loads, so this comes first, asks another process, and does nothing once NumPy is here, where
    OPENBLAS_CORETYPE is set already, or where OpenBLAS chooses something else.
    """
    if CORE_TYPE in os.environ or "numpy" in sys.modules or not cpu_info.exists():
        return
    flags = next((line for line in cpu_info.read_text().splitlines() if line.startswith("flags")), "")
    if not set(flags.split()) >= _AVX512:
        return
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=False)
    if asked.stdout.split() == ["Haswell"]:
        os.environ[CORE_TYPE] = "SkylakeX"


def single_thread() -> Any:
    """A context in which BLAS and OpenMP libraries of this process use one thread."""
    return _libraries(len(sys.modules)).limit(limits=1)


@lru_cache(1)
def _libraries(n_modules: int) -> Any:
    """The libraries, looked for again only when something has been imported since: that takes longer than a small fit."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def check_same_kernels(mine: list[str], others: dict[str, list[str]]) -> None:
    """Refuse a mixture of kernel sets: the same chunk would give other bits on another worker."""
    for name, theirs in others.items():
        if theirs != mine:
            core = next((kernels.split()[1] for kernels in mine if kernels.startswith("openblas")), "Haswell")
            raise InputError(
                f"worker {name} computes with {theirs}, this process with {mine}; results would depend on who computes "
                f"what. Start every process on the same kind of CPU with the same kernels: export OPENBLAS_CORETYPE={core}"
            )
