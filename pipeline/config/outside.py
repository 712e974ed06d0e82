"""Classes in files that a config names, such as `my_model.py:Poisson`: the only place where code of a user is executed.

A file becomes a module below this one whose name has the file's SHA-256 and its path. So a worker process that receives an
object of such a class imports the same file, under the same path, or refuses one that has changed. Models in JAX take the file's
text with them, for a worker that has no such file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import linecache
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pipeline.config.paths import local
from pipeline.errors import InputError, does_not_exist

__path__: list[str] = []  # makes this module a package: its modules are found by `_Finder` alone
_DIGITS = 16  # of the SHA-256 that a module's name holds


class Outside(NamedTuple):
    """What a file defines. sha256 : of the file, in hexadecimal."""

    found: Any
    sha256: str


def load(named: str, key: str) -> Outside:
    """Execute a file, once for each content, and return what is defined in it.

    Parameters
    ----------
    named : str
        Path and name, such as ``my_model.py:Poisson``.
    key : str
        The key of the config, for messages.

    Raises
    ------
    InputError
        If there is no such file or name, or if the file cannot be executed.
    """
    path, name = _file_of(named, key)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        module = importlib.import_module(f"{__name__}.x{sha256[:_DIGITS]}{str(path).encode().hex()}")
    except Exception as error:  # anything that a file may raise
        raise InputError(
            f"{key} {path}: cannot be executed ({type(error).__name__}: {error}). Correct the file."
        ) from error
    if not hasattr(module, name):
        raise InputError(f"{key} {path}: defines no {name}. Name a class of this file.")
    return Outside(getattr(module, name), sha256)


def sha256_of(named: str, key: str) -> str:
    """Return the SHA-256 of the file that `load` would execute. Raises InputError if there is none."""
    return hashlib.sha256(_file_of(named, key)[0].read_bytes()).hexdigest()


def source_of(module: str) -> str | None:
    """Return the text of the file of a module below this one; None for any other module."""
    if not module.startswith(f"{__name__}."):
        return None
    return "".join(linecache.getlines(str(sys.modules[module].__file__)))


def module_of(name: str, source: str) -> ModuleType:
    """Return a module below this one, from its file, or from the file's text where there is no such file.

    Raises
    ------
    ImportError
        If there is a file that has changed.
    """
    if name in sys.modules:
        return sys.modules[name]
    try:
        return importlib.import_module(name)
    except FileNotFoundError:
        file = _file_in(name)
        if hashlib.sha256(source.encode()).hexdigest()[:_DIGITS] != name.rpartition(".")[2][1 : 1 + _DIGITS]:
            raise ImportError(f"{file} is not here, and its text is not the one that the job began with") from None
        module = ModuleType(name)
        module.__file__ = file
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for tracebacks
        sys.modules[name] = module
        exec(compile(source, file, "exec"), module.__dict__)
        return module


def _file_in(name: str) -> str:
    """The path that a module's name holds."""
    return bytes.fromhex(name.rpartition(".")[2][1 + _DIGITS :]).decode()


def _file_of(named: str, key: str) -> tuple[Path, str]:
    path_text, _, name = named.rpartition(":")
    if not path_text.endswith(".py") or not name.isidentifier():
        raise InputError(
            f"{key}: got {named!r}, expected a Python file and the name of a class in it: my_file.py:MyClass."
        )
    try:
        path = Path(local(path_text))  # before the section that the file defines has validated it
    except ValueError as error:
        raise InputError(f"{key}: {error}.") from error
    if not path.is_file():
        raise InputError(f"{key} {path_text}: {does_not_exist(path_text)}")
    return path, name


class _Finder:
    """Finds the modules below this one by the path in their names."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        parent, _, own = name.rpartition(".")
        if parent != __name__:
            return None
        sha256, file = own[1 : 1 + _DIGITS], _file_in(name)
        now = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        if not now.startswith(sha256):
            raise ImportError(
                f"{file} has changed since the job began: its SHA-256 was {sha256}…, it is {now[:_DIGITS]}…"
            )
        return importlib.util.spec_from_file_location(name, file)


sys.meta_path.append(_Finder)
