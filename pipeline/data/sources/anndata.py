"""AnnData files (.h5ad) and stores (.zarr): X, a layer or an array of obsm, dense or sparse, read by chunk and never whole.

Only the layout is read, as anndata has written it since 0.7; anndata itself is not needed. Its specification: "On-disk format" in
anndata's documentation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.config import AnyPath, ColumnOrPath
from pipeline.config.paths import is_url
from pipeline.data.array import ArraySource
from pipeline.data.column import Column, RowColumn
from pipeline.data.csr import CsrSource
from pipeline.data.encoded import refuse_encoded
from pipeline.data.files import refuse_absent
from pipeline.data.hdf import HdfPlace
from pipeline.data.section import FileSection
from pipeline.data.source import Source
from pipeline.data.stores import ZarrPlace, stored_chunk
from pipeline.errors import InputError, did_you_mean

_COLUMN = "a column of obs by its name, else the path of a .npy or .zarr"
Place = ZarrPlace | HdfPlace


class AnndataSection(FileSection):
    """An AnnData file or store: cells are rows. Sparse rows stay sparse, for the families that take them."""

    source: Literal["anndata"] = Field("anndata", description="AnnData: .h5ad (extra anndata), or .zarr")
    path: AnyPath = Field(
        description="an .h5ad file or a .zarr store that anndata has written, or an fsspec URL of one"
    )
    layer: str | None = Field(None, description="a layer in place of X, such as counts")
    obsm: str | None = Field(None, description="an array of obsm in place of X, such as X_pca")
    weights: ColumnOrPath | None = Field(None, description=f"one non-negative weight a row: {_COLUMN}")
    labels: ColumnOrPath | None = Field(
        None, description=f"one integer a row, or a column of categories; -1, and missing: unknown; {_COLUMN}"
    )
    labels_true: ColumnOrPath | None = Field(None, description="the class of each row, for the report: as labels")
    units: ColumnOrPath | None = Field(
        None,
        description=f"the same for consecutive rows that are held out together, such as those of a donor: {_COLUMN}",
    )

    reads_stores: ClassVar[bool] = True
    takes_labels_back: ClassVar[bool] = True
    also_called: ClassVar[tuple[str, ...]] = ("h5ad", "scanpy")

    @model_validator(mode="after")
    def _one_of_two(self) -> AnndataSection:
        if self.layer is not None and self.obsm is not None:
            raise ValueError("layer: rows are those of a layer or of obsm, not of both; leave one out")
        return self

    @property
    def place(self) -> Place:
        """Where the file or store is."""
        is_store = self.path.rstrip("/").endswith(".zarr") or (not is_url(self.path) and os.path.isdir(self.path))
        return (ZarrPlace if is_store else HdfPlace)(self.path, self.storage_options, self.missing_chunks)

    def open(self) -> AnndataSource:
        refuse_absent(self.path)
        place = self.place
        with place.node() as root:
            if "obs" not in root or "var" not in root or "_index" not in root["obs"].attrs:
                raise InputError(
                    f"{place}: has no obs and var of AnnData; it holds {_listed(root)}. Set data.source to what it is, or write it again "
                    "by a version of anndata from 0.7."
                )
            key, name = ("layers", self.layer) if self.layer is not None else ("obsm", self.obsm)
            wanted = "X" if name is None else f"{key}/{name}"
            if wanted not in root:
                raise _absent(str(place), root, key, name)
            inner = _rows(place.child(wanted), root[wanted])
            obs, var = (_index(root[axis], axis, place) for axis in ("obs", "var"))
            features = (f"{name} {i}" for i in range(inner.n_features)) if self.obsm is not None else var
            return AnndataSource(inner, obs, features if isinstance(features, Index) else tuple(features))

    def open_column(self, what: str, source: Source) -> Column | None:
        name = getattr(self, what)
        if name is None:
            return None
        place = self.place
        with place.node() as root:
            obs = root["obs"]
            if name in obs:
                return _column(what, place.child(f"obs/{name}"), obs[name], source.n_rows)
            columns = [str(each) for each in obs.attrs.get("column-order", ())]
        if not is_url(name) and not os.path.lexists(name):
            near = did_you_mean(name, columns) or "."
            raise InputError(
                f"data.{what}: got {name!r}, expected a column of obs ({', '.join(columns) or 'there is none'}) or a path that exists{near} "
                "Correct it."
            )
        return super().open_column(what, source)


@dataclass(frozen=True)
class Index:
    """Names of cells or genes, where they are stored. Small and picklable."""

    place: Place
    size: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return names start:stop, shape (stop - start,) of str."""
        found = self.place.read(start, stop)
        return np.array([each.decode() if isinstance(each, bytes) else str(each) for each in found], dtype=object)


