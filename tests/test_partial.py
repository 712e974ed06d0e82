"""A pass that ends before its end: what it had finished is taken up again, to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import source
from pipeline.data.chunks import Chunks
from pipeline.engine import stored_sums
from pipeline.engine.passes import Engine
from pipeline.engine.tree import contains, halves, tree_sum, uncovered
from pipeline.kernels.cpu import KERNELS
from pipeline.models.mixture import Mixture, MixtureParams
from pipeline.outputs import labels, partial
from pipeline.outputs.partial import PartialPass
from tests.jobs import blobs, command, files, results, write_config, write_rows
from tests.laws.common import ArraySource, examples, gaussian_mixture, same_bits, shards
from tests.laws.common import job as e_step_job
from tests.problems import seeds

pytestmark = pytest.mark.full


class InMemory:
    """A store without files."""

    def __init__(self, kept: dict[Any, Any] | None = None) -> None:
        self.kept = kept or {}

    def spans(self):
        """All of them."""
        return set(self.kept)

    def read(self, span):
        """What was written."""
        return self.kept[span]

    def write(self, span, value):
        """In place of all that it contains."""
        self.kept = {one: v for one, v in self.kept.items() if not contains(span, one)} | {span: value}


class Values:
    """Job: one number a chunk, whose sum depends on its order. Counts the chunks it saw; may be interrupted."""

    def __init__(self, seed: int, n: int, last: int | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.values = rng.normal(size=n) * 10.0 ** rng.uniform(-8, 8, n)
        self.seen: list[int] = []
        self.last = last

    def __call__(self, rows, kernels):
        """The value of a one-row chunk."""
        if len(self.seen) == self.last:
            raise KeyboardInterrupt
        self.seen.append(rows.start)
        return np.array(self.values[rows.start])


def test_a_start_that_changed_during_the_first_pass_is_refused(tmp_path, monkeypatch):
    """A job that was stopped in its profiling pass, and finds other labels when it goes on."""
    monkeypatch.setattr(source, "TARGET_BYTES", 1)
    store, given_labels = write_rows(tmp_path / "x.zarr", blobs(2000), rows=20), tmp_path / "labels.npy"
    np.save(given_labels, np.arange(2000) % 2)
    fit = {"init": "labels", "init_path": str(given_labels)}
    write_config(tmp_path / "c.yaml", store, fit=fit, model={"n_components": 2})
    monkeypatch.setattr(stored_sums, "STORE_SECONDS", 0.0)
    left = stopped_after(75, monkeypatch)
    assert command("run", tmp_path / "c.yaml", "--output", tmp_path / "run").code == 75
    left[0] = 10**9
    np.save(given_labels, np.arange(2000) // 1000)
    refused = command("resume", tmp_path / "run")
    assert refused.code == 2 and "fit.init_path" in refused.err
    np.save(given_labels, np.arange(2000) % 2)
    assert command("resume", tmp_path / "run").code == 0


def stopped_after(chunks: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From now on Ctrl-C comes when so many chunks have been loaded; how many are left, in a list that may be changed."""
    load, left = Chunks.load, [chunks]

    def limited(self: Chunks, i: int) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return load(self, i)

    monkeypatch.setattr(Chunks, "load", limited)
    return left


def one_row_chunks(n: int) -> Chunks:
    """n chunks of one row."""
    return Chunks(ArraySource(np.zeros((n, 1)), np.arange(n + 1)))


def gaussian() -> tuple[Mixture, MixtureParams]:
    """A model of 3 features, and parameters."""
    model = gaussian_mixture(2, np.zeros(3))
    return model, model.params_from_arrays(
        {"weights": np.full(2, 0.5), "means": np.arange(6.0).reshape(2, 3), "covariances": np.stack([np.eye(3)] * 2)}
    )


def some_subtrees(span, rng):
    """Some disjoint subtrees, small and large."""
    if rng.random() < 0.25:
        return [span]
    if span[1] - span[0] == 1 or rng.random() < 0.15:
        return []
    return [one for half in halves(span) for one in some_subtrees(half, rng)]


@examples(60)
@given(n=st.integers(1, 70), workers=st.integers(1, 5), seed=seeds)
def test_any_finished_subtrees_leave_the_total_as_it_is(n, workers, seed):
    """Whatever was finished, of whatever size: the same bits as the plain tree, and only the rest is read."""
    known = some_subtrees((0, n), np.random.default_rng(seed))
    job = Values(seed, n)
    keep = InMemory({span: [tree_sum(list(job.values[slice(*span)]), np.add)] for span in known})
    [found] = Engine(workers=workers).sum_over(one_row_chunks(n), [job], store=keep)
    assert found == tree_sum(list(job.values), np.add)
    assert sorted(job.seen) == [i for i in range(n) if not any(a <= i < b for a, b in known)]


