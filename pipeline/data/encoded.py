"""Stored arrays whose numbers are not the values (CF conventions), and what their dimension names say: guards for every array.

An array may be packed (scale_factor, add_offset), have a number that stands for "missing" (_FillValue), hold unsigned numbers
in a signed type (_Unsigned) or times (units "… since …"). xarray decodes these; here they are refused, never read as values.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import InputError

_FILLS = ("_FillValue", "missing_value")
_IDENTITY = {"scale_factor": 1.0, "add_offset": 0.0}
# What dimensions are called, without a plural s.
_ROWS = {"row", "sample", "observation", "ob", "obs", "n_ob", "n_obs", "record", "cell", "document", "doc", "spectrum", "pixel", "time",
         "event", "point", "spot", "case", "individual", "patient", "subject", "instance", "example", "n"}  # fmt: skip
_FEATURES = {"feature", "variable", "var", "n_var", "gene", "band", "column", "col", "channel", "word", "term", "token", "attribute",
             "wavelength", "marker", "d"}  # fmt: skip


def refuse_encoded(what: str, array: Any) -> None:
    """Raise InputError for an opened array (zarr, h5py) whose numbers are not the values. what : names it in the message."""
    attributes: Mapping[str, Any] = getattr(array, "attrs", {})
    for name in (*_IDENTITY, *_FILLS, "_Unsigned", "units", "dtype"):
        value = attributes.get(name)
        if value is not None and not _is_harmless(name, value, array.dtype):
            raise _encoded(what, f"the attribute {name}={value!r}")
    # xarray writes _FillValue to zarr v2 as the fill value of the array, beside the names of its dimensions.
    metadata = getattr(array, "metadata", None)
    if getattr(metadata, "zarr_format", 3) == 2 and "_ARRAY_DIMENSIONS" in attributes:
        value = metadata.fill_value  # type: ignore[union-attr]  # there is one, or there would be no format 2
        if value is not None and not _is_nan(value):
            raise _encoded(what, f"fill_value={value!r} of a zarr v2 array with named dimensions, which means missing,")


def _encoded(what: str, found: str) -> InputError:
    return InputError(
        f"{what}: got {found} expected plain values (missing ones as NaN). Write the decoded values, for example with "
        "xarray.open_zarr and an empty encoding, or delete it if the numbers are the values."
    )


def _is_harmless(name: str, value: Any, dtype: Any) -> bool:
    if name in _IDENTITY:
        return np.ndim(value) == 0 and isinstance(value, (int, float, np.number)) and float(value) == _IDENTITY[name]
    if name in _FILLS:
        return _is_nan(value)
    if name == "_Unsigned":
        return (str(value).lower() == "true") == (np.dtype(dtype).kind == "u") or np.dtype(dtype).kind not in "iu"
    return not (isinstance(value, str) and (" since " in value or value.startswith("timedelta")))


def _is_nan(value: Any) -> bool:
    """Whether a fill value is NaN; xarray writes floats in base64."""
    try:
        if isinstance(value, str):
            packed = base64.standard_b64decode(value)
            return bool(np.isnan(struct.unpack("<d" if len(packed) == 8 else "<f", packed)[0]))
        return bool(np.isnan(np.float64(np.asarray(value).item())))
    except (ValueError, TypeError, struct.error):
        return isinstance(value, str) and value.lower() == "nan"


def dimension_names(array: Any) -> tuple[str, ...]:
    """Return the names of the dimensions of an opened zarr array or an xarray.DataArray; empty where there are none."""
    names = getattr(getattr(array, "metadata", None), "dimension_names", None) or getattr(array, "dims", None)
    if names is None:
        names = getattr(array, "attrs", {}).get("_ARRAY_DIMENSIONS")
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()


def refuse_exchanged(what: str, names: tuple[str, ...]) -> None:
    """Raise InputError where dimension names say that rows and features are exchanged, as (feature, row) does."""
    if len(names) == 2 and _word(names[0]) in _FEATURES and _word(names[1]) in _ROWS:
        raise InputError(
            f"{what}: its dimensions are named ({names[0]}, {names[1]}), expected rows first. Transpose it, or name its "
            "dimensions (row, feature) if the first one counts the rows."
        )


def _word(name: str) -> str:
    return name.lower().removesuffix("s")
