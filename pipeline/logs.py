"""The package's logger, `em_pipeline`. It is silent until an application, or `em-pipeline --log-level` or `--log-file`, adds a handler.

debug: passes, tasks and plans.  info: the phases of a job.  warning: warnings in its events.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pipeline.errors import InputError

T = TypeVar("T")
LEVELS = ("debug", "info", "warning", "error")

_ROOT = logging.getLogger("em_pipeline")
_ROOT.addHandler(logging.NullHandler())  # without one, Python would print warnings to stderr


def get_logger(part: str) -> logging.Logger:
    """Return the logger `em_pipeline.<part>`."""
    return _ROOT.getChild(part)


class _ToStderr(logging.Handler):
    """Writes to the present sys.stderr, which a progress display replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@contextmanager
def logging_to(level: str | None, file: Path | None = None) -> Iterator[None]:
    """Show records of a level and above during a block, on stderr or appended to a file; None and no file show none.

    Raises
    ------
    InputError
        If there is no such level.
    OSError
        If the file cannot be written.
    """
    if level is None and file is None:
        yield
        return
    if level is not None and level not in LEVELS:
        raise InputError(f"--log-level: got {level!r}, expected one of {', '.join(LEVELS)}. Choose one.")
    handler: logging.Handler = _ToStderr() if file is None else logging.FileHandler(file, encoding="utf-8")
    before = _ROOT.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _ROOT.addHandler(handler)
    _ROOT.setLevel((level or "info").upper())
    try:
        yield
    finally:
        _ROOT.removeHandler(handler)
        handler.close()
        _ROOT.setLevel(before)


@contextmanager
def lenient_streams() -> Iterator[None]:
    """Let a command go on, for the length of a block and at its exit, when nobody reads what it prints any more.

    What is printed to stderr may be lost for any reason, such as a full disk. stdout may be the result: only a pipe without a reader
    is no error.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Lenient(sys.stdout, (BrokenPipeError,)), _Lenient(sys.stderr, (OSError, ValueError))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # else Python fails at its exit
                forget(stream)
        sys.stdout, sys.stderr = before


class _Lenient:
    """A stream that loses what it cannot write. ignored : errors that are none."""

    def __init__(self, stream: TextIO | None, ignored: tuple[type[Exception], ...]) -> None:
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115  # None: closed before the start
        self._ignored = ignored
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="backslashreplace")  # names of files may hold anything

    def write(self, text: str) -> int:
        return self._or_lost(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        self._or_lost(self._stream.flush, None)

    def _or_lost(self, action: Callable[[], T], otherwise: T) -> T:
        try:
            return action()
        except self._ignored:
            forget(self._stream)
            return otherwise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forget(stream: Any) -> None:
    """Let what is written to a stream from now on, and what it has in its buffer, be lost."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
