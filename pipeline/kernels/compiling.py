"""How kernels are compiled: without the GIL, never parallel, and cached under a key of their own source.

numba's cache looks at the file of a function only, so that editing a helper in another file leaves stale code
behind; here the cache's folder is named by a hash of all kernels. Where it cannot be written, nothing is cached.
fast-math is limited to what keeps infinities and NaN: a component of weight 0 has a log of -inf.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

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
if _FOLDER is not None:
    numba.config.CACHE_DIR = str(_FOLDER)  # type: ignore[attr-defined]


def _compile(function: F, fastmath: set[str]) -> F:
    # A kernel is compiled into each that calls it. As a function of its own it would be there twice, optimized with and
    # without its caller, and which of both were called, and so the last bits, would depend on what is in the cache.
    cached = _FOLDER is not None
    compiled = numba.njit(cache=cached, nogil=True, forceinline=True, fastmath=fastmath, error_model="numpy")
    return compiled(function)  # type: ignore[return-value]


def kernel(function: F) -> F:
    """Compile a function, when it is first called with new types; its sums may be reordered into vector lanes."""
    return _compile(function, {"contract", "reassoc", "nsz", "arcp"})


def exact_kernel(function: F) -> F:
    """Compile a function whose operations keep their order."""
    return _compile(function, {"contract", "nsz"})
