"""What the dimensions of an n-dimensional image are, and where its entries are: by name, or by the metadata of OME-Zarr.

References
----------
Moore et al. (2023); OME-Zarr 0.4 and 0.5, multiscales and coordinateTransformations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.encoded import dimension_names
from pipeline.data.stores import listing
from pipeline.errors import InputError

SPACE = ("z", "y", "x")
_KNOWN = ("t", "c", *SPACE)
_UNNAMED = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}  # axes of an array that names none


@dataclass(frozen=True)
class Axis:
    """A dimension: the place of its entry i is shift + i * step. unit : in words, or empty."""

    name: str
    unit: str = ""
    step: float = 1.0
    shift: float = 0.0


def multiscale(group: Any, where: str) -> list[tuple[str, list[Axis]]] | None:
    """Return the arrays of an OME-Zarr image, of versions 0.4 and 0.5, and their axes, finest first; None of a group that is none.

    Raises
    ------
    InputError
        For metadata that are not those of OME-Zarr.
    """
    ome = group.attrs.get("ome")
    found: Any = (ome if isinstance(ome, Mapping) else group.attrs).get("multiscales")
    if found is None:
        return None
    try:
        image = found[0]
        names = [(str(axis["name"]).lower(), str(axis.get("unit", ""))) for axis in image["axes"]]
        common = _placed(image.get("coordinateTransformations", ()), len(names))
        levels = []
        for each in image["datasets"]:
            step, shift = _placed(each.get("coordinateTransformations", ()), len(names))
            shift, step = shift * common[0] + common[1], step * common[0]
            placed = zip(names, step.tolist(), shift.tolist(), strict=True)
            levels.append((str(each["path"]), [Axis(*name, *place) for name, *place in placed]))
        if not levels:
            raise ValueError("no datasets")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: multiscales of its attributes are not those of OME-Zarr 0.4 or 0.5 ({type(error).__name__}: {error}). Set "
            "data.path to one of its arrays, and data.axes."
        ) from error
    return levels


def _placed(transformations: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and translation of OME-Zarr, each (n,)."""
    step, shift = np.ones(n), np.zeros(n)
    for one in transformations:
        if one["type"] in ("scale", "translation"):
            values = np.array([float(value) for value in one[one["type"]]])
            if values.shape != (n,) or not np.isfinite(values).all():
                raise ValueError(f"{one['type']} of {len(values)} numbers for {n} axes")
            step, shift = (step * values, shift * values) if one["type"] == "scale" else (step, shift + values)
    return step, shift


def only_array(group: Any, where: str) -> str:
    """Return the name of the only array of a group. Raises InputError where there are more."""
    names = [name for name, array in group.arrays() if array.ndim >= 2]
    if len(names) != 1:
        raise InputError(f"{where}: is a group, expected OME-Zarr or one array. Set data.variable. {listing(group)}")
    return str(names[0])


def axes_of(given: Sequence[str] | None, named: Sequence[Axis], array: Any, where: str) -> list[Axis]:
    """Return the axes of an array. Raises InputError where they are not known, or not what they can be."""
    shape = tuple(array.shape)
    if given is not None and (len(given) != len(shape) or len(set(given)) < len(given)):
        raise InputError(f"data.axes: got {', '.join(given)}, but {where} has shape {shape}. Name each dimension once.")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or 0 in shape or len(shape) < 2:
        raise InputError(
            f"{where}: got dtype {array.dtype} and shape {shape}, expected numbers with two to five dimensions, none of them empty. "
            "Set data.path or data.variable to such an array."
        )
    if given is not None:
        axes = [next((axis for axis in named if axis.name == name), Axis(name)) for name in given]
    elif named:
        axes = list(named)
    else:
        stored = dimension_names(array) or ()
        names = [str(name).lower() for name in stored] or list(_UNNAMED.get(len(shape), ()))
        axes = [Axis(name) for name in names]
    names = [axis.name for axis in axes]
    if (
        len(axes) != len(shape)
        or set(names) - set(_KNOWN)
        or len(set(names)) < len(names)
        or not {"y", "x"} <= set(names)
    ):
        raise InputError(
            f"{where}: has shape {shape} and the axes {', '.join(names) or 'without names'}, expected y and x, and perhaps t, c and z. "
            "Set data.axes to what its dimensions are, in their order."
        )
    return axes
