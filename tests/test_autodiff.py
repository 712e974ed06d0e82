"""Models in JAX that a user writes: those of docs/models/own.md against SciPy, by every method, through every command."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
from scipy.optimize import minimize

import pipeline
from pipeline.arrays.rows import Rows
from pipeline.config import outside
from pipeline.em.accumulate import method_of
from pipeline.em.loop import em
from pipeline.em.run import Run
from pipeline.em.stopping import Limits
from pipeline.errors import InputError
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.ascent import is_accepted, newton_step, quasi_newton_step, shorter
from pipeline.models.base import EStep, Totals
from pipeline.models.schema import SUPPORTS, Bounded
from tests.jobs import Interrupt, command, refused, results, write_rows
from tests.test_docs import DOCS, blocks, write

METHODS = ("em", "auto", "newton", "gradient")
VARIANTS = '''
class Closed(ZeroInflatedPoisson):
    """With the M-step in closed form."""

    def statistics(self, x):
        return {"n": jnp.ones(2), "x": jnp.full(2, x[0])}

    def m_step(self, s):
        return {"share": s["n"][0] / s["n"].sum(), "mean": s["x"][1] / s["n"][1]}


class Named(ZeroInflatedPoisson):
    """With the sufficient statistic named."""

    def statistics(self, x):
        return {"x": jnp.full(2, x[0])}
'''


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the docs, from which commands run."""
    pytest.importorskip("jax")
    monkeypatch.chdir(tmp_path)
    for block in blocks(DOCS / "models" / "own.md"):
        write(block)
    with Path("zero_inflated.py").open("a") as file:
        file.write(VARIANTS)
    return tmp_path


def counts(n: int = 1500, seed: int = 1) -> np.ndarray:
    """Zero-inflated counts, (n, 1)."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 0.3, 0, rng.poisson(2.5, n)).astype(float)[:, None]


def lines(n: int = 1500, seed: int = 2) -> np.ndarray:
    """Rows of two regressions on two features: response first, (n, 3)."""
    rng = np.random.default_rng(seed)
    z, covariates = (rng.random(n) < 0.4).astype(int), rng.normal(size=(n, 2))
    slopes, scale = np.array([[1.0, 2.0, -1.0], [-2.0, 0.5, 1.5]]), np.array([0.5, 1.0])
    y = slopes[z, 0] + (slopes[z, 1:] * covariates).sum(axis=1) + scale[z] * rng.normal(size=n)
    return np.column_stack([y, covariates])


def lifetimes(n: int = 1500, seed: int = 3) -> np.ndarray:
    """Times and whether they are deaths, (n, 2)."""
    rng = np.random.default_rng(seed)
    time = 2.0 * rng.weibull(1.5, n)
    return np.column_stack([np.minimum(time, 2.5), time < 2.5])


def model_of(name: str, x: np.ndarray, method: str = "em", **options: Any) -> Any:
    """The model of a class in a file, for these rows."""
    section = outside.load(name, "model.path").found.section
    summary = SimpleNamespace(mean=x.mean(axis=0), sample=SimpleNamespace(x=x[:300]))
    return section.model_validate(options).build_for(summary, "soft", method)


def fit(model: Any, x: np.ndarray, method: str, start: Any = None, tol: float = 1e-13, limit: int = 3000) -> Run:
    """A fit in memory from a start."""
    summary = SimpleNamespace(sample=SimpleNamespace(x=x[:300]))
    params = model.start(summary, np.random.default_rng(0)) if start is None else model.params(**start)

    def evaluate(jobs: Any) -> list[Any]:
        return [job(Rows(x), KERNELS) for job in jobs]

    way = method_of(method, np.array([0, len(x)]), 0)
    *_, ([run], _) = em([Run(0, model, params)], evaluate, Limits(limit, tol), len(x), way)
    assert run.stop_reason is not None and (run.stop_reason.startswith("converged") or limit < 3000)
    values = np.array([entry.objective for entry in run.history])
    assert (np.diff(values) >= -1e-12 * np.abs(values[:-1])).all()
    return run


# --- parts that need no JAX


@pytest.mark.parametrize("support", [*SUPPORTS.values(), Bounded(-2.0, 5.0)], ids=[*SUPPORTS, "bounds"])
def test_supports_are_mapped_to_real_numbers_and_back(support: Any) -> None:
    """Any real numbers become a valid array, from which the same numbers come back; as many as are free."""
    for seed, shape in itertools.product(range(3), [(3, 3), (2, 3, 3), (4, 1, 1)]):
        u = 2.0 * np.random.default_rng(seed).normal(size=support.n_free(shape))
        value = support.from_real(u, shape)
        assert value.shape == shape and support.problem("a", value) is None
        np.testing.assert_allclose(support.to_real(value), u, atol=1e-8)


def test_steps_of_a_quadratic() -> None:
    """Newton's step ends at the maximum; quasi-Newton steps from enough points too; a saddle point is left upwards."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4))
    information, maximum = root @ root.T + np.eye(4), rng.normal(size=4)
    points = [rng.normal(size=4)]
    for _ in range(4):
        gradients = [information @ (maximum - u) for u in points]
        step = quasi_newton_step(points[-11:], gradients[-11:], 10.0)
        assert gradients[-1] @ step > 0
        points.append(points[-1] + step * (gradients[-1] @ step) / (step @ information @ step))
    np.testing.assert_allclose(points[-1], maximum, atol=1e-6)
    np.testing.assert_allclose(points[0] + newton_step(information @ (maximum - points[0]), information), maximum)
    saddle, g = np.diag([2.0, -1.0, 3.0, 1.0]), np.ones(4)
    np.testing.assert_allclose(newton_step(g, saddle), [0.5, 1.0, 1 / 3, 1.0])
    np.testing.assert_allclose(newton_step(g, saddle, np.eye(4)), g)
    assert newton_step(g, np.full((4, 4), np.nan), np.eye(4)) == pytest.approx(g)


