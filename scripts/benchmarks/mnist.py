"""The 60,000 training pictures of MNIST, from the folder of real data."""

from __future__ import annotations

import gzip

import numpy as np

from benchmarks.common import Setting

FILE, HEADER, SIDE = "mnist/train-images-idx3-ubyte.gz", 16, 28
QUICK_ROWS = 2000


def pictures(setting: Setting) -> np.ndarray:
    """(60000, 784) uint8."""
    with gzip.open(setting.real(FILE)) as stream:
        stream.read(HEADER)
        found = np.frombuffer(stream.read(), np.uint8).reshape(-1, SIDE * SIDE)
    return found[: setting.pick(len(found), QUICK_ROWS)]
