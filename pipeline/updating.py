"""The config of a job that adds rows to a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import provenance
from pipeline.config.stored import refuse_unnamed_engine, trusted
from pipeline.errors import InputError
from pipeline.jobconfig import Config, validate
from pipeline.outputs.earlier import chosen
from pipeline.outputs.model_store import read_model
from pipeline.outputs.run_directory import RunDirectory

_OF_UPDATE = ("data.", "engine.", "engine=", "output.", "fit.max_iter=", "fit.tol=", "fit.method=", "model.path=")


def config_of_update(path: str | Path, overrides: Sequence[str]) -> Config:
    """Return the config that adds rows to a run: its own, from its parameters and statistics, with other data.

    Raises
    ------
    InputError
        If no other data are named, or an option that the statistics have settled.
    """
    directory = RunDirectory(path)
    record, name = directory.read_config(), str(directory.config)
    for override in overrides:
        if not override.startswith(_OF_UPDATE):
            raise InputError(
                f"update: got {override.partition('=')[0]}, expected data.…, engine.…, output.…, fit.max_iter, fit.tol, fit.method or "
                "model.path. The rest is settled by the run."
            )
    if not any(override.startswith("data.") for override in overrides):
        raise InputError(
            f"update: got no data, expected new rows: those of {directory} are in its statistics. Add --set data.path=…"
        )
    safe = trusted(record["config"], overrides, name)
    refuse_unnamed_engine(record["config"], overrides, name)
    where = str(directory.path.absolute())
    fit = {**safe["fit"], "init": "run", "init_path": where, "init_statistics": True, "n_init": 1}
    fit["method"] = "em" if fit.get("method") == "em" else "auto"  # blocks have no part of the statistics
    model = chosen(safe["model"], read_model(directory.model).attrs)
    output = {**safe.get("output", {}), "path": f"{where}-updated", "standard_errors": False, "write_back": None}
    config = validate({**safe, "model": model, "fit": fit, "select": {}, "output": output}, list(overrides), name)
    provenance.refuse_other_code(config, record, ("model.path",))
    return config


def refuse_rows_of(run: str | Path, fingerprint: Mapping[str, Any]) -> None:
    """Raise InputError if the rows are those that a run has read: they would count twice. fingerprint : of the rows."""
    directory = RunDirectory(run)
    if directory.read_config().get("fingerprint") == fingerprint:
        raise InputError(
            f"data: are the rows of {directory}, whose statistics count already: each would count twice. Give others by data.path."
        )
