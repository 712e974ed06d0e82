"""scikit-learn's callbacks in the fits of the classes: a task for each iteration, at whose end one may stop the fit."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

import pipeline
from pipeline.errors import InputError
from pipeline.estimators import kmeans
from pipeline.jobconfig import validate
from tests.jobs import blobs

pytest.importorskip("sklearn.callback")
X = blobs()
MADE = {
    "kmeans": lambda: pipeline.KMeans(4, method="em", init="random", n_init=2, random_state=0, tol=0, max_iter=8),
    "gaussian": lambda: pipeline.GaussianMixture(
        4, method="em", init_params="random", random_state=0, tol=0, max_iter=8
    ),
    "multinomial": lambda: pipeline.MultinomialMixture(3, method="em", random_state=0, tol=0, max_iter=8),
}


class Listener:
    """What the hooks are called with. stop_at : the iteration after which it asks to stop."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.hooks, self.scores = stop_at, [], []

    def setup(self, estimator: Any, context: Any) -> None:
        """Note it."""
        self.hooks.append("setup")

    def teardown(self, estimator: Any, context: Any) -> None:
        """Note it."""
        self.hooks.append("teardown")

    def on_fit_task_begin(self, estimator: Any, context: Any, *, X: Any = None) -> None:
        """Note it."""
        self.hooks.append(f"begin {context.task_name} {context.task_id}")

    def on_fit_task_end(
        self, estimator: Any, context: Any, *, X: Any = None, metadata: Any = None, fitted_estimator: Any = None
    ) -> bool:
        """Note it, and the score of the parameters so far."""
        self.hooks.append(f"end {context.task_name} {context.task_id}")
        assert fitted_estimator is not estimator and len(fitted_estimator.predict(X)) == len(X)
        self.scores.append(fitted_estimator.score(X, sample_weight=metadata and metadata["sample_weight"]))
        return context.task_name == "iteration" and context.task_id == self.stop_at


@pytest.mark.parametrize("name", MADE)
def test_each_iteration_is_a_task_whose_estimator_predicts(name):
    """Setup, the fit, its iterations, teardown; scores never fall; the result is that of a fit without callbacks."""
    x = np.round(np.abs(X)) if name == "multinomial" else X
    estimator, plain, heard = MADE[name](), MADE[name](), Listener()
    with pytest.warns(Warning) if name != "kmeans" else _nothing():
        plain.fit(x)
        estimator.set_callbacks(heard).fit(x)
    n = estimator.n_iter_
    tasks = [hook for i in range(n) for hook in (f"begin iteration {i}", f"end iteration {i}")]
    assert heard.hooks == ["setup", "begin fit 0", *tasks, "end fit 0", "teardown"] and n == 8
    assert (np.diff(heard.scores) >= -1e-9 * np.abs(heard.scores[0])).all()
    assert estimator.score(x) == plain.score(x) == pytest.approx(heard.scores[-1], rel=1e-9)
    assert not any(key.startswith("_callback") for key in vars(estimator)), "as scikit-learn's, nothing of it is left"


@pytest.mark.parametrize("name", ["kmeans", "gaussian"])
def test_a_callback_stops_a_fit_with_the_next_iteration(name):
    """The estimator is whole, and says why it stopped."""
    estimator = MADE[name]().set_callbacks(Listener(stop_at=2))
    with pytest.warns(Warning) if name != "kmeans" else _nothing():
        estimator.fit(X, sample_weight=np.ones(len(X)))
    assert estimator.n_iter_ == 4 and estimator.stop_reason_.startswith("stopped: a callback asked for it")
    assert len(estimator.predict(X)) == len(X)


def test_iterations_are_those_of_the_longest_restart(monkeypatch):
    """Also where the best restart has fewer."""
    heard, passes = Listener(), []
    monkeypatch.setattr(kmeans, "_silent", lambda runs: passes.append(max(len(run.history) for run in runs)))
    estimator = pipeline.KMeans(6, method="em", init="random", n_init=5, random_state=0, tol=0)
    estimator.set_callbacks(heard).fit(blobs(300))
    assert len(heard.scores) - 1 == max(passes) > estimator.n_iter_


def test_a_fit_that_fails_tears_down_and_a_clone_keeps_callbacks_as_scikit_learn_does():
    """Teardown comes after an error in an iteration too; a clone calls the same ones; what is no callback is refused."""
    heard = Listener()
    heard.on_fit_task_begin = lambda estimator, context: 1 / (context.task_id + (context.task_name == "fit"))
    with pytest.raises(ZeroDivisionError):
        MADE["kmeans"]().set_callbacks(heard).fit(X)
    assert heard.hooks == ["setup", "teardown"]
    with pytest.raises(TypeError, match="FitCallback"):
        pipeline.KMeans(2).set_callbacks(Listener)
    heard = Listener()
    found = clone(MADE["kmeans"]().set_callbacks(heard)).fit(X)
    assert heard.hooks.count("teardown") == 1 and len(heard.scores) == found.n_iter_ + 1


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_a_notebook_shows_the_report(tmp_path):
    """The page itself, in a frame without scripts; written where it is missing; a folder that is no run is refused."""
    np.save(tmp_path / "x.npy", X)
    made = pipeline.run(
        validate(
            {"data": {"source": "npy", "path": str(tmp_path / "x.npy")}, "output": {"path": str(tmp_path / "run")}}
        )
    )
    (made / "report.html").unlink()
    shown = pipeline.show(made)._repr_html_()
    start, page, end = shown.split('"', 2)
    assert start == "<iframe sandbox srcdoc=" and end.endswith("</iframe>")
    assert html.unescape(page) == (made / "report.html").read_text()
    with pytest.raises(InputError):
        pipeline.show(tmp_path)
