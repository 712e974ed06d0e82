"""What decides bits beside the data: versions and kernels. Every process of a job must have the same.

Compared when a job opens a cluster, and once more in each worker process that takes a task: some come later.
"""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from pipeline import NUMERICS
from pipeline.engine.blas import check_same_kernels
from pipeline.errors import InputError
from pipeline.kernels.cpu import KERNELS

_PACKAGES = ("em-pipeline", "numpy", "scipy", "numba", "dask", "distributed")

Versions = tuple[tuple[str, str], ...]


def versions() -> Versions:
    """Python, this package's numbers, and the packages that compute or carry what is computed."""
    found = [("python", ".".join(platform.python_version_tuple()[:2])), ("numerics", str(NUMERICS))]
    return (*found, *((name, _version(name)) for name in _PACKAGES))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def about_me() -> tuple[Versions, list[str]]:
    """Versions, and the kernel set."""
    return versions(), KERNELS.identity()


def refuse_unlike(worker: str, mine: tuple[Versions, list[str]], theirs: tuple[Versions, list[str]]) -> None:
    """Raise InputError, with the line to run, where a worker has other versions or kernels."""
    here, there = dict(mine[0]), dict(theirs[0])
    other = {name: here[name] for name in here if there.get(name) != here[name]}
    if other:
        came = ", ".join(f"{name} {there.get(name, 'none')} (here {wanted})" for name, wanted in other.items())
        packages = " ".join(f"{name}=={wanted}" for name, wanted in other.items() if name in _PACKAGES)
        line = f"pip install {packages}" if packages else f"python{here['python']} -m venv"
        raise InputError(
            f"worker {worker} has {came}; results could depend on who computes what. Give all processes the same "
            f"environment; where the worker runs: {line}"
        )
    check_same_kernels(mine[1], {worker: theirs[1]})


@cache
def refuse_here(versions_there: Versions, kernels_there: tuple[str, ...]) -> None:
    """In a worker: the same, about this process; looked at once."""
    refuse_unlike(f"at {platform.node()}", (versions_there, list(kernels_there)), about_me())
