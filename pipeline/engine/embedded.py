"""Loaded by the worker processes that a job starts itself (Dask calls `dask_setup` in each).

Ctrl-C in a terminal, and the SIGUSR1 of a batch system, reach every process; the driver alone answers, and ends its workers.
"""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Leave both to the driver; SIGTERM is how it ends a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
