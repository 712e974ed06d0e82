"""The report of families that it has never heard of: everything comes from what is stored."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
import zarr

from pipeline.errors import InputError
from pipeline.models.words import Words
from pipeline.outputs import checkpoint
from pipeline.outputs.report.record import read_record
from tests.stores import Page, history, read, write_events

N_ITER, ROWS = 8, 20_000
POISSON = Words("Poisson mixture", "A mixture of {k} Poissons", location="rate")
FACTORS = Words("factor analysis", "Factor analysis with {factor} factors")
STUDENT = Words("Student-t mixture", "A mixture of {k} Student-t distributions", location="location")
MARKOV = Words("hidden Markov model", "A hidden Markov model with {k} states", "state", "states", "rate")


def store(folder: Path, family: str, words: Words | None, arrays: dict[str, Any], **attrs: Any) -> Path:
    """A finished run of any family, with a history. arrays : (dims, values) by name."""
    folder.mkdir()
    k = max((value.shape[0] for dims, value in arrays.values() if dims[0] == "component"), default=0)
    past = history(max(k, 1), N_ITER, ROWS)
    final = past.pop("final")
    if not k:
        del past["n_effective"], past["entropy"]
    stored = {
        "family": family,
        "n_rows": ROWS,
        "total_weight": float(ROWS),
        "stop_reason": "converged: the objective moved by 4e-4 nats per row, less than tol = 1e-3",
        "converged": True,
        "n_iter": N_ITER,
        "final_log_likelihood": final,
        "data": {"kind": "rows"},
        "order": list(range(k)),
        "restarts": [{"restart": 0, "objective": final, "n_iter": N_ITER, "stop_reason": "tol", "chosen": True}],
        **({"words": words._asdict()} if words else {}),
    }
    xr.Dataset(past | arrays, attrs=stored | attrs).to_zarr(folder / "model.zarr", consolidated=False, mode="w")
    config = {"model": {"family": family}, "fit": {"max_iter": 100, "tol": 1e-3, "init": "k-means||"}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"config": config}))
    write_events(folder, N_ITER, ROWS)
    return folder


def poisson(folder: Path, words: Words | None = POISSON, d: int = 3, **attrs: Any) -> Path:
    """Five Poisson distributions, with rows that fit worst and typical rows."""
    rng = np.random.default_rng(0)
    rates = rng.uniform(1, 9, (5, d))
    arrays = {
        "weights": (("component",), np.array([0.4, 0.3, 0.15, 0.1, 0.05])),
        "rates": (("component", "feature"), rates),
        "sample": (("sample_row", "feature"), rng.poisson(rates[rng.integers(5, size=200)])),
        "representative_row": (("component", "rank"), np.arange(25).reshape(5, 5)),
        "representatives": (("component", "rank", "feature"), rng.poisson(3, (5, 5, d))),
        "outlier_row": (("outlier",), np.array([70, 5])),
        "outlier_log_density": (("outlier",), np.array([-50.5, -40.25])),
        "outliers": (("outlier", "feature"), np.full((2, d), 99.0)),
    }
    return store(folder, "my_poisson", words, arrays, **attrs)


def test_a_new_mixture_has_a_whole_page(tmp_path: Path) -> None:
    """Title, convergence, sizes, rates over the data, their table, outliers and typical rows, in the family's words."""
    page = read(poisson(tmp_path / "run"))
    text = " ".join(page.text.split())
    assert "A mixture of 5 Poissons" in text and "Table of rates" in text and "Rows that fit worst" in text
    assert "−50.5000 nats" in text and "99" in text and "0 · 1 · 2 · 3 · 4" in text
    heads = [str(svg["aria-label"]) for svg in page.all("svg") if "aria-label" in svg]
    assert [re.split(":| of | per ", head)[0] for head in heads] == [
        *("Line chart", "Staircase from iteration 2 to 8", "Gains", "Line chart"),
        *("Bar chart", "Line chart", "Scatter plot", "Line chart"),
    ]
    rates = xr.open_zarr(tmp_path / "run" / "model.zarr", consolidated=False).rates.values
    assert all(f"{rate:.3f}" in text for rate in rates.ravel())
    for word in ("Gaussian", "K-means with", "multinomial", "ellipses", "cluster"):
        assert word not in text, word


def test_words_come_from_the_store_then_from_the_family(tmp_path: Path) -> None:
    """Without stored words, a family that is not known is called by its name; one component has a title of its own."""
    assert "A my_poisson model with 5 components" in read(poisson(tmp_path / "run", None)).text
    record = read_record(tmp_path / "run")
    assert record.title == "A my_poisson model with 5 components" and record.words.series == "log_likelihood"
    one = {"weights": (("component",), np.ones(1)), "rates": (("component", "feature"), np.ones((1, 3)))}
    text = read(store(tmp_path / "one", "my_poisson", POISSON, one)).text
    assert "Poisson mixture with 1 component" in text and "Component sizes" not in text and "A mixture" not in text


