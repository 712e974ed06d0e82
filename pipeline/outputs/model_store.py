"""model.zarr: the fitted model with its history, as one xarray dataset in the root group.

It does not depend on when, where, from which path or how fast the job ran: the same fit gives the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import zarr

from pipeline.arrays.dtypes import Array
from pipeline.arrays.named import NamedArrays, read_group
from pipeline.arrays.packing import Packed, pack, unpack
from pipeline.arrays.rows import LowestRows
from pipeline.arrays.stores import GuardedStore, guarded, open_whole
from pipeline.data.earlier import Statistics
from pipeline.data.preprocess import Affine
from pipeline.data.profile import DataSummary
from pipeline.data.source import Source
from pipeline.em.choice import criteria, held_out, restarts
from pipeline.em.run import Run
from pipeline.errors import InputError, StorageError, as_written
from pipeline.models import schema
from pipeline.models.base import LatentModel, Totals
from pipeline.models.clusters import ClusterModel
from pipeline.models.families import FAMILIES
from pipeline.models.overlap import Overlap
from pipeline.outputs.run_directory import publish, remove

if TYPE_CHECKING:
    import xarray as xr

SAMPLE_ROWS, SAMPLE_BYTES = 2000, 2**20  # for the report's pictures
OUTLIERS, OUTLIER_WORDS = 10, 8  # at most


def canonical_order(run: Run) -> Array:
    """Return components by decreasing weight, ties by position: old indices in their new order, (k,) int64."""
    model = run.model
    assert run.final is not None
    weight = np.asarray(model.shares(run.params, run.final.stats))
    positions = model.arrays(run.params)[model.location]
    return np.lexsort([*positions.reshape(len(weight), -1).T[::-1], -weight]).astype(np.int64)


def build_model(
    run: Run, runs: Sequence[Run], order: Array | None, summary: DataSummary, source: Source
) -> NamedArrays:
    """Return the content of model.zarr of a finished run.

    Parameters
    ----------
    run : Run
    runs : sequence of Run
        All restarts of its candidate.
    order : array of int, shape (k,), or None
        Components in their stored order; None without components.
    summary : DataSummary
    source : Source
    """
    final = run.reported
    run = run if order is None else _reordered(run, order)
    assert run.final is not None
    worst = run.final.attached["outliers"].first(OUTLIERS)
    variables = _parameters(run, order) | _history(run) | outlier_variables(worst, run.model)
    if run.model.represents:
        variables |= _representatives(run)
    if "overlap" in run.final.attached:
        variables["overlap"] = (("component", "label"), run.final.attached["overlap"].by_label)
    variables |= _preprocessing(summary.affine) | _hyperparameters(run.model) | _dimensioned(_statistics(run))
    if not source.sparse:
        size = min(SAMPLE_ROWS, max(1, SAMPLE_BYTES // (8 * len(summary.mean))))
        variables["sample"] = (("sample_row", "feature"), _plain(run.model, summary.sample.x[:size]))
    named = [field.names for field in run.model.fields.values() if field.names is not None]
    variables |= {dim: ((dim,), np.array(names, dtype=object)) for each in named for dim, names in each.items()}
    return NamedArrays.of(variables, _attributes(run, runs, order, summary, source, final))


def _plain(model: LatentModel, x: Array) -> Array:
    """Rows without missing entries and without their errors, float64."""
    return np.asarray(model.plain(x) if isinstance(model, ClusterModel) else x, dtype=np.float64)


def _reordered(run: Run, order: Array) -> Run:
    final, model = run.final, run.model
    assert final is not None
    attached = dict(final.attached)
    if model.represents:
        found = attached["representatives"]
        fields = {name: getattr(found, name)[order] for name in ("row", "log_resp", "log_joint", "x")}
        attached["representatives"] = replace(found, **fields)
    if "overlap" in attached:
        attached["overlap"] = Overlap(attached["overlap"].by_label[np.ix_(order, order)])
    traced = {name: schema.Field(dims) for name, dims in model.traced.items()}
    history = tuple(entry._replace(traced=schema.selected(traced, entry.traced, order)) for entry in run.history)
    params = model.params(**schema.selected(model.fields, model.arrays(run.params), order))
    return replace(run, params=params, history=history, final=replace(final, attached=attached))


def _parameters(run: Run, order: Array | None) -> dict[str, Any]:
    model = run.model
    named = {name: (model.fields[name].dims, value) for name, value in model.arrays(run.params).items()}
    assert run.final is not None
    shares = None if "weights" in named else model.shares(run.params, run.final.stats)
    return named if shares is None else {**named, "weights": (("component",), shares[order])}


def _history(run: Run) -> dict[str, Any]:
    bounded = ("log_likelihood", "lower_bound", "entropy", "rate", "remaining_gain")
    names = ("fisher_norm", *(bounded if run.model.has_bound else ()))
    series: dict[str, Any] = {
        run.model.words.series if name == "log_likelihood" else name: (
            ("iteration",),
            np.array([getattr(entry, name) for entry in run.history]),
        )
        for name in names
    }
    objective, plain = (np.array([getattr(e, name) for e in run.history]) for name in ("objective", "log_likelihood"))
    differs = (np.abs(objective - plain) > 1e-9 * np.abs(plain)).any()
    if run.model.has_bound and differs:  # under a prior, or hard labels
        series["objective"] = (("iteration",), objective)
    if any(entry.computed < 1 for entry in run.history):
        names = ("computed", "left_out")
        series |= {name: (("iteration",), np.array([getattr(e, name) for e in run.history])) for name in names}
    if not run.model.has_bound:
        words = run.model.words
        series[words.series] = (("iteration",), np.array([words.sign * entry.objective for entry in run.history]))
    for name, dims in run.model.traced.items():
        series[name] = (("iteration", *dims), np.array([entry.traced[name] for entry in run.history]))
    series["rows"] = (("iteration",), np.array([entry.rows for entry in run.history], dtype=np.int64))
    series["phase"] = (("iteration",), np.array([entry.phase for entry in run.history], dtype=object))
    return series


def _representatives(run: Run) -> dict[str, Any]:
    assert run.final is not None
    found = run.final.attached["representatives"]
    variables: dict[str, Any] = {
        "representative_row": (("component", "rank"), found.row),
        "representative_responsibility": (("component", "rank"), np.exp(found.log_resp)),
    }
    if found.x.shape[2]:
        variables["representatives"] = (("component", "rank", "feature"), _plain(run.model, found.x))
    return variables


def outlier_variables(found: LowestRows, model: LatentModel) -> dict[str, Any]:
    """Return the rows that fit worst, worst first, by name with their dimensions; of documents their commonest words, -1 for none."""
    words = model.words
    variables: dict[str, Any] = {
        "outlier_row": (("outlier",), found.row),
        f"outlier_{words.score}": (("outlier",), words.sign * found.score),
    }
    if not sp.issparse(found.x):
        variables["outliers"] = (("outlier", "feature"), _plain(model, found.x))
        return variables
    word = np.full((len(found.row), OUTLIER_WORDS), -1, dtype=np.int64)
    count = np.zeros(word.shape)
    for i, document in enumerate(found.x):
        top = np.lexsort((document.indices, -document.data))[:OUTLIER_WORDS]
        word[i, : len(top)], count[i, : len(top)] = document.indices[top], document.data[top]
    return variables | {"outlier_word": (("outlier", "place"), word), "outlier_count": (("outlier", "place"), count)}


def _preprocessing(affine: Affine | None) -> dict[str, Any]:
    if affine is None:
        return {}
    return {
        "preprocess_offset": (("raw_feature",), affine.offset),
        "preprocess_matrix": (("raw_feature", "feature"), affine.full_matrix()),
        "preprocess_inverse": (("feature", "raw_feature"), affine.inverse()),
    }


def _hyperparameters(model: LatentModel) -> dict[str, Any]:
    """Arrays among the hyperparameters; the others are in the attribute `model`."""
    return _dimensioned(_packed(model))


def _dimensioned(packed: Packed) -> dict[str, Any]:
    """Packed arrays with dimensions of their own."""
    return {
        name: (tuple(f"{name}.{axis}" for axis in range(array.ndim)), array) for name, array in packed.arrays.items()
    }


def _statistics(run: Run) -> Packed:
    """What the last E-step summed, with components in the order of the run: see the attribute `order`."""
    assert run.final is not None
    return pack(run.final.totals, "statistics", separator=".", inline=True)


def _packed(model: LatentModel) -> Packed:
    return pack(model, "model", separator=".", inline=True)


def _attributes(
    run: Run, runs: Sequence[Run], order: Array | None, summary: DataSummary, source: Source, objective: float
) -> dict[str, Any]:
    """Attributes of the dataset. objective : the reported one of the final parameters."""
    assert run.final is not None
    model, final = run.model, run.final
    log_jacobian = 0.0 if summary.affine is None else summary.affine.log_jacobian()
    attributes: dict[str, Any] = {
        "family": model.family,
        "name": model.label,
        "words": model.words._asdict(),
        "parameters": list(model.fields),
        "model": _packed(model).structure,
        "statistics": _statistics(run).structure,
        "n_rows": summary.n_rows,
        "dropped_rows": summary.n_bad,
        "total_weight": summary.total if summary.statistics is None else final.evidence.weight,
        **({} if summary.statistics is None else {"earlier_weight": summary.statistics.totals.evidence.weight}),
        "stop_reason": run.stop_reason,
        "converged": str(run.stop_reason).startswith("converged"),
        "n_iter": len(run.history),
        "search": [level._asdict() for level in run.levels],
        **({"message_lengths": [list(length) for length in run.lengths]} if run.lengths else {}),
        "order": [] if order is None else order.tolist(),
        "data": source.describe(),
        "data_mean": summary.mean.tolist(),
        **({} if log_jacobian is None else {"log_jacobian": log_jacobian}),
        "restarts": restarts(runs, run),
        "versions": {name: version(name) for name in ("em-pipeline", "numpy", "scipy", "zarr")},
    }
    attributes |= model.facts() | criteria(model, final.evidence, summary.total)
    if final.evidence.log_likelihood is None:
        attributes[f"final_{model.words.series}"] = objective
    if isinstance(model, ClusterModel):
        attributes["collapsed"] = len(model.collapsed(run.params, model.counts(final.stats)[order]))
    if "held_out" in final.attached:
        attributes |= held_out(final.attached["held_out"])
    if (words := source.vocabulary()) is not None:
        attributes["vocabulary"] = words
    return attributes


def write_model(path: Path, model: NamedArrays) -> None:
    """Write model.zarr, which appears complete under its name."""
    with appearing(path) as store:
        model.write(store, "/")


def write_models(path: Path, models: Mapping[str, NamedArrays]) -> None:
    """Write a store with a model in each group, which appears complete under its name."""
    with appearing(path) as store:
        for group, model in models.items():
            model.write(store, group)


@contextmanager
def appearing(path: Path) -> Iterator[GuardedStore]:
    """A new zarr store, an empty group, to be filled; it appears complete under its name. Raises StorageError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        remove(temporary)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")  # strings
            store = guarded(temporary, read_only=False)
            zarr.create_group(store, zarr_format=3)
            yield store
        publish(temporary, path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error}). Make room, then `resume`.") from error


