"""What the commands that use the model of a run share: its config with the user's changes, and a directory for what they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.stored import refuse_unnamed_engine, trusted
from pipeline.errors import InputError
from pipeline.jobconfig import Config, to_plain, validate
from pipeline.outputs import checkpoint
from pipeline.outputs.run_directory import RunDirectory


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
        "model": checkpoint.sums(run.model),
        "config": plain,
        "fingerprint": fingerprint,
        **(options or {}),
    }
    if not (target.is_ours and target.read_config() == record):
        target.refuse_unless_free(overwrite=False)
        target.create(record)


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
    if not run.model.is_dir() or checkpoint.sums(run.model) != begun.get("model"):
        what = "has another model than these labels began with" if run.model.is_dir() else "has no model.zarr"
        raise InputError(
            f"{path}: holds labels by the model of {run}, which {what}. Restore it, or label the rows again."
        )
    return run, validate(trusted(begun["config"], overrides, name), list(overrides), name).resolved(), begun
