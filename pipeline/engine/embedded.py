"""Loaded by the worker processes that a job starts itself (Dask calls `dask_setup` in each).

Ctrl-C in a terminal reaches every process of it; the driver alone answers, and ends its workers.
"""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Leave SIGINT to the driver."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
