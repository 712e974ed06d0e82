"""`check`: what a job will cost, known before it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
import zarr

from pipeline import checking, timed, workflow
from pipeline.advice import advice
from pipeline.arrays.rows import Rows
from pipeline.checking import Phase
from pipeline.data.chunks import Chunks
from pipeline.em.run import Run
from pipeline.engine.passes import Engine
from pipeline.fitting.plan import plan_job
from pipeline.jobconfig import validate
from pipeline.kernels.cpu import KERNELS
from pipeline.models.base import EStep
from pipeline.outputs.plan import in_words
from pipeline.timed import SPEED, TimedShard, few
from tests.jobs import blobs, command, files, job, refused, write_config, write_rows

pytestmark = pytest.mark.full

EVERYTHING = {
    "model": {"n_components": [2, 3], "covariance_type": ["full", "diag"]},
    "fit": {"n_init": 2, "init": "k-means||", "max_iter": 4},
    "select": {"heldout": 0.2},
    "output": {"standard_errors": True},
}


def facts(config: Path, *words: str) -> dict[str, Any]:
    """What `check --json` prints."""
    outcome = command("check", config, "--json", *words)
    assert outcome.code == 0, outcome
    return json.loads(outcome.out)


def test_it_says_what_a_run_will_take_and_writes_nothing(tmp_path, monkeypatch):
    """Rows, bytes, memory, tasks and seconds in words; the folder is as it was, and so is that of a taken output."""
    monkeypatch.chdir(tmp_path)
    write_config(Path("c.yaml"), write_rows(tmp_path / "x.zarr", blobs()), output={"path": "run"})
    before = files(tmp_path)
    outcome = command("check", "c.yaml")
    assert outcome.code == 0 and files(tmp_path) == before
    for said in ("600 rows of 3 features, float64", "memory    at most", "in all, at most", "iterations", "6 passes"):
        assert said in outcome.out
    Path("run").mkdir()
    Path("run/thesis.txt").write_text("years of work")
    before = files(tmp_path)
    assert "not a run directory" in command("check", "c.yaml").out and files(tmp_path) == before


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
def test_the_passes_that_it_counts_are_those_that_a_run_makes(tmp_path, monkeypatch, changes):
    """With tol = 0 every pass is made: those over the chunks are as many as the phases say, labels being read in blocks."""
    config = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", blobs(2000)), **changes)
    cost = facts(config)
    counted, sum_over = [], Engine.sum_over
    monkeypatch.setattr(Engine, "sum_over", lambda *given: counted.append(1) or sum_over(*given))
    assert command("run", config, "--output", tmp_path / "run").code == 0
    assert len(counted) == sum(phase["passes"] for phase in cost["phases"] if phase["name"] != "labels")
    names = {phase["name"] for phase in cost["phases"]}
    assert ({"refit", "standard errors"} <= names) == bool(changes)
    assert cost["fits"] == (8 if changes else 1) and cost["candidates"] == (4 if changes else 1)


def test_a_search_is_counted_where_the_method_has_one(tmp_path):
    """`auto` searches on rows in memory instead of passes for a start."""
    cost = facts(write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", blobs()), fit={"method": "auto"}))
    [search] = [phase for phase in cost["phases"] if phase["name"] == "search"]
    assert search["passes"] == 0 and search["seconds"] > 0 and "on 600 rows in memory" in search["note"]
    assert "start" not in {phase["name"] for phase in cost["phases"]}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--set", "model.n_components=601"], "there are 600 rows"),
        (["--set", "engine.memory=1MiB"], "Raise engine.memory, store the data in smaller chunks"),
        (["--set", "data.path=nowhere.npy"], "nowhere.npy"),
        (["--profile", "slurm"], "expected threads or one of the profiles local"),
        (["--set", "fit.max_itr=3"], "did you mean max_iter?"),
    ],
)
def test_what_run_refuses_check_refuses_in_the_same_words(tmp_path, monkeypatch, words, shown):
    """Exit code 2 and one message, also for chunks that are too large for the memory; nothing is written."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", blobs())
    write_config(Path("c.yaml"), Path("x.npy"))
    before = files(tmp_path)
    said = refused("check", "c.yaml", *words)
    assert shown in said and refused("run", "c.yaml", *words) == said and files(tmp_path) == before


