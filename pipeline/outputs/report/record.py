"""What a run directory says: the stored model, the config it came from, and the events on the way.

The record is read once and never written; arrays stay on disk until a section of the report asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from pipeline.errors import InputError, StorageError
from pipeline.outputs.events import read_events

if TYPE_CHECKING:
    import xarray as xr
    import zarr

    from pipeline.models.clusters import ClusterModel as Model

FAMILIES = ("gaussian", "kmeans", "multinomial")


@dataclass(frozen=True)
class Record:
    """One finished run, in the directory `run`."""

    run: Path
    model: xr.Dataset
    config: dict[str, Any]
    versions: dict[str, Any]
    fingerprint: dict[str, Any]
    numerics: int | None
    events: list[dict[str, Any]]

    @property
    def attrs(self) -> dict[str, Any]:
        """The attributes of `model.zarr`."""
        return {str(key): value for key, value in self.model.attrs.items()}

    @property
    def family(self) -> str:
        """gaussian, kmeans or multinomial."""
        return str(self.model.attrs["family"])

    @property
    def data(self) -> dict[str, Any]:
        """What a row is, as the source described it: `kind` and, for pictures, their size."""
        return dict(self.attrs.get("data") or {})

    @property
    def kind(self) -> str:
        """rows, image, patch or document."""
        return str(self.data.get("kind", "rows"))

    @property
    def k(self) -> int:
        """How many components."""
        return int(self.model.sizes["component"])

    @property
    def noun(self) -> str:
        """What a component is called in this family."""
        return "cluster" if self.family == "kmeans" else "component"

    @property
    def total_weight(self) -> float:
        """Sum of the row weights: what totals are divided by to be per row."""
        return float(self.attrs.get("total_weight") or self.attrs.get("n_rows") or 1)

    @cached_property
    def weights(self) -> np.ndarray:
        """(k,) share of the rows of each component, in stored order."""
        return self.array("weights")

    @cached_property
    def means(self) -> np.ndarray:
        """(k, d) means, centres, or log-probabilities of words."""
        return self.array({"kmeans": "centers", "multinomial": "log_prob"}.get(self.family, "means"))

    def with_parameters(self, arrays: Mapping[str, np.ndarray]) -> Record:
        """The same run with the parameters of an earlier iteration, which come in the order that components had then."""
        order = np.asarray(self.model.attrs.get("order", range(self.k)))
        named = {}
        for name, value in arrays.items():
            dims = self.model[name].dims
            named[name] = (dims, value[order] if dims[0] == "component" else value)
        return replace(self, model=self.model.assign(named))

    @cached_property
    def fitted(self) -> tuple[Model, Any] | None:
        """The stored model and its parameters, to compute with; None where the store says too little to make them."""
        if "data_mean" not in self.model.attrs:
            return None
        from pipeline.outputs.model_store import load_model

        try:
            return load_model(self.model)[:2]
        except Exception as error:  # as in `array`
            raise StorageError(f"model.zarr: cannot be read ({error}). Run the job again.") from error

    @cached_property
    def collapsed(self) -> list[int]:
        """Components of a mixture that ended with too few rows, or no width, to mean anything."""
        from pipeline.models.mixture import Mixture

        model, params = self.fitted or (None, None)
        if not isinstance(model, Mixture):
            return []
        return [k for k, _ in model.collapsed(params, self.weights * self.total_weight)]

    def has(self, name: str) -> bool:
        """Whether the model stores this array."""
        return name in self.model.variables

    def array(self, name: str) -> np.ndarray:
        """One array of the model, read now; StorageError naming it when absent or damaged."""
        if name not in self.model.variables:
            raise StorageError(f"model.zarr has no array {name}, which a {self.family} model stores. Run it again.")
        try:
            return np.asarray(self.model[name].values)
        except Exception as error:  # zarr codecs raise what they like: every one of them is a damaged store
            raise StorageError(f"model.zarr: {name} cannot be read ({error}). Run the job again.") from error

    def labelled(self, name: str) -> zarr.Array[Any] | None:
        """An array of labels.zarr, on disk; None where the run wrote none or it cannot be opened."""
        import zarr

        try:
            return zarr.open_array(self.run / "labels.zarr" / name, mode="r")
        except (OSError, ValueError, KeyError):
            return None

    def labels_of(self, rows: np.ndarray) -> list[int | None]:
        """The components of some rows, None where they are not known. Raises StorageError if labels.zarr is damaged."""
        label = self.labelled("label")
        if label is None:
            return [None] * len(rows)
        found = [int(_read(label, int(row))) if row < label.shape[0] else -1 for row in rows]
        return [None if one < 0 else one for one in found]

    def pictures_of(self, rows: np.ndarray) -> list[str]:
        """The names of the pictures that some rows are cut from; empty where rows are not."""
        starts, names = self.labelled("picture_start"), self.labelled("picture")
        if starts is None or names is None or self.kind != "patch":
            return [""] * len(rows)
        every = _read(names, slice(None))
        return [str(every[i]) for i in np.searchsorted(_read(starts, slice(None)), rows, side="right") - 1]

    def top_responsibilities(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(n, m) components and responsibilities of all rows, block by block; nothing where labels.zarr keeps none."""
        component, share = self.labelled("top_component"), self.labelled("top_responsibility")
        if component is not None and share is not None:
            for start in range(0, component.shape[0], component.chunks[0]):
                rows = slice(start, start + component.chunks[0])
                yield _read(component, rows), _read(share, rows)

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of one kind, in order."""
        return [entry for entry in self.events if entry.get("event") == event]

    def option(self, section: str, key: str) -> Any:
        """One value of the config, None where the section or the key is absent."""
        part = self.config.get(section)
        return part.get(key) if isinstance(part, dict) else None


def read_record(run: Path) -> Record:
    """Read a run directory.

    Raises InputError where there is no finished model, StorageError where one is damaged.
    """
    store = run / "model.zarr"
    if not run.is_dir():
        raise InputError(f"{run}: no such directory. Give the run directory that `em-pipeline run` printed.")
    if not store.is_dir():
        raise InputError(
            f"{run}: no model.zarr in it, and a report needs a finished model. "
            f"Finish the run with `em-pipeline resume {run}`, or start one with `em-pipeline run CONFIG`."
        )
    resolved = _read_yaml(run / "config.yaml")
    numerics = resolved.get("numerics")
    return Record(
        run=run,
        model=_open_model(store),
        config=resolved.get("config") or {},
        versions=resolved.get("versions") or {},
        fingerprint=resolved.get("fingerprint") or {},
        numerics=numerics if isinstance(numerics, int) else None,
        events=list(read_events(run / "events.jsonl")),
    )


def _read(array: zarr.Array[Any], at: Any) -> np.ndarray:
    """Some of an array of labels.zarr."""
    try:
        return np.asarray(array[at])
    except Exception as error:  # as in `Record.array`
        raise StorageError(
            f"labels.zarr: cannot be read ({error}). Remove labels.zarr; `em-pipeline resume` writes it again."
        ) from error


def _open_model(store: Path) -> xr.Dataset:
    import xarray as xr

    try:
        model: xr.Dataset = xr.open_zarr(store, consolidated=False, chunks=None)
    except Exception as error:  # as above: whatever zarr raises, the store is damaged
        raise StorageError(f"{store}: cannot be opened ({error}). Run the job again with --overwrite.") from error
    family = model.attrs.get("family")
    if family not in FAMILIES or "component" not in model.sizes:
        raise StorageError(
            f"{store}: family came as {family!r}, expected one of {', '.join(FAMILIES)} with a component axis. "
            "Run the job again with --overwrite."
        )
    return model


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StorageError(f"{path}: cannot be read ({error}). Restore it, or run the job again.") from error
    return raw if isinstance(raw, dict) else {}
