"""weights_se and means_se in model.zarr: one more pass after the fit, on request."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.data.chunks import Chunks
from pipeline.engine.passes import Engine
from pipeline.jobconfig import Config
from pipeline.models.gaussian import Gaussian
from pipeline.models.information import ScoreProducts, standard_errors
from pipeline.outputs.model_store import load_model, read_dataset, write_dataset

_DIMENSIONS = {"weights_se": ("component",), "means_se": ("component", "feature")}


def lacks_errors(path: Path, config: Config) -> bool:
    """Whether standard errors are wanted, and the stored model has none of that kind."""
    wanted = config.output.standard_errors
    return wanted is not False and read_dataset(path).attrs.get("standard_errors") != wanted


def learns_covariances(config: Config) -> bool:
    """Whether errors are to allow for covariances that were learned with the means."""
    return config.output.standard_errors is True and "covariances" not in config.model.fixed_parts


def write_errors(path: Path, config: Config, chunks: Chunks, engine: Engine, log: Callable[..., None]) -> None:
    """Add the errors to a stored model, which appears whole again. chunks : its rows, before preprocessing."""
    began = time.perf_counter()
    dataset = read_dataset(path)
    model, params, affine = load_model(dataset)
    assert isinstance(model, Gaussian)
    rows = chunks.after_profile(affine, int(dataset.attrs["dropped_rows"]))
    job = ScoreProducts(model, params, learns_covariances(config))
    errors = standard_errors(job, engine.sum_over(rows, [job])[0])
    variables = {name: (_DIMENSIONS[name], value) for name, value in errors.items()}
    found = dataset.assign(variables).assign_attrs(standard_errors=config.output.standard_errors)
    write_dataset(path, found.drop_encoding())
    for name in (name for name, value in errors.items() if np.isnan(value).any()):
        message = "a component is empty, rows are too few, or features follow from others: those are NaN"
        log("warning", message=f"{name}: {message}")
    log("standard_errors", rows=rows.n_rows, seconds=time.perf_counter() - began)
