"""The guard of stores: what is not known to be plain numbers is not decoded, and sizes are not believed."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import pickle
import time
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

from pipeline.arrays import stores
from pipeline.arrays.stores import Refused, guarded, open_whole
from pipeline.data.stores import ZarrPlace
from pipeline.errors import InputError, StorageError
from pipeline.outputs import checkpoint
from pipeline.outputs.checkpoint import State
from pipeline.outputs.model_store import read_dataset, read_model
from tests.jobs import blobs, refused, write_config, write_rows

MARK = "executed"


class Evil:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (os.environ["CANARY"], "w")


def hostile(path: Path, filters: list[str], dtype: str = "|O") -> None:
    """A zarr v2 array, written by hand, whose only chunk is a pickle that numcodecs would load."""
    path.mkdir(parents=True)
    (path.parent / ".zgroup").write_text('{"zarr_format": 2}')
    metadata = {"zarr_format": 2, "shape": [1, 1], "chunks": [1, 1], "dtype": dtype, "fill_value": None, "order": "C"}
    metadata |= {"compressor": None, "filters": [{"id": name} for name in filters]}
    (path / ".zarray").write_text(json.dumps(metadata))
    (path / "0.0").write_bytes(pickle.dumps(Evil()))


OPENED: dict[str, Callable[[Path], Any]] = {
    "rows": lambda path: ZarrPlace(str(path), {}, "error").open_first()[...],
    "a model": lambda path: read_dataset(path.parent),
    "a model without xarray": lambda path: read_model(path.parent),
    "a checkpoint": lambda path: zarr.open_array(open_whole(path), mode="r")[...],
    "any": lambda path: zarr.open(guarded(path), mode="r")[...],
}


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a pickle would make."""
    monkeypatch.setenv("CANARY", str(tmp_path / MARK))
    return tmp_path / MARK


@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
@pytest.mark.parametrize(
    "filters", [["pickle"], ["vlen-utf8", "pickle"], ["pickle", "vlen-utf8"], ["json2"], ["categorize"], []]
)
def test_objects_are_never_decoded(
    tmp_path: Path, canary: Path, opened: Callable[[Path], Any], filters: list[str]
) -> None:
    """Whatever stands beside the codec that would unpickle, in whatever order, and with the dtype of objects alone."""
    hostile(tmp_path / "g.zarr" / "x", filters)
    with pytest.raises(InputError, match="not decoded"):
        opened(tmp_path / "g.zarr" / "x")
    assert not canary.exists()


