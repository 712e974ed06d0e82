#!/usr/bin/env python3
"""The three models of docs/models/own.md: by every method and by SciPy, statsmodels and lifelines (extra bench), and a large fit out of core on two processes.

    scripts/experiments/user_models.py compare            likelihoods, passes and CPU seconds of each; 1 where maxima differ
    scripts/experiments/user_models.py large [ROWS]       the zero-inflated Poisson model by each method, 10^7 rows in a scratch folder

Rows and starts are the same for all methods. CPU seconds are of all processes of a fit, with compilation in the first fit of each method.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from scipy.optimize import minimize

import pipeline
from pipeline.config import outside

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models" / "own.md"


def counts(n: int, rng: np.random.Generator) -> np.ndarray:
    """Zero-inflated counts, (n, 1)."""
    return np.where(rng.random(n) < 0.3, 0, rng.poisson(2.5, n)).astype(np.float64)[:, None]


def lines(n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of two regressions on two features, response first, (n, 3)."""
    z, x = (rng.random(n) < 0.4).astype(int), rng.normal(size=(n, 2))
    slopes, scale = np.array([[1.0, 2.0, -1.0], [-2.0, 0.5, 1.5]]), np.array([0.5, 1.0])
    return np.column_stack([slopes[z, 0] + (slopes[z, 1:] * x).sum(axis=1) + scale[z] * rng.normal(size=n), x])


def lifetimes(n: int, rng: np.random.Generator) -> np.ndarray:
    """Times and whether they are deaths, (n, 2)."""
    time_ = 2.0 * rng.weibull(1.5, n)
    return np.column_stack([np.minimum(time_, 2.5), time_ < 2.5])


class Fit(NamedTuple):
    """What a peer has found. steps : iterations, or evaluations where it counts these."""

    log_likelihood: float
    parameters: dict[str, Any]
    steps: int


def counts_by_scipy(x: np.ndarray) -> Fit:
    """Nelder and Mead's method on the log-likelihood."""
    y = x[:, 0]

    def lost(u: np.ndarray) -> float:
        share = 1 / (1 + np.exp(-u[0]))
        return -np.log(share * (y == 0) + (1 - share) * scipy.stats.poisson.pmf(y, np.exp(u[1]))).sum()

    found = minimize(lost, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-10})
    return Fit(-found.fun, {"share": 1 / (1 + np.exp(-found.x[0])), "mean": np.exp(found.x[1])}, found.nfev)


def counts_by_statsmodels(x: np.ndarray) -> Fit:
    """Of a constant rate, and a constant logit of the share."""
    from statsmodels.discrete.count_model import ZeroInflatedPoisson

    model = ZeroInflatedPoisson(x[:, 0], np.ones(len(x)))
    found = model.fit(method="bfgs", maxiter=1000, gtol=1e-9, disp=False)
    logit, log_mean = found.params
    return Fit(found.llf, {"share": 1 / (1 + np.exp(-logit)), "mean": np.exp(log_mean)}, found.mle_retvals["fcalls"])


def lines_by_scipy(x: np.ndarray) -> Fit:
    """BFGS with differences on the log-likelihood, from the start that all have."""
    design = np.column_stack([np.ones(len(x)), x[:, 1:]])

    def lost(u: np.ndarray) -> float:
        share, slopes, scale = 1 / (1 + np.exp(-u[0])), u[1:7].reshape(2, 3), np.exp(u[7:])
        each = scipy.stats.norm.logpdf(x[:, :1], design @ slopes.T, scale) + np.log([share, 1 - share])
        return -np.logaddexp(each[:, 0], each[:, 1]).sum()

    start = np.concatenate([[0.0], STARTS["Regressions"]["coefficients"].ravel(), np.zeros(2)])
    found = minimize(lost, start, tol=1e-10)
    share = 1 / (1 + np.exp(-found.x[0]))
    named = {"weights": [share, 1 - share], "coefficients": found.x[1:7].reshape(2, 3), "scale": np.exp(found.x[7:])}
    return Fit(-found.fun, named, found.nfev)


def lifetimes_by_scipy(x: np.ndarray) -> Fit:
    """The fit of `scipy.stats.weibull_min`, which counts no steps."""
    data = scipy.stats.CensoredData(uncensored=x[x[:, 1] == 1, 0], right=x[x[:, 1] == 0, 0])
    shape, _, scale = scipy.stats.weibull_min.fit(data, floc=0)
    law = scipy.stats.weibull_min(shape, scale=scale)
    total = law.logpdf(x[x[:, 1] == 1, 0]).sum() + law.logsf(x[x[:, 1] == 0, 0]).sum()
    return Fit(float(total), {"shape": shape, "scale": scale}, 0)


def lifetimes_by_lifelines(x: np.ndarray) -> Fit:
    """WeibullFitter, which counts no steps."""
    from lifelines import WeibullFitter

    found = WeibullFitter().fit(x[:, 0], x[:, 1])
    return Fit(float(found.log_likelihood_), {"shape": found.rho_, "scale": found.lambda_}, 0)


