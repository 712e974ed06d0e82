"""Rows in zarr: a plain array, one variable of a group (xarray's too), or a sparse matrix in anndata's layout."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import zarr
from pydantic import Field

from pipeline.config import AnyPath
from pipeline.data.array import ArraySource
from pipeline.data.csr import CsrSource
from pipeline.data.encoded import dimension_names, refuse_encoded, refuse_exchanged
from pipeline.data.section import FileSection
from pipeline.data.source import Source
from pipeline.data.stores import ZarrPlace, listing
from pipeline.errors import InputError


class ZarrSection(FileSection):
    """A zarr array, one variable of a group, or a CSR matrix in anndata's layout."""

    source: Literal["zarr"] = Field("zarr", description="a zarr store, such as xarray and anndata write")
    path: AnyPath = Field(description="a zarr store, or an fsspec URL of one")
    variable: str | None = Field(None, description="which array of a group; null: the only two-dimensional one")
    vocabulary: AnyPath | None = Field(None, description="of a CSR matrix: path of a text file with one word a line")

    reads_stores: ClassVar[bool] = True

    def open(self) -> Source:
        place, node = self._node()
        with place.opening():
            return self._source(place, node)

    def _source(self, place: ZarrPlace, node: Any) -> Source:
        if isinstance(node, zarr.Group):
            encoding = node.attrs.get("encoding-type")
            if encoding == "csr_matrix":
                return CsrSource(place, node, self.vocabulary, options=self.storage_options)
            if encoding == "csc_matrix":
                raise InputError(f"{place}: is stored by columns (csc_matrix), expected rows. Write it as csr_matrix.")
            tables = [name for name, array in node.arrays() if array.ndim == 2]
            if len(tables) != 1:
                raise InputError(f"{place}: is a group, expected one 2-d array. Set data.variable. {listing(node)}")
            place = place.child(tables[0])
            node = node[tables[0]]
        if self.vocabulary is not None:
            raise InputError(f"data.vocabulary: {place} is a dense array, expected a CSR matrix. Remove it.")
        refuse_encoded(str(place), node)
        refuse_exchanged(str(place), dimension_names(node))
        return ArraySource(place, node)

    def _node(self) -> tuple[ZarrPlace, Any]:
        """The array or group that the section names, and where it is."""
        place = ZarrPlace(self.path, self.storage_options, self.missing_chunks)
        node = place.open_first()
        if self.variable is None:
            return place, node
        if isinstance(node, zarr.Array):
            raise InputError(f"data.variable: got {self.variable!r}, but {place} is an array. Remove it.")
        place = place.child(self.variable.strip("/"))
        try:
            found = place.name in node
        except ValueError:  # zarr refuses a name with .. in it
            found = False
        if not found:
            raise InputError(f"{place}: there is no such array. Set data.variable to one that is. {listing(node)}")
        return place, place.open_first()