def test_nor_behind_consolidated_metadata_or_in_shards(tmp_path: Path, canary: Path) -> None:
    """.zmetadata and zarr.json describe arrays too; a shard has codecs of its own."""
    hostile(tmp_path / "g.zarr" / "x", ["vlen-utf8", "pickle"])
    node = json.loads((tmp_path / "g.zarr" / "x" / ".zarray").read_text())
    everything = {"zarr_consolidated_format": 1, "metadata": {".zgroup": {"zarr_format": 2}, "x/.zarray": node}}
    (tmp_path / "g.zarr" / ".zmetadata").write_text(json.dumps(everything))
    with pytest.raises(Refused, match="'pickle'"):
        zarr.open_group(guarded(tmp_path / "g.zarr"), mode="r")
    zarr.create_array(tmp_path / "s.zarr", shape=(4, 4), shards=(4, 4), chunks=(2, 2), dtype="f8")
    change(
        tmp_path / "s.zarr" / "zarr.json", lambda found: found["codecs"][0]["configuration"]["codecs"].append("pickle")
    )
    with pytest.raises(Refused, match="'pickle'"):
        zarr.open(guarded(tmp_path / "s.zarr"), mode="r")
    assert not canary.exists()


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a JSON file."""
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


def test_whatever_numpy_and_xarray_write_is_read(tmp_path: Path) -> None:
    """All dtypes of rows and compressors, in both formats; text; shards: the guard changes nothing."""
    x = np.arange(12).reshape(6, 2)
    compressors = (None, numcodecs.Blosc(), numcodecs.Zstd(), numcodecs.GZip(), numcodecs.LZ4(), numcodecs.BZ2())
    for i, dtype in enumerate(("f4", ">f8", "u1", "<i8", "f2", "?")):
        old, new = tmp_path / f"{i}.v2", tmp_path / f"{i}.v3"
        array = zarr.create_array(
            old, shape=x.shape, dtype=dtype, chunks=(4, 2), zarr_format=2, compressors=compressors[i]
        )
        array[:] = x.astype(dtype)
        zarr.create_array(new, data=x.astype(dtype), chunks=(2, 2), shards=(6, 2) if i % 2 else None)
        for path in (old, new):
            np.testing.assert_array_equal(zarr.open(guarded(path), mode="r")[...], x.astype(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for version in (2, 3):
            zarr.create_array(
                tmp_path / f"t{version}", data=np.array(["a", "β"], np.dtypes.StringDType()), zarr_format=version
            )
            assert list(zarr.open(guarded(tmp_path / f"t{version}"), mode="r")[...]) == ["a", "β"]


BOMBS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a chunk of terabytes": lambda found: found["chunk_grid"]["configuration"].update(chunk_shape=[2**40, 3]),
    "a negative chunk": lambda found: found["chunk_grid"]["configuration"].update(chunk_shape=[-1, 3]),
    "a shape that is none": lambda found: found.update(shape=["x", 3]),
    "a codec that there is not": lambda found: found["codecs"].append({"name": "shell"}),
    "objects": lambda found: found.update(data_type="object"),
    "a dtype of no kind": lambda found: found.update(data_type={"name": {"a": 1}}),
}


@pytest.mark.parametrize("edit", BOMBS.values(), ids=BOMBS)
def test_metadata_that_lie_are_refused_at_once(tmp_path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """At once, with exit code 2, and nothing is written."""
    write_rows(tmp_path / "x.zarr", blobs())
    change(tmp_path / "x.zarr" / "zarr.json", edit)
    config, began = write_config(tmp_path / "c.yaml", tmp_path / "x.zarr"), time.monotonic()
    assert str(tmp_path / "x.zarr") in refused("run", config, "--output", tmp_path / "run")
    assert time.monotonic() - began < 10 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["zstd", "blosc", "lz4"])
def test_a_chunk_that_says_it_decodes_to_much_more_is_not_decoded(tmp_path: Path, kind: str) -> None:
    """The sizes that zstd, blosc and lz4 write before their bytes."""
    codec = {"zstd": numcodecs.Zstd(), "blosc": numcodecs.Blosc(), "lz4": numcodecs.LZ4()}[kind]
    array = zarr.create_array(tmp_path / "x", shape=(8,), dtype="f8", chunks=(8,), zarr_format=2, compressors=codec)
    array[:] = 1.0
    (tmp_path / "x" / "0").write_bytes(codec.encode(np.zeros(2**21)))  # 16 MiB for 64 bytes
    with pytest.raises(Refused, match="declares 16777216 bytes, expected 64"):
        zarr.open(guarded(tmp_path / "x"), mode="r")[...]


FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 1}]
UNSTATED: dict[str, tuple[Any, Callable[[bytes], bytes]]] = {
    "gzip": (numcodecs.GZip(), gzip.compress),
    "gzip in members": (numcodecs.GZip(), lambda x: b"".join(gzip.compress(x[i::64]) for i in range(64))),
    "zlib": (numcodecs.Zlib(), zlib.compress),
    "bz2": (numcodecs.BZ2(), bz2.compress),
    "bz2 in streams": (numcodecs.BZ2(), lambda x: b"".join(bz2.compress(x[i::64]) for i in range(64))),
    "lzma": (numcodecs.LZMA(), lzma.compress),
    "lzma, alone": (numcodecs.LZMA(format=2), partial(lzma.compress, format=2)),
    "lzma, raw": (
        numcodecs.LZMA(format=3, filters=FILTERS),
        partial(lzma.compress, format=lzma.FORMAT_RAW, filters=FILTERS),
    ),
    # 80 blocks of 128 KiB that repeat one byte, and of 64 bytes one; the last has bit 0 set.
    "zstd": (numcodecs.Zstd(), lambda x: zstd_of(x[:1], len(x))),
}


def zstd_of(byte: bytes, n: int) -> bytes:
    """A zstd frame that states no size: blocks that repeat a byte n times in all."""
    sizes = [min(2**17, n - at) for at in range(0, n, 2**17)]
    blocks = [(size << 3 | 2 | (i == len(sizes) - 1)).to_bytes(3, "little") + byte for i, size in enumerate(sizes)]
    return b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(blocks)


@pytest.mark.parametrize("name", UNSTATED)
def test_a_chunk_that_states_no_size_is_decoded_to_a_limit_first(tmp_path: Path, name: str) -> None:
    """Streams without a stated size, and several of them in a row: 10 MiB for 64 bytes are refused, 64 are read."""
    codec, encode = UNSTATED[name]
    array = zarr.create_array(tmp_path / "x", shape=(64,), dtype="u1", chunks=(64,), zarr_format=2, compressors=codec)
    array[:] = 1
    (tmp_path / "x" / "0").write_bytes(encode(bytes(64)))
    np.testing.assert_array_equal(zarr.open(guarded(tmp_path / "x"), mode="r")[...], 0)
    (tmp_path / "x" / "0").write_bytes(encode(bytes(10 * 2**20)))
    with pytest.raises(Refused, match=r"to more than 1049088 bytes|declares \d+ bytes, expected 64"):
        zarr.open(guarded(tmp_path / "x"), mode="r")[...]
    (tmp_path / "x" / "0").write_bytes(encode(os.urandom(64))[:-5])  # damaged: it is not refused, and not read either
    with pytest.raises(Exception) as damage:  # each codec has its own kind
        zarr.open(guarded(tmp_path / "x"), mode="r")[...]
    assert not isinstance(damage.value, Refused)


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("index", [["bytes"], ["bytes", "crc32c"]], ids=len)
def test_a_chunk_within_a_shard_is_no_bomb_either(tmp_path: Path, location: str, index: list[str]) -> None:
    """Wherever it stands in the shard: the last of four is, and the shard is read whole."""
    path = tmp_path / "x"
    zarr.create_array(path, shape=(32,), shards=(32,), chunks=(8,), dtype="u1", compressors=zarr.codecs.GzipCodec())

    def edit(found: dict[str, Any]) -> None:
        inside = found["codecs"][0]["configuration"]
        inside |= {"index_location": location, "index_codecs": [{"name": name} for name in index]}
        inside["index_codecs"][0]["configuration"] = {"endian": "little"}

    change(path / "zarr.json", edit)
    for last, is_bomb in ((bytes(8), False), (bytes(10 * 2**20), True)):
        parts, at, entries = [gzip.compress(each) for each in (bytes(8), bytes(8), bytes(8), last)], 0, []
        before = 64 + 4 * (len(index) - 1) if location == "start" else 0
        for part in parts:
            entries += [before + at, len(part)]
            at += len(part)
        table = np.array(entries, "<u8").tobytes()
        table += bytes(numcodecs.CRC32C().encode(np.frombuffer(table, "u1")))[-4:] if len(index) > 1 else b""
        body = b"".join(parts)
        (path / "c").mkdir(exist_ok=True)
        (path / "c" / "0").write_bytes(table + body if location == "start" else body + table)
        if is_bomb:
            with pytest.raises(Refused, match="more than 1048640 bytes"):
                zarr.open(guarded(path), mode="r")[...]
        else:
            np.testing.assert_array_equal(zarr.open(guarded(path), mode="r")[...], 0)


def test_codecs_that_hide_a_size_are_refused(tmp_path: Path) -> None:
    """Packed twice, shards in shards, or bytes before the compressor's: what a chunk decodes to would not be known."""
    hidden = {
        "twice": [{"id": "gzip"}, {"id": "zstd"}],
        "a sum in front": [{"id": "zstd"}, {"id": "crc32"}],
        "a sum that may be in front": [{"id": "gzip"}, {"id": "crc32c", "location": "start"}],
        "filters behind": [{"id": "bz2"}, {"id": "shuffle"}],
    }
    for name, filters in hidden.items():
        hostile(tmp_path / name / "x", [], "<f8")
        change(tmp_path / name / "x" / ".zarray", lambda found, filters=filters: found.update(filters=filters))
        with pytest.raises(Refused, match="and then by"):
            zarr.open(guarded(tmp_path / name / "x"), mode="r")
    zarr.create_array(tmp_path / "s", shape=(8,), shards=(8,), chunks=(2,), dtype="f8")
    codecs = json.loads((tmp_path / "s" / "zarr.json").read_text())["codecs"]
    change(tmp_path / "s" / "zarr.json", lambda found: found["codecs"][0]["configuration"].update(codecs=codecs))
    with pytest.raises(Refused, match="sharded within shards"):
        zarr.open(guarded(tmp_path / "s"), mode="r")


