"""Resume goes on with what the run did: not with another config, and not with other data."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import yaml

from pipeline import workflow
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import load_config
from pipeline.outputs import checkpoint, run_directory, run_sink
from tests.jobs import Interrupt, blobs, command, job, results, write_rows

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A checkpoint after every pass, small chunks, no flushing, no report."""
    from pipeline.data import source
    from pipeline.outputs import report

    for module in (checkpoint, run_directory):
        monkeypatch.setattr(module, "sync", lambda path: None)
    monkeypatch.setattr(run_sink, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(source, "TARGET_BYTES", 240)  # ten rows a chunk: more chunks than enter the fingerprint
    monkeypatch.setattr(report, "write_report", lambda path: (path / "report.html").write_text("report"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """600 rows in 60 chunks."""
    folder = tmp_path_factory.mktemp("rows")
    np.save(folder / "x.npy", blobs())
    np.save(folder / "w.npy", np.ones(600))
    return folder


def stopped(rows, run, event="pass", nth=2, **changes):
    """A run that ended at the n-th event of a name."""
    config = job(rows / "x.npy", data={"weights": str(rows / "w.npy")}, **changes)
    with pytest.raises(KeyboardInterrupt):
        workflow.run(config, run, listeners=[Interrupt(event, nth)])
    return run


def edit(run, section, **changes):
    """Change config.yaml as a person would."""
    path = run / "config.yaml"
    mark, text = path.read_text().split("\n", 1)
    record = yaml.safe_load(text)
    record["config"][section] |= changes
    path.write_text(f"{mark}\n{yaml.safe_dump(record)}")


EDITS = [
    ("model", {"reg_covar": 0.5}),
    ("model", {"n_components": 4}),
    ("model", {"covariance_type": "full"}),
    ("fit", {"assignment": "hard"}),
    ("fit", {"tol": 0.1}),
    ("fit", {"random_state": 7}),
    ("fit", {"max_iter": 3}),
    ("data", {"bad_rows": "drop"}),
    ("data", {"weights": None}),
    ("select", {"heldout": 0.25}),
]


@pytest.mark.parametrize(("event", "nth"), [("init", 1), ("pass", 2), ("finished", 1)])
def test_an_edited_config_is_refused_key_by_key(rows, tmp_path, event, nth):
    """Wherever the run stopped, and also when it has ended: what is computed is what the checkpoints say."""
    run = stopped(rows, tmp_path / "run", event, nth)
    for i, (section, changes) in enumerate(EDITS):
        copy = shutil.copytree(run, tmp_path / str(i))
        edit(copy, section, **changes)
        (key,) = changes
        with pytest.raises(InputError, match=rf"{section}\.{key}: was "):
            workflow.resume(copy)
        assert results(copy) == results(run)


def test_an_edit_before_the_first_checkpoint_is_refused(rows, tmp_path):
    """There is nothing to compare with but a digest."""
    run = stopped(rows, tmp_path / "run", "profile", 1)
    assert not checkpoint.generations(run / "checkpoints")
    edit(run, "model", n_components=5)
    with pytest.raises(InputError, match="not as the run wrote it"):
        workflow.resume(run)


def test_what_may_change_may_be_edited(rows, tmp_path):
    """A higher max_iter, the engine, the output, and where the data are; the result is that of the run that had them."""
    shutil.copytree(rows, tmp_path / "moved")
    run = stopped(rows, tmp_path / "run")
    edit(run, "fit", max_iter=8)
    edit(run, "engine", workers=1)
    edit(run, "output", keep_checkpoints=5)
    edit(run, "data", path=str(tmp_path / "moved" / "x.npy"))
    workflow.resume(run)
    config = job(rows / "x.npy", data={"weights": str(rows / "w.npy")}, fit={"max_iter": 8})
    workflow.run(config, tmp_path / "whole")
    assert results(run)["model.zarr/means/c/0/0"] == results(tmp_path / "whole")["model.zarr/means/c/0/0"]


@pytest.mark.parametrize("what", ["x.npy", "w.npy"])
@pytest.mark.parametrize("event", ["init", "pass"])
def test_any_chunk_that_changed_is_noticed(rows, tmp_path, what, event):
    """Of 60 chunks 16 enter the fingerprint; a change in one of the others is named when it is read first."""
    shutil.copytree(rows, tmp_path / "own")
    run = stopped(tmp_path / "own", tmp_path / "run", event, 1)
    x = np.load(tmp_path / "own" / what)
    x[15] += 1e-3
    np.save(tmp_path / "own" / what, x)
    with pytest.raises(InputError, match="rows 10 to 19 have changed since the run read them") as refusal:
        workflow.resume(run)
    assert refusal.value.exit_code == 2
    shutil.copy(rows / what, tmp_path / "own" / what)
    workflow.resume(run)
    assert (run / "model.zarr").exists()
    np.save(tmp_path / "own" / what, x)
    with pytest.raises(InputError, match="have changed since"):
        workflow.predict(run)


@pytest.mark.parametrize("damage", [pytest.param("its bytes", marks=pytest.mark.slow), "its content"])
def test_what_was_read_is_compared_with_the_newest_checkpoint_that_can_be_read(rows, tmp_path, damage):
    """A damaged one is passed over, and one that another version has written; without any, a warning says so."""
    shutil.copytree(rows, tmp_path / "own")
    config = job(tmp_path / "own" / "x.npy", output={"labels": False})
    workflow.run(config, tmp_path / "run")
    x = np.load(tmp_path / "own" / "x.npy")
    x[15] += 1e-3
    np.save(tmp_path / "own" / "x.npy", x)
    found = checkpoint.generations(tmp_path / "run" / "checkpoints")
    assert len(found) > 1
    for path in reversed(found):
        with pytest.raises(InputError, match="have changed since the run read them"):
            workflow.predict(tmp_path / "run")
        metadata = json.loads((path / "zarr.json").read_text())
        metadata["attributes"]["facts"]["layout"] = 0
        (path / "zarr.json").write_text(json.dumps(metadata))
        if damage == "its content":
            (path / "manifest.json").write_text(json.dumps(checkpoint.sums(path)))
    events = []
    workflow.predict(tmp_path / "run", listeners=[events.append])
    assert any("no checkpoint can be read" in event.get("message", "") for event in events)


def test_a_changed_zarr_chunk_is_noticed(tmp_path):
    """A chunk of another store, whose codec and size fit, is another chunk."""
    store = write_rows(tmp_path / "x.zarr", blobs(), rows=10)
    config = job(store)
    with pytest.raises(KeyboardInterrupt):
        workflow.run(config, tmp_path / "run", listeners=[Interrupt("pass", 2)])
    a, b = (store / "c" / str(i) / "0" for i in (1, 2))
    a_bytes, b_bytes = a.read_bytes(), b.read_bytes()
    a.write_bytes(b_bytes)
    b.write_bytes(a_bytes)
    with pytest.raises(InputError, match=r"have changed since|are not those"):
        workflow.resume(tmp_path / "run")


def test_the_config_of_a_run_can_be_run(rows, tmp_path):
    """config.yaml has the config below `config`; a job of it has the same result, and mistakes name its lines."""
    workflow.run(job(rows / "x.npy"), tmp_path / "run")
    workflow.run(load_config(tmp_path / "run" / "config.yaml"), tmp_path / "again")
    assert results(tmp_path / "again") == results(tmp_path / "run")
    done = command(
        "run", tmp_path / "run" / "config.yaml", "--output", tmp_path / "third", "--set", "output.labels=false"
    )
    assert done.code == 0 and (tmp_path / "third" / "model.zarr").exists()
    edit(tmp_path / "run", "fit", max_itr=3)
    with pytest.raises(InputError, match=r"config.yaml, line \d+: fit.max_itr: there is no such key"):
        load_config(tmp_path / "run" / "config.yaml")


def test_labels_of_other_rows_are_reported(rows, tmp_path, monkeypatch):
    """report of labels writes their own page; tests/test_prediction_report.py resumes them."""
    workflow.run(job(rows / "x.npy"), tmp_path / "run")
    other = ["data.path=" + str(rows / "x.npy")]
    workflow.predict(tmp_path / "run", other, tmp_path / "labels")
    monkeypatch.undo()  # reports are written again
    assert command("report", tmp_path / "labels").code == 0
    assert (tmp_path / "labels" / "report.html").exists()


@pytest.mark.parametrize("refused", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF])
def test_a_file_system_without_links_and_flushes_takes_a_run(rows, tmp_path, monkeypatch, refused):
    """CIFS, sshfs, gcsfuse, exFAT: some calls are not there. What is written is the same."""

    def fails(*_):
        raise OSError(refused, os.strerror(refused))

    monkeypatch.undo()  # of the fixture, which flushes nothing
    workflow.run(job(rows / "x.npy"), tmp_path / "plain")
    monkeypatch.setattr(os, "link", fails if refused != errno.EBADF else os.link)
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(KeyboardInterrupt):
        workflow.run(job(rows / "x.npy"), tmp_path / "run", listeners=[Interrupt("pass", 2)])
    workflow.resume(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "plain")


def test_a_failing_disk_is_no_missing_call(rows, tmp_path, monkeypatch):
    """An error of the disk itself is told."""

    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StorageError, match="Input/output error"):
        workflow.run(job(rows / "x.npy"), tmp_path / "run")
