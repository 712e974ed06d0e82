"""Signals that stop the command: SIGINT (Ctrl-C), SIGTERM, and SIGUSR1 (of batch systems, before a job's time is up).

The first one raises StopRequested in the main thread; handlers save the newest state as it propagates. A
second one ends the process at once, and so does a stop that takes longer than STOP_SECONDS: batch systems do not wait.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from pipeline.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOP_SECONDS = 20.0
ECHO_SECONDS = 0.5  # a launcher passes on the Ctrl-C that the terminal has sent us too: both are one request
_LATE = (
    b"stopped before everything was closed: use `resume` if there is a checkpoint, else run the same command again\n"
)


class StopRequested(BaseException):
    """A request to stop, by the named signal. No Exception and no KeyboardInterrupt, which libraries catch."""


@contextmanager
def stopping() -> Iterator[None]:
    """Raise StopRequested on signals during a block.

    The time limit of a stop holds after the block too, because Python waits for threads when it exits.
    """
    asked: float | None = None

    def stop(number: int, _: Any) -> None:
        nonlocal asked
        if asked is None:
            asked = time.monotonic()
            signal.signal(signal.SIGALRM, _end)
            signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS)
            with suppress(RuntimeError, ValueError, OSError):  # it interrupted a write, or stderr is closed
                sys.stderr.write(f"{signal.Signals(number).name}: stopping; a second one ends the process at once\n")
            raise StopRequested(signal.Signals(number).name)
        if time.monotonic() - asked > ECHO_SECONDS:
            _show_cursor()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if asked is None:
                signal.signal(number, handler)


def _show_cursor() -> None:
    """The live display hides it, and does not end in time to show it again."""
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")


def _end(*_: Any) -> NoReturn:
    with suppress(OSError):
        _show_cursor()
        os.write(2, _LATE)
    os._exit(Stopped.exit_code)
