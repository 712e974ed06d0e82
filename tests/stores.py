"""Run directories made by hand, for tests of the report: their stores, configs and events, without a fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml
import zarr

from pipeline.outputs import checkpoint
from pipeline.outputs.report import write_report

FAMILY_NAMES = {"means": "gaussian", "centers": "kmeans", "log_prob": "multinomial"}


def history(k: int, n_iter: int, rows: int) -> dict[str, Any]:
    """A plausible history: log-likelihoods that rise, a free energy between two of them, sizes that settle."""
    t = np.arange(n_iter + 1)
    log_likelihood = rows * (-10 - 4 * np.exp(-0.3 * t) - 1 / (t + 2))
    between = 0.35 * log_likelihood[:-1] + 0.65 * log_likelihood[1:]
    sizes = np.random.default_rng(3).dirichlet(np.full(k, 5.0), n_iter) * rows
    return {
        "log_likelihood": ("iteration", log_likelihood[:-1]),
        "lower_bound": ("iteration", between),
        "entropy": ("iteration", np.full(n_iter, 0.3 * rows)),
        "n_effective": (("iteration", "component"), sizes),
        "rows": ("iteration", np.full(n_iter, rows)),
        "phase": ("iteration", np.full(n_iter, "em", dtype=object)),
        "final": log_likelihood[-1],
    }


def write_run(folder: Path, centre: str, arrays: dict[str, Any], data: dict[str, Any], **attrs: Any) -> Path:
    """A finished run directory; `centre` is means, centers or log_prob, and names the family."""
    folder.mkdir(parents=True, exist_ok=True)
    family = FAMILY_NAMES[centre]
    k, d = arrays[centre].shape
    n_iter, rows = 12, 20_000
    past = history(k, n_iter, rows)
    final = past.pop("final")
    if family == "kmeans":
        past["inertia"] = ("iteration", -np.asarray(past.pop("log_likelihood")[1]))
        del past["lower_bound"], past["entropy"]
    variables: dict[str, Any] = past | {
        "weights": ("component", np.sort(np.random.default_rng(0).dirichlet(np.full(k, 4.0)))[::-1]),
        centre: (("component", "feature"), arrays[centre]),
        "representative_row": (("component", "rank"), np.arange(5 * k).reshape(k, 5)),
        "representative_responsibility": (("component", "rank"), np.full((k, 5), 0.99)),
    }
    square = ("feature", "feature_2")
    tied = attrs.get("covariance_type") == "tied"
    dims: dict[tuple[str, int], tuple[str, ...]] = {
        ("covariances", 3): ("component", *square),
        ("covariances", 2): square if tied else ("component", "feature"),
        ("covariances", 1): ("component",),
        ("representatives", 3): ("component", "rank", "feature"),
        ("sample", 2): ("sample_row", "feature"),
        ("means_se", 2): ("component", "feature"),
        ("outlier_row", 1): ("outlier",),
        ("outlier_log_density", 1): ("outlier",),
        ("outliers", 2): ("outlier", "feature"),
        ("preprocess_offset", 1): ("raw_feature",),
        ("preprocess_matrix", 2): ("raw_feature", "feature"),
        ("preprocess_inverse", 2): ("feature", "raw_feature"),
    }
    variables |= {
        name: (dims.get((name, array.ndim), tuple(f"{name}.{axis}" for axis in range(array.ndim))), array)
        for name, array in arrays.items()
        if name != centre
    }
    objective = {"final_inertia": -final} if family == "kmeans" else {"final_log_likelihood": final}
    criteria = {} if family == "kmeans" else {"aic": 412345.6, "bic": 423456.7, "icl": 434567.8}
    stored = {
        "family": family,
        "covariance_type": "full" if family == "gaussian" else None,
        "assignment": "hard" if family == "kmeans" else "soft",
        "n_components": k,
        "n_features": d,
        "n_rows": rows,
        "total_weight": float(rows),
        "stop_reason": "converged: the log-likelihood per row moved by 4.1e-4 nats, less than tol = 1e-3",
        "converged": True,
        "n_iter": n_iter,
        "log_jacobian": 0.0,
        "order": [1, 0, *range(2, k)][:k] if k > 1 else [0],
        "data": data,
        "restarts": [{"restart": 0, "objective": final, "n_iter": n_iter, "stop_reason": "tol", "chosen": True}],
        "reg_covar": 1e-6,
        "dropped_rows": 0,
    }
    stored |= objective | criteria | attrs
    dataset = xr.Dataset(variables, attrs={key: value for key, value in stored.items() if value is not None})
    dataset.to_zarr(folder / "model.zarr", consolidated=False, mode="w")
    config = {
        "data": {"source": "zarr", "path": "data/rows.zarr"},
        "model": {"family": family, "n_components": k},
        "fit": {"init": "k-means||", "n_init": 1, "max_iter": 100, "tol": 1e-3},
        "output": {"path": "runs/example"},
    }
    resolved = {
        "config": config,
        "versions": {"em-pipeline": "0.1.0", "numpy": "2.4.0"},
        "numerics": 1,
        "fingerprint": {"shape": [rows, d], "dtype": "float64", "n_chunks": 7, "sha256": ["ab12" * 16] * 16},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    write_events(folder, n_iter, rows)
    return folder


def write_events(folder: Path, n_iter: int, rows: int) -> None:
    """Events with a reset, a warning, a kind that nobody knows, and a last line torn by a crash."""
    moment = "2026-03-05T14:{:02d}:{:02d}+00:00"
    entries: list[dict[str, Any]] = [
        {"event": "start", "host": "grey", "cores": 2, "blas": "openblas Haswell", "memory_total": 2**32},
        {"event": "profile", "rows": rows, "seconds": 0.41, "bytes_read": 10**7},
        {"event": "init", "method": "k-means||", "seconds": 1.2},
    ]
    for t in range(n_iter):
        speed = {"seconds": 0.02 + 0.003 * (t % 3), "rows": rows, "bytes_read": 10**7, "workers": 2}
        entries.append({"event": "pass", "iteration": t, **speed})
    entries += [
        {"event": "reset", "restart": 0, "iteration": 3, "component": 1, "reason": "1.2 effective rows"},
        {"event": "warning", "message": "2 <b>rows</b> & more"},
        {"event": "eclipse", "depth": 3},
        {"event": "checkpoint", "generation": 4, "seconds": 0.03},
        {"event": "finished", "seconds": 9.5, "peak_pss": 3 * 10**8},
    ]
    lines = [json.dumps({**entry, "time": moment.format(i // 60, i % 60)}) for i, entry in enumerate(entries)]
    (folder / "events.jsonl").write_text("\n".join(lines) + '\n{"event": "pass", "seco')


def spd(rng: np.random.Generator, k: int, d: int) -> np.ndarray:
    """(k, d, d) covariances."""
    a = rng.normal(size=(k, d, d)) * np.linspace(1, 0.1, d)
    return np.asarray(a @ a.transpose(0, 2, 1) / d + 0.01 * np.eye(d))


def dense_run(folder: Path, d: int = 2, k: int = 3, covariance_type: str = "full", **attrs: Any) -> Path:
    """A Gaussian mixture of plain rows."""
    rng = np.random.default_rng(d)
    full = spd(rng, k, d)
    covariances: np.ndarray = {
        "full": full,
        "tied": full[0],
        "diag": np.diagonal(full, axis1=1, axis2=2),
        "spherical": np.trace(full, axis1=1, axis2=2) / d,
    }[covariance_type]
    means = 3 * rng.normal(size=(k, d))
    sample = means[rng.integers(k, size=500)] + rng.normal(size=(500, d))
    arrays = {"means": means, "covariances": covariances, "sample": sample}
    return write_run(folder, "means", arrays, {"kind": "rows"}, covariance_type=covariance_type, **attrs)


def kmeans_run(folder: Path) -> Path:
    """K-means of plain rows."""
    rng = np.random.default_rng(1)
    arrays = {"centers": rng.normal(size=(4, 5)), "sample": rng.normal(size=(300, 5))}
    return write_run(folder, "centers", arrays, {"kind": "rows"})


def image_run(folder: Path) -> Path:
    """Small images, spherical; the last component has no closest row."""
    rng = np.random.default_rng(2)
    arrays = {
        "means": rng.uniform(0, 16, (6, 64)),
        "covariances": np.ones(6),
        "representatives": rng.uniform(0, 16, (6, 5, 64)),
        "sample": rng.uniform(0, 16, (50, 64)),
    }
    return write_run(folder, "means", arrays, {"kind": "image", "size": [8, 8]}, covariance_type="spherical")


def patch_run(folder: Path, k: int = 200, p: int = 8) -> Path:
    """Full covariances of mean-free patches."""
    rng = np.random.default_rng(4)
    d = p * p - 1
    arrays = {
        "means": 0.01 * rng.normal(size=(k, d)),
        "covariances": spd(rng, k, d),
        "representatives": rng.normal(size=(k, 5, d)),
        "sample": rng.normal(size=(100, d)),
        "outlier_row": np.array([70, 5]),
        "outlier_log_density": np.array([-50.0, -40.0]),
        "outliers": rng.normal(size=(2, d)),
    }
    data = {"kind": "patch", "size": [p, p], "channels": 1, "remove_mean": True, "contrast": None}
    return write_run(folder, "means", arrays, data)


def topic_run(folder: Path) -> Path:
    """A multinomial mixture with a vocabulary that needs escaping."""
    theta = np.random.default_rng(5).dirichlet(np.full(40, 0.2), 20) + 1e-9
    words = [f"word&{i}" for i in range(40)]
    return write_run(folder, "log_prob", {"log_prob": np.log(theta)}, {"kind": "document"}, vocabulary=words)


def forget(run: Path) -> Path:
    """The run with a history that was not computed at every iteration, as an incremental method leaves it."""
    model = zarr.open_group(run / "model.zarr")
    for name in ("log_likelihood", "lower_bound", "entropy"):
        array = model[name]
        assert isinstance(array, zarr.Array)
        array[2:5] = np.nan
    return run


def choice_run(folder: Path, shapes: tuple[str, ...] = ("full",), heldout: bool = False, **attrs: Any) -> Path:
    """A run that was chosen from 2, 3 and 4 components; the second of the first shape by BIC or held-out rows."""
    table = [
        {
            "name": f"k{k}-{shape}",
            "n_components": k,
            "covariance_type": shape,
            "reg_covar": 1e-6,
            "fixed": [],
            "final_log_likelihood": -2e5 + 10 * k,
            "aic": 4e5 + 100 * abs(k - 3) + i,
            "bic": 4e5 + 1000 * abs(k - 3) + i,
            "icl": 4e5 + 900.0 + k,
            "n_free_parameters": 10 * k,
            "total_weight": 15_000.0,
            "collapsed": int(k == 4),
            "n_iter": 20 + k,
            "stop_reason": f"converged: of {k} components",
            "restarts": [],
            "criterion": "heldout" if heldout else "bic",
            "chosen": k == 3 and i == 0,
        }
        | ({"heldout": -13.0 - abs(k - 3), "heldout_weight": 5000.0} if heldout else {})
        for k in (4, 2, 3)
        for i, shape in enumerate(shapes)
    ]
    return dense_run(folder, candidates=table, **attrs)


def keep(run: Path, iterations: tuple[int, ...] = (0, 1, 5)) -> Path:
    """The run with parameters of some iterations: the model's, stretched by feature, in the order that the fit had."""
    model = xr.open_zarr(run / "model.zarr", consolidated=False)
    back = np.argsort(model.attrs["order"])
    names = [name for name in ("weights", "means", "covariances", "centers", "log_prob") if name in model]
    first = f"-{model.attrs['covariance_type']}" if "covariance_type" in model.attrs else ""
    folder = run / "iterations" / f"k{model.sizes['component']}{first}-0"
    for t in iterations:
        arrays = {}
        for name in names:
            value, stretch = model[name].values, stretched(model.sizes["feature"], t)
            if name != "weights":
                square = "feature_2" in model[name].dims
                value = value * np.outer(stretch, stretch) if square else value * (stretch if value.ndim > 1 else 2)
            arrays[name] = value[back] if model[name].dims[0] == "component" else value
        checkpoint.save(folder, t, checkpoint.State(arrays, {}), keep=None)
    return run


