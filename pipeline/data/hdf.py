"""HDF5 arrays and where they are stored, with the reads of `ZarrPlace`; h5py is imported when needed, and is an extra."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.data.files import damaged, open_binary, opening, what_it_is
from pipeline.data.place import Place
from pipeline.errors import InputError, PipelineError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class HdfPlace(Place):
    """Where an HDF5 dataset or group is; the file is opened for each read."""

    @contextmanager
    def node(self) -> Iterator[Any]:
        """Context with the opened h5py.Dataset or Group.

        Raises
        ------
        InputError
            If h5py is not installed, the file cannot be opened, or the dataset is not stored in it as plain numbers.
        """
        try:
            import h5py
        except ImportError as error:
            raise InputError(
                f"{self.path}: is read by h5py, which is not installed. Install the extra: pip install 'em-pipeline[anndata]'."
            ) from error
        with opening(self.path):
            stream = open_binary(self.path, self.options)
        with stream:
            try:
                file = h5py.File(stream, "r")
            except OSError as error:
                stream.seek(0)
                beginning = stream.read(8)
                if beginning == _SIGNATURE:
                    raise damaged(self.path, error) from error
                advice = what_it_is(beginning) or "Set data.source to what it is"
                raise InputError(f"{self.path}: is no HDF5 file, it begins with {beginning!r}. {advice}.") from error
            with file:
                try:
                    found = file[self.name] if self.name else file
                    self._refuse_odd(found)
                    yield found
                except PipelineError:
                    raise
                except OSError as error:
                    raise damaged(str(self), error) from error
                except Exception as error:  # such as KeyError, of a link to another file
                    raise InputError(
                        f"{self}: cannot be read ({type(error).__name__}: {error}). Write it again, as one file."
                    ) from error

    def _refuse_odd(self, found: Any) -> None:
        """Raise InputError for what lies in another file, and where stored chunks are missing."""
        is_array = hasattr(found, "shape")
        if is_array and (found.external or found.is_virtual):
            raise InputError(f"{self}: lies in another file, expected it in this one. Write it again as one file.")
        if is_array and found.chunks and self.missing_chunks == "error":
            wanted = math.prod(-(-size // step) for size, step in zip(found.shape, found.chunks, strict=True))
            if (there := found.id.get_num_chunks()) != wanted:
                raise InputError(
                    f"{self}: {wanted - there} of {wanted} chunks were never written. Write the file again; if it leaves out chunks "
                    "of nothing but the fill value on purpose, set data.missing_chunks=fill."
                )

    def read(self, start: int, stop: int, then: int = 0) -> np.ndarray:
        """Read entries start:stop along the first axis. Raises StorageError if they are damaged. then : not used, as of `ZarrPlace`."""
        with self.node() as array:
            if array.shape[0] < stop:
                raise damaged(f"{self}, {start}:{stop}", f"it has shrunk to shape {array.shape}")
            return np.asarray(array[start:stop])

    def object_sizes(self) -> list[int]:
        """Return the stored bytes of each dataset here and below, in the order of their names."""
        with self.node() as found:
            if hasattr(found, "shape"):
                return [found.id.get_storage_size()]
            sizes: list[int] = []
            found.visititems(
                lambda _, each: sizes.append(each.id.get_storage_size()) if hasattr(each, "shape") else None
            )
            return sizes
