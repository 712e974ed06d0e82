"""Locations of components on the variables and coordinates that the data came with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def of_data(name: str) -> str:
    """Return what a coordinate or dimension of the data is called where its own name is that of an array or dimension of ours."""
    return f"data_{name}"


def on_coordinates(model: xr.Dataset) -> xr.Dataset:
    """Return a stored model with its locations on the data's variables and coordinates, where the data have these.

    Parameters
    ----------
    model : Dataset
        The content of model.zarr.

    Returns
    -------
    Dataset
        With an array more, named as the family names locations (``mean``, ``center``), in the units of the data. An entry is NaN where
        a variable has no such coordinate. A dimension of the data that the model has too is called ``data_component``, say.
    """
    index, name = model.attrs.get("data", {}).get("index"), model.attrs["words"]["location"]
    stored = name + "s"
    if index is None or stored not in model or model[stored].dims != ("component", "feature"):
        return model
    index = {of_data(dim) if dim in model.dims else dim: entries for dim, entries in index.items()}
    location = model[stored].values
    if "preprocess_inverse" in model:
        location = location @ model["preprocess_inverse"].values + model["preprocess_offset"].values
    places = [list(dict.fromkeys(entry for entry in entries if entry is not None)) or [0] for entries in index.values()]
    number: list[dict[Any, int]] = [{entry: i for i, entry in enumerate(entries)} | {None: 0} for entries in places]
    found = np.full((len(location), *map(len, places)), np.nan)
    for i, entry in enumerate(zip(*index.values(), strict=True)):
        at: tuple[Any, ...] = tuple(of[each] for of, each in zip(number, entry, strict=True))
        found[(slice(None), *at)] = location[:, i]
    return model.assign({name: (("component", *index), found)}).assign_coords(dict(zip(index, places, strict=True)))
