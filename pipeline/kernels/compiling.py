"""How kernels are compiled: without the GIL, on one thread, and cached under a key of all their sources.

numba looks only at the file of a function to see whether its cached code is stale: after an edit of a helper in another
file it would load old code. Our cache folder is therefore named by a hash of all kernel files. Only our functions use
it: numba's own settings stay as they are. Where the folder cannot be written, nothing is cached.

A kernel does not assign an array to a slice: numba compiles the message of an error into it, which takes 5 s, half of the time
of a pass of K-means. It copies in a loop.

fast-math is limited to what keeps infinities and NaN: a component of weight 0 has a log weight of -inf.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator, _SourceFileBackedLocatorMixin

F = TypeVar("F", bound=Callable[..., Any])


def _cache_folder() -> Path | None:
    """A writable folder for this version of the kernels, or None."""
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(here.glob("*.py"))))
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "em-pipeline" / f"kernels-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


_FOLDER = _cache_folder()


class _Locator(_SourceFileBackedLocatorMixin, _CacheLocator):
    """Finds the cached code of a function in our folder; numba's own mixin compares the function's file as well."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._py_file, self._lineno = file, function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(_FOLDER)


class _KernelCacheImpl(CompileResultCacheImpl):
    def __init__(self, function: Callable[..., Any]) -> None:
        self._locator_classes = [_Locator]
        super().__init__(function)  # type: ignore[no-untyped-call]  # numba has no types


class _KernelCache(FunctionCache):
    _impl_class = _KernelCacheImpl


def _compile(function: F, fastmath: set[str]) -> F:
    # A kernel is compiled into each that calls it. As a function of its own it would be there twice, optimized with and
    # without its caller, and which of both were called, and so the last bits, would depend on what is in the cache.
    compiled: Any = numba.njit(nogil=True, forceinline=True, fastmath=fastmath, error_model="numpy")(function)
    if _FOLDER is not None:
        compiled._cache = _KernelCache(function)  # type: ignore[no-untyped-call]  # as njit(cache=True) does
    return compiled


def kernel(function: F) -> F:
    """Compile a function when it is first called with new types; its sums may be reordered into vector lanes."""
    return _compile(function, {"contract", "reassoc", "nsz", "arcp"})


def exact_kernel(function: F) -> F:
    """Compile a function whose operations keep their order."""
    return _compile(function, {"contract", "nsz"})