def test_the_order_of_parameters_decides_which_is_the_location(tmp_path: Path) -> None:
    """Of several arrays of one number a component and feature the first listed one is where components are; others are tables."""
    shapes = {"dispersions": (("component", "feature"), np.full((5, 3), 7.125))}
    run = poisson(tmp_path / "run", parameters=["weights", "rates", "dispersions"])
    model = xr.open_zarr(run / "model.zarr", consolidated=False).load().assign(shapes)
    model.drop_encoding().to_zarr(run / "model.zarr", consolidated=False, mode="w")
    record = read_record(run)
    assert record.location == "rates" and list(record.parameters) == ["weights", "rates", "dispersions"]
    text = read(run).text
    assert "Table of rates" in text and "Dispersions" in text and "7.125" in text


@pytest.mark.parametrize("pictures", [False, True])
def test_a_model_without_components_has_a_page(tmp_path: Path, pictures: bool) -> None:
    """Title with its dimensions, convergence, parameters as tables or as pictures, events and provenance; nothing of components."""
    rng = np.random.default_rng(0)
    arrays = {
        "loadings": (("factor", "feature"), rng.normal(size=(2, 16))),
        "noise": (("feature",), rng.uniform(0.5, 1, 16)),
        "outlier_row": (("outlier",), np.array([3])),
        "outlier_log_density": (("outlier",), np.array([-50.5])),
        "outliers": (("outlier", "feature"), np.full((1, 16), 3.0)),
    }
    data = {"kind": "image", "size": [4, 4]} if pictures else {"kind": "rows", "features": [f"f{i}" for i in range(16)]}
    page = read(store(tmp_path / "run", "factor", FACTORS, arrays, data=data))
    text = " ".join(page.text.split())
    assert "Factor analysis with 2 factors" in text and "Convergence" in text and "Provenance" in text
    assert "Loadings" in text and "Noise" in text and "−50.5000 nats" in text and "2 <b>rows</b> & more" in text
    for section in ("components", "replay", "choice", "pruning", "restarts"):
        assert not [s for s in page.all("section") if s.get("id") == section], section
    if pictures:
        assert [p["alt"] for p in page.all("img")][:2] == [
            "Loadings: factor as pictures.",
            "Noise: all features as pictures.",
        ]
    else:
        noise = xr.open_zarr(tmp_path / "run" / "model.zarr", consolidated=False).noise.values
        assert "By factor and feature. Of 16 columns, the 12 that vary most" in text and "f15" in text
        assert all(f"{value:.4f}" in text for value in noise)


def test_other_numbers_of_components_stand_in_their_table(tmp_path: Path) -> None:
    """Degrees of freedom beside the location; of a scale that is no covariance, a table is not made and no ellipse drawn."""
    rng = np.random.default_rng(0)
    arrays = {
        "weights": (("component",), np.array([0.5, 0.5])),
        "locations": (("component", "feature"), rng.normal(size=(2, 2))),
        "scales": (("component", "feature", "feature_2"), np.tile(np.eye(2), (2, 1, 1))),
        "degrees_of_freedom": (("component",), np.array([3.25, 8.5])),
        "sample": (("sample_row", "feature"), rng.normal(size=(100, 2))),
    }
    page = read(store(tmp_path / "run", "student_t", STUDENT, arrays))
    text = " ".join(page.text.split())
    assert "Table of locations" in text and "degrees of freedom" in text and "3.250" in text and "8.500" in text
    assert "scales" in text and not page.all("ellipse")  # among what model.zarr holds
    assert read_record(tmp_path / "run").spread is None


def test_states_and_their_transitions(tmp_path: Path) -> None:
    """Components under another name, with a square table of their own, and sizes from the last E-step where no weights are stored."""
    transitions = np.array([[0.875, 0.125], [0.25, 0.75]])
    arrays = {
        "transitions": (("component", "component_2"), transitions),
        "rates": (("component", "feature"), np.array([[1.0, 2.0], [3.0, 4.0]])),
    }
    run = store(tmp_path / "run", "hmm", MARKOV, arrays, name="k2", order=[1, 0])
    checkpoint.save(
        run / "iterations" / "k2-0", 3, checkpoint.State({k: v for k, (_, v) in arrays.items()}, {}), keep=None
    )
    record = read_record(run)
    last = record.array("n_effective")[-1]
    np.testing.assert_allclose(record.weights, last / last.sum())
    moment = record.with_parameters({"transitions": transitions})
    assert moment.array("transitions").tolist() == transitions[::-1, ::-1].tolist()  # both axes in the order of the end
    text = " ".join(read(run).text.split())
    assert "A hidden Markov model with 2 states" in text and "States" in text and "State sizes" in text
    assert "By state and next state." in text and "0.8750" in text and "0.1250" in text


