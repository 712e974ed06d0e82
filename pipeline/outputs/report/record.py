"""The content of a run directory for the report: the stored model, its config, and the events of the run.

The record is never written; arrays stay on disk until a section of the report needs them. The meaning of an array
follows from its dimensions, never from the family. Parameters are what is neither history nor a list of rows:

    weights(component)               sizes
    (component, feature)             locations of components; or log-probabilities, whose exponentials sum to 1
    covariances, in one of SPREADS   widths
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays.named import NamedArrays, read_group
from pipeline.arrays.stores import guarded, open_whole
from pipeline.config.loading import read_yaml
from pipeline.data.grid import FlatRows
from pipeline.errors import InputError, StorageError
from pipeline.models.families import words_of
from pipeline.models.words import Words
from pipeline.outputs.events import read_events
from pipeline.outputs.measures import measures_of
from pipeline.outputs.run_directory import RunDirectory

# Dimensions of arrays that are no parameters: history, and lists of rows.
_OTHER_DIMENSIONS = {"iteration", "label", "rank", "outlier", "place", "sample_row", "raw_feature"}
_PLACE = ("component", "feature")
# Dimensions of `covariances`, and what they are called.
SPREADS = {
    ("component", "feature", "feature_2"): "a full covariance each",
    ("feature", "feature_2"): "one full covariance for all",
    ("component", "feature"): "a diagonal covariance each",
    ("component",): "one variance each",
}
_ROWS = {"patch": ("patch", "patches"), "image": ("image", "images"), "document": ("document", "documents")}
# Names in the models of earlier versions.
_RENAMED = {
    "exemplar_row": "representative_row",
    "exemplar_responsibility": "representative_responsibility",
    "exemplars": "representatives",
    "misfit": "outlier",
    "misfits": "outliers",
    "misfit_row": "outlier_row",
    "misfit_log_density": "outlier_log_density",
    "misfit_squared_distance": "outlier_squared_distance",
    "misfit_word": "outlier_word",
    "misfit_count": "outlier_count",
}


@dataclass(frozen=True)
class Record:
    """One finished run, in the directory `run`. store : in it, with the labels of rows."""

    run: Path
    model: NamedArrays
    config: dict[str, Any]
    versions: dict[str, Any]
    fingerprint: dict[str, Any]
    numerics: int | None
    events: list[dict[str, Any]]
    store: str = "labels.zarr"

    # --- what kind of model, of what kind of rows

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """The attributes of `model.zarr`."""
        return {str(key): value for key, value in self.model.attrs.items()}

    @cached_property
    def words(self) -> Words:
        """The words of the model: stored ones, else those of its family in this version."""
        stored = self.attrs.get("words")
        if isinstance(stored, dict) and {"name", "title"} <= stored.keys():
            return Words(**{key: value for key, value in stored.items() if key in Words._fields})
        return words_of(str(self.attrs["family"]))

    @property
    def title(self) -> str:
        """What was fitted: `A mixture of 200 Gaussians`."""
        return self.words.entitle(self.k, **self.model.sizes)

    @cached_property
    def measures(self) -> dict[str, Any]:
        """Measures of the labels of the run's own rows."""
        return measures_of(self.run)

    @property
    def data(self) -> dict[str, Any]:
        """What a row is, as the source described it: `kind` and, for pictures, their size."""
        return dict(self.attrs.get("data") or {})

    @property
    def kind(self) -> str:
        """rows, image, patch or document."""
        return str(self.data.get("kind", "rows"))

    @property
    def row(self) -> tuple[str, str]:
        """Singular and plural of a row."""
        return _ROWS.get(self.kind, ("row", "rows"))

    @property
    def k(self) -> int:
        """Number of components; 0 in a model without, whatever its dimensions are called."""
        return 0 if self.attrs.get("order") == [] else int(self.model.sizes.get("component", 0))

    @property
    def n_features(self) -> int:
        """Columns of a row of the model."""
        return int(self.model.sizes.get("feature") or self.attrs.get("n_features") or 0)

    @property
    def total_weight(self) -> float:
        """Sum of the row weights."""
        return float(self.attrs.get("total_weight") or self.attrs.get("n_rows") or 1)

    # --- parameters, by their dimensions

    @cached_property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """Names and dimensions of the parameters, in the order of the model."""
        found = {name: array.dims for name, array in sorted(self.model.data_vars.items())}
        listed = [name for name in self.attrs.get("parameters") or () if name in found]
        return {
            name: found[name]
            for name in [*listed, *(name for name in found if name not in listed)]
            if not (
                _OTHER_DIMENSIONS & set(found[name])
                or name.startswith(("model.", "statistics.", "preprocess_"))
                or name.endswith("_se")
            )
        }

    @property
    def spread(self) -> tuple[str, ...] | None:
        """The dimensions of `covariances`; None without them."""
        dims = self.parameters.get("covariances")
        return dims if dims in SPREADS else None

    @property
    def spread_text(self) -> str:
        """The layout of the covariances in words; empty without them."""
        text = "" if self.spread is None else SPREADS[self.spread]
        return (
            text if self.k != 1 else text.removesuffix(" each").removesuffix(" for all").replace("one full", "a full")
        )

    @cached_property
    def location(self) -> str | None:
        """The parameter with the components' locations; None without one."""
        return next((name for name in self._places if name != self.log_probabilities), None)

    @cached_property
    def log_probabilities(self) -> str | None:
        """The parameter with log-probabilities of the features, which sum to 1 in each component; None without one."""
        for name in self._places:
            value = self.array(name)
            if (value <= 0).all() and np.allclose(np.exp(value).sum(axis=1), 1, atol=1e-6):
                return name
        return None

    @property
    def has_topics(self) -> bool:
        """Whether components are distributions over words."""
        return self.log_probabilities is not None and (self.kind == "document" or "vocabulary" in self.attrs)

    @property
    def _places(self) -> list[str]:
        return [name for name, dims in self.parameters.items() if dims == _PLACE and name != "covariances"]

    @cached_property
    def positions(self) -> np.ndarray:
        """Locations of the components, (k, d). Only for models with a location."""
        assert self.location is not None
        return self.array(self.location)

    @cached_property
    def weights(self) -> np.ndarray:
        """Share of the rows of each component, (k,), in stored order; without stored weights, at the last E-step."""
        if self.has("weights") or not self.has("n_effective"):
            return self.array("weights") * (1.0 - (self.noise or 0.0))
        last = self.array("n_effective")[-1]
        return np.asarray(last / last.sum())

    @property
    def noise(self) -> float | None:
        """Share of the noise rows; None in a model without a noise component (others have a noise of each feature)."""
        return float(self.array("noise")) if self.has("noise") and not self.model["noise"].ndim else None

    @cached_property
    def representatives(self) -> np.ndarray:
        """The rows of highest responsibility of each component, (k, m), at most five; -1 for none."""
        if not self.has("representative_row"):
            return np.empty((self.k, 0), np.int64)
        return self.array("representative_row")[:, :5]

    def first(self, most: int) -> Record:
        """Return the run with its first components alone, at most so many; they are stored by decreasing weight."""
        return self if self.k <= most else replace(self, model=self.model.first("component", most))

    def with_parameters(self, arrays: Mapping[str, np.ndarray]) -> Record:
        """Return the run with the parameters of an earlier iteration, with components in the order of that iteration."""
        order = np.asarray(self.attrs.get("order", range(self.k)))
        named = {}
        for name, value in arrays.items():
            dims = self.model[name].dims
            for axis, dim in enumerate(dims):
                if str(dim).startswith("component"):
                    value = value.take(order, axis)
            named[name] = (dims, value)
        moment = replace(self, model=self.model.assign(named))
        moment.__dict__.update(location=self.location, log_probabilities=self.log_probabilities)  # the same arrays
        return moment

    # --- the objective

    @property
    def final(self) -> float | None:
        """The reported objective of the stored parameters, a total."""
        value = self.attrs.get(f"final_{self.words.series}")
        return None if value is None else float(value)

    @property
    def penalty(self) -> float:
        """What the iterations maximize besides the reported objective, per row: a log prior, or the entropy of hard labels."""
        raised = next((r.get("objective") for r in self.attrs.get("restarts") or () if r.get("chosen")), None)
        if raised is None or self.final is None:
            return 0.0
        added = self.words.sign * float(raised) - self.final
        return 0.0 if abs(added) <= 1e-9 * abs(self.final) else added / self.total_weight

    @property
    def objective(self) -> str:
        """What the curves show: the reported objective, or the sum with the penalty, by the name `objective`."""
        return "objective" if self.has("objective") and self.penalty else self.words.objective

    @property
    def objective_text(self) -> str:
        """What the sum with the penalty is: `log-likelihood plus log prior`."""
        other = "entropy of the labels" if self.attrs.get("assignment") == "hard" else "log prior"
        return f"{self.words.objective} plus {other}"

    # --- the model itself, to compute with

    @cached_property
    def fitted(self) -> tuple[Any, Any] | None:
        """The stored model and its parameters.

        None if they cannot be made from the store, or for a family of the user's own, whose code may not be here.
        """
        if "data_mean" not in self.attrs:
            return None
        from pipeline.outputs.model_store import load_model

        try:
            return load_model(self.model)[:2]
        except InputError:
            return None
        except Exception as error:  # as in `array`
            raise StorageError(f"model.zarr: cannot be read ({error}). Run the job again.") from error

    @property
    def collapsed(self) -> int:
        """How many components ended with too few rows, or without width."""
        return int(self.attrs.get("collapsed") or 0)

    # --- arrays, labels, events, options

    def has(self, name: str) -> bool:
        """Return whether the model stores this array."""
        return name in self.model.variables

    def array(self, name: str) -> np.ndarray:
        """Return one array of the model.

        Raises
        ------
        StorageError
            If it is absent or damaged.
        """
        if name not in self.model.variables:
            raise StorageError(
                f"model.zarr: it has no array {name!r}, which this version of em-pipeline expects. "
                "Run the job again, or make the report with the version that ran it."
            )
        try:
            return np.asarray(self.model[name].values)
        except Exception as error:  # zarr codecs raise what they like: every one of them is a damaged store
            raise StorageError(f"model.zarr: {name} cannot be read ({error}). Run the job again.") from error

    def label_array(self, name: str) -> FlatRows | None:
        """Return an array of labels.zarr, on disk and by row; None if there is none or it cannot be opened."""
        import zarr

        try:
            return FlatRows(zarr.open_array(guarded(self.run / self.store / name), mode="r"))
        except Exception:  # as in `array`
            return None

    def labels_of(self, rows: np.ndarray) -> list[int | None]:
        """Return the components of some rows, None if unknown. Raises StorageError if labels.zarr is damaged."""
        label = self.label_array("label")
        if label is None:
            return [None] * len(rows)
        found = [int(_read(label, int(row))) if row < label.shape[0] else -1 for row in rows]
        return [None if one < 0 else one for one in found]

    def pictures_of(self, rows: np.ndarray) -> list[str]:
        """Return the names of the pictures that some rows are cut from; empty if rows are not."""
        starts, names = self.label_array("picture_start"), self.label_array("picture")
        if starts is None or names is None or self.kind != "patch":
            return [""] * len(rows)
        every = _read(names, slice(None))
        return [str(every[i]) for i in np.searchsorted(_read(starts, slice(None)), rows, side="right") - 1]

    def top_responsibilities(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (n, m) components and responsibilities of all rows, block by block; nothing if labels.zarr has none."""
        component, share = self.label_array("top_component"), self.label_array("top_responsibility")
        if component is not None and share is not None:
            for rows in component.parts():
                yield _read(component, rows), _read(share, rows)

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the events of one kind, in order."""
        return [entry for entry in self.events if entry.get("event") == event]

    def option(self, section: str, key: str) -> Any:
        """Return one value of the config, None if the section or the key is absent."""
        part = self.config.get(section)
        return part.get(key) if isinstance(part, dict) else None


def read_record(run: Path) -> Record:
    """Read a run directory.

    Raises
    ------
    InputError
        If there is no finished model.
    StorageError
        If it is damaged.
    """
    store = run / "model.zarr"
    if not run.is_dir():
        raise InputError(f"{run}: no such directory. Give the run directory that `em-pipeline run` printed.")
    RunDirectory(run).refuse_special()
    resolved = read_plain(run / "config.yaml")
    if not store.is_dir():
        raise InputError(
            f"{run}: no model.zarr in it, and a report needs a finished model. "
            f"Finish the run with `em-pipeline resume {run}`, or start one with `em-pipeline run CONFIG`."
        )
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


def _read(array: FlatRows, at: Any) -> np.ndarray:
    """Some of an array of labels.zarr."""
    try:
        return np.asarray(array[at])
    except Exception as error:  # as in `Record.array`
        raise StorageError(
            f"labels.zarr: cannot be read ({error}). Remove labels.zarr; `em-pipeline resume` writes it again."
        ) from error


def _open_model(store: Path) -> NamedArrays:
    try:
        model = read_group(open_whole(store))
    except Exception as error:  # as above: whatever zarr raises, the store is damaged
        raise StorageError(f"{store}: cannot be opened ({error}). Run the job again with --overwrite.") from error
    if not isinstance(model.attrs.get("family"), str):
        message = f"{store}: got no attribute `family`, expected a model that em-pipeline stored."
        raise StorageError(f"{message} Run the job again with --overwrite.")
    return model.rename(_RENAMED)


def read_plain(path: Path) -> dict[str, Any]:
    """Return the content of a config.yaml; empty where there is none. Raises StorageError if it is damaged."""
    if not path.exists():
        return {}
    try:
        raw, _ = read_yaml(path)
    except InputError as error:
        raise StorageError(f"{error} Restore {path}, or run the job again.") from error
    return raw if isinstance(raw, dict) else {}
