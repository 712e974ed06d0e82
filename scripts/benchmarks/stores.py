"""Large zarr stores to read cold: written from a few blocks, dropped from the page cache, read without decoding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.common import THREADS
from benchmarks.mixtures import RandomMixture, draw
from pipeline.data.source import TARGET_BYTES, rows_per_target

WHAT = "Gaussian float32 noise, zstd with checksum"  # hardly compresses: the sign and exponent bits alone
BLOCKS = 4


def write_store(path: Path, mixture: RandomMixture, gib: float) -> int:
    """A zarr store of `gib` GiB of float32 rows of a mixture, in chunks of the project's size; the number of rows.

    Its chunks are BLOCKS drawn ones, each time stretched and moved by about a percent: drawing all would take longer
    than measuring, and no chunk is another's copy.
    """
    import zarr
    from zarr.codecs import ZstdCodec

    d = mixture.means.shape[1]
    rows, n_chunks = rows_per_target(d, 4), max(round(gib * 2**30 / TARGET_BYTES), 8)
    blocks = [draw(mixture, rows, seed=seed) for seed in range(BLOCKS)]
    shape, chunks = (n_chunks * rows, d), (rows, d)
    array = zarr.create_array(path, shape=shape, chunks=chunks, dtype="float32", compressors=ZstdCodec(checksum=True))

    def write(i: int) -> None:
        stretch, move = 0.01 * np.random.default_rng(i).standard_normal((2, d), dtype=np.float32)
        array[i * rows : (i + 1) * rows] = blocks[i % BLOCKS] * (1 + stretch) + move

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, range(n_chunks)))
    os.sync()
    return n_chunks * rows


def drop_cache(path: Path) -> None:
    """Take every file of a store out of the page cache."""
    os.sync()  # dirty pages stay
    for file in _files(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_all(path: Path) -> int:
    """Read every byte of a store with THREADS threads, and nothing more; how many there were."""
    files = sorted(_files(path))
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(lambda part: sum(_contents(part)), (files[i::THREADS] for i in range(THREADS))))


def _contents(files: list[Path]) -> Iterator[int]:
    """Bytes of each file, read into one buffer again and again."""
    buffer = bytearray(2 * TARGET_BYTES)
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            while read := stream.readinto(buffer):
                yield read


def _files(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.is_file())


def disk_bytes() -> int:
    """Bytes that this process has had fetched from a disk so far (Linux)."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines())
    return int(lines["read_bytes"])