def test_pipes_and_devices_in_a_store_are_not_read(tmp_path: Path) -> None:
    """As metadata or as a chunk: reading them might never end."""
    for name in ("zarr.json", "c/0/0"):
        path = write_rows(tmp_path / f"{name[:1]}.zarr", blobs())
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(Refused, match="no regular file"):
            zarr.open(guarded(path), mode="r")[...]


def test_a_small_store_may_not_declare_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stores that are read whole: checkpoints fall back, as with any damage, and a model is refused."""
    monkeypatch.setattr(stores, "DECLARED", 2**20)
    for i in range(2):
        checkpoint.save(tmp_path, i, State({"x": np.zeros(8)}, {}))
    path = tmp_path / "gen-000001"
    change(path / "packed" / "float64" / "zarr.json", lambda found: found.update(shape=[2**40]))
    (path / "manifest.json").write_text(json.dumps(checkpoint.sums(path)))
    said: list[str] = []
    assert checkpoint.load(tmp_path, said.append)[0] == 0 and "declares 8796093022208 bytes" in said[0]
    for read in (read_dataset, read_model):
        with pytest.raises(Refused, match="expected no more than"):
            read(path)


@pytest.mark.parametrize(("zarr_format", "sharded"), [(2, False), (3, False), (3, True)])
def test_a_cut_chunk_of_blosc_is_an_error(tmp_path: Path, zarr_format: Any, sharded: bool) -> None:
    """blosc decodes what is in memory behind a chunk that has lost its end, and says nothing: found as wrong numbers of the last rows."""
    x = np.random.default_rng(0).normal(size=(60, 4))
    codec: Any = numcodecs.Blosc() if zarr_format == 2 else zarr.codecs.BloscCodec()
    options: Any = {"shards": (30, 4)} if sharded else {}
    array = zarr.create_array(
        tmp_path / "x.zarr", data=x, chunks=(15, 4), compressors=codec, zarr_format=zarr_format, **options
    )
    chunk = tmp_path / "x.zarr" / array.metadata.encode_chunk_key((1, 0))
    whole = chunk.read_bytes()
    if sharded:  # the first chunk inside states more bytes than the whole shard has
        length = int.from_bytes(whole[12:16], "little")
        chunk.write_bytes(whole[:12] + (length + 2**20).to_bytes(4, "little") + whole[16:])
    else:
        chunk.write_bytes(whole[:-8])
    with pytest.raises(StorageError, match="fewer bytes than it states"):
        zarr.open_array(guarded(tmp_path / "x.zarr"), mode="r")[:]
