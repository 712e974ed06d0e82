"""Sparse matrices in files: what is read is what was written, and what cannot be read is said."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp

from pipeline.data.sources import sparse
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import validate

X = sp.random_array((30, 12), density=0.2, rng=np.random.default_rng(0), format="csr")
X.data = np.round(X.data * 100)


def opened(path, /, **options):
    """The source of a file, converted in a folder of its own."""
    keys = {"source": "sparse", "path": str(path), "cache": str(path.parent / "cache")} | options
    return validate({"data": keys, "model": {"family": "multinomial"}}).data.open()


def whole(source) -> np.ndarray:
    """All rows of a source."""
    return np.concatenate([source.read(i).toarray() for i in range(source.n_chunks)])


@pytest.mark.parametrize(
    "name", ["x.npz", "x.mtx", "x.mtx.gz", "integers.mtx", "pattern.mtx", "empty rows.mtx", "turned.mtx"]
)
def test_a_matrix_is_read_as_it_was_written(tmp_path, name, monkeypatch):
    """Entries, shape and kind of numbers; blocks of the file end anywhere."""
    monkeypatch.setattr(sparse, "_BLOCK", 100)
    path, x, options = tmp_path / name, X.copy(), {}
    if name == "integers.mtx":
        x = x.astype(np.int64)
    if name == "pattern.mtx":
        x.data[:] = 1
    if name == "empty rows.mtx":
        x = sp.csr_array(sp.vstack([sp.csr_array((3, 12)), x, sp.csr_array((2, 12))]))
    if name.endswith(".npz"):
        sp.save_npz(path, x)
    else:
        kind = {"field": "pattern"} if name == "pattern.mtx" else {}
        written = x.T.tocsc() if name == "turned.mtx" else x
        if name == "turned.mtx":  # column by column, as R and MATLAB write
            options = {"transpose": True}
            coo = written.tocoo()
            order = np.lexsort((coo.row, coo.col))
            lines = [f"{coo.row[i] + 1} {coo.col[i] + 1} {coo.data[i]}" for i in order]
            path.write_text(
                "\n".join(["%%MatrixMarket matrix coordinate real general", "% a comment", f"12 30 {x.nnz}", *lines])
            )
        else:
            scipy.io.mmwrite(tmp_path / "w.mtx", written, symmetry="general", **kind)
            content = (tmp_path / "w.mtx").read_bytes()
            path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    source = opened(path, **options)
    assert source.dtype.kind == ("i" if name in ("integers.mtx", "pattern.mtx") else "f") and source.sparse
    np.testing.assert_array_equal(whole(source), x.toarray())


HEADER = "%%MatrixMarket matrix coordinate real general\n"
REFUSED = {
    "an array": (
        "x.mtx",
        "%%MatrixMarket matrix array real general\n2 2\n",
        {},
        "expected coordinate real or integer or pattern general",
    ),
    "symmetric": ("x.mtx", HEADER.replace("general", "symmetric"), {}, "symmetry='general'"),
    "another file": ("x.mtx", "1 2 3\n", {}, "line 1: got '1 2 3', expected '%%MatrixMarket matrix coordinate"),
    "no sizes": ("x.mtx", HEADER, {}, "expected the numbers of rows, columns and entries"),
    "cut short": ("x.mtx", HEADER + "2 2 2\n1 1 5\n", {}, "ends after 1 entries, its header promises 2"),
    "longer": ("x.mtx", HEADER + "2 2 1\n1 1 5\n2 2 5\n", {}, "goes on after the 1 entries that its header promises"),
    "a word": ("x.mtx", HEADER + "2 2 2\n1 1 5\n2 2 five\n", {}, "line 4: got '2 2 five', expected 3 numbers"),
    "a column less": ("x.mtx", HEADER + "2 2 2\n1 1 5\n2 2\n", {}, "line 4: got '2 2', expected 3 numbers"),
    "out of range": (
        "x.mtx",
        HEADER + "2 2 1\n1 3 5\n",
        {},
        "got the entry (1, 3), expected whole numbers from 1 to (2, 2)",
    ),
    "unsorted": ("x.mtx", HEADER + "2 2 2\n2 1 5\n1 1 5\n", {}, "not sorted by row, as they must be. Sort them, or"),
    "a name": ("x.dat", HEADER, {}, "expected a name that ends in .mtx, .mtx.gz or .npz"),
    "transposed npz": ("x.npz", "", {"transpose": True}, "save_npz(path, matrix.T.tocsr())"),
    "no npz": ("x.npz", "nothing", {}, "x.npz: could not be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, case):
    """One sentence that says what to write."""
    name, content, options, said = REFUSED[case]
    (tmp_path / name).write_text(content)
    with pytest.raises((InputError, StorageError)) as error:
        opened(tmp_path / name, **options)
    assert said in str(error.value)


def test_other_archives_are_refused(tmp_path):
    """A matrix by columns, and arrays that are none."""
    sp.save_npz(tmp_path / "c.npz", X.tocsc())
    np.savez(tmp_path / "a.npz", x=np.eye(3))
    for name, said in (
        ("c", "is a csc matrix, expected csr"),
        ("a", "has no data.npy, expected a file of scipy.sparse"),
    ):
        with pytest.raises(InputError, match=said):
            opened(tmp_path / f"{name}.npz")