def topics(folder: Path, **attrs: Any) -> Path:
    """Log-probabilities of three words, in an array of any name."""
    theta = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    arrays = {
        "weights": (("component",), np.array([0.5, 0.5])),
        "word_given_topic": (("component", "feature"), np.log(theta)),
    }
    words = Words("topic model", "{k} topics", "topic", "topics", "word probabilities")
    return store(folder, "lda", words, arrays, **attrs)


def test_topics_are_log_probabilities_over_a_vocabulary(tmp_path: Path) -> None:
    """Whatever their array is called; without a vocabulary they are a table of probabilities."""
    page = read(topics(tmp_path / "words", vocabulary=["apple", "pear", "plum"]))
    assert "apple" in page.text and "lift" in page.text and "2 topics" in page.text
    plain = read(topics(tmp_path / "plain"))
    assert "lift" not in plain.text and "Word probabilities" in plain.text and "0.7000" in plain.text
    record = read_record(tmp_path / "plain")
    assert record.location is None and record.log_probabilities == "word_given_topic" and not record.has_topics


def test_the_name_of_the_candidate_finds_its_iterations(tmp_path: Path) -> None:
    """The stored name, else that of the chosen candidate, else whatever there is."""
    from pipeline.outputs.report.replay import moments

    run = poisson(tmp_path / "run")
    rates = read_record(run).array("rates")
    for name, t in (("rank-2", 1), ("rank-3", 2)):
        state = checkpoint.State({"rates": rates}, {})
        checkpoint.save(run / "iterations" / f"{name}-0", t, state, keep=None)
    attrs = zarr.open_group(run / "model.zarr").attrs
    for name, t in (("rank-2", 1), ("rank-3", 2)):
        attrs["name"] = name
        assert list(moments(read_record(run))[0]) == [t]
    del attrs["name"]
    entry = {"chosen": True, "name": "rank-2", "n_components": 5, "rank": 2, "criterion": "bic", "bic": 3.0}
    entry |= {"total_weight": 1.0, "collapsed": 0, "n_iter": 3, "stop_reason": "converged: yes"}
    attrs["candidates"] = [entry, entry | {"chosen": False, "name": "rank-3", "rank": 3, "bic": 4.0}]
    assert list(moments(read_record(run))[0]) == [1]
    text = " ".join(read(run).text.split())
    assert re.search(r"components rank parameters .* chosen 5 2 ", text), text


def test_damage_is_named_whatever_the_family(tmp_path: Path) -> None:
    """An array that the words promise and the store lacks is left out; a store without a family is refused."""
    run = poisson(tmp_path / "run")
    attrs = zarr.open_group(run / "model.zarr").attrs
    attrs["words"] = POISSON._replace(score="surprise")._asdict()
    assert "fit worst" not in read(run).text
    del attrs["family"]
    from pipeline.errors import StorageError

    with pytest.raises(StorageError, match="got no attribute `family`"):
        read(run)


def test_unfinished_labels_say_how_to_finish_them(tmp_path: Path) -> None:
    """A directory of labels that are not there yet names `resume`, which finishes them."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"config": {}, "prediction_of": "runs/first"}))
    with pytest.raises(InputError, match=r"not finished\. Run `em-pipeline resume"):
        read(tmp_path)


def test_old_names_are_read(tmp_path: Path) -> None:
    """Arrays of earlier versions are found under their present names."""
    run = poisson(tmp_path / "run")
    model = xr.open_zarr(run / "model.zarr", consolidated=False).load()
    old = {"outlier": "misfit", "outliers": "misfits", "outlier_row": "misfit_row", "representatives": "exemplars"}
    old |= {"outlier_log_density": "misfit_log_density", "representative_row": "exemplar_row"}
    before = Page((run / "report.html").read_text()) if (run / "report.html").exists() else read(run)
    model.rename(old).drop_encoding().to_zarr(run / "model.zarr", consolidated=False, mode="w")
    after = read(run)
    assert [str(p) for p in after.all("td")] == [str(p) for p in before.all("td")] and "−50.5000 nats" in after.text


def test_events_of_a_long_run_leave_room_for_warnings(tmp_path: Path) -> None:
    """Progress is routine; of more news than fit, warnings come before resets, in the order of time."""
    run = poisson(tmp_path / "run")
    at = "2026-03-05T14:00:00+00:00"
    events: list[dict[str, Any]] = [{"event": "start"}]
    events += [{"event": "progress", "chunks": i, "of": 900} for i in range(500)]
    events += [{"event": "underway", "chunks": i, "of": 900} for i in range(500)]  # of an earlier version
    events += [{"event": "reset", "component": 1, "iteration": i, "done": True} for i in range(150)]
    events += [{"event": "warning", "message": "rows repeat"}, {"event": "resume", "generation": 7}]
    (run / "events.jsonl").write_text("".join(json.dumps({**event, "time": at}) + "\n" for event in events))
    page = read(run)
    assert len(page.all("time")) == 100 and "chunks" not in page.text.split("Events")[1].split("Time and memory")[0]
    assert "rows repeat" in page.text and "Resumed from checkpoint 7." in page.text and "And 52 more" in page.text
