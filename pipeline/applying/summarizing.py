"""A run in a few rows: sizes, the rows nearest to each component, and as many rows of each: `em-pipeline summarize`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from zarr.codecs import ZstdCodec

from pipeline import keyed
from pipeline.applying.rows import OpenRows, asked_of, begin, open_rows, output_of
from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows, stack
from pipeline.data.preprocess import Affine
from pipeline.data.source import Source
from pipeline.engine.blas import single_thread
from pipeline.engine.memory import MIB, PeakMemory
from pipeline.engine.passes import unused_address
from pipeline.errors import InputError
from pipeline.job import engine_for
from pipeline.jobconfig import Config
from pipeline.models.clusters import ClusterModel
from pipeline.models.codes import CENTRES
from pipeline.outputs import partial
from pipeline.outputs.events import EventLog, Listener
from pipeline.outputs.exported import named_rows, refuse_format, write_table
from pipeline.outputs.labels import refuse_bad
from pipeline.outputs.model_store import appearing
from pipeline.outputs.run_directory import RunDirectory

if TYPE_CHECKING:
    import xarray as xr

STREAM = 78  # of the hashes that choose rows


def summarize(
    path: str | Path,
    output: str | Path | None = None,
    per_cluster: int = 100,
    nearest: int = 5,
    seed: int = 0,
    overrides: Sequence[str] = (),
    form: str = "zarr",
    listeners: Sequence[Listener] = (),
    began: float | None = None,
) -> Path:
    """Write sizes and prototypes, the rows nearest to each component, and as many rows of each; return `summarize.zarr`, or a table.

    Parameters
    ----------
    path : str or Path
        Of a run of a mixture or K-means.
    output : str or Path
        The directory.
    per_cluster : int
        Rows of each label in the sample, all of them where there are fewer: those whose hashes of (seed, row number) are least. The same rows
        for any number of workers and any chunks.
    nearest : int
        Rows of each label that it most probably belongs to, ties by highest density; of K-means those nearest to the centre.
    seed : int
    overrides : sequence of str
        ``data.path=…`` for other rows than the run's own; engine may change too.
    form : {"zarr", "parquet", "csv"}
        parquet, csv: also write the sample as a table.
    listeners : sequence of callable
        Called with each event.
    began : float, optional
        time.perf_counter() when the user began to wait. Now by default.

    Raises
    ------
    InputError
        If rows have no labels, or the rows asked for do not fit in memory.
    """
    refuse_format(form)
    for name, value in (("--per-cluster", per_cluster), ("--nearest", nearest)):
        if value < 1:
            raise InputError(f"summarize: got {name} {value}, expected at least 1. Correct it.")
    config, target = asked_of(path, overrides, "summarize"), output_of("summarize", output)
    options = {
        "command": "summarize",
        "per_cluster": per_cluster,
        "nearest": nearest,
        "seed": seed,
        "format": form,
    }
    return finish_summary(RunDirectory(path), config, target, options, listeners, began)


def finish_summary(
    run: RunDirectory,
    config: Config,
    target: RunDirectory,
    options: dict[str, Any],
    listeners: Sequence[Listener],
    began: float | None,
) -> Path:
    """Compute the summary that a directory lacks. options : of the command, by name."""
    began = time.perf_counter() if began is None else began
    store, form = target.path / "summarize.zarr", options["format"]
    with single_thread(), PeakMemory() as memory:
        opened = open_rows(run, config, "summarize")
        _refuse(opened, options)
        source, fingerprint = opened.chunks.source, opened.chunks.fingerprint()
        with engine_for(config, opened.memory) as engine, target.lock():
            begin(target, run, config, fingerprint, options)
            log = EventLog(target.events, tuple(listeners))
            log.warn(unused_address(config.engine))
            engine.report_to(log)
            if not store.exists():
                limits = options["per_cluster"], options["nearest"]
                job = Choosing(opened.model, opened.params, opened.affine, *limits, options["seed"], opened.drop)
                unfinished = partial.PartialPass(target.checkpoints, opened.chunks, [job], None, log.warn)
                [found] = engine.sum_over(
                    opened.chunks, [job], None, unfinished, lambda done, of: log("progress", chunks=done, of=of)
                )
                _write(store, found, opened)
                partial.forget(target.checkpoints)
                log("finished", seconds=time.perf_counter() - began, peak_pss=memory.bytes)
            return store if form == "zarr" else write_table(store.with_suffix(f".{form}"), [_table(store, source)])


def _refuse(opened: OpenRows, options: dict[str, Any]) -> None:
    """Raise InputError for a model without labels, or lists that are too long."""
    model, source = opened.model, opened.chunks.source
    if not isinstance(model, ClusterModel) or model.unit_bytes():
        raise InputError(f"summarize: a {model.words.name} has no labels of single rows. Fit a mixture or K-means.")
    rows = model.n_components * (options["per_cluster"] + options["nearest"])
    n_bytes = min(rows, 2 * source.n_rows) * (
        40 + (0 if source.sparse else opened.chunks.width * source.dtype.itemsize)
    )
    needed = 3 * (opened.memory.workers + 1) * n_bytes  # two lists while they merge, and the result
    if needed > max(0, opened.memory.spare):
        raise InputError(
            f"summarize: got {rows} rows to choose, which need {needed / MIB:.0f} MiB, but engine.memory leaves "
            f"{max(0, opened.memory.spare) / MIB:.0f} MiB. Lower --per-cluster, or raise engine.memory."
        )


@stored
@dataclass(frozen=True)
class Chosen:
    """The rows of each label with the least keys, ties by row number; those of two sets of rows merge by +.

    label, row : (m,) int64, by label and keys.  first, second : (m,) float64, the keys.  x : (m, d), or (m, 0) for sparse rows.
    """

    limit: int
    label: Array
    first: Array
    second: Array
    row: Array
    x: Array

    def __add__(self, other: Chosen) -> Chosen:
        both = ((getattr(self, name), getattr(other, name)) for name in ("label", "first", "second", "row"))
        columns = [*(np.concatenate(pair) for pair in both), stack(self.x, other.x)]
        return Chosen(self.limit, *columns).cut()

    def cut(self) -> Chosen:
        """Return the rows with the least keys of these."""
        order = np.lexsort((self.row, self.second, self.first, self.label))
        label = self.label[order]
        order = order[np.arange(len(label)) - np.searchsorted(label, label) < self.limit]
        columns = (each[order] for each in (self.label, self.first, self.second, self.row, self.x))
        return Chosen(self.limit, *columns)


@stored
@dataclass(frozen=True)
class Summary:
    """Of some rows; those of two sets merge by +. size : (k,) int64 rows of each label."""

    size: Array
    sample: Chosen
    nearest: Chosen

    def __add__(self, other: Summary) -> Summary:
        return Summary(self.size + other.size, self.sample + other.sample, self.nearest + other.nearest)


@stored
@dataclass(frozen=True)
class Choosing:
    """Job: the summary of a chunk. affine : the preprocessing, which the chunk is without.  drop : whether bad rows are left out."""

    model: Any
    params: Any
    affine: Affine | None
    per_cluster: int
    nearest: int
    seed: int
    drop: bool

    def __call__(self, rows: Rows, kernels: Any) -> Summary:
        if not self.drop:
            refuse_bad(rows, slice(0, rows.n))
        mapped = rows.x if self.affine is None else self.affine.apply(rows.x)
        top = int("top_responsibility" in self.model.row_arrays(1))
        found = self.model.predict(self.params, replace(rows, x=mapped, weight=None), top, kernels)
        label = found["label"].astype(np.int64)
        live = np.flatnonzero((label >= 0) if rows.weight is None else (label >= 0) & (rows.weight > 0))
        own, row = label[live], rows.start + live
        share = found["top_responsibility"][live, 0].astype(np.float64) if top else np.ones(len(live))
        x = np.empty((len(live), 0)) if sp.issparse(rows.x) else rows.x[live]
        score = self.model.words.sign * found[self.model.words.score][live]
        hashed = keyed.uniform(self.seed, STREAM, row)
        sample = Chosen(self.per_cluster, own, hashed, np.zeros(len(live)), row, x).cut()
        best = Chosen(self.nearest, own, -share, -score.astype(np.float64), row, x).cut()
        return Summary(np.bincount(own, minlength=self.model.n_components), sample, best)


def _write(path: Path, found: Summary, opened: OpenRows) -> None:
    """Write the summary by xarray: what names rows may be dates."""
    dataset = _dataset(found, opened)
    codec = ZstdCodec(level=3, checksum=True)
    encoding = {
        name: {"compressors": [codec], "chunks": each.shape} for name, each in dataset.variables.items() if each.size
    }
    with appearing(path) as store:
        dataset.to_zarr(store, mode="w", zarr_format=3, consolidated=False, encoding=encoding)


def _dataset(found: Summary, opened: OpenRows) -> xr.Dataset:
    """The summary as it is stored."""
    import xarray as xr

    model, best, order = opened.model, found.nearest, np.argsort(found.sample.row)
    rank = np.arange(len(best.label)) - np.searchsorted(best.label, best.label)
    at, shape = (best.label, rank), (model.n_components, best.limit)
    row, score = np.full(shape, -1, np.int64), np.full(shape, np.nan)
    row[at], score[at] = best.row, -model.words.sign * best.second
    arrays: dict[str, Any] = {
        "size": ("component", found.size),
        "nearest_row": (("component", "rank"), row),
        f"nearest_{model.words.score}": (("component", "rank"), score),
        "row": ("sample", found.sample.row[order]),
        "label": ("sample", found.sample.label[order].astype(np.int32)),
    }
    if not opened.chunks.source.sparse:
        x = np.zeros((*shape, best.x.shape[1]), best.x.dtype)
        x[at] = best.x
        arrays |= {
            "nearest_value": (("component", "rank", "feature"), x),
            "value": (("sample", "feature"), found.sample.x[order]),
        }
    if model.location in CENTRES:
        centres, affine = model.arrays(opened.params)[model.location], opened.affine
        raw = centres if affine is None else centres @ affine.inverse() + affine.offset
        arrays["prototype"] = (("component", "feature"), raw)
    for name, values in _named(opened.chunks.source, arrays["row"][1]).items():
        arrays[f"{name}_of_row" if name in arrays else name] = ("sample", values)
    return xr.Dataset(arrays, attrs={"family": model.family})


def _named(source: Source, rows: Array) -> dict[str, Array]:
    """What names ascending rows beside their numbers."""
    chunk = np.searchsorted(source.bounds, rows, side="right")
    parts = []
    for own in np.split(rows, np.flatnonzero(np.diff(chunk)) + 1):
        if len(own):
            names = named_rows(source, int(own[0]), int(own[-1]) + 1)
            parts.append({name: np.asarray(values)[own - own[0]] for name, values in names.items() if name != "row"})
    return {name: _plain(np.concatenate([part[name] for part in parts])) for name in (parts[0] if parts else ())}


def _plain(values: Array) -> Array:
    return values.astype(str) if values.dtype == object else values


def _table(store: Path, source: Source) -> Any:
    """The sample, a line a row."""
    import pandas as pd
    import xarray as xr

    found = xr.open_zarr(store, consolidated=False).drop_dims(["component", "rank"], errors="ignore").load()
    names = sorted((str(name) for name in found.variables), key=lambda name: (name != "row", name == "label", name))
    flat = {name: found[name].values for name in names if found[name].dims == ("sample",)}
    if "value" in found:
        flat |= {f"value_{i}": column for i, column in enumerate(found["value"].values.T)}
    return pd.DataFrame(flat)
