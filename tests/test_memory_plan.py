"""The memory plan against what jobs allocate: Python and NumPy arrays, as tracemalloc counts them."""

import json
import tracemalloc

import numpy as np
import pytest

from pipeline import workflow
from pipeline.engine.memory import IMPORTS, UNRETURNED
from tests.jobs import job

MIB = 2**20
SMALL = {"n_components": 2}
SHAPES = {
    "full": ({"family": "gaussian", "n_components": 60, "covariance_type": "full"}, 120, {}),
    "full, SIMD": ({"family": "gaussian", "n_components": 30, "covariance_type": "full"}, 110, {}),
    "full, Cholesky": ({"family": "gaussian", "n_components": 40, "covariance_type": "full"}, 150, {}),
    "full, restarts": ({"family": "gaussian", "n_components": 60, "covariance_type": "full"}, 90, {"n_init": 3}),
    "full, auto": ({"family": "gaussian", "n_components": 40, "covariance_type": "full"}, 100, {"method": "auto"}),
    "tied": ({"family": "gaussian", "n_components": 60, "covariance_type": "tied"}, 300, {}),
    "diag": ({"family": "gaussian", "n_components": 200, "covariance_type": "diag"}, 500, {}),
    "student-t": ({"family": "student-t", "n_components": 60, "covariance_type": "full"}, 120, {}),
    "factor": ({"family": "factor", "n_components": 20}, 300, {}),
    "kmeans": ({"family": "kmeans", "n_components": 200}, 500, {}),
    "multinomial": ({"family": "multinomial", "n_components": 50}, 1000, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_job_allocates_no_more_than_is_planned(tmp_path, shape):
    """From the profile to the report, beyond a small job of the same family before it; the plan is not ten times too large."""
    model, d, fit = SHAPES[shape]
    rng = np.random.default_rng(0)
    x = rng.poisson(3.0, size=(2400, d)).astype(np.float32)
    x += 4.0 * rng.integers(3, size=(model["n_components"], d))[rng.integers(model["n_components"], size=len(x))]
    np.save(tmp_path / "small.npy", x[:400, :20])
    np.save(tmp_path / "x.npy", x)
    fit = {"max_iter": 4, "init": "random", "effort": "low", **fit}
    workflow.run(job(tmp_path / "small.npy", model={**model, **SMALL}, fit=fit), tmp_path / "small")
    engine = {"memory": "4GiB", "workers": 2}
    tracemalloc.start()
    try:
        run = workflow.run(job(tmp_path / "x.npy", model=model, fit=fit, engine=engine), tmp_path / "run")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    start = json.loads((run / "events.jsonl").read_text().splitlines()[0])["plan"]
    unreturned = min(UNRETURNED, 4 * start["pass_bytes"])  # what was freed is not allocated
    planned = start["peak"] - IMPORTS - unreturned + start["pass_bytes"]  # and chunks that are cached
    assert 0.1 * planned < peak <= planned, f"planned {planned / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB"
