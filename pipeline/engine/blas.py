"""BLAS: one thread, and which kernels; both decide bits.

Matrix products differ in the last digit between one and two threads, and between kernels for different CPUs (Haswell,
SkylakeX, Zen, ...). Every process of a job therefore uses one BLAS thread, and kernels are recorded and
compared (`Kernels.identity`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

CORE_TYPE = "OPENBLAS_CORETYPE"
_AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
_ASK = (
    "import numpy, threadpoolctl as t;"
    "print(*(i.get('architecture') for i in t.threadpool_info() if i['internal_api'] == 'openblas'))"
)
_ASK_FILE = (
    "import ctypes, sys;"
    "name = ctypes.CDLL(sys.argv[1]).scipy_openblas_get_corename64_;"
    "name.restype = ctypes.c_char_p;"
    "print(name().decode())"
)


def choose_kernels(cpu_info: Path = Path("/proc/cpuinfo")) -> None:
    """Select OpenBLAS's AVX-512 kernels for this process and its children if the CPU has the instructions.

    On a CPU that it does not know, OpenBLAS uses its Haswell kernels, at half the speed. It chooses when NumPy
    loads, so this runs before. It asks another process what OpenBLAS would choose, and does nothing if NumPy is
    loaded, OPENBLAS_CORETYPE is set, or OpenBLAS chooses anything else. For the command only: it sets an
    environment variable.
    """
    if CORE_TYPE in os.environ or "numpy" in sys.modules or not cpu_info.exists():
        return
    flags = next((line for line in cpu_info.read_text().splitlines() if line.startswith("flags")), "")
    if not set(flags.split()) >= _AVX512:
        return
    if _chosen() == ["Haswell"]:
        os.environ[CORE_TYPE] = "SkylakeX"


def _chosen() -> list[str]:
    """Names of the kernels that OpenBLAS chooses in another process."""
    # The file that NumPy's wheels bring answers alone: the process then takes a tenth of the CPU time of one that imports NumPy.
    numpy = find_spec("numpy")
    beside = (
        [] if numpy is None or numpy.origin is None else Path(numpy.origin).parents[1].glob("numpy.libs/*openblas*")
    )
    questions = [["-I", "-S", "-c", _ASK_FILE, str(file)] for file in beside]
    for question in (*questions, ["-c", _ASK]):
        asked = subprocess.run([sys.executable, *question], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return asked.stdout.split()
    return []


_LOCK = Lock()
_blocks = 0  # of single_thread that are open, in all threads
_before: list[tuple[Any, int]] = []  # what they will restore


@contextmanager
def single_thread() -> Iterator[None]:
    """Use one BLAS and OpenMP thread during a block; afterwards as many as before.

    Blocks of several threads may overlap. Most BLAS libraries have one limit in a process: the first block sets it, and
    the last one to end restores it. Libraries on OpenMP have one in each thread: each block sets its own thread's.
    Takes about 30 µs, and 5 inside another block.
    """
    global _blocks, _before
    shared, own = _libraries(len(sys.modules))
    with _LOCK:
        if not _blocks:
            _before = _limited(shared)
        _blocks += 1
    mine = _limited(own)
    try:
        yield
    finally:
        _restore(mine)
        with _LOCK:
            _blocks -= 1
            if not _blocks:
                _restore(_before)


def _limited(libraries: list[Any]) -> list[tuple[Any, int]]:
    """Limit libraries to one thread; return each with its earlier number."""
    before = [(library, library.num_threads) for library in libraries]
    for library in libraries:
        _set(library, 1)
    return before


def _restore(before: list[tuple[Any, int]]) -> None:
    for library, threads in before:
        _set(library, threads)
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread()


def _set(library: Any, threads: int) -> None:
    """Set a library's number of threads, from any thread.

    threadpoolctl 3.8 and newer let only one thread of a process set OpenBLAS's, and silently ignore the others: the limit
    would not be set in a concurrent fit, nor restored if another thread's block ends last.
    """
    if library.num_threads == threads:
        return
    library.set_num_threads(threads)
    if library.num_threads != threads and hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)
        library.set_num_threads(threads)


@lru_cache(1)
def _libraries(n_modules: int) -> tuple[list[Any], list[Any]]:
    """Loaded libraries with one limit for the process, and those with one for each thread.

    Searched again only after an import, because a search takes longer than a small fit.
    """
    from threadpoolctl import ThreadpoolController

    found: tuple[list[Any], list[Any]] = ([], [])
    for library in ThreadpoolController().lib_controllers:
        on_openmp = "openmp" in (library.user_api, getattr(library, "threading_layer", None))
        found[on_openmp].append(library)
    return found
