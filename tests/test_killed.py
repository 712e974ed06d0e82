"""Every family from a config: a process that is killed, resume to the bytes of an undisturbed run, predict, report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import yaml
import zarr

import pipeline
from pipeline.data import source
from tests.clusters import environment, eventually
from tests.faults import CHUNK_BYTES
from tests.jobs import command, results
from tests.test_autodiff import counts
from tests.test_docs import DOCS, blocks, write
from tests.test_families import PROBLEMS, N
from tests.test_outside import FAMILY

AFTER_A_PASS = "checkpoints/gen-000002"
FIRST = "gaussian-full"  # the others are slow
OF_FILES: dict[str, dict[str, Any]] = {
    "python": {"family": "python", "path": "my_family.py:Floored", "covariance_type": "diag", "n_components": 3},
    "jax-em": {"family": "python", "path": "zero_inflated.py:ZeroInflatedPoisson"},
    "jax-newton": {"family": "python", "path": "zero_inflated.py:ZeroInflatedPoisson"},
}


def sections(name: str, folder: Path) -> dict[str, Any]:
    """The sections data, model and fit of a problem, whose rows and files are written to the folder."""
    rng, fit = np.random.default_rng(0), {"max_iter": 6, "tol": 0}
    if name in OF_FILES:
        if name == "python":
            (folder / "my_family.py").write_text(FAMILY)
            np.save(folder / "x.npy", PROBLEMS["gaussian-full"].draw(rng))
        else:
            pytest.importorskip("jax")
            for block in blocks(DOCS / "models" / "own.md"):
                write(block)
            np.save(folder / "x.npy", counts(2000))
        fit |= {
            "python": {"method": "em"},
            "jax-em": {"init": "random"},
            "jax-newton": {"init": "random", "method": "newton"},
        }[name]
        return {"data": {"source": "npy", "path": "x.npy"}, "model": OF_FILES[name], "fit": fit}
    problem = PROBLEMS[name]
    x, data = problem.draw(rng), {"source": "npy", "path": "x.npy"}
    if sp.issparse(x):
        data = {"source": "sparse", "path": "x.npz"}
        sp.save_npz(folder / "x.npz", x)
    else:
        if problem.features is not None:
            d = problem.features
            errors = x[:, d:] if x.shape[1] == 2 * d else x[:, d:].reshape(N, d, d)
            np.save(folder / "errors.npy", errors)
            x, data = x[:, :d], {**data, "noise": "errors.npy"}
        np.save(folder / "x.npy", x)
        if np.isnan(x).any():
            data["bad_rows"] = "missing"
    if problem.unit:
        np.save(folder / "units.npy", np.arange(N) // problem.unit)
        data["units"] = "units.npy"
    return {"data": data, "model": {**problem.model, "n_components": 3}, "fit": fit}


@pytest.mark.full
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == FIRST else pytest.mark.slow) for name in (*PROBLEMS, *OF_FILES)]
)
def test_a_killed_run_of_any_family(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the pass after a checkpoint; the labels of predict are those of the run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "TARGET_BYTES", CHUNK_BYTES)
    config = sections(name, tmp_path)
    Path("job.yaml").write_text(yaml.safe_dump(config))
    assert command("run", "job.yaml", "--output", "whole").code == 0
    Path("slow").write_text("0.1")  # seconds of a chunk
    program = [sys.executable, "-m", "tests.faults", "run", "job.yaml", "--output", "run"]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()) as process:
        eventually(lambda: Path("run", AFTER_A_PASS).exists() or process.poll() is not None, 120)
        assert process.poll() is None, process.stderr and process.stderr.read()
        process.kill()
    assert not Path("run", "model.zarr").exists()
    named = ("--set", f"model.path={config['model']['path']}") if name in OF_FILES else ()
    assert command("resume", "run", *named).code == 0
    assert results(Path("run")) == results(Path("whole"))
    assert command("predict", "run", *named, "--output", "new").code == 0
    new, old = (zarr.open_group(path, mode="r") for path in ("new/labels.zarr", "run/labels.zarr"))
    for array in dict(new.arrays()):
        np.testing.assert_array_equal(new[array][:], old[array][:])
    assert command("report", "run").code == 0
    words, page = pipeline.open_run("run").attrs["words"], Path("run", "report.html").read_text(encoding="utf-8")
    assert words["title"].format(k=3) in page