STARTS: dict[str, dict[str, Any]] = {
    "sorted labels": {"fit": {"init": "labels", "init_path": "labels.npy"}},
    "explicit": {"fit": {"init": "explicit", "init_path": "given.npz"}, "model": {"covariance_type": "spherical"}},
    "no pull": {"data": {"weights": "weights.npy"}, "fit": {"init": "random"}},
}


@pytest.mark.parametrize("case", STARTS)
def test_what_few_chunks_do_not_show_is_no_refusal(tmp_path, monkeypatch, case):
    """Labels in the order of storage, given parameters, rows of weight 0: what a run can do is checked."""
    monkeypatch.chdir(tmp_path)
    x = blobs()
    np.save("labels.npy", np.repeat([0, 1, 2], 200))
    np.save("weights.npy", np.repeat([0.0, 1.0], [100, 500]))
    np.savez("given.npz", weights=np.full(3, 1 / 3), means=x[:3], covariances=np.ones(3))
    config = write_config(Path("c.yaml"), write_rows(Path("x.zarr"), x), **STARTS[case])
    assert facts(config)["phases"][-1]["name"] == "labels"


def test_pictures_that_are_held_out_are_no_refusal(tmp_path):
    """Whole pictures are held out, maybe the very ones that are timed."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(256, size=(12, 12), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    for seed in range(3):
        plain: dict[str, Any] = {"data": {"source": "images", "path": str(tmp_path), "patch": {"size": [3, 3]}}}
        plain |= {"model": {"n_components": 2}, "select": {"heldout": 0.4}, "fit": {"random_state": seed}}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(plain))
        outcome = command("check", tmp_path / "c.yaml")
        assert outcome.code == 0 or "holds none of 3 pictures" in outcome.err


def test_bad_rows_that_it_meets_are_refused(tmp_path):
    """NaN in the chunks that are timed is exit code 2, as it is in the profiling pass."""
    x = blobs()
    x[3, 1] = np.nan
    config = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", x))
    assert "hold NaN or inf, the first is row 3" in refused("check", config)


def test_advice_on_chunks(tmp_path):
    """Chunked features and small chunks make each read open several objects; values that fit float32 are said to."""
    x = blobs(6000, 4).round(2).astype(np.float32).astype(np.float64)
    array = zarr.create_array(tmp_path / "x.zarr", shape=x.shape, chunks=(1000, 2), dtype=x.dtype)
    array[:] = x
    config = write_config(tmp_path / "c.yaml", tmp_path / "x.zarr")
    said = " ".join(facts(config)["advice"])
    assert "stored chunks hold 2 of the 4 features, so that each read opens 12 objects" in said
    assert "Rechunk to (1000, 4)" in said and "fits float32" in said
    config = write_config(tmp_path / "d.yaml", write_rows(tmp_path / "y.zarr", blobs(6000, 4)))
    said = " ".join(facts(config)["advice"])
    assert "each read opens 60 objects" in said and "about 262144 rows" in said and "float32" not in said


def test_advice_on_workers_and_memory(tmp_path):
    """Fewer chunks than workers, and less memory than they need, are said with what helps."""
    config = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", blobs()))
    assert "1 chunks, fewer than the 3 workers" in " ".join(facts(config, "--set", "engine.workers=3")["advice"])
    plan = facts(config, "--set", "engine.workers=4")["memory"]
    tight = plan["fixed"] + 2 * plan["per_task"]
    said = facts(config, "--set", "engine.workers=4", "--set", f"engine.memory={tight}")
    assert said["memory"]["workers"] == 2 and "memory allows 2 tasks at a time of 4" in " ".join(said["advice"])


def test_counts_are_converted_in_a_scratch_folder(tmp_path, monkeypatch):
    """A docword file that no run has converted leaves nothing behind; the scratch folder is gone too."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    text = "4\n3\n6\n" + "".join(f"{i} {w} 2\n" for i, w in ((1, 1), (1, 2), (2, 2), (3, 1), (3, 3), (4, 2)))
    (tmp_path / "d.txt").write_text(text)
    plain = {"data": {"source": "docword", "path": str(tmp_path / "d.txt")}}
    plain["model"] = {"family": "multinomial", "n_components": 2}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(plain))
    before = files(tmp_path)
    assert facts(tmp_path / "c.yaml")["rows"] == 4 and files(tmp_path) == before and not list(scratch.iterdir())