def test_a_step_is_accepted_or_shortened() -> None:
    """A fall is rejected but for rounding; the next trial is where a parabola is highest, or a tenth where nothing is known."""
    assert is_accepted(-100.0, -99.9, 0.1) and is_accepted(-100.0, -100.0 - 1e-12, 0.0)
    assert not is_accepted(-100.0, -100.1, 0.1) and not is_accepted(-100.0, np.nan, 0.1)
    assert shorter(0.0, -1.0, 1.0) == pytest.approx(0.25) and shorter(0.0, np.nan, 1.0) == 0.1
    assert shorter(0.0, -1e9, 1.0) == 0.1 and shorter(0.0, 0.0, 1.0) == 0.5


# --- errors

FAULTY = {
    "shape": ("jnp.zeros((2, 2)) + p.mean", r"faulty\.py:8: Faulty\.log_joint: got shape \(2, 2\), expected shape"),
    "line": ("jnp.zeros(3) @ jnp.zeros(4)", r"faulty\.py:9: in Faulty\.log_joint: TypeError"),
    "name": ("p.rates", r"faulty\.py:9: in Faulty\.log_joint: AttributeError.*rates"),
}
FAULTY_FILE = """import jax.numpy as jnp
from pipeline import JaxModel, Parameter


class Faulty(JaxModel):
    parameters = {"mean": Parameter(("feature",), "positive")}

    def log_joint(self, p, x):
        return BODY
"""


@pytest.mark.parametrize("case", FAULTY)
def test_an_error_names_the_line(desk: Path, case: str) -> None:
    """Of the user's file, and what is expected there."""
    body, said = FAULTY[case]
    Path("faulty.py").write_text(FAULTY_FILE.replace("BODY", body))
    with pytest.raises(InputError, match=said):
        model_of("faulty.py:Faulty", counts(20))


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ('{"rate": Parameter()}', "rate is an array of model.zarr already"),
        ('{"mean": Parameter(("factor",))}', "dimension 'factor' has no size. Give the class an attribute n_factors"),
        ('{"mean": Parameter(support="none")}', "support is real, positive"),
        ('{"mean": "positive"}', "expected Parameter"),
        ("{}", "has no parameters"),
    ],
)
def test_parameters_that_cannot_be_are_refused(desk: Path, parameter: str, said: str) -> None:
    """With what is valid."""
    Path("faulty.py").write_text(FAULTY_FILE.replace('{"mean": Parameter(("feature",), "positive")}', parameter))
    with pytest.raises(InputError, match=said.replace("(", r"\(").replace(".", r"\.")):
        model_of("faulty.py:Faulty", counts(20))


