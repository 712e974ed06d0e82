"""The package's logger, `em_pipeline`. It is silent until an application, or `em-pipeline --log-level`, adds a handler.

debug: passes, tasks and plans.  info: the phases of a job.  warning: warnings in its events.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import InputError

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
def logging_to_stderr(level: str | None) -> Iterator[None]:
    """Show records of a level and above during a block; None shows none. Raises InputError."""
    if level is None:
        yield
        return
    if level not in LEVELS:
        raise InputError(f"--log-level: got {level!r}, expected one of {', '.join(LEVELS)}. Choose one.")
    handler, before = _ToStderr(), _ROOT.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _ROOT.addHandler(handler)
    _ROOT.setLevel(level.upper())
    try:
        yield
    finally:
        _ROOT.removeHandler(handler)
        _ROOT.setLevel(before)
