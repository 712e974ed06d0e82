"""Sparse matrices in files: Matrix Market (.mtx), and those of scipy.sparse.save_npz (.npz). Converted once, never made dense."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from typing import IO, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator
from zarr.codecs import ZstdCodec

from pipeline.config import AnyPath
from pipeline.data.conversion import Sizes, convert, made_from, write_triples
from pipeline.data.csr import CsrSource
from pipeline.data.files import beside, damaged, open_binary, opening, reading, sha256, stored_size
from pipeline.data.section import ConvertedSection
from pipeline.data.stores import ZarrPlace
from pipeline.data.table import npy_header
from pipeline.errors import InputError

_BLOCK = 4 * 2**20  # bytes at a time
_CHUNK = 2**18  # stored numbers per zarr chunk
_KINDS = {"real": np.float64, "integer": np.int64, "pattern": np.int32}  # of Matrix Market


class SparseSection(ConvertedSection):
    """A sparse matrix in a file, converted on first use to `<name>.csr.zarr` in `cache` or beside the input."""

    source: Literal["sparse"] = Field("sparse", description="a sparse matrix: Matrix Market, or scipy's .npz")
    path: AnyPath = Field(
        description="an .mtx file, .gz or plain, or an .npz of scipy.sparse.save_npz, or an fsspec URL of one"
    )
    transpose: bool = Field(
        False, description="of an .mtx file: whether its columns are the rows, as the cells of a 10x matrix"
    )
    vocabulary: AnyPath | None = Field(
        None, description="path of a text file with one word a line, the names of the features"
    )

    sparse: ClassVar[bool] = True

    @model_validator(mode="after")
    def _a_known_name(self) -> SparseSection:
        if not self.path.endswith((".mtx", ".mtx.gz", ".npz")):
            raise ValueError(
                f"path: got {self.path}, expected a name that ends in .mtx, .mtx.gz or .npz; rename it, or set source to what it is"
            )
        if self.transpose and self.path.endswith(".npz"):
            raise ValueError(
                "transpose: is for .mtx files; leave it out, and save the other matrix: save_npz(path, matrix.T.tocsr())"
            )
        return self

    def open(self) -> CsrSource:
        with opening(self.path):
            options = self.storage_options
            identity = {"source-bytes": stored_size(self.path, options), "source-sha256": sha256(self.path, options)}
        turned = ".transposed" if self.transpose else ""
        folder = self.cache or os.path.dirname(self.path)
        store = os.path.join(folder, f"{os.path.basename(self.path)}{turned}.csr.zarr")
        if not made_from(store, identity):
            fill = self._of_npz if self.path.endswith(".npz") else self._of_mtx
            convert(beside(self.path, self.cache) / os.path.basename(store), identity, lambda _, group: fill(group))
        place = ZarrPlace(store, {}, "error")
        return CsrSource(place, place.open_first(), self.vocabulary, False, self.storage_options)

    def _of_npz(self, group: Any) -> Sizes:
        with opening(self.path), open_binary(self.path, self.storage_options) as stream:
            try:
                return _copied(zipfile.ZipFile(stream), group, self.path)
            except (zipfile.BadZipFile, EOFError) as error:
                raise damaged(self.path, error) from error

    def _of_mtx(self, group: Any) -> Sizes:
        with opening(self.path), open_binary(self.path, self.storage_options) as stream:
            sizes, dtype, line = _header(stream, self.path)
            if self.transpose:
                sizes = Sizes(sizes.columns, sizes.rows, sizes.entries)
            with reading(self.path):
                blocks = _triples(stream, sizes, dtype is _KINDS["pattern"], self.transpose, line, self.path)
                write_triples(group, blocks, sizes, self.path, dtype)
            return sizes


def _copied(archive: zipfile.ZipFile, group: Any, path: str) -> Sizes:
    """Copy the arrays of scipy.sparse.save_npz, a block at a time."""
    wanted = {f"{name}.npy" for name in ("format", "shape", "data", "indices", "indptr")}
    missing = sorted(wanted - set(archive.namelist()))
    kind = None if "format.npy" in missing else _small(archive, "format", path).astype(str).item()
    if kind not in (None, "csr"):
        raise InputError(
            f"{path}: is a {kind} matrix, expected csr, by rows. Write it again: save_npz(path, matrix.tocsr())."
        )
    if missing:
        raise InputError(
            f"{path}: has no {missing[0]}, expected a file of scipy.sparse.save_npz. Write it by that, as a csr_array."
        )
    shape = tuple(int(size) for size in _small(archive, "shape", path).reshape(-1))
    entries = 0
    for name in ("data", "indices", "indptr"):
        with archive.open(f"{name}.npy") as stream:
            size, _, dtype, offset = npy_header(stream, path)
            if len(size) != 1 or dtype.kind not in ("biuf" if name == "data" else "iu"):
                raise InputError(
                    f"{path}: {name} has dtype {dtype} and shape {size}, expected a row of numbers. Write it again."
                )
            if archive.getinfo(f"{name}.npy").file_size != offset + size[0] * dtype.itemsize:
                raise damaged(path, f"{name} is not as long as it says")
            kept = dtype.newbyteorder("=") if dtype.kind != "b" else np.dtype(np.uint8)
            array = group.create_array(
                name,
                shape=size,
                chunks=(max(1, min(size[0], _CHUNK)),),
                dtype=kept,
                compressors=ZstdCodec(level=3, checksum=True),
            )
            some = _BLOCK // dtype.itemsize
            for start in range(0, size[0], some):
                stop = min(start + some, size[0])
                part = stream.read((stop - start) * dtype.itemsize)
                if len(part) < (stop - start) * dtype.itemsize:
                    raise damaged(path, f"{name} ends early")
                array[start:stop] = np.frombuffer(part, dtype).astype(kept)
            entries = size[0] if name == "data" else entries
    return Sizes(shape[0], shape[1], entries)


def _small(archive: zipfile.ZipFile, name: str, path: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as stream:
        shape, _, dtype, _ = npy_header(stream, path)
        if dtype.kind not in "iuSU" or int(np.prod(shape)) * dtype.itemsize > 1000:
            raise InputError(
                f"{path}: {name} has dtype {dtype} and shape {shape}, expected a few numbers or letters. Write it again."
            )
        return np.frombuffer(stream.read(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def _header(stream: IO[bytes], path: str) -> tuple[Sizes, Any, int]:
    """Read the sizes, the dtype of the values, and the number of the last line that was read."""
    words = stream.readline(200).decode(errors="replace").lower().split()
    if words[:2] != ["%%matrixmarket", "matrix"]:
        raise InputError(
            f"{path}, line 1: got {' '.join(words)!r}, expected '%%MatrixMarket matrix coordinate …'. Write it by scipy.io.mmwrite."
        )
    if words[2:3] != ["coordinate"] or words[3:4] not in ([kind] for kind in _KINDS) or words[4:] != ["general"]:
        raise InputError(
            f"{path}, line 1: got {' '.join(words[2:])}, expected coordinate {' or '.join(_KINDS)} general. Write it again: "
            "scipy.io.mmwrite(path, csr_array(matrix), symmetry='general')."
        )
    number, line = 1, b"%"
    while line.startswith(b"%") or not line.strip():
        line = stream.readline(2**16)
        number += 1
        if not line:
            break
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes) or 0 in map(int, sizes[:2]):
        raise InputError(
            f"{path}, line {number}: got {line.decode(errors='replace').strip()!r}, expected the numbers of rows, columns and entries. Correct it."
        )
    found = Sizes(*map(int, sizes))
    found.refuse_many(found.rows, found.entries, path)
    return found, _KINDS[words[3]], number


def _triples(
    stream: IO[bytes], sizes: Sizes, pattern: bool, transpose: bool, line: int, path: str
) -> Iterator[np.ndarray]:
    """Yield blocks of (row, column, value) from 1, (n, 3) float64, after a check of ranges, order and number."""
    width, total, previous, rest = 2 if pattern else 3, 0, 1.0, b""
    limits = [sizes.columns, sizes.rows] if transpose else [sizes.rows, sizes.columns]
    while True:
        block = stream.read(_BLOCK)
        cut = len(block) if not block else block.rfind(b"\n") + 1
        text, rest = (rest + block[:cut], block[cut:]) if cut or not block else (b"", rest + block)
        if len(rest) > _BLOCK:
            raise InputError(
                f"{path}, line {line + 1}: has more than {_BLOCK} bytes, expected {width} numbers. Check what wrote it."
            )
        lines = text.split(b"\n")
        cells = [each.split() for each in lines]
        wrong = next((i for i, each in enumerate(cells) if len(each) not in (0, width)), None)
        if wrong is None:
            try:
                found = np.array([each for each in cells if each], np.float64).reshape(-1, width)
            except ValueError:
                wrong = next(i for i, each in enumerate(cells) if not _are_numbers(each))
        if wrong is not None:
            raise InputError(
                f"{path}, line {line + wrong + 1}: got {lines[wrong].decode(errors='replace')[:60]!r}, expected {width} numbers. Correct it."
            )
        if len(found):
            at = found[:, :2]
            if ((at < 1) | (at > limits) | (at % 1 != 0)).any():
                row, column = at[((at < 1) | (at > limits) | (at % 1 != 0)).any(axis=1)][0]
                raise InputError(
                    f"{path}: got the entry ({row:g}, {column:g}), expected whole numbers from 1 to ({limits[0]}, {limits[1]}). Correct it."
                )
            at = at[:, ::-1] if transpose else at
            if (np.diff(at[:, 0], prepend=previous) < 0).any():
                by, other = ("column", "row") if transpose else ("row", "column")
                raise InputError(
                    f"{path}: its entries are not sorted by {by}, as they must be. Sort them, or, if they are sorted by {other} and "
                    f"{other}s are what is to be clustered, set data.transpose: {str(not transpose).lower()}."
                )
            previous, total = float(at[-1, 0]), total + len(at)
            if total > sizes.entries:
                raise InputError(
                    f"{path}: goes on after the {sizes.entries} entries that its header promises. Correct the header."
                )
            values = np.ones(len(at)) if pattern else found[:, 2]
            yield np.column_stack([at, values])
        line += text.count(b"\n")
        if not block:
            break
    if total != sizes.entries:
        raise InputError(
            f"{path}: ends after {total} entries, its header promises {sizes.entries}. Fetch the whole file, or correct the header."
        )


def _are_numbers(cells: list[bytes]) -> bool:
    try:
        return bool([float(cell) for cell in cells]) or True
    except ValueError:
        return False
