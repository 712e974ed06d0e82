"""Whole chunks decoded beside zarr: what zarr reads, bit for bit, and nothing that zarr would refuse."""

import os
import re
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from pipeline.data.sources.zarr import ZarrSection
from pipeline.data.stores import ZarrPlace
from pipeline.data.whole_chunks import read_whole_chunks
from pipeline.errors import StorageError

PLAIN: list[dict[str, Any]] = [
    {},
    {"compressors": ZstdCodec(checksum=True)},
    {"compressors": BloscCodec(cname="lz4")},
    {"zarr_format": 2},
    {"zarr_format": 2, "compressors": numcodecs.Blosc("zstd", shuffle=2)},
]
OTHERS: list[dict[str, Any]] = [
    {"compressors": None},
    {"compressors": GzipCodec()},
    {"compressors": [ZstdCodec(), Crc32cCodec()]},
    {"serializer": BytesCodec(endian="big")},
    {"filters": TransposeCodec(order=(1, 0))},
    {"chunks": (6, 2)},
    {"shards": (12, 3)},
    {"zarr_format": 2, "order": "F"},
    {"zarr_format": 2, "dtype": ">f4"},
    {"zarr_format": 2, "filters": [numcodecs.Shuffle(4)]},
]


def written(path: Path, **options: Any) -> np.ndarray:
    """40 rows of 3 in chunks of 6, in a store at `path`; the rows."""
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(options.get("dtype", "f4"))
    zarr.create_array(path, shape=x.shape, **{"chunks": (6, 3), "dtype": "f4", **options})[:] = x
    return x


@pytest.mark.parametrize("options", PLAIN)
@given(data=st.data())
def test_whole_chunks_are_what_zarr_reads(tmp_path_factory: Any, options: dict[str, Any], data: st.DataObject) -> None:
    """Boxes of whole chunks are decoded here, all others by zarr; both give the rows."""
    path = tmp_path_factory.mktemp("store") / "x.zarr"
    x = written(path, **options)
    start = data.draw(st.integers(0, len(x) - 1))
    stop = data.draw(st.integers(start + 1, len(x)))
    found = read_whole_chunks(str(path), "", start, stop)
    assert (found is None) == bool(start % 6 or stop % 6)
    if found is not None:
        assert found.dtype == x.dtype and found.flags.c_contiguous
        np.testing.assert_array_equal(found, x[start:stop])
    np.testing.assert_array_equal(ZarrPlace(str(path), {}, "error").read(start, stop), x[start:stop])


@pytest.mark.parametrize("options", OTHERS)
def test_other_encodings_are_left_to_zarr(tmp_path: Path, options: dict[str, Any]) -> None:
    """Another compressor, filters, a foreign byte order, shards, columns apart: not decoded here, and read the same."""
    x = written(tmp_path / "x.zarr", **options)
    assert read_whole_chunks(str(tmp_path / "x.zarr"), "", 0, 12) is None
    np.testing.assert_array_equal(ZarrPlace(str(tmp_path / "x.zarr"), {}, "error").read(0, 12), x[:12])


@pytest.mark.parametrize("options", PLAIN)
def test_odd_chunks_are_left_to_zarr(tmp_path: Path, options: dict[str, Any]) -> None:
    """A chunk that is absent, cut, of another size or a pipe is not decoded here; what is read instead is an error or fill values."""
    written(tmp_path / "x.zarr", **options)
    written(tmp_path / "long.zarr", **{**options, "chunks": (12, 3)})
    key = "1.0" if options.get("zarr_format") == 2 else "c/1/0"
    chunk, longer = tmp_path / "x.zarr" / key, tmp_path / "long.zarr" / key
    place, whole = ZarrPlace(str(tmp_path / "x.zarr"), {}, "error"), chunk.read_bytes()
    for odd in (b"", whole[:-8], whole[: len(whole) // 2], longer.read_bytes()):
        chunk.write_bytes(odd)
        assert read_whole_chunks(place.path, "", 6, 12) is None
        with pytest.raises(StorageError, match=re.escape(key)):
            place.read(6, 12)
    chunk.unlink()
    assert read_whole_chunks(place.path, "", 6, 12) is None
    with pytest.raises(StorageError, match="is missing"):
        place.read(6, 12)
    np.testing.assert_array_equal(ZarrPlace(place.path, {}, "fill").read(6, 12), np.zeros((6, 3)))
    os.mkfifo(chunk)
    assert read_whole_chunks(place.path, "", 6, 12) is None


def test_a_flipped_bit_is_an_error(tmp_path: Path) -> None:
    """The checksum of zstd is compared here too."""
    written(tmp_path / "x.zarr", compressors=ZstdCodec(checksum=True))
    chunk = tmp_path / "x.zarr/c/1/0"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    with pytest.raises(StorageError, match="c/1/0"):
        ZarrPlace(str(tmp_path / "x.zarr"), {}, "error").read(6, 12)


def test_an_array_that_was_written_again_is_opened_again(tmp_path: Path) -> None:
    """Its metadata are those of now, not of the first read."""
    place = ZarrPlace(str(tmp_path / "x.zarr"), {}, "error")
    for dtype in ("f4", "i4", "f4"):
        x = written(tmp_path / "x.zarr", dtype=dtype, overwrite=True)
        found = place.read(0, 12)
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found, x[:12])


def test_the_system_fetches_ahead_of_local_stores_alone(tmp_path: Path) -> None:
    """Where it does, no thread reads the next chunk."""
    written(tmp_path / "x.zarr")
    assert ZarrSection(path=str(tmp_path / "x.zarr")).open().fetched_ahead == hasattr(os, "posix_fadvise")
    assert not ZarrPlace("s3://bucket/x.zarr", {}, "error").fetches_ahead
