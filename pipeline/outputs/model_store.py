"""model.zarr: the fitted model with its history, as one xarray dataset in the root group.

Nothing in it depends on when, where, from which path or how fast it ran: the same fit gives the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import zarr
from zarr.codecs import ZstdCodec

from pipeline.data.preprocess import Affine
from pipeline.data.profile import DataSummary as Known
from pipeline.data.source import Source
from pipeline.em.run import Run
from pipeline.errors import InputError, StorageError
from pipeline.models.base import Mixture, Model
from pipeline.models.gaussian import Gaussian
from pipeline.models.kmeans import KMeans
from pipeline.models.multinomial import Multinomial
from pipeline.models.prior import Prior
from pipeline.models.stats import Array, HeldOut
from pipeline.outputs.run_directory import publish, remove

if TYPE_CHECKING:
    import xarray as xr

SAMPLE_ROWS, SAMPLE_BYTES = 2000, 2**20  # for the report's pictures
MISFITS, MISFIT_WORDS = 10, 8  # at most
_COMPONENT = ("component",)
_DIMENSIONS: dict[str, tuple[str, ...]] = {
    "weights": _COMPONENT,
    "means": ("component", "feature"),
    "centers": ("component", "feature"),
    "log_prob": ("component", "feature"),
}
_COVARIANCES = {
    "full": ("component", "feature", "feature_2"),
    "tied": ("feature", "feature_2"),
    "diag": ("component", "feature"),
    "spherical": _COMPONENT,
}


def best_run(runs: Sequence[Run]) -> Run:
    """The restart with the highest final objective; ties go to the first."""
    return max(runs, key=lambda run: run.objective)


def canonical_order(run: Run) -> Array:
    """Components by decreasing weight, ties by position: (k,) int64, old indices in their new order."""
    assert run.final is not None
    counts = run.params.weights if isinstance(run.model, Mixture) else run.final.stats.sum_w
    keys = [*run.model.positions(run.params).T[::-1], -counts]
    return np.lexsort(keys).astype(np.int64)


def build_dataset(run: Run, runs: Sequence[Run], order: Array, known: Known, source: Source) -> xr.Dataset:
    """The dataset of a finished run, with components in the given order. runs : all restarts of its candidate."""
    import xarray as xr

    run = _reordered(run, order)
    variables = (
        _parameters(run)
        | _history(run)
        | _exemplars(run)
        | _misfits(run)
        | _preprocessing(known.affine)
        | _prior(run.model)
    )
    if not source.sparse:
        size = min(SAMPLE_ROWS, max(1, SAMPLE_BYTES // (8 * len(known.mean))))
        variables["sample"] = (("sample_row", "feature"), np.asarray(known.sample.x[:size], dtype=np.float64))
    return xr.Dataset(variables, attrs=_attributes(run, runs, order, known, source))


def _reordered(run: Run, order: Array) -> Run:
    final = run.final
    assert final is not None
    exemplars = final.exemplars
    if exemplars is not None:
        fields = {name: getattr(exemplars, name)[order] for name in ("row", "log_resp", "log_joint", "x")}
        exemplars = replace(exemplars, **fields)
    stats = replace(final.stats, sum_w=final.stats.sum_w[order])
    history = tuple(entry._replace(n_effective=entry.n_effective[order]) for entry in run.history)
    params = run.model.reorder(run.params, order)
    return replace(run, params=params, history=history, final=replace(final, exemplars=exemplars, stats=stats))


def _parameters(run: Run) -> dict[str, Any]:
    named = dict(run.params.arrays())
    dimensions = dict(_DIMENSIONS)
    if isinstance(run.model, Gaussian):
        dimensions["covariances"] = _COVARIANCES[run.model.covariance_type]
    if isinstance(run.model, KMeans):
        assert run.final is not None
        named["weights"] = run.final.stats.sum_w / run.final.stats.sum_w.sum()
    return {name: (dimensions[name], value) for name, value in named.items()}


def _history(run: Run) -> dict[str, Any]:
    mixture = ("log_likelihood", "lower_bound", "entropy", "rate", "left")
    names = ("fisher_norm", *(mixture if isinstance(run.model, Mixture) else ()))
    series: dict[str, Any] = {
        name: (("iteration",), np.array([getattr(entry, name) for entry in run.history])) for name in names
    }
    if isinstance(run.model, KMeans):
        series["inertia"] = (("iteration",), np.array([-entry.objective for entry in run.history]))
    series["n_effective"] = (("iteration", "component"), np.array([entry.n_effective for entry in run.history]))
    series["rows"] = (("iteration",), np.array([entry.rows for entry in run.history], dtype=np.int64))
    series["phase"] = (("iteration",), np.array([entry.phase for entry in run.history], dtype=object))
    return series


def _exemplars(run: Run) -> dict[str, Any]:
    assert run.final is not None and run.final.exemplars is not None
    found = run.final.exemplars
    variables: dict[str, Any] = {
        "exemplar_row": (("component", "rank"), found.row),
        "exemplar_responsibility": (("component", "rank"), np.exp(found.log_resp)),
    }
    if found.x.shape[2]:
        variables["exemplars"] = (("component", "rank", "feature"), found.x)
    return variables


def _misfits(run: Run) -> dict[str, Any]:
    """The rows that fit worst, the worst first; of a document its commonest words, with -1 for none."""
    assert run.final is not None
    found = run.final.worst.first(MISFITS)
    score = ("squared_distance", -found.score) if isinstance(run.model, KMeans) else ("log_density", found.score)
    variables: dict[str, Any] = {"misfit_row": (("misfit",), found.row), f"misfit_{score[0]}": (("misfit",), score[1])}
    if not sp.issparse(found.x):
        variables["misfits"] = (("misfit", "feature"), np.asarray(found.x, dtype=np.float64))
        return variables
    word = np.full((len(found.row), MISFIT_WORDS), -1, dtype=np.int64)
    count = np.zeros(word.shape)
    for i, document in enumerate(found.x):
        top = np.lexsort((document.indices, -document.data))[:MISFIT_WORDS]
        word[i, : len(top)], count[i, : len(top)] = document.indices[top], document.data[top]
    return variables | {"misfit_word": (("misfit", "place"), word), "misfit_count": (("misfit", "place"), count)}


def _preprocessing(affine: Affine | None) -> dict[str, Any]:
    if affine is None:
        return {}
    return {
        "preprocess_offset": (("raw_feature",), affine.offset),
        "preprocess_matrix": (("raw_feature", "feature"), affine.full_matrix()),
        "preprocess_inverse": (("feature", "raw_feature"), affine.inverse()),
    }


def _prior(model: Model) -> dict[str, Any]:
    if not isinstance(model, Gaussian) or model.prior is None:
        return {}
    variables: dict[str, Any] = {"prior_mean": (("feature",), model.prior.mean)}
    if model.prior.scale is not None:
        variables["prior_scale"] = (("feature", "feature_2"), model.prior.scale)
    return variables


def _stored_prior(dataset: xr.Dataset) -> Prior | None:
    if "prior" not in dataset.attrs:
        return None
    scale = dataset["prior_scale"].values if "prior_scale" in dataset else None
    return Prior(dataset["prior_mean"].values, scale=scale, **dataset.attrs["prior"])


def _attributes(run: Run, runs: Sequence[Run], order: Array, known: Known, source: Source) -> dict[str, Any]:
    assert run.final is not None
    model, final = run.model, run.final.stats
    attributes: dict[str, Any] = {
        "family": model.family,
        "n_components": model.n_components,
        "n_features": model.n_features,
        "n_rows": known.n_rows,
        "dropped_rows": known.n_bad,
        "total_weight": known.total,
        "stop_reason": run.stop_reason,
        "converged": str(run.stop_reason).startswith("converged"),
        "n_iter": len(run.history),
        "search": [rung._asdict() for rung in run.rungs],
        **({"message_lengths": [list(length) for length in run.lengths]} if run.lengths else {}),
        "order": order.tolist(),
        "data": source.describe(),
        "data_mean": known.mean.tolist(),
        "log_jacobian": 0.0 if known.affine is None else known.affine.log_jacobian(),
        "restarts": restarts(runs, run),
        "versions": {name: version(name) for name in ("em-pipeline", "numpy", "scipy", "zarr")},
    }
    if isinstance(model, Mixture):
        attributes |= criteria(model, float(final.log_likelihood), float(final.entropy), known.total)
        attributes |= {"assignment": model.assignment, "fixed": list(model.fixed)}  # type: ignore[attr-defined]
    if run.final.held_out is not None:
        attributes |= held_out(run.final.held_out)
    if isinstance(model, Gaussian):
        attributes |= {"covariance_type": model.covariance_type, "reg_covar": model.reg_covar}
        if (prior := model.prior) is not None:
            attributes["prior"] = {"weights": prior.weights, "shrinkage": prior.shrinkage, "dof": prior.dof}
    if isinstance(model, Multinomial):
        attributes |= {"concentration": model.concentration, "weight_concentration": model.weight_concentration}
    if isinstance(model, KMeans):
        attributes["final_inertia"] = float(final.inertia)
        attributes["feature_variance"] = model.variance
    if (words := source.vocabulary()) is not None:
        attributes["vocabulary"] = words
    return attributes


def restarts(runs: Sequence[Run], chosen: Run) -> list[dict[str, Any]]:
    """How each restart ended."""
    return [
        {
            "restart": run.restart,
            "objective": run.objective,
            "n_iter": len(run.history),
            "stop_reason": run.stop_reason,
            "chosen": run.restart == chosen.restart,
        }
        for run in runs
    ]


def criteria(model: Model, log_likelihood: float, entropy: float, total: float) -> dict[str, float]:
    """Information criteria in nats, lower is better; n is the sum of weights.

    BIC = p log n - 2 log L [Schwarz 1978]; AIC = 2p - 2 log L [Akaike 1974]; ICL = BIC + 2 entropy [Biernacki et al. 2000]
    """
    p = model.n_free_parameters()
    bic = p * float(np.log(total)) - 2.0 * log_likelihood
    return {
        "final_log_likelihood": log_likelihood,
        "aic": 2.0 * p - 2.0 * log_likelihood,
        "bic": bic,
        "icl": bic + 2.0 * entropy,
        "n_free_parameters": p,
    }


def held_out(rows: HeldOut) -> dict[str, float]:
    """What the rows that a fit left out say of it. heldout : log-likelihood, nats per row; higher is better."""
    return {"heldout": rows.log_likelihood / rows.sum_w if rows.sum_w else float("nan"), "heldout_weight": rows.sum_w}


def write_dataset(path: Path, dataset: xr.Dataset) -> None:
    """Write a dataset so that it appears whole under its name."""
    write_datasets(path, {"/": dataset})


def write_datasets(path: Path, datasets: Mapping[str, xr.Dataset]) -> None:
    """Write a store with a dataset in each named group (/ is the root), so that it appears whole under its name."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        remove(temporary)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")  # strings
            zarr.create_group(temporary, zarr_format=3)
            for group, dataset in datasets.items():
                encoding = {
                    name: {"compressors": [ZstdCodec(level=3, checksum=True)], "chunks": variable.shape}
                    for name, variable in dataset.variables.items()
                    if variable.size
                }
                dataset.to_zarr(temporary, group=group, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
        publish(temporary, path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error}). Make room, then `resume`.") from error


