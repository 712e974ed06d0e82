"""Small chunks, and workers whose chunks are slow or deadly.

`python -m tests.faults` is em-pipeline with chunks of some kilobytes. Its chunks, and those of a `dask worker --preload tests.faults`,
are slow, or kill whoever reads them.

In the folder that the process was started in, a file `slow` holds the seconds that each chunk takes longer, and a file
`deadly` the number of a chunk.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.arrays.rows import Rows
from pipeline.data.chunks import Chunks

FOLDER = Path.cwd()  # a worker changes into one of its own later

CHUNK_BYTES = 2**11


def dask_setup(worker: Any) -> None:
    """Replace how chunks are read in this process."""
    load = Chunks.load

    def faulty(self: Chunks, i: int) -> Rows:
        with suppress(OSError, ValueError):
            time.sleep(float((FOLDER / "slow").read_text()))
        with suppress(OSError, ValueError):
            if int((FOLDER / "deadly").read_text()) == i:
                os.kill(os.getpid(), signal.SIGKILL)
        return load(self, i)

    Chunks.load = faulty  # type: ignore[method-assign]


if __name__ == "__main__":
    from pipeline.cli import main
    from pipeline.data import source

    source.TARGET_BYTES = CHUNK_BYTES
    dask_setup(None)  # threads of its own read as workers do
    main()
