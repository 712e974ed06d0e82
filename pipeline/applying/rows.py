"""What the commands that use the model of a run share: its config with the user's changes, and a directory for what they write."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import provenance
from pipeline.config.stored import refuse_unnamed_engine, trusted
from pipeline.data.chunks import Chunks
from pipeline.data.preprocess import Affine
from pipeline.engine.blas import single_thread
from pipeline.engine.memory import PeakMemory, Plan
from pipeline.engine.passes import unused_address
from pipeline.errors import InputError
from pipeline.fitting.plan import JobPlan, memory_plan, plan_job
from pipeline.job import engine_for
from pipeline.jobconfig import Config, to_plain, validate
from pipeline.models.mixture import Mixture
from pipeline.outputs import checkpoint, model_store
from pipeline.outputs.events import EventLog, Listener
from pipeline.outputs.exported import export
from pipeline.outputs.labels import LabelBlock, write_labels
from pipeline.outputs.run_directory import RunDirectory

_SETTLED = ("prediction_of", "model", "config", "fingerprint")  # what a record holds beside the options of a command


def asked_of(path: str | Path, overrides: Sequence[str], command: str, more: tuple[str, ...] = ()) -> Config:
    """Return the config of a run with the changes of a command. more : what it takes beside data.…, engine.… and model.path.

    Raises
    ------
    InputError
        If something is changed that the run has settled.
    """
    directory = RunDirectory(path)
    record = directory.read_config()
    for override in overrides:
        if not override.startswith(("data.", "engine.", "engine=", "model.path=", *(f"{name}=" for name in more))):
            expected = ["data.…", "engine.…", *more, "model.path"]
            raise InputError(
                f"{command}: got {override.partition('=')[0]}, expected {', '.join(expected[:-1])} or {expected[-1]}. "
                "The rest is settled by the run."
            )
    name = str(directory.config)
    config = validate(trusted(record["config"], overrides, name), list(overrides), name).resolved()
    refuse_unnamed_engine(record["config"], overrides, name)
    return config


class OpenRows(NamedTuple):
    """The model of a run and rows that it takes.

    affine : the preprocessing, which `chunks` do not apply.  memory : what was planned.  drop : whether bad rows get fill values.
    """

    model: Any
    params: Any
    affine: Affine | None
    chunks: Chunks
    plan: JobPlan
    memory: Plan
    drop: bool

    @property
    def mapped(self) -> Chunks:
        """The rows with the preprocessing."""
        return replace(self.chunks, affine=self.affine)

    def block(self, what: Any, chunks: Chunks) -> LabelBlock:
        """Return the task of arrays over rows. what : what `LabelBlock` takes as a model."""
        return LabelBlock(chunks, what, self.params, 0, self.drop)


def open_rows(run: RunDirectory, config: Config, command: str) -> OpenRows:
    """Open the model of a run, and the rows of a config. Raises InputError if they do not go together, or memory is too little."""
    provenance.refuse_other_code(config, run.read_config(), ("model.path",))
    model, params, affine = model_store.load_model(model_store.read_model(run.model))
    if config.data.bad_rows == "missing" and isinstance(model, Mixture) and not model.incomplete:
        model = model.for_rows("missing")
    chunks = config.open_chunks()
    n_raw = model.sizes.get("feature", chunks.n_features) if affine is None else len(affine.offset)
    if chunks.n_features != n_raw:
        raise InputError(
            f"{command}: rows have {chunks.n_features} features, the model was fitted to {n_raw}. "
            "Give data.path rows made as the run's own were."
        )
    plan = plan_job(config, chunks, fits=False)
    planned = memory_plan(plan, chunks)  # before a chunk is read
    return OpenRows(model, params, affine, chunks, plan, planned, config.data.bad_rows != "error")


def write_rows(
    run: RunDirectory,
    config: Config,
    target: RunDirectory,
    options: Mapping[str, Any],
    made: Callable[[OpenRows], LabelBlock],
    listeners: Sequence[Listener],
    began: float | None,
    form: str = "zarr",
    after: Callable[[OpenRows, EventLog], None] | None = None,
) -> Path:
    """Write a store with arrays over rows, out of core and resumable, as labels are; return it, or the table that is made of it.

    options : of the command; its `command` is also the name of the store.  made : returns the task.  form : as of `predict`.  after : what
    is made of the store, if that is missing.
    """
    began = time.perf_counter() if began is None else began
    store = target.path / f"{options['command']}.zarr"
    with single_thread(), PeakMemory() as memory:
        opened = open_rows(run, config, str(options["command"]))
        task = made(opened)
        fingerprint = opened.chunks.fingerprint()
        with engine_for(config, opened.memory) as engine, target.lock():
            begin(target, run, config, fingerprint, options)
            log = EventLog(target.events, tuple(listeners))
            log.warn(unused_address(config.engine))
            engine.report_to(log)
            missing = not store.exists()
            if missing:
                grid = task.rows_on()[0]
                told = {"of": grid.n_rows, "what": "rows" if len(grid.dims) > 1 else f"{grid.dims[0]}s"}
                write_labels(store, task, engine, lambda rows: log("labelled", rows=rows, **told))
            if after is not None:
                after(opened, log)
            if missing:
                log("finished", seconds=time.perf_counter() - began, peak_pss=memory.bytes)
            return store if form == "zarr" else export(store, task, form)


def output_of(command: str, output: str | Path | None) -> RunDirectory:
    """Return the directory that a command writes. Raises InputError without one."""
    if output is None:
        raise InputError(f"{command}: got no output, expected a directory. Give --output.")
    return RunDirectory(output)


def begin(
    target: RunDirectory,
    run: RunDirectory,
    config: Config,
    fingerprint: dict[str, Any],
    options: Mapping[str, Any] | None = None,
) -> None:
    """Make a directory for what is computed by the model of a run, or continue with one of the same.

    options : of the command, with its name as `command`; None for a prediction.
    """
    plain = to_plain(config)
    plain.pop("engine")
    record = {
        "prediction_of": str(run.path.absolute()),
        "model": checkpoint.sums(_basis(run)),
        "config": plain,
        "fingerprint": fingerprint,
        **(options or {}),
    }
    if not (target.is_ours and target.read_config() == record):
        target.refuse_unless_free(overwrite=False)
        target.create(record)


def _basis(run: RunDirectory) -> Path:
    """The store that a command begins with: the model of a run, or codes."""
    codes = run.path / "compress.zarr"
    return codes if codes.exists() else run.model


def resumed(
    finish: Callable[..., Path],
    path: str | Path,
    overrides: Sequence[str],
    listeners: Sequence[Listener],
    began: float | None,
) -> Path:
    """Finish what a command began in a directory, and return the directory. Raises what `reopened` does.

    finish : takes the run, the config, the directory, the command's options, listeners and `began`.
    """
    run, config, record = reopened(path, overrides)
    target = RunDirectory(path)
    options = {name: value for name, value in record.items() if name not in _SETTLED}
    finish(run, config, target, options, listeners, began)
    return target.path


def reopened(path: str | Path, overrides: Sequence[str]) -> tuple[RunDirectory, Config, dict[str, Any]]:
    """Return the run, the config and the record of a directory that `begin` made.

    Raises
    ------
    InputError
        If the model is gone, or is another than the one that it began with.
    """
    target = RunDirectory(path)
    begun, name = target.read_config(), str(target.config)
    run = RunDirectory(str(begun["prediction_of"]))
    basis = _basis(run)
    if not basis.is_dir() or checkpoint.sums(basis) != begun.get("model"):
        what = "has another model than these labels began with" if basis.is_dir() else f"has no {basis.name}"
        raise InputError(
            f"{path}: holds labels by the model of {run}, which {what}. Restore it, or label the rows again."
        )
    return run, validate(trusted(begun["config"], overrides, name), list(overrides), name).resolved(), begun