@pytest.mark.slow
def test_a_nan_gradient_names_the_parameter_and_the_row(desk: Path) -> None:
    """And an impossible row is named with the parameters."""
    x = np.abs(np.random.default_rng(0).normal(size=(3000, 5))) + 0.1
    x[2500] = 0.0
    Path("faulty.py").write_text(FAULTY_FILE.replace("BODY", "-jnp.where(x > 0, jnp.sqrt(x * p.mean), 0.0).sum()"))
    model = model_of("faulty.py:Faulty", x, "gradient")
    start = model.params(mean=np.arange(1.0, 6.0))
    rows = Rows(x, start=100)
    with pytest.raises(
        InputError,
        match=r"row 2600: the gradient of Faulty with respect to mean\[0\] is nan at mean = \[1\. 2\. 3\. 4\. 5\.\]",
    ):
        EStep(model, start)(rows, KERNELS)
    weight = np.ones(len(x))
    weight[2500] = 0.0
    found = EStep(model, start)(Rows(x, weight), KERNELS)
    assert np.isfinite(found.stats.gradient).all() and np.isfinite(found.evidence.log_likelihood)
    Path("faulty.py").write_text(FAULTY_FILE.replace("BODY", "jnp.log(x * p.mean).sum()"))
    with pytest.raises(InputError, match=r"row 2600: Faulty gives it log-density -inf at mean"):
        EStep(model_of("faulty.py:Faulty", x, "gradient"), start)(rows, KERNELS)


@pytest.mark.slow
def test_statistics_that_do_not_suffice_are_refused(desk: Path) -> None:
    """With a row where the log joint is not affine in them."""
    Path("faulty.py").write_text(
        FAULTY_FILE.replace("BODY", "-jnp.log(p.mean[0]) - 0.5 * ((x[0] - 1) / p.mean[0]) ** 2")
        + "\n    def statistics(self, x):\n        return {'x': x[0]}\n"
    )
    with pytest.raises(InputError, match="log_joint is not affine in them: for label 0 and row"):
        model_of("faulty.py:Faulty", np.random.default_rng(0).normal(size=(300, 1)))


# --- fits


def negative_log_likelihood(name: str, x: np.ndarray) -> Any:
    """Minus the log-likelihood as a function of numbers without constraints, in NumPy."""
    stats = scipy.stats
    if name == "counts":
        y = x[:, 0]

        def of_counts(u: np.ndarray) -> float:
            share, mean = 1 / (1 + np.exp(-u[0])), np.exp(u[1])
            return -np.log(share * (y == 0) + (1 - share) * stats.poisson.pmf(y, mean)).sum()

        return of_counts
    design = np.column_stack([np.ones(len(x)), x[:, 1:]])

    def of_lines(u: np.ndarray) -> float:
        share, slopes, scale = 1 / (1 + np.exp(-u[0])), u[1:7].reshape(2, 3), np.exp(u[7:])
        each = stats.norm.logpdf(x[:, :1], design @ slopes.T, scale) + np.log([share, 1 - share])
        return -np.logaddexp(each[:, 0], each[:, 1]).sum()

    return of_lines


@pytest.mark.slow
def test_zero_inflated_counts_are_those_of_scipy(desk: Path) -> None:
    """By every rule and every method the likelihood ends at SciPy's maximum, and at each other's to 1e-8."""
    x = counts()
    best = -minimize(negative_log_likelihood("counts", x), np.zeros(2), tol=1e-12).fun
    ends, passes = {}, {}
    for name, method in itertools.product(("ZeroInflatedPoisson", "Closed", "Named"), METHODS):
        model = model_of(f"zero_inflated.py:{name}", x, method)
        run = fit(model, x, method, {"share": np.array(0.5), "mean": np.array(1.0)})
        ends[name, method], passes[name, method] = run.objective, len(run.history)
    assert np.ptp(list(ends.values())) < 1e-8
    assert ends["Closed", "em"] == pytest.approx(best, abs=1e-6) and ends["Closed", "em"] > best - 1e-8
    assert passes["Named", "newton"] < passes["Named", "auto"] < passes["Named", "em"]


@pytest.mark.slow
def test_regressions_are_those_of_scipy(desk: Path) -> None:
    """EM, Newton's method and gradients from one start end at SciPy's maximum."""
    x = lines()
    start = {
        "weights": np.array([0.5, 0.5]),
        "coefficients": np.array([[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]]),
        "scale": np.ones(2),
    }
    begin = np.concatenate([[0.0], start["coefficients"].ravel(), np.zeros(2)])
    best = -minimize(negative_log_likelihood("lines", x), begin, tol=1e-10).fun
    ends = [fit(model_of("regressions.py:Regressions", x, m), x, m, start, 1e-14).objective for m in METHODS]
    assert np.ptp(ends) < 1e-8 and ends[0] == pytest.approx(best, abs=1e-6) and min(ends) > best - 1e-8