def read_model(path: Path) -> NamedArrays:
    """Return the model of a finished run, in memory. Raises InputError without one, StorageError if it is damaged."""
    with _opening(path) as store:
        return read_group(store).load()


def read_dataset(path: Path) -> xr.Dataset:
    """Return the model of a finished run as a dataset of xarray, in memory. Raises as `read_model`."""
    import xarray as xr

    with _opening(path) as store:
        return xr.open_zarr(store, consolidated=False, chunks=None).load()


@contextmanager
def _opening(path: Path) -> Iterator[GuardedStore]:
    """The store of a model, to be read whole. Errors are those of `read_model`."""
    if not path.exists():
        raise InputError(f"{path}: there is no model yet. Finish the run first: `em-pipeline resume {path.parent}`.")
    try:
        yield open_whole(path)
    except InputError:
        raise
    except Exception as error:  # zarr, its codecs and xarray have their own kinds
        raise StorageError(
            f"{path}: damaged ({type(error).__name__}: {error}). Remove it, then `em-pipeline resume {path.parent}` "
            "writes it again from the last checkpoint."
        ) from error


@as_written("model.zarr")
def load_model(stored: NamedArrays | xr.Dataset) -> tuple[Any, Any, Affine | None]:
    """Return model, parameters and preprocessing of a stored model. Raises InputError for another version's."""
    if "model" not in stored.attrs:
        raise InputError(
            "model.zarr: another version of em-pipeline wrote it, expected one with the attribute `model`. Use that version, or "
            "run the job again."
        )
    arrays = {str(name): variable.values for name, variable in stored.data_vars.items()}
    for name in (str(stored.attrs.get(key)) for key in ("family", "emission")):
        if name in FAMILIES:
            FAMILIES[name]  # its module registers the classes that are stored
    try:
        model = unpack(stored.attrs["model"], arrays)
        if not isinstance(model, LatentModel):
            raise ValueError(f"it is {str(model)[:40]}")
    except ValueError as error:
        raise InputError(
            f"model.zarr: the model cannot be read ({error}). Name the file of its family again."
        ) from error
    return model, model.params_from_arrays(arrays), load_affine(stored)