def read_dataset(path: Path) -> xr.Dataset:
    """The dataset of a finished run, in memory. Raises InputError when there is none, StorageError if it is damaged."""
    import xarray as xr

    if not path.exists():
        raise InputError(f"{path}: there is no model yet. Finish the run first: `em-pipeline resume {path.parent}`.")
    try:
        return xr.open_zarr(path, consolidated=False).load()
    except Exception as error:  # zarr, its codecs and xarray have their own kinds
        raise StorageError(
            f"{path}: damaged ({type(error).__name__}: {error}). Remove it, then `em-pipeline resume {path.parent}` "
            "writes it again from the last checkpoint."
        ) from error


def load_model(dataset: xr.Dataset) -> tuple[Model, Any, Affine | None]:
    """Model, parameters and preprocessing of a stored dataset."""
    attrs: Mapping[str, Any] = dataset.attrs
    shift = np.asarray(attrs["data_mean"], dtype=np.float64)
    k = int(attrs["n_components"])
    model: Model
    if attrs["family"] == "kmeans":
        model = KMeans(k, shift, attrs["feature_variance"])
    elif attrs["family"] == "multinomial":
        counts = (
            attrs["concentration"],
            attrs["assignment"],
            tuple(attrs["fixed"]),
            attrs.get("weight_concentration", 1.0),
        )
        model = Multinomial(k, 0.0 * shift, *counts)
    else:
        extra = attrs["covariance_type"], attrs["reg_covar"], attrs["assignment"], tuple(attrs["fixed"])
        model = Gaussian(k, shift, *extra, _stored_prior(dataset))
    affine = None
    if "preprocess_matrix" in dataset:
        matrix = dataset["preprocess_matrix"].values
        diagonal = matrix.shape[0] == matrix.shape[1] and np.count_nonzero(matrix - np.diag(np.diagonal(matrix))) == 0
        affine = Affine(dataset["preprocess_offset"].values, np.diagonal(matrix).copy() if diagonal else matrix)
    arrays = {str(name): variable.values for name, variable in dataset.data_vars.items()}
    return model, model.params_from_arrays(arrays), affine