def patches(folder: Path, **changes: Any) -> Any:
    """The config of a mixture over overlapping patches of six pictures, (2646, 63)."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(256, size=(28, 28), dtype=np.uint8)).save(folder / f"{i}.png")
    plain: dict[str, Any] = {"data": {"source": "images", "path": str(folder), "patch": {"size": [8, 8], "stride": 1}}}
    return validate(plain | {"model": {"n_components": 40}, "output": {"path": str(folder / "run")}} | changes)


def test_it_says_first_what_it_does(tmp_path, monkeypatch, capsys):
    """Rows, memory and what takes time are said before a chunk is read; with --json not on stdout."""
    config, said = patches(tmp_path), []
    monkeypatch.setattr(Chunks, "load", lambda *_: said.append("read") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        workflow.check(config, said.append)
    assert [text.split()[0] for text in said] == ["data", "memory", "timing", "read"] and "within about 20 s" in said[2]
    write_config(tmp_path / "c.yaml", tmp_path / "x.npy")
    outcome = command("check", tmp_path / "c.yaml", "--json")
    assert outcome.code == 2 and outcome.out == "" and outcome.err.startswith("checking ")


@pytest.mark.parametrize(("speed", "basis"), [(SPEED, "rows"), (1e5, "shapes")])
def test_it_answers_in_time(tmp_path, monkeypatch, speed, basis):
    """With little time, some rows are timed; if even these take too long, nothing but shapes. The phases are the same."""
    config = patches(tmp_path, fit={"method": "em", "n_init": 2}, select={"heldout": 0.3})
    computed, pause, e_step = [0], 0.0, EStep.__call__

    def counted(step: Any, rows: Rows, kernels: Any) -> Any:
        computed[0] += rows.n
        time.sleep(pause * rows.n)
        return e_step(step, rows, kernels)

    monkeypatch.setattr(EStep, "__call__", counted)
    whole, of_whole, computed[0] = workflow.check(config), computed[0], 0
    pause = 5e-5  # so that no machine is fast enough for a whole chunk
    monkeypatch.setattr(checking, "SECONDS", 0.2)
    monkeypatch.setattr(timed, "LEAST_SECONDS", 0.06)  # enough for some rows, however late it is
    monkeypatch.setattr(timed, "SPEED", speed)
    monkeypatch.setattr(checking, "SPEED", speed)
    cost = workflow.check(config)
    assert (whole.basis, cost.basis) == ("chunks", basis)
    assert computed[0] < (of_whole / 2 if basis == "rows" else 1)
    named = [[phase.name for phase in each.phases if phase.name != "loading"] for each in (whole, cost)]
    assert named[0] == named[1] and all(phase.seconds > 0 for phase in cost.phases)
    assert cost.fits == whole.fits == 2
    assert ("estimated from" in " ".join(in_words(cost.facts()))) and "estimated" not in " ".join(
        in_words(whole.facts())
    )


def test_parameters_come_from_fewer_components_where_rows_are_few(tmp_path):
    """Each component has eight times the rows below which it would collapse; a model is grown to all of its components."""
    config = patches(tmp_path)
    chunks = config.open_chunks()
    models = plan_job(config, chunks).models
    assert few(models, chunks, 1, 1e9) == (2646, 1.0) and few(models, chunks, 1, 1e-9) is None
    found = few(models, chunks, 1, 0.05)
    assert found is not None and found.rows <= 2646 and 0 < found.share < 1
    assert found.rows * 1.01 >= timed.ROWS_EACH * 64 * 40 * found.share
    less = found.less(models[0])
    assert less.n_components == int(40 * found.share)
    summary: Any = SimpleNamespace(mean=np.zeros(63), variance=np.ones(63), covariance=np.eye(63), total=2646.0)
    run = Run(0, less, less.start_near_mean(summary, np.zeros((less.n_components, 63))))
    grown = found.grown(run, models[0])
    assert grown.params.weights.shape == (40,) and abs(grown.params.weights.sum() - 1) < 1e-12


def test_a_long_job_is_told_what_makes_it_shorter(tmp_path):
    """Stride, principal components, fewer components and a cluster, each with its factor; a short job is not told."""
    config = patches(tmp_path)
    chunks, cost = config.open_chunks(), workflow.check(config)
    assert "shorter" not in " ".join(cost.advice)
    long = replace(cost, workers=2, chunks=400, phases=[Phase("iterations", 100, 36_000.0)])
    said = " ".join(advice(long, config, chunks))
    assert "it takes 10:00:00 at most" in said and "data.patch.stride: 2 (1/4 " in said
    assert "n_components: 16}] (about 1/15 " in said and "half of model.n_components (1/2)" in said
    assert "a cluster of 20 workers (1/10," in said
    other = patches(tmp_path, preprocess=[{"kind": "pca", "n_components": 20}], model={"n_components": 1})
    said = " ".join(advice(long, other, chunks))
    assert "pca" not in said and "half" not in said


class Slow:
    """Chunks of 10 rows, each of which takes 40 ms to load."""

    loaded: list[int]

    def __init__(self) -> None:
        self.loaded = []

    def load(self, i: int) -> Rows:
        """Chunk i."""
        time.sleep(0.04)
        self.loaded.append(i)
        return Rows(np.zeros((10, 2)), None, 10 * i)


def test_three_chunks_are_timed_as_a_shard_would_read_them():
    """The first is discarded, the last only waited for; reads that are longer than the work count in full, ahead or not."""
    for ahead, work, least in ((True, 0.0, 0.12), (False, 0.02, 0.18), (True, 0.08, 0.24)):
        chunks, worked = Slow(), []

        def compute(rows: Rows, kernels: Any, work: float = work, worked: list[int] = worked) -> int:
            time.sleep(work if worked else 1.0)  # the first compiles
            worked.append(rows.start)
            return 0

        seconds, rows = TimedShard(chunks, [compute], ahead)(0, 1, 2, 3, 4, KERNELS)
        assert rows == 30 and worked == [0, 10, 20, 30] and chunks.loaded == [0, 1, 2, 3, 4]
        assert least * 0.9 <= seconds < 1.0


@pytest.mark.slow
def test_with_worker_processes(tmp_path):
    """The engine that is timed is the one that the run would have."""
    config = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", blobs()))
    cost = facts(config, "--profile", "local", "--set", "engine.workers=2")
    assert cost["workers"] == 2 and cost["overhead_seconds"] > 0


def test_a_run_says_its_plan(tmp_path):
    """The start event and its line in words hold what the plan knows."""
    seen: list[dict[str, Any]] = []
    config = job(write_rows(tmp_path / "x.zarr", blobs()), fit={"max_iter": 2}, output={"labels": False})
    workflow.run(config, tmp_path / "run", listeners=[seen.append])
    from pipeline.outputs.progress import describe

    said = str(describe(seen[0]))
    assert "each pass reads 14.1 KiB; memory at most" in said and "MiB for the job" in said
    assert "Planned and measured" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gaussian", "kmeans"])
def test_the_plan_bounds_what_a_run_takes(tmp_path, family):
    """Peak of a run in a process of its own, looked at from outside: at most the plan's, and not 35 % below it.

    Its kernels are compiled, which takes memory that the plan has to allow for. Resident size, which is what PSS would be if nothing else on the machine mapped the same libraries.
    """
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(1_000_000, 16)).astype(np.float32))
    model = {"family": family, "n_components": 16, "covariance_type": "full"}
    config = write_config(tmp_path / "c.yaml", tmp_path / "x.npy", model=model, fit={"max_iter": 3})
    planned = facts(config)["memory"]["peak"]
    words = [sys.executable, "-m", "pipeline", "run", str(config), "--output", str(tmp_path / "run")]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        peak = 0
        while run.poll() is None:
            with suppress(psutil.Error):
                peak = max(peak, psutil.Process(run.pid).memory_info().rss)
            time.sleep(0.05)
    assert run.returncode == 0 and 0.65 * planned <= peak <= planned
