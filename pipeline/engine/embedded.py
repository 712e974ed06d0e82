"""Loaded by the local worker processes that a job starts (Dask calls `dask_setup` in each).

Ctrl-C in a terminal and the SIGUSR1 of a batch system reach every process. The driver alone handles them, and ends its
workers.
"""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Ignore both signals; the driver ends a worker by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