@pytest.mark.slow
def test_lifetimes_are_those_of_scipy(desk: Path) -> None:
    """Censored Weibull lifetimes against `scipy.stats.weibull_min.fit`."""
    x = lifetimes()
    data = scipy.stats.CensoredData(uncensored=x[x[:, 1] == 1, 0], right=x[x[:, 1] == 0, 0])
    shape, _, scale = scipy.stats.weibull_min.fit(data, floc=0)
    ends = []
    for method in METHODS:
        run = fit(
            model_of("lifetimes.py:Lifetimes", x, method), x, method, {"shape": np.array(1.0), "scale": np.array(1.0)}
        )
        assert float(run.params.arrays["shape"]) == pytest.approx(shape, rel=1e-4)
        assert float(run.params.arrays["scale"]) == pytest.approx(scale, rel=1e-4)
        ends.append(run.objective)
    assert np.ptp(ends) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ZeroInflatedPoisson", "Closed", "Named"])
def test_statistics_add_and_derivatives_are_those_of_the_likelihood(desk: Path, name: str) -> None:
    """Over chunks, with weights; the gradient and both curvatures agree with finite differences; the bound is the likelihood."""
    x, w = counts(500), np.random.default_rng(4).uniform(0, 2, 500)
    w[::7] = 0
    for method in ("em", "newton"):
        model = model_of(f"zero_inflated.py:{name}", x, method)
        params = model.params(share=np.array(0.2), mean=np.array(3.0))
        whole = EStep(model, params)(Rows(x, w), KERNELS)
        parts = [
            EStep(model, params)(Rows(x[a:b], w[a:b], a), KERNELS) for a, b in itertools.pairwise([0, 1, 300, 500])
        ]
        added = parts[0] + parts[1] + parts[2]
        for a, b in zip(vars(added.stats).values(), vars(whole.stats).values(), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
        h = 1e-4
        steps = [model.layout.from_real(params.u + h * s * e) for e in np.eye(2) for s in (1, -1)]
        near = [EStep(model, model.params(**each))(Rows(x, w), KERNELS) for each in steps]
        values = [each.evidence.log_likelihood for each in near]
        slopes = [(values[i] - values[i + 1]) / (2 * h) for i in (0, 2)]
        np.testing.assert_allclose(whole.stats.gradient, slopes, rtol=1e-5, atol=1e-5)
        if method == "newton":
            curves = [(near[i].stats.gradient - near[i + 1].stats.gradient) / (2 * h) for i in (0, 2)]
            np.testing.assert_allclose(whole.stats.observed, curves, rtol=1e-5, atol=1e-5)
        if name == "Named" and method == "em":
            totals = Totals(whole.stats, whole.evidence)
            assert model.bound(totals, params) == pytest.approx(whole.evidence.log_likelihood, rel=1e-12)
            best = model.m_step(whole.stats, params)
            assert model.expected_log_joint(whole.stats, best) > model.expected_log_joint(whole.stats, params)


# --- through the commands


def plain(rows: Path, name: str = "zero_inflated.py:ZeroInflatedPoisson", **fit_options: Any) -> dict[str, Any]:
    """A job of a file's class."""
    return {
        "data": {"source": "zarr", "path": str(rows)},
        "model": {"family": "python", "path": name},
        "fit": {"init": "random", **fit_options},
    }


@pytest.fixture
def stored(desk: Path) -> Iterator[Path]:
    """Counts in a store of 8 chunks."""
    yield write_rows(desk / "x.zarr", counts(800))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [("ZeroInflatedPoisson", m) for m in METHODS] + [("Closed", "auto"), ("Named", "auto"), ("Named", "incremental")],
)
def test_the_same_bytes_after_an_interruption_and_on_any_workers(stored: Path, name: str, method: str) -> None:
    """1, 2 and 4 threads; interrupted and resumed, where the file has to be named again; a higher max_iter goes on."""
    path = f"zero_inflated.py:{name}"
    job = {**plain(stored, path, method=method, tol=1e-12), "output": {"standard_errors": True}}
    whole = pipeline.run(validate({**job, "engine": {"workers": 1}}), "whole")
    for workers in (2, 4):
        assert results(pipeline.run(validate({**job, "engine": {"workers": workers}}), f"on{workers}")) == results(
            whole
        )
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(validate(job), "run", listeners=[Interrupt("pass", 3)])
    assert "--set model.path=" in refused("resume", "run")
    assert command("resume", "run", "--set", f"model.path={path}").code == 0
    assert results(Path("run")) == results(whole)
    pipeline.run(validate({**job, "fit": {**job["fit"], "max_iter": 3}}), "short")
    assert command("resume", "short", "--set", f"model.path={path}", "--set", "fit.max_iter=500").code == 0
    assert results(Path("short")) == results(whole)
    found = pipeline.open_run(whole)
    assert 0.2 < found.share < 0.4 and 0.01 < found.share_se < 0.05
    assert command("predict", "run", "--set", f"model.path={path}", "--output", "p").code == 0
    assert path.rpartition(":")[2] in Path("run/report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_worker_processes_compute_the_same_bits(stored: Path) -> None:
    """Processes, and a run on threads."""
    import yaml

    Path("c.yaml").write_text(yaml.safe_dump(plain(stored)))
    assert command("run", "c.yaml", "--output", "threads").code == 0
    assert command("run", "c.yaml", "--output", "processes", "--profile", "local").code == 0
    assert results(Path("processes")) == results(Path("threads"))


@pytest.mark.slow
def test_a_worker_without_the_file_gets_its_text(desk: Path) -> None:
    """What it unpickles computes the same bits, and its errors name the line; a file that has changed is refused."""
    x = counts(100)
    model = model_of("zero_inflated.py:ZeroInflatedPoisson", x)
    params = model.params(share=np.array(0.2), mean=np.array(3.0))
    mine = EStep(model, params)(Rows(x), KERNELS)
    Path("job").write_bytes(pickle.dumps((EStep(model, params), x, mine.stats.gradient.tobytes())))
    code = (
        "import pickle; from pipeline.arrays.rows import Rows; from pipeline.kernels.cpu import KERNELS\n"
        "job, x, bits = pickle.load(open('job', 'rb'))\n"
        "assert job(Rows(x), KERNELS).stats.gradient.tobytes() == bits"
    )
    other = pickle.loads(pickle.dumps(model))
    vars(other)["_jax"] = "0.1"
    with pytest.raises(InputError, match=r"a worker has jax .* \(the process that started the job 0\.1\)"):
        EStep(other, params)(Rows(x), KERNELS)
    root = Path(pipeline.__file__).resolve().parents[1]
    here = {**os.environ, "PYTHONPATH": str(root)}
    text = Path("zero_inflated.py").read_text()
    Path("zero_inflated.py").unlink()
    subprocess.run([sys.executable, "-c", code], check=True, env=here)
    Path("zero_inflated.py").write_text(text + "# changed\n")
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True)
    assert done.returncode and "has changed since the job began" in done.stderr


