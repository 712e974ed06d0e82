"""Errors, by exit code.

Every message says what was found, what is valid, and what to do.
The command line prints the message alone; `--debug` adds the traceback.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HIDDEN = "…"
_NAMES = r"passw(?:or)?d|passphrase|pwd|secret|token(?!_pattern)|credential|signature|authorization|(?:access|account|api|private)[_-]?key"
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^\s/@'\"]+@")
# Without bounds, a long text would take the square of its length.
_IN_QUERY = re.compile(
    rf"([?&](?:[^=&\s]{{0,60}}(?:{_NAMES})[^=&\s]{{0,60}}|sig|key|auth|pass)=)[^&\s'\")]+", re.IGNORECASE
)
_AFTER_NAME = re.compile(rf"((?:{_NAMES})[\w.-]{{0,60}}['\"]?\s{{0,9}}[:=]\s{{0,9}}['\"]?)[^\s,'\"}}&]+", re.IGNORECASE)
_OPTIONS = "storage_options"
_SHORT = re.compile(r"[._](?:key|auth|pass|sig|username|user)$", re.IGNORECASE)  # options of it that hold one
_PUBLIC = {"endpoint_url", "region_name", "region", "protocol", "anon", "mode", "compression"}  # of a storage's options
_LEAST = 8  # letters of an option of a storage that is taken for a credential whatever its name: others are words, such as auto
_known_secrets: set[str] = set()  # what configs of this process hold


def hidden(text: str) -> str:
    """The text without credentials: those of URLs, what follows a name such as password, and what configs held as one."""
    for secret in sorted(_known_secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    for pattern in (_IN_QUERY, _AFTER_NAME):
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return _USER.sub(f"{HIDDEN}@", text)


def without_secrets(value: Any, name: str = "") -> Any:
    """Plain dicts and lists, to be shown or stored, without credentials. name : the key that holds the value."""
    if isinstance(value, Mapping):
        return {
            key: without_secrets(each, f"{name}.{key}" if name.startswith(_OPTIONS) else str(key))
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(each, name) for each in value]
    if isinstance(value, str):
        return HIDDEN if value and _SECRET_NAME.search(name) else hidden(value)
    return value


def remember_secrets(raw: Any, name: str = "") -> None:
    """Have `hidden` hide the credentials of a config, in whatever message they come up again."""
    if isinstance(raw, Mapping):
        for key, value in raw.items():
            if key not in _PUBLIC:
                remember_secrets(value, f"{name}.{key}" if name.startswith(_OPTIONS) else str(key))
    elif isinstance(raw, (list, tuple)):
        for value in raw:
            remember_secrets(value, name)
    elif isinstance(raw, str) and len(raw) > 3 and _is_secret(raw, name):
        _known_secrets.add(raw)


def _is_secret(value: str, name: str) -> bool:
    if _SECRET_NAME.search(name):
        return True
    return name.startswith(_OPTIONS) and (len(value) >= _LEAST or bool(_SHORT.search(name)))


class PipelineError(Exception):
    """Base of all errors that users see; `exit_code` is the command's. Its text shows no credentials."""

    exit_code = 1

    def __str__(self) -> str:
        return hidden(super().__str__())


class InputError(PipelineError):
    """A bad config or input, or a refusal to do harm."""

    exit_code = 2


class SingularCovariance(InputError):
    """A covariance without an inverse: its rows lie in fewer dimensions than there are."""


class StorageError(PipelineError):
    """Reading or writing failed, or what was read is damaged."""

    exit_code = 3


class ClusterLost(PipelineError):
    """The scheduler or all workers are gone; the last checkpoint is intact."""

    exit_code = 4


class Stopped(PipelineError):
    """Stopped on request with a checkpoint; `resume` goes on."""

    exit_code = 75


@contextmanager
def as_written(what: str) -> Iterator[None]:
    """Context, or decorator, in which values of another kind than what we wrote become a StorageError. what : that holds them."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        if isinstance(error, PipelineError):
            raise
        raise StorageError(
            f"{what}: is not as it was written ({type(error).__name__}: {error}). Restore it, or start again with "
            "`em-pipeline run --overwrite`."
        ) from error


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `; did you mean full?`, or nothing if no known word is similar."""
    by_letters = {_letters(each): each for each in known}
    near = difflib.get_close_matches(_letters(word), by_letters, n=1, cutoff=cutoff)
    return f"; did you mean {by_letters[near[0]]}?" if near else ""


def _letters(word: str) -> str:
    """A word without what typos change: kmeans++ is k-means++."""
    return word.lower().replace("-", "").replace("_", "").replace(" ", "")


def does_not_exist(path: str | Path) -> str:
    """Return that a local path does not exist, and the nearest that does, else where it was searched: for messages."""
    asked, here = Path(path), Path.cwd()
    asked = asked.relative_to(here) if asked.is_relative_to(here) else asked
    known, parts = Path(), asked.parts
    for i, part in enumerate(parts):
        if not (known / part).exists():
            there = sorted(os.listdir(known)) if os.access(known, os.R_OK) and known.is_dir() else []
            near = difflib.get_close_matches(part, there, n=1, cutoff=0.7)
            if near:
                found = known.joinpath(near[0], *parts[i + 1 :])
                found = found if found.exists() else known / near[0]
                return f"does not exist; did you mean {_with_slash(found)}?"
            break
        known /= part
    if asked.is_absolute() or len(parts) - i > 1:
        return f"does not exist: there is no {parts[i]} in {_with_slash(known)}."
    return f"does not exist; relative paths start from {Path.cwd()}."


def refuse_special(path: str | Path) -> None:
    """Raise InputError for a pipe, a socket or a device: reading it may never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # what opens it says what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: is a pipe, a socket or a device, expected a file. Write what it holds to a file.")


def printable(text: str) -> str:
    """Return a text that can be written as UTF-8: other bytes, of names of files, are shown by their numbers."""
    return text.encode("utf-8", "backslashreplace").decode()


def shown_path(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


def _with_slash(path: Path) -> str:
    """A path as one would type it here, a folder with a slash at its end."""
    text = shown_path(path)
    return f"{text}/" if path.is_dir() and text != "/" else text
