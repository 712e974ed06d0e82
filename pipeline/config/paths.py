"""Paths of a config: the one place where they are expanded and made absolute, so that a stored config means the same from anywhere."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator

_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:/")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def is_url(path: str) -> bool:
    """Return whether fsspec, rather than the operating system, opens this path."""
    return "://" in path


def expanded(path: str) -> str:
    """Return a local path with ~ and ${VARIABLE} expanded.

    Raises
    ------
    ValueError
        If it cannot be one: a URL, empty, with a null byte, or with a variable or user that does not exist.
    """
    if _SCHEME.match(path):  # a Path has made s3:/ of s3://
        raise ValueError(
            f"got the URL {path.partition(':')[0]}://…, expected a local path: URLs are read, and not written to. "
            "Give a folder; output.copy_to copies the results of a run to a URL"
        )
    found = os.path.expanduser(_VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), path))
    left = _VARIABLE.search(found)
    if not path:
        wrong = "it is empty"
    elif "\0" in found or not _is_encodable(found):
        wrong = "it has a character that no path can have"
    elif left is not None and not os.path.lexists(found):
        wrong = f"there is no environment variable {left[1]}"
    elif len(max(os.fsencode(found).split(b"/"), key=len)) > 255 or len(found) > 4000:
        wrong = "it is longer than names of files are"
    elif found.startswith("~") and not os.path.lexists(found):
        wrong = "there is no such user"
    else:
        return found
    raise ValueError(f"got {path!r}, expected a path: {wrong}. Correct it")


def _is_encodable(path: str) -> bool:
    try:
        return bool(os.fsencode(path))
    except UnicodeEncodeError:
        return False


def local(path: str) -> str:
    """Return a local path, expanded and absolute. Raises ValueError as `expanded` does."""
    return os.path.abspath(expanded(path))


def absolute(path: str) -> str:
    """Return what `local` does, and a URL as it is. Raises ValueError."""
    return path if is_url(path) else local(path)


def _absolute_where_it_looks_like_a_path(name: str) -> str:
    is_path = name.endswith((".npy", ".zarr")) or name.startswith(("~", "${", "./", "../"))
    return absolute(name) if is_path else name


AnyPath = Annotated[str, AfterValidator(absolute)]
"""A local path or a URL."""
LocalPath = Annotated[str, AfterValidator(local)]
"""A path on a file system of this machine."""
ColumnOrPath = Annotated[str, AfterValidator(_absolute_where_it_looks_like_a_path)]
"""The name of a column, else a path of a .npy or .zarr, or a URL."""
