"""Run directories, configs and stores of strangers: nothing in them is executed, connected to or written elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline
from tests.jobs import Interrupt, blobs, command, job, refused, results, write_rows

CANARY = "from pathlib import Path\nPath({mark!r}).touch()\ndef dask_setup(worker): pass\nclass Found: pass\n"
LOCAL = {"kind": "distributed.LocalCluster", "options": {"n_workers": 1, "processes": False}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, one that was stopped in its fit, and their data."""
    folder = tmp_path_factory.mktemp("strangers")
    config = job(write_rows(folder / "x.zarr", blobs()))
    pipeline.run(config, folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config, folder / "run", listeners=[Interrupt("pass", 3)])
    return folder


@pytest.fixture
def desk(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, and a Python file beside them that leaves a mark when it is executed."""
    import shutil

    for name in ("run", "whole"):
        shutil.copytree(runs / name, tmp_path / name)
    (tmp_path / "canary.py").write_text(CANARY.format(mark=str(tmp_path / "executed")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # also by import
    monkeypatch.setenv("EM_PIPELINE_PROFILES", str(tmp_path / "profiles.yaml"))
    (tmp_path / "profiles.yaml").write_text("{}")
    return tmp_path


def change(run: Path, **sections: dict[str, Any]) -> None:
    """Edit the config of a run."""
    head, text = (run / "config.yaml").read_text().split("\n", 1)
    record = yaml.safe_load(text)
    for name, keys in sections.items():
        record["config"][name] = {**record["config"][name], **keys}
    (run / "config.yaml").write_text(f"{head}\n{yaml.safe_dump(record)}")


HOSTILE: dict[str, dict[str, Any]] = {
    "a class of a profile": {"engine": {"scheduler": "p", "profiles": {"p": {"kind": "canary.Found"}}}},
    "text to preload": {
        "engine": {
            "scheduler": "p",
            "profiles": {"p": {**LOCAL, "options": {**LOCAL["options"], "preload": "canary.py"}}},
        }
    },
    "a profile under our name": {"engine": {"scheduler": "local", "profiles": {"local": {"kind": "canary.Found"}}}},
    "a profile for threads": {"engine": {"scheduler": "threads", "profiles": {"threads": {"kind": "canary.Found"}}}},
    "an address": {"engine": {"scheduler_address": "tcp://127.0.0.1:9"}},
    "a file of a scheduler": {"engine": {"scheduler_file": "s.json"}},
    "security": {"engine": {"scheduler": "local", "security": {"ca_file": "a", "cert": "b", "key": "c"}}},
    "a family": {"model": {"family": "python", "path": "canary.py:Found"}},
    "a source": {"data": {"source": "python", "path": "canary.py:Found"}},
}


@pytest.mark.parametrize("change_of", HOSTILE.values(), ids=HOSTILE)
def test_nothing_that_a_run_directory_names_is_executed(desk: Path, change_of: dict[str, Any]) -> None:
    """By no command; what would have to be obeyed is refused with what was found and the option to give."""
    for name in ("run", "whole"):
        change(desk / name, **change_of)
        for words in (
            ["resume", name],
            ["predict", name, "--output", f"{name}-labels"],
            ["status", name],
            ["report", name],
        ):
            outcome = command(*words)
            assert outcome.code in (0, 2, 3), outcome
            if outcome.code != 2 or words[0] == "report":
                continue
            if "engine" in change_of:
                assert "are not used" in outcome.err and ("--engine" in outcome.err or "--scheduler-" in outcome.err), (
                    outcome
                )
            else:
                assert "not executed" in outcome.err and "--set " in outcome.err, outcome
    assert not (desk / "executed").exists()


@pytest.mark.parametrize("url", ["reference://::/refs.json", "zip://x.npy::http://127.0.0.1:1/x.zip", "dask://x.npy"])
def test_urls_of_storages_that_do_more_than_read_are_named_again(desk: Path, url: str) -> None:
    """reference:// fills templates of its file, a chain downloads and unpacks; of the user's own config they are opened."""
    for name, keys in (
        ("data", {"path": url}),
        ("data", {"weights": url}),
        ("fit", {"init_path": url, "init": "labels"}),
    ):
        change(desk / "run", **{name: keys})
        for words in (["resume", "run"], ["predict", "run", "--output", "labels"]):
            assert all(f"--set {name}.{key}={url}" in refused(*words) for key, value in keys.items() if value == url)


def test_a_run_on_a_cluster_is_resumed_by_one_command(desk: Path, runs: Path) -> None:
    """The user names the engine again: by an option, by --set, or by a config of theirs; then bytes are as ever."""
    change(desk / "run", engine={"scheduler": "p", "profiles": {"p": {"kind": "canary.Found"}}})
    assert "--engine CONFIG, a config of your own" in refused("resume", "run")
    assert "describes the profile p" in refused("resume", "run", "--profile", "p")
    Path("mine.yaml").write_text("data: {source: npy}\nengine: {scheduler: threads, workers: 1}\n")
    assert command("resume", "run", "--engine", "mine.yaml").code == 0
    assert results(desk / "run") == results(runs / "whole")
    stored = yaml.safe_load((desk / "run" / "config.yaml").read_text())
    assert stored["config"]["engine"]["scheduler"] == "p"  # where it runs today says nothing of tomorrow
    assert command("predict", "run", "--set", "engine.scheduler=threads").code == 0
    Path("none.yaml").write_text("data: {source: npy}\n")
    assert "has no section engine" in refused("predict", "run", "--engine", "none.yaml")


def test_a_profile_of_the_users_own_file_needs_no_option(desk: Path) -> None:
    """The run directory only has its name; a profile of that name in the run directory would not be used."""
    (desk / "profiles.yaml").write_text("mine: {kind: canary.Found}")
    change(desk / "run", engine={"scheduler": "mine"})
    assert "which is <class 'canary.Found'>" in refused("resume", "run")  # looked up, as the user's own
    assert (desk / "executed").exists()
    change(desk / "run", engine={"scheduler": "mine", "profiles": {"mine": {"kind": "local"}}})
    assert "are not used" in refused("resume", "run")