class AnndataSource(Source):
    """Rows with names, of which every read is that of the array.

    Parameters
    ----------
    rows : Source
    obs : Index
        Names of rows.
    features : Index or tuple of str
    """

    def __init__(self, rows: Source, obs: Index, features: Index | tuple[str, ...]) -> None:
        self.rows, self.obs, self.features = rows, obs, features
        self.n_features, self.dtype, self.bounds, self.sparse = rows.n_features, rows.dtype, rows.bounds, rows.sparse
        if obs.size != rows.n_rows or (isinstance(features, Index) and features.size != rows.n_features):
            sizes = (obs.size, features.size if isinstance(features, Index) else rows.n_features)
            raise InputError(
                f"{obs.place}: got {sizes[0]} and {sizes[1]} names of obs and var for {rows.n_rows} rows and {rows.n_features} columns. "
                "Write the file again."
            )
        if isinstance(rows, ArraySource):
            self.stored_chunk = rows.stored_chunk  # for the advice of `check`

    def read(self, i: int) -> Any:
        return self.rows.read(i)

    def keys(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return {"obs_name": self.obs.read(start, stop)}

    def describe(self) -> dict[str, Any]:
        return {"kind": "rows"} | ({} if self.sparse else {"features": self._names()})

    def vocabulary(self) -> list[str] | None:
        return self._names() if self.sparse else None

    def _names(self) -> list[str]:
        return list(self.features.read(0, self.n_features) if isinstance(self.features, Index) else self.features)

    def object_sizes(self) -> list[int]:
        return self.rows.object_sizes()

    def unprotected(self) -> str | None:
        return self.rows.unprotected()

    def decoding(self) -> tuple[int, str]:
        return self.rows.decoding()


def _rows(place: Place, node: Any) -> Source:
    """Rows of X, of a layer, or of an array of obsm."""
    kind = str(node.attrs.get("encoding-type", "array"))
    if kind == "csr_matrix":
        return CsrSource(place, node)
    if kind == "csc_matrix":
        raise InputError(
            f"{place}: is stored by columns (csc_matrix), expected rows. Write it again: adata.X = adata.X.tocsr(), or the layer, then "
            "adata.write_h5ad(…)."
        )
    if not hasattr(node, "shape"):
        raise InputError(
            f"{place}: is a {kind}, expected an array or a csr_matrix. Write its numbers as one: adata.obsm[…] = ….to_numpy()."
        )
    refuse_encoded(str(place), node)
    return ArraySource(place, node)


def _index(table: Any, axis: str, place: Place) -> Index:
    """The names of an axis."""
    name = str(table.attrs["_index"])
    node = table[name]
    below = "/values" if hasattr(node, "keys") and "values" in node else ""  # nullable strings
    node = node["values"] if below else node
    return Index(place.child(f"{axis}/{name}{below}"), int(node.shape[0]))


def _column(what: str, place: Place, node: Any, n_rows: int) -> RowColumn:
    """Numbers of a column of obs; of categories their codes."""
    kind = str(node.attrs.get("encoding-type", "array"))
    if kind == "categorical" and what != "weights":
        place, node = place.child("codes"), node["codes"]
    if not hasattr(node, "shape") or node.dtype.kind not in "biuf" or node.shape != (n_rows,):
        got = f"dtype {node.dtype} and shape {node.shape}" if hasattr(node, "shape") else f"a {kind}"
        raise InputError(
            f"data.{what}: {place} has {got}, expected one number for each of the {n_rows} rows, or categories where these are classes. "
            "Write it as such: adata.obs[…] = adata.obs[…].astype('category')."
        )
    return RowColumn(n_rows, place, str(place), {}, stored_chunk(node)[0] * node.dtype.itemsize)


def _absent(place: str, root: Mapping[str, Any], key: str, name: str | None) -> InputError:
    """The error for rows that are not there."""
    if name is None:
        return InputError(f"{place}: has no X; it holds {_listed(root)}. Set data.layer or data.obsm.")
    there = sorted(root[key]) if key in root else []
    near = did_you_mean(name, there) or "."
    option = "layer" if key == "layers" else "obsm"
    return InputError(
        f"data.{option}: got {name!r}, expected one of {', '.join(there) or 'none, as there is none'}{near} Correct it."
    )


def _listed(root: Mapping[str, Any]) -> str:
    return ", ".join(sorted(root)) or "nothing"
