"""Where an array or a group of arrays is stored: what the places of zarr and of HDF5 have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self


@dataclass
class Place:
    """An array or a group inside a store or a file. Small and picklable.

    Attributes
    ----------
    path : str
        Of the store or file: local, or an fsspec URL.
    options : dict
        Of its file system.
    missing_chunks : {"error", "fill"}
    name : str
        Path of the array or group inside.
    """

    path: str
    options: dict[str, Any]
    missing_chunks: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.name}" if self.name else self.path

    def child(self, name: str) -> Self:
        """Return the place of a node below this one."""
        return replace(self, name=f"{self.name}/{name}" if self.name else name)