def stretched(d: int, t: int) -> np.ndarray:
    """(d,) what each feature of iteration t is multiplied by."""
    return np.asarray(1 + np.linspace(0.2, 1, d) / (t + 1))


RUNS: dict[str, Callable[[Path], Path]] = {
    "line": lambda folder: dense_run(folder, d=1, k=1, covariance_type="diag"),
    "plane": lambda folder: keep(dense_run(folder)),
    "many": lambda folder: dense_run(folder, d=20, covariance_type="tied"),
    "gaps": lambda folder: forget(dense_run(folder, d=3, covariance_type="spherical")),
    "choice": choice_run,
    "choice of types": lambda folder: choice_run(folder, ("full", "tied"), heldout=True),
    "kmeans": lambda folder: keep(kmeans_run(folder)),
    "images": lambda folder: keep(image_run(folder)),
    "patches": lambda folder: keep(patch_run(folder, k=12, p=4)),
    "topics": lambda folder: keep(topic_run(folder)),
}


class Page(HTMLParser):
    """What the tests look at: elements with their attributes, and the text."""

    VOID = {"meta", "img", "br", "hr", "link"}

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += f" {data}"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def read(run: Path) -> Page:
    """Write the report and parse it."""
    return Page(write_report(run).read_text(encoding="utf-8"))
