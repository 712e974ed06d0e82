"""Credentials are in no message, log, report or stored config, whichever way they came in."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import pipeline
from pipeline.errors import InputError, hidden, without_secrets
from pipeline.outputs.events import EventLog
from tests.jobs import blobs, command, files, job, refused

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://me:pw1@host/x.npy: gone", "ftp://…@host/x.npy: gone"),
        ("https://h/x?sv=2024&sig=abc%2F&se=1 (403)", "https://h/x?sv=2024&sig=…&se=1 (403)"),
        ("s3://b/x?X-Amz-Signature=abc&v=3", "s3://b/x?X-Amz-Signature=…&v=3"),
        ("{'password': 'pw1', 'user': 'me'}", "{'password': '…', 'user': 'me'}"),
        ("aws_secret_access_key=pw1, region=eu", "aws_secret_access_key=…, region=eu"),
        ("fit.tol: got 1, expected 2. See a@b and x: y", "fit.tol: got 1, expected 2. See a@b and x: y"),
        ("this pass: 3 s; key: a.pem; keyed by row", "this pass: 3 s; key: a.pem; keyed by row"),
    ],
)
def test_what_looks_like_a_credential_is_hidden_and_nothing_else(text: str, shown: str) -> None:
    """In URLs, and behind names; also in the text of every error of ours."""
    assert hidden(text) == shown and str(InputError(text)) == shown


def test_values_are_hidden_by_their_keys() -> None:
    """At any depth, in lists too; the rest stays as it is."""
    plain = {"p": {"options": {"password": "a", "hosts": ["x", "ftp://u:p@h"], "n": 3, "tokens": ["t"]}}}
    shown = {"p": {"options": {"password": "…", "hosts": ["x", "ftp://…@h"], "n": 3, "tokens": ["…"]}}}
    assert without_secrets(plain) == shown


WAYS: dict[str, dict[str, Any]] = {
    "options that the source has not": {"source": "bundled", "path": "digits", "storage_options": {"secret": SECRET}},
    "options of another kind": {"source": "npy", "path": "x.npy", "storage_options": [SECRET]},
    "one option": {"source": "npy", "path": "x.npy", "storage_options": SECRET},
    "an option by another name": {"source": "npy", "path": "none.npy", "storage_options": {"key": SECRET, "mode": 3}},
    "a user": {"source": "npy", "path": f"ftp://user:{SECRET}@127.0.0.1:1/x.npy"},
    "a signature": {"source": "npy", "path": f"http://127.0.0.1:1/x.npy?sig={SECRET}"},
    "a URL of weights": {"source": "npy", "path": "x.npy", "weights": f"ftp://user:{SECRET}@127.0.0.1:1/x.npy"},
    "a URL for another key": {"source": "npy", "path": "x.npy", "bad_rows": f"ftp://user:{SECRET}@127.0.0.1:1/x.npy"},
}


@pytest.mark.parametrize("data", WAYS.values(), ids=WAYS)
def test_no_message_shows_what_a_config_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any]
) -> None:
    """With --debug neither."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", blobs())
    Path("c.yaml").write_text(yaml.safe_dump({"data": data}))
    for words in (["check", "c.yaml"], ["check", "c.yaml", "--log-level", "debug"]):
        outcome = command(*words)
        assert outcome.code and SECRET[:6] not in outcome.err + outcome.out, outcome


def test_neither_files_of_a_run_nor_its_log_have_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A profile's password, and URLs with a user; they have to be given again, and the message says so."""
    np.save(tmp_path / "x.npy", blobs())
    options = {"password": SECRET, "connect_options": {"client_keys": [f"ftp://u:{SECRET}@h/k"]}}
    config = job(tmp_path / "x.npy", engine={"profiles": {"p": {"kind": "ssh", "options": options}}})
    with caplog.at_level(logging.DEBUG, "em_pipeline"):
        pipeline.run(config, tmp_path / "run")
        EventLog(tmp_path / "run" / "events.jsonl")("warning", message=f"s3://me:{SECRET}@b", password=SECRET)
    assert SECRET not in caplog.text
    assert [name for name, content in files(tmp_path / "run").items() if SECRET.encode() in content] == []
    last = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert last["message"] == "s3://…@b" and last["password"] == "…"
    stored = tmp_path / "run" / "config.yaml"
    stored.write_text(stored.read_text().replace(f"path: {tmp_path}/x.npy", "path: https://…@h/x.npy"))
    assert "Give the URLs again: --set data.path=…" in refused("predict", tmp_path / "run")
    assert command("predict", tmp_path / "run", "--set", f"data.path={tmp_path}/x.npy").code == 0


def test_a_word_of_a_storage_is_no_credential(tmp_path: Path) -> None:
    """An option such as {addressing_style: auto} does not hide that word in the stored config, from which a run is resumed."""
    np.save(tmp_path / "x.npy", blobs(60))
    config = {
        "data": {
            "source": "npy",
            "path": str(tmp_path / "x.npy"),
            "storage_options": {"s3": {"addressing_style": "auto"}},
        },
        "model": {"n_components": 2},
        "fit": {"max_iter": 2},
    }
    stored = pipeline.jobconfig.to_plain(pipeline.jobconfig.validate(config))
    assert stored["fit"]["method"] == "auto" and "…" not in json.dumps(stored, ensure_ascii=False)