STARTS: dict[str, dict[str, Any]] = {
    "ZeroInflatedPoisson": {"share": 0.5, "mean": 1.0},
    "Regressions": {
        "weights": [0.5, 0.5],
        "coefficients": np.array([[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]]),
        "scale": [1.0, 1.0],
    },
    "Lifetimes": {"shape": 1.0, "scale": 1.0},
}
MODELS = {
    "ZeroInflatedPoisson": (
        "zero_inflated.py",
        counts,
        {"SciPy": counts_by_scipy, "statsmodels": counts_by_statsmodels},
    ),
    "Regressions": ("regressions.py", lines, {"SciPy": lines_by_scipy}),
    "Lifetimes": ("lifetimes.py", lifetimes, {"SciPy": lifetimes_by_scipy, "lifelines": lifetimes_by_lifelines}),
}


def write_files() -> None:
    """Write the files of the page into the current folder."""
    for text in re.findall(r"```python\n(# [\w-]+\.py\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        Path(text.split("\n")[0][2:]).write_text(text, encoding="utf-8")


def compare(n: int = 20_000) -> bool:
    """Print a row for each model and method, ours and peers', beside Newton's method; return whether all end at its maximum."""
    same = True
    print(f"{n:,} rows; CPU seconds of a first and a second fit")
    print(
        f"{'model':20} {'method':11} {'log-likelihood':>20} {'less Newton':>11} {'parameters':>10} {'steps':>6} {'CPU s':>6} {'again':>6}"
    )
    for name, (file, draw, peers) in MODELS.items():
        model, x = outside.load(f"{file}:{name}", "model.path").found(), draw(n, np.random.default_rng(1))

        def ours(method: str, model: Any = model, x: np.ndarray = x, name: str = name) -> Fit:
            found = pipeline.fit(model, x, start=STARTS[name], method=method, tol=1e-14, max_iter=5000)
            return Fit(found.log_likelihood, dict(found.parameters), found.n_passes)

        best = None
        for method in ("newton", "em", "auto", "gradient", *peers):
            seconds = []
            for _ in range(2):
                began = time.process_time()
                found = peers[method](x) if method in peers else ours(method)
                seconds.append(time.process_time() - began)
            best = best or found
            apart = max(
                float(np.max(np.abs(np.asarray(found.parameters[key]) / value - 1.0)))
                for key, value in best.parameters.items()
            )
            print(
                f"{name:20} {method:11} {found.log_likelihood:20.10f} {found.log_likelihood - best.log_likelihood:11.1e} {apart:10.1e} "
                f"{found.steps or '':>6} {seconds[0]:6.2f} {seconds[1]:6.2f}",
                flush=True,
            )
            same &= apart < 1e-4 and abs(found.log_likelihood / best.log_likelihood - 1.0) < 1e-8
    return same


def large(n: int = 10**7) -> None:
    """Fit n rows out of core by each method, on two worker processes from one start, and print what it took."""
    rng, step = np.random.default_rng(2), 10**6
    rows = np.lib.format.open_memmap("counts.npy", mode="w+", dtype=np.float64, shape=(n, 1))
    for a in range(0, n, step):
        rows[a : a + step] = counts(min(step, n - a), rng)
    rows.flush()
    del rows
    np.savez("start.npz", **STARTS["ZeroInflatedPoisson"])
    local = "engine.profiles={local: {kind: local, workers: 2, threads_per_worker: 1, wait: 600}}"
    changes = [local, "engine.scheduler=local", "engine.workers=2", "engine.memory=2GiB"]
    changes += ["fit.init=explicit", "fit.init_path=start.npz", "fit.tol=1e-13", "fit.max_iter=500"]
    print(f"{n:,} rows, two processes")
    print(
        f"{'method':9} {'nats a row':>15} {'share':>10} {'mean':>10} {'passes':>6} {'CPU s':>6} {'s':>6} {'MiB':>6}  stop"
    )
    for method in ("em", "newton", "gradient"):  # auto is newton here
        seen: list[dict[str, Any]] = []
        config = pipeline.load_config("zero_inflated.yaml", [*changes, f"fit.method={method}"])
        began, used = time.perf_counter(), _cpu()
        found = pipeline.open_run(pipeline.run(config, f"run-{method}", listeners=[seen.append]))
        took, used = time.perf_counter() - began, _cpu() - used
        passes = sum(event["event"] == "pass" for event in seen)
        value, memory = found.attrs["final_log_likelihood"] / n, seen[-1]["peak_pss"] / 2**20
        print(
            f"{method:9} {value:15.12f} {found.share.item():10.7f} {found['mean'].item():10.7f} {passes:6} {used:6.1f} "
            f"{took:6.1f} {memory:6.0f}  {found.attrs['stop_reason'].split(':')[0]}",
            flush=True,
        )


def _cpu() -> float:
    """CPU seconds of this process and of the worker processes that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    text = re.search(r"```yaml\n(# zero_inflated\.yaml\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert text is not None
    done = True
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_files()
        Path("zero_inflated.yaml").write_text(text[1], encoding="utf-8")
        if sys.argv[1:2] == ["large"]:
            large(*map(int, sys.argv[2:]))
        else:
            done = compare()
        os.chdir("/")
    sys.exit(int(not done))
