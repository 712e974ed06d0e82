"""What decides the bits of results besides data and config: versions and kernels, the same in every process of a job.

Compared when a job opens a cluster, and in each worker process before its first task, because some workers join later.
"""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from pipeline.errors import InputError
from pipeline.kernels.base import Kernels
from pipeline.numerics import NUMERICS

_PACKAGES = ("em-pipeline", "numpy", "scipy", "numba", "dask", "distributed")


class Identity(NamedTuple):
    """versions : pairs of name and version.  kernels : `Kernels.identity`."""

    versions: tuple[tuple[str, str], ...]
    kernels: tuple[str, ...]


def identity(kernels: Kernels) -> Identity:
    """Return Python, NUMERICS, the packages that compute or carry results, and the kernels of this process."""
    python = ".".join(platform.python_version_tuple()[:2])
    packages = ((name, _version(name)) for name in _PACKAGES)
    return Identity((("python", python), ("numerics", str(NUMERICS)), *packages), tuple(kernels.identity()))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def refuse_other(worker: str, mine: Identity, theirs: Identity) -> None:
    """Raise InputError, with the command to run, if a worker has other versions or kernels than this process."""
    here, there = dict(mine.versions), dict(theirs.versions)
    other = {name: here[name] for name in here if there.get(name) != here[name]}
    if other:
        found = ", ".join(f"{name} {there.get(name, 'none')} (here {wanted})" for name, wanted in other.items())
        packages = " ".join(f"{name}=={wanted}" for name, wanted in other.items() if name in _PACKAGES)
        command = f"pip install {packages}" if packages else f"python{here['python']} -m venv"
        raise InputError(
            f"worker {worker} has {found}; results could depend on which worker computes what. Give all processes the "
            f"same environment; where the worker runs: {command}"
        )
    if theirs.kernels != mine.kernels:
        core = next((name.split()[1] for name in mine.kernels if name.startswith("openblas")), "Haswell")
        raise InputError(
            f"worker {worker} computes with {list(theirs.kernels)}, this process with {list(mine.kernels)}; results would "
            "depend on which worker computes what. Start every process on the same kind of CPU with the same kernels: "
            f"export OPENBLAS_CORETYPE={core}"
        )


@cache
def refuse_this_worker(expected: Identity, kernels: Kernels) -> None:
    """In a worker process: raise InputError, once, if it differs from the process that started the job."""
    refuse_other(f"at {platform.node()}", expected, identity(kernels))