@pytest.mark.slow
def test_options_are_keys_and_lists_are_candidates(desk: Path) -> None:
    """BIC chooses the number of regressions; unknown keys and methods are refused; some parameters may be fixed."""
    rows = write_rows(desk / "x.zarr", lines(400))
    job = plain(rows, "regressions.py:Regressions", n_init=2)
    job["model"]["n_components"] = [1, 2]
    found = pipeline.open_run(pipeline.run(validate(job), "run"))
    assert found.attrs["n_components"] == 2 and [c["n_components"] for c in found.attrs["candidates"]] == [1, 2]
    assert found.attrs["n_free_parameters"] == 1 + 6 + 2 and found.coefficients.dims == ("component", "feature")
    with pytest.raises(InputError, match=r"n_componets: there is no such key; did you mean n_components\?"):
        validate({**job, "model": {**job["model"], "n_componets": 3}})
    with pytest.raises(InputError, match=r"fit\.method: got incremental, expected auto or em or newton or gradient"):
        validate({**job, "fit": {"init": "random", "method": "incremental"}})
    with pytest.raises(InputError, match="fixed: got slope, expected some of weights, coefficients, scale"):
        validate({**job, "model": {**job["model"], "fixed": ["slope"]}})
    np.savez("start.npz", weights=[0.5, 0.5], coefficients=[[1, 1, -1], [-1, 1, 1]], scale=[0.5, 1.0])
    job["model"] |= {"n_components": 2, "fixed": ["scale"]}
    job["fit"] = {"init": "explicit", "init_path": "start.npz"}
    found = pipeline.open_run(pipeline.run(validate(job), "fixed"))
    assert found.scale.values.tolist() == [0.5, 1.0] and found.attrs["n_free_parameters"] == 7


