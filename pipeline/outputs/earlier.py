"""An earlier run as a start, as a prior, or with its statistics: read from its model.zarr, and from what its config.yaml says.

Nothing that the run directory names is executed: a family of the user's own is the file that the new config names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.data.chunks import Chunks
from pipeline.data.earlier import Earlier, Statistics
from pipeline.data.preprocess import Affine
from pipeline.data.user_start import UserStart, user_start
from pipeline.errors import InputError, as_written
from pipeline.jobconfig import Config, to_plain
from pipeline.models.clusters import NoRows
from pipeline.outputs.model_store import load_affine, load_statistics, read_model
from pipeline.outputs.run_directory import RunDirectory


def start_of(config: Config, chunks: Chunks) -> UserStart:
    """Return what `fit.init_path` names, and what the config takes over from an earlier run.

    Raises
    ------
    InputError
        If it cannot be read, or if the earlier run fitted another kind of model, or rows of other features.
    """
    if config.earlier_run is None:
        return user_start(config.fit, config.data, chunks.n_rows)
    earlier = _earlier(config, chunks)
    if config.fit.init == "run":
        return UserStart(arrays=dict(earlier.arrays), earlier=earlier)
    return user_start(config.fit, config.data, chunks.n_rows)._replace(earlier=earlier)


@as_written("model.zarr")
def _earlier(config: Config, chunks: Chunks) -> Earlier:
    directory = RunDirectory(str(config.earlier_run))
    what, plain = f"{config.key_of_earlier_run} {directory}", directory.read_config()["config"]
    stored = read_model(directory.model)
    affine = load_affine(stored)
    _refuse_other_rows(what, config, plain, stored.attrs, affine, chunks)
    [model] = config.models(NoRows(chunks.n_features if affine is None else affine.n_out))
    if stored.attrs.get("family") != model.family:
        raise InputError(
            f"{what}: holds a model of family {stored.attrs.get('family')}, expected {model.family}. Name another run, or set "
            "model.family to its."
        )
    arrays = {name: np.asarray(stored[name].values, np.float64) for name in model.fields if name in stored}
    try:
        model.params_from_arrays(arrays)
    except InputError as error:
        raise InputError(
            f"{what}: does not fit this config: {error} Set model.n_components and the other options of model to those of the run."
        ) from error
    if not config.fit.init_statistics:
        return Earlier(arrays, affine)
    statistics = load_statistics(stored)
    _refuse_other_model(what, config, plain, stored.attrs, statistics)
    return Earlier(statistics.unordered(arrays), affine, statistics)


def _refuse_other_rows(
    what: str, config: Config, plain: Any, attrs: Mapping[str, Any], affine: Affine | None, chunks: Chunks
) -> None:
    """Raise InputError if the features of the rows are not those of the earlier run."""
    steps, mine = plain.get("preprocess") or [], to_plain(config)["preprocess"]
    if steps != mine:
        raise InputError(
            f"{what}: was fitted to rows after preprocess: {steps}, expected {mine}. Its map is used for these rows too: set preprocess "
            "to that of the run."
        )
    if affine is not None and len(affine.offset) != chunks.n_features:
        raise InputError(
            f"{what}: was fitted to rows of {len(affine.offset)} features, these have {chunks.n_features}. Give rows made in the same way."
        )
    described = attrs.get("data")
    before = {
        "features": described.get("features") if isinstance(described, dict) else None,
        "words": attrs.get("vocabulary"),
    }
    now = {"features": chunks.source.describe().get("features"), "words": chunks.source.vocabulary()}
    for name, old in before.items():
        new = now[name]
        if old and new and list(old) != list(new):
            at = next(
                (i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), min(len(old), len(new))
            )
            raise InputError(
                f"{what}: was fitted to other {name} than these rows have: number {at} was {_nth(old, at)}, and is {_nth(new, at)}. "
                "Give rows with the same ones, in the same order."
            )


def _nth(names: Sequence[Any], at: int) -> str:
    return repr(names[at]) if at < len(names) else "not there"


def _refuse_other_model(
    what: str, config: Config, plain: Any, attrs: Mapping[str, Any], statistics: Statistics
) -> None:
    """Raise InputError if statistics would be used under other options of the model than they were made with."""
    model = statistics.model
    if not model.knows_bound:
        raise InputError(
            f"{what}: the statistics of a {model.words.name} do not say what other parameters would cost its rows. "
            "Fit all rows again, or set fit.init_statistics: false to start from it."
        )
    mine, old = to_plain(config)["model"], chosen(plain.get("model") or {}, attrs)
    found = {f"model.{key}": (value, mine.get(key)) for key, value in old.items() if key != "path"}
    assignment = config.resolved().fit.assignment
    found["fit.assignment"] = (attrs.get("assignment", assignment), assignment)  # K-means has one
    for key, (was, now) in found.items():
        if was != now:
            raise InputError(
                f"{what}: its statistics were made with {key}: {was}, expected {now}. Set it to that of the run, or "
                "fit.init_statistics: false to start from its parameters alone."
            )
    if config.data.labels is not None and statistics.order is not None and (np.diff(statistics.order) != 1).any():
        raise InputError(
            f"data.labels: the components of {what} were sorted when it ended, and its statistics were not: labels would name others. "
            "Leave data.labels out."
        )


def chosen(section: Mapping[str, Any], attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `model` of a run with the values that were chosen, in place of lists and of what was pruned."""
    return {
        key: attrs[key] if key in attrs and not isinstance(attrs[key], list) and (isinstance(value, list) or key == "n_components") else value
        for key, value in section.items()
    }  # fmt: skip