@examples(30)
@given(n=st.integers(2, 200), before=st.integers(1, 3), after=st.integers(1, 3), seed=seeds, data=st.data())
def test_an_interrupted_pass_goes_on(n, before, after, seed, data):
    """Interrupted at any chunk, on any number of workers: what is stored is part of the tree, the total the same bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_sums, "STORE_SECONDS", 0.0)
        keep, last = InMemory(), data.draw(st.integers(0, n - 1))
        with pytest.raises(KeyboardInterrupt):
            Engine(workers=before).sum_over(one_row_chunks(n), [Values(seed, n, last)], store=keep)
        job = Values(seed, n)
        done = sum(stop - first for first, stop in keep.kept)
        for (first, stop), [value] in keep.kept.items():
            assert value == tree_sum(list(job.values[first:stop]), np.add)
        [found] = Engine(workers=after).sum_over(one_row_chunks(n), [job], store=keep)
    assert found == tree_sum(list(job.values), np.add)
    assert len(job.seen) == n - done
    assert set(keep.kept) == {(0, n)}


@examples(60)
@given(n=st.integers(1, 300), level=st.integers(0, 9), seed=seeds)
def test_what_is_left_is_disjoint_and_whole(n, level, seed):
    """Known subtrees and the uncovered ones are all chunks, once each; without known ones it is the whole."""
    known = [span for span in shards((0, n), level) if np.random.default_rng(seed + span[0]).random() < 0.5]
    left = list(uncovered((0, n), known))
    assert sorted(i for span in (*known, *left) for i in range(*span)) == list(range(n))
    assert list(uncovered((0, n), [])) == [(0, n)]


@pytest.mark.parametrize("final", [False, True])
def test_results_come_back_as_they_were(tmp_path, final):
    """Statistics, lists beside them and their memory layout: what is read is what was written."""
    model, params = gaussian()
    x = np.random.default_rng(0).normal(size=(50, model.n_features))
    chunks = Chunks(ArraySource(x, np.array([0, 20, 50])))
    jobs = [e_step_job(model, params, final)]
    value = [job(chunks.load(0), KERNELS) for job in jobs]
    warned: list[str] = []
    kept = PartialPass(tmp_path, chunks, jobs, None, warned.append)
    assert kept.spans() == set()
    kept.write((0, 1), value)
    kept.write((1, 2), value)
    again = PartialPass(tmp_path, chunks, jobs, None, warned.append)
    assert again.spans() == {(0, 1), (1, 2)}
    [read] = again.read((0, 1))
    same_bits(read, value[0])
    assert type(read.stats) is type(value[0].stats) and ("representatives" in read.attached) is final
    other = PartialPass(tmp_path, chunks, [e_step_job(model, params, not final)], None, warned.append)
    assert other.spans() == set()
    again.write((0, 2), value)
    assert again.spans() == {(0, 2)} and len(files(tmp_path)) == 1
    assert warned == []
    partial.forget(tmp_path)
    assert not partial.exist(tmp_path)


def test_a_damaged_file_is_read_again(tmp_path):
    """One flipped bit: a warning, and the subtree counts as missing."""
    model, params = gaussian()
    chunks = Chunks(ArraySource(np.zeros((4, model.n_features)), np.array([0, 2, 4])))
    warned: list[str] = []
    kept = PartialPass(tmp_path, chunks, [e_step_job(model, params)], None, warned.append)
    kept.write((0, 1), [np.ones(3)])
    (path,) = tmp_path.glob("partial-*/*.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert kept.spans() == set() and len(warned) == 1


def test_a_pass_that_cannot_be_told_from_others_is_not_kept(tmp_path):
    """A job that holds more than values: a warning in place of an error, and nothing is written."""
    warned: list[str] = []
    kept = PartialPass(tmp_path, one_row_chunks(3), [Values(0, 3)], None, warned.append)
    kept.write((0, 1), [np.ones(3)])
    assert files(tmp_path) == {} and len(warned) == 1 and "Values" in warned[0]


# Two tasks of 8 chunks are read at a time: with fewer before each stop none would end.
@pytest.mark.parametrize("chunks_before", [75, *(pytest.param(n, marks=pytest.mark.slow) for n in (20, 30, 140))])
def test_a_job_whose_passes_do_not_end_goes_on_within_them(tmp_path, monkeypatch, chunks_before):
    """Stopped over and over after some chunks, from the profiling pass on: the same bytes, and every chunk read once a pass."""
    monkeypatch.setattr(source, "TARGET_BYTES", 1)
    monkeypatch.setattr(labels, "BLOCK_ROWS", 20)
    store = write_rows(tmp_path / "x.zarr", blobs(2000), rows=20)  # 100 chunks a pass, and 100 blocks of labels
    write_config(tmp_path / "c.yaml", store, fit={"max_iter": 2, "init": "random"}, engine={"workers": 2})
    assert command("run", tmp_path / "c.yaml", "--output", tmp_path / "alone").code == 0
    monkeypatch.setattr(stored_sums, "STORE_SECONDS", 0.0)
    left = stopped_after(chunks_before, monkeypatch)
    out: Path = tmp_path / "stopped"
    code = command("run", tmp_path / "c.yaml", "--output", out).code
    assert code == 75
    for _ in range(1000 // chunks_before):
        left[0] = chunks_before
        code = command("resume", out).code
        if code == 0:
            break
        assert code == 75
    assert code == 0
    assert results(out) == results(tmp_path / "alone")
    assert not partial.exist(out / "checkpoints")
