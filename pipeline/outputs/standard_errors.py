"""Standard errors in model.zarr, such as weights_se and means_se: one more pass after the fit, on request."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.config import Output
from pipeline.data.chunks import Chunks
from pipeline.engine.passes import Engine
from pipeline.outputs.model_store import load_model, read_model, write_model


def lacks_errors(path: Path, output: Output) -> bool:
    """Return whether standard errors are wanted that the stored model does not have."""
    wanted = output.standard_errors
    return wanted is not False and read_model(path).attrs.get("standard_errors") != wanted


def write_errors(path: Path, output: Output, chunks: Chunks, engine: Engine, log: Callable[..., None]) -> None:
    """Add standard errors to a stored model, which appears complete again. chunks : its rows, before preprocessing."""
    began = time.perf_counter()
    stored = read_model(path)
    model, params, affine = load_model(stored)
    rows = chunks.after_profile(affine, int(stored.attrs["dropped_rows"]))
    job = model.score_products(params, output.standard_errors is True)
    errors = job.errors(engine.sum_over(rows, [job])[0])
    variables = {f"{name}_se": (model.fields[name].dims, value) for name, value in errors.items()}
    stored.attrs["standard_errors"] = output.standard_errors
    write_model(path, stored.assign(variables))
    for name in (name for name, value in errors.items() if np.isnan(value).any()):
        message = "a component is empty, rows are too few, or features follow from others: those are NaN"
        log("warning", message=f"{name}_se: {message}")
    log("standard_errors", rows=rows.n_rows, seconds=time.perf_counter() - began)