def load_affine(stored: NamedArrays | xr.Dataset) -> Affine | None:
    """Return the preprocessing of a stored model; None where there is none."""
    if "preprocess_matrix" not in stored:
        return None
    matrix = stored["preprocess_matrix"].values
    diagonal = matrix.shape[0] == matrix.shape[1] and np.count_nonzero(matrix - np.diag(np.diagonal(matrix))) == 0
    return Affine(stored["preprocess_offset"].values, np.diagonal(matrix).copy() if diagonal else matrix)


@as_written("model.zarr")
def load_statistics(stored: NamedArrays | xr.Dataset) -> Statistics:
    """Return the statistics of a stored model. Raises InputError where there are none."""
    attrs, arrays = stored.attrs, {str(name): variable.values for name, variable in stored.data_vars.items()}
    if "statistics" not in attrs:
        raise InputError(
            "model.zarr: has no statistics: an earlier version of em-pipeline wrote it. Run the job again, or start from its "
            "parameters: fit.init: run."
        )
    (model, params, _), totals = load_model(stored), unpack(attrs["statistics"], arrays)
    if not isinstance(totals, Totals):
        raise InputError(f"model.zarr: its statistics are {str(totals)[:40]}. Run the job again.")
    order = np.array(attrs["order"], np.int64) if attrs.get("order") else None
    if order is not None:
        params = model.params(**schema.selected(model.fields, model.arrays(params), order.argsort()))
    return Statistics.of(model, params, totals, order)
