"""Files of strangers with random damage: docword and csv bytes, metadata and chunks of zarr. A value, or a clear error.

Each seed makes some files; a failure prints the seed and what the file was. `EM_FUZZ=N` tries N seeds of each kind.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from pipeline.errors import InputError, PipelineError
from pipeline.jobconfig import validate

SEEDS = range(int(os.environ.get("EM_FUZZ", "3")))
FILES = 8  # of each seed
MOST_SECONDS, MOST_MIB = 10, 300

CSV = b"a,b,c\n1,2.5,-3\n4,,nan\n# a comment\n1e5,-2,.5\n7,8,9\n" * 3
DOCWORD = b"4\n5\n6\n1 1 2\n1 3 1\n2 2 4\n3 5 1\n3 4 2\n4 1 9\n"
PIECES = [b"\n", b"\r", b"\0", b",", b";", b"\t", b" ", b"#", b'"', b"-", b"+", b".", b"e", b"nan", b"inf", b"1e999", b"_", b"\xff\xfe",
          b"\xef\xbb\xbf", b"\x0c", b"\xc2\xa0", b"\xe2\x80\xa8", b"99999999999999999999", b"0", b"-1", b"0x1p3", b"\x1f\x8b", b"PK\x03\x04"]  # fmt: skip
VALUES = [None, 0, 1, -1, 3, 2**31, 2**63, 10**30, 1.5, "", "x", [], {}, [0], [-1, 2], [10**9, 10**9], True, "NaN", "<f8", "|O", "pickle",
          {"name": "pickle"}, {"id": "pickle"}, "float64", "sharding_indexed", [[[]]]]  # fmt: skip


def damaged_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes cut, repeated, exchanged, flipped or replaced."""
    for _ in range(rng.integers(1, 6)):
        a, b = sorted(rng.integers(0, len(content) + 1, 2))
        piece = PIECES[rng.integers(len(PIECES))]
        variants = (
            content[:a] + content[b:],
            content[:b] + content[a:],
            content[:a] + piece + content[a:],
            content[:a] + piece + content[a + len(piece) :],
            content[:a] + bytes([rng.integers(256)]) + content[a + 1 :],
        )
        content = variants[rng.integers(5)]
    return content


def places(found: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value of a JSON document."""
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return [path, *(each for key, value in inner for each in places(value, (*path, key)))]


def damaged_json(text: bytes, rng: np.random.Generator) -> bytes:
    """A value of a JSON document removed or replaced; or its bytes damaged."""
    if rng.random() < 0.2:
        return damaged_bytes(text, rng)
    found = json.loads(text)
    for _ in range(rng.integers(1, 4)):
        if not (known := places(found)[1:]):
            break
        *way, key = known[rng.integers(len(known))]
        inside = found
        for step in way:
            inside = inside[step]
        if rng.random() < 0.3:
            del inside[key]
        else:
            inside[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    return json.dumps(found).encode()


def read(**options: Any) -> None:
    """Open the rows as the command does, and read the first ones, unless the plan of memory would refuse them."""
    chunks = validate({"data": options}).data.open_chunks()
    if chunks.decoding()[0] + 3 * chunks.chunk_bytes < MOST_MIB * 2**20:
        for i in range(min(chunks.n_chunks, 20)):
            chunks.load(i)


def bounded(act: Callable[[], None], what: Any, codes: tuple[int, ...]) -> None:
    """A value or an error with a sentence; no hang, and no memory beyond what any job has."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        act()
    except PipelineError as error:
        assert error.exit_code in codes and len(str(error)) > 20, (what, error)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}; of {what}") from error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert time.perf_counter() - began < MOST_SECONDS and grown < MOST_MIB, (what, grown)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("source", ["csv", "docword"])
def test_damaged_text(tmp_path: Path, source: str, seed: int) -> None:
    """Exit code 2, whatever the bytes."""
    rng = np.random.default_rng([seed, len(source)])
    for i in range(FILES):
        content = damaged_bytes({"csv": CSV, "docword": DOCWORD}[source], rng)
        path = tmp_path / f"{i}.txt"
        path.write_bytes(content)
        more = {"cache": str(tmp_path / str(i))} if source == "docword" else {}
        bounded(lambda path=path, more=more: read(source=source, path=str(path), **more), (seed, content), (2,))


def store(path: Path, kind: str) -> None:
    """A small store of rows, in shards, or of a CSR matrix."""
    x = np.arange(60.0).reshape(20, 3) + 1
    if kind == "CSR":
        found = sp.csr_array(x)
        attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [20, 3]}
        group = zarr.open_group(path, mode="w", attributes=attributes)
        for name in ("data", "indices", "indptr"):
            group.create_array(name, data=getattr(found, name) + (name == "data"))
    elif kind == "shards":
        zarr.create_array(path, data=x, chunks=(2, 3), shards=(10, 3))
    else:
        zarr.create_array(path, data=x, chunks=(7, 3), zarr_format=int(kind))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["2", "3", "shards", "CSR"])
def test_damaged_stores(tmp_path: Path, kind: str, seed: int) -> None:
    """Exit code 2 or 3, whichever file is removed, cut, flipped or replaced."""
    rng = np.random.default_rng([seed, *kind.encode()])
    for i in range(FILES):
        path = tmp_path / f"{i}.zarr"
        store(path, kind)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        metadata = [file for file in files if file.name in ("zarr.json", ".zarray", ".zattrs")]
        file = (metadata if rng.random() < 0.8 else files)[rng.integers(len(metadata))]
        content = file.read_bytes()
        content = damaged_json(content, rng) if file in metadata else damaged_bytes(content, rng)
        file.write_bytes(content)
        bounded(lambda path=path: read(source="zarr", path=str(path)), (seed, file.name, content), (2, 3))


def test_the_seeds_find_what_is_readable_too(tmp_path: Path) -> None:
    """Some damaged files are tables still, and some are refused: the test sees both."""
    rng, found = np.random.default_rng(0), set()
    for i in range(40):
        (tmp_path / f"{i}.csv").write_bytes(damaged_bytes(CSV, rng))
        try:
            read(source="csv", path=str(tmp_path / f"{i}.csv"))
            found.add("read")
        except InputError:
            found.add("refused")
    assert found == {"read", "refused"}