@pytest.mark.slow
def test_the_program_around_keeps_its_settings(desk: Path) -> None:
    """JAX has 32 bits elsewhere in the process, before and after."""
    import jax.numpy as jnp

    before = jnp.ones(2).dtype
    model = model_of("lifetimes.py:Lifetimes", lifetimes(50))
    start = model.params(shape=np.array(1.0), scale=np.array(1.0))
    assert EStep(model, start)(Rows(lifetimes(50)), KERNELS).stats.gradient.dtype == np.float64
    assert jnp.ones(2).dtype == before == np.float32


@pytest.mark.slow
def test_known_labels_are_known(desk: Path) -> None:
    """A row whose label is known has no other; with all labels known the fit is that of two groups."""
    x = lines(600)
    labels = np.arange(600) % 2
    model = model_of("regressions.py:Regressions", x)
    start = model.params(weights=np.array([0.5, 0.5]), coefficients=np.zeros((2, 3)), scale=np.ones(2))
    found = EStep(model, start)(Rows(x, label=labels), KERNELS)
    expected = scipy.stats.norm.logpdf(x[:, 0]).sum() + 600 * np.log(0.5)
    assert found.evidence.log_likelihood == pytest.approx(expected, rel=1e-12) and found.evidence.label_entropy == 0
    with pytest.raises(InputError, match="row 1 has label 2, expected -1"):
        EStep(model, start)(Rows(x, label=labels * 2), KERNELS)


# --- from Python


@pytest.mark.slow
def test_rows_of_any_kind_give_the_same_fit(desk: Path) -> None:
    """NumPy, Dask, xarray and weights; results are of the kind of the rows; a start and fixed parameters hold."""
    import dask.array as da
    import xarray as xr

    model, x = outside.load("zero_inflated.py:ZeroInflatedPoisson", "model.path").found(), counts(900)
    start = {"share": 0.4, "mean": 2.0}
    fitted = pipeline.fit(model, x, start=start, tol=1e-13, standard_errors=True)
    lazy = da.from_array(x, chunks=(400, 1))
    for rows in (lazy, xr.DataArray(x, dims=("row", "feature"))):
        other = pipeline.fit(model, rows, start=start, tol=1e-13)
        assert other.log_likelihood == pytest.approx(fitted.log_likelihood, abs=1e-8)
    assert fitted.converged and fitted.n_passes >= fitted.n_iter and 0 < fitted.standard_errors["share"] < 0.1
    np.testing.assert_allclose(fitted.score_samples(lazy).compute().sum(), fitted.log_likelihood, rtol=1e-12)
    assert fitted.predict(x)[x[:, 0] > 0].min() == 1
    twice = pipeline.fit(model, x, sample_weight=np.full(900, 2.0), start=start, fixed=["share"])
    assert twice.parameters["share"] == 0.4 and twice.standard_errors is None
    with pytest.raises(InputError, match="expected an instance of a subclass"):
        pipeline.fit(type(model), x)


@pytest.mark.slow
def test_a_check_finds_what_is_wrong(desk: Path) -> None:
    """The models of the docs pass; an M-step that is no maximum, and statistics that do not add, are named."""
    load = "model.path"
    for name in ("ZeroInflatedPoisson", "Closed"):
        found = pipeline.check_model(outside.load(f"zero_inflated.py:{name}", load).found)
        assert any(line.startswith("statistics add") for line in found)
    wrong = Path("zero_inflated.py").read_text().replace('s["n"][0] / s["n"].sum()', '0.9 - s["n"][0] / s["n"].sum()')
    Path("wrong.py").write_text(wrong)
    with pytest.raises(InputError, match=r"the likelihood never falls \(em\): it falls by"):
        pipeline.check_model(outside.load("wrong.py:Closed", load).found)
    Path("wrong.py").write_text(FAULTY_FILE.replace("BODY", "jnp.log(-1.0) * p.mean[0]"))
    with pytest.raises(InputError, match="takes none of the rows that were drawn"):
        pipeline.check_model(outside.load("wrong.py:Faulty", load).found)
