"""Input from object stores: a server in this process speaks S3, and s3fs reads from it."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import s3fs
import yaml
import zarr
from moto.server import ThreadedMotoServer

from pipeline import workflow
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import validate
from pipeline.outputs.copied import Copy
from tests.jobs import blobs, command, files, refused, results, settings

SECRET = "open-sesame"
# Clients of a server that has gone complain when they are collected, whenever that is.
pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]
DOCWORD = b"3\n4\n5\n1 1 2\n1 3 1\n2 2 4\n3 1 1\n3 4 2\n"


@dataclass
class Bucket:
    """A bucket of a server that can be stopped. options : storage_options that open it."""

    server: Any
    options: dict[str, Any]

    def put(self, **objects: bytes) -> None:
        """Objects by their names, whose dots are written as __."""
        s3fs.S3FileSystem(**self.options).pipe({f"rows/{k.replace('__', '.')}": v for k, v in objects.items()})


@pytest.fixture
def bucket(monkeypatch) -> Iterator[Bucket]:
    """An empty bucket called `rows`, and no credentials but those in its options."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # what an earlier server held
    options = {"key": "ali-baba", "secret": SECRET, "endpoint_url": f"http://{host}:{port}"}
    filesystem = s3fs.S3FileSystem(**options)
    filesystem.mkdir("rows")
    yield Bucket(server, options)
    server.stop()


def npy(x: np.ndarray) -> bytes:
    """The bytes of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, x)
    return stream.getvalue()


def put_zarr(bucket: Bucket, x: np.ndarray) -> None:
    """The rows as s3://rows/x.zarr, a stored chunk every 100 rows."""
    store = zarr.storage.FsspecStore.from_url("s3://rows/x.zarr", storage_options=bucket.options)
    zarr.create_array(store, shape=x.shape, chunks=(100, x.shape[1]), dtype=x.dtype)[:] = x


def data(bucket: Bucket, source: str, name: str, **more: Any) -> dict[str, Any]:
    """A data section."""
    return {"source": source, "path": f"s3://rows/{name}", "storage_options": bucket.options, **more}


def test_every_kind_of_file_reads_as_it_does_from_a_disk(bucket, tmp_path):
    """zarr, npy, csv, pictures, counts with their vocabulary, and weights: the same rows as from local files."""
    from PIL import Image

    x = blobs()
    rng = np.random.default_rng(0)
    picture = io.BytesIO()
    Image.fromarray(rng.integers(256, size=(20, 30), dtype=np.uint8)).save(picture, "png")
    text = "\n".join(",".join(map(repr, row)) for row in x.tolist()).encode()
    local = {"x.npy": npy(x), "x.csv": text, "a.png": picture.getvalue(), "d.txt": DOCWORD, "v.txt": b"a\nb\nc\nd\n"}
    for name, content in local.items():
        (tmp_path / name).write_bytes(content)
    bucket.put(x__npy=local["x.npy"], x__csv=text, a__png=local["a.png"], d__txt=DOCWORD, v__txt=local["v.txt"])
    put_zarr(bucket, x)

    words = {"cache": str(tmp_path / "cache"), "vocabulary": "s3://rows/v.txt"}
    for source, name, more in (
        ("npy", "x.npy", {}),
        ("csv", "x.csv", {}),
        ("images", "", {"patch": {"size": [4, 4]}}),
        ("docword", "d.txt", words),
    ):
        here = {**more, "vocabulary": str(tmp_path / "v.txt")} if "vocabulary" in more else more
        folder = tmp_path if name else tmp_path / "a.png"
        remote = validate({"data": data(bucket, source, name, **more)}).data.open()
        disk = validate({"data": {"source": source, "path": str(folder / name), **here}}).data.open()
        assert remote.object_sizes() == disk.object_sizes()
        a, b = remote.read(0), disk.read(0)
        assert (a != b).sum() == 0 and remote.vocabulary() == disk.vocabulary(), source
    stored = validate({"data": data(bucket, "zarr", "x.zarr")}).data.open()
    assert np.array_equal(stored.read(0), x) and len(stored.object_sizes()) == 6


@pytest.mark.slow
def test_a_run_gives_the_bits_of_a_local_one_and_keeps_no_secret(bucket, tmp_path):
    """model.zarr and labels.zarr are those of a local run; credentials are in no file, and resume is given them again."""
    x = blobs()
    np.save(tmp_path / "x.npy", x)
    bucket.put(x__npy=npy(x))
    plain = settings(tmp_path / "x.npy")
    (tmp_path / "local.yaml").write_text(yaml.safe_dump(plain))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**plain, "data": data(bucket, "npy", "x.npy")}))
    assert command("check", tmp_path / "c.yaml").code == 0
    assert command("run", tmp_path / "local.yaml", "--output", tmp_path / "here").code == 0
    assert command("run", tmp_path / "c.yaml", "--output", tmp_path / "there").code == 0
    assert results(tmp_path / "there") == results(tmp_path / "here")
    again = ["--set", f"data.storage_options={json.dumps(bucket.options)}", "--set", "fit.max_iter=7"]
    said = refused("resume", tmp_path / "there", *again[2:], code=3)
    assert "storage_options" in said and "again" in said
    assert command("resume", tmp_path / "there", *again).code == 0
    assert all(SECRET.encode() not in content for content in files(tmp_path / "there").values())


@pytest.mark.parametrize("source", ["npy", "zarr", "csv", "images", "docword"])
def test_what_is_missing_is_named_with_what_helps(bucket, tmp_path, source):
    """No bucket, no object, no credentials: an error of input or storage that names the path, and says what to do."""
    bucket.put(x__npy=npy(blobs(20)))
    cache = {"cache": str(tmp_path)} if source == "docword" else {}
    nameless = {"endpoint_url": bucket.options["endpoint_url"]}
    for path, options, shown in (
        ("s3://no-such-bucket/x", bucket.options, "s3://no-such-bucket/x"),
        ("s3://rows/nothing", bucket.options, "s3://rows/nothing"),
        ("s3://rows/x.npy", nameless, "data.storage_options {key"),
    ):
        section = {"source": source, "path": path, "storage_options": options, **cache}
        with pytest.raises((InputError, StorageError)) as error:
            validate({"data": section}).data.open()
        assert path in str(error.value) and shown in str(error.value)


def test_check_and_run_refuse_what_is_missing_alike(bucket, tmp_path):
    """A bucket that is not there: exit code 2, one message, no run directory."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"data": data(bucket, "npy", "nothing.npy")}))
    said = refused("check", tmp_path / "c.yaml")
    assert "there is no such object" in said
    assert refused("run", tmp_path / "c.yaml", "--output", tmp_path / "run") == said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["npy", "zarr"])
def test_a_server_that_goes_away_ends_the_run_with_the_name_of_what_was_read(bucket, tmp_path, source):
    """Exit code 3 in bounded time, naming object and remedy; a resume goes on once the server is back."""
    x = blobs()
    bucket.put(x__npy=npy(x))
    put_zarr(bucket, x)
    config = validate(settings(tmp_path / "x.npy", data=data(bucket, source, f"x.{source}")))

    def leave(event: dict[str, Any]) -> None:
        if event["event"] == "pass":
            bucket.server.stop()

    began = time.monotonic()
    with pytest.raises(StorageError) as error:
        workflow.run(config, tmp_path / "run", listeners=[leave])
    assert f"s3://rows/x.{source}" in str(error.value) and "does not answer" in str(error.value)
    assert time.monotonic() - began < 60
    assert list((tmp_path / "run" / "checkpoints").glob("gen-*"))


def test_an_object_that_goes_away_is_named(bucket):
    """A chunk deleted after opening is an error that names its key, never fill values."""
    put_zarr(bucket, blobs())
    source = validate({"data": data(bucket, "zarr", "x.zarr")}).data.open()
    s3fs.S3FileSystem(**bucket.options).rm("rows/x.zarr/c/4/0")
    with pytest.raises(StorageError, match="c/4/0 is missing"):
        source.read(0)


@pytest.mark.slow
def test_a_server_that_accepts_and_never_answers_is_given_up(tmp_path, bucket):
    """Reads have time-outs: a silent server ends with exit code 3, not with waiting for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {**bucket.options, "endpoint_url": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        plain = {"data": {"source": "npy", "path": "s3://rows/x.npy", "storage_options": options}}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(plain))
        began = time.monotonic()
        assert "does not answer" in refused("check", tmp_path / "c.yaml", code=3)
        assert (
            time.monotonic() - began < 900
        )  # s3fs tries each of five times, with 15 s to answer in: 406 s on a busy machine


def copied(bucket: Bucket) -> dict[str, bytes]:
    """The objects below s3://rows/out by name."""
    filesystem = s3fs.S3FileSystem(**bucket.options)
    filesystem.invalidate_cache()
    return {name.removeprefix("rows/out/"): filesystem.cat_file(name) for name in filesystem.find("rows/out")}


def copying(bucket: Bucket, tmp_path: Any, **fit: Any) -> Any:
    """A config whose results are copied to s3://rows/out."""
    np.save(tmp_path / "x.npy", blobs())
    plain = settings(tmp_path / "x.npy")
    output = {"copy_to": "s3://rows/out/", "storage_options": bucket.options, "path": str(tmp_path / "run")}
    return validate({**plain, "fit": {**plain["fit"], **fit}, "output": {**plain.get("output", {}), **output}})


def test_results_are_copied_and_an_earlier_copy_is_replaced_only_if_asked(bucket, tmp_path):
    """Every file of model, labels and report as in the run directory, byte for byte; no secret; zarr opens the copy."""
    events: list[dict[str, Any]] = []
    made = workflow.run(copying(bucket, tmp_path), listeners=[events.append])
    here = {
        name: content for name, content in files(made).items() if not name.startswith(("checkpoints", "events", "."))
    }
    assert copied(bucket) == here and {"report.html", "config.yaml", "model.zarr/zarr.json"} <= here.keys()
    assert any(event["event"] == "copied" and event["to"] == "s3://rows/out" for event in events)
    assert all(SECRET.encode() not in content for content in (*files(made).values(), *copied(bucket).values()))
    store = zarr.storage.FsspecStore.from_url("s3://rows/out/model.zarr", storage_options=bucket.options)
    assert zarr.open_group(store, mode="r")["means"].shape[0] > 1
    with pytest.raises(InputError, match=r"holds the copy of a run\. Use --overwrite"):
        workflow.run(copying(bucket, tmp_path), tmp_path / "again")
    assert not (tmp_path / "again").exists()
    elsewhere = copying(bucket, tmp_path)
    elsewhere = elsewhere.model_copy(
        update={"output": elsewhere.output.model_copy(update={"path": str(tmp_path / "new")})}
    )
    assert any("holds the copy of a run" in note for note in workflow.check(elsewhere).advice)
    s3fs.S3FileSystem(**bucket.options).pipe_file("rows/out/model.zarr/left-over/zarr.json", b"{}")
    again = workflow.run(copying(bucket, tmp_path, max_iter=1), made, overwrite=True)
    here = {
        name: content for name, content in files(again).items() if not name.startswith(("checkpoints", "events", "."))
    }
    assert copied(bucket) == here


def test_a_place_of_something_else_is_left_alone(bucket, tmp_path):
    """Before a chunk is read: other objects, no such bucket, no permission; and a local path, or options without effect."""
    s3fs.S3FileSystem(**bucket.options).pipe_file("rows/out/thesis.pdf", b"mine")
    config = copying(bucket, tmp_path)
    with pytest.raises(InputError, match=r"holds thesis.pdf, and is no copy of a run. Nothing was changed"):
        workflow.run(config)
    assert copied(bucket) == {"thesis.pdf": b"mine"} and not (tmp_path / "run").exists()
    for output, said in (
        ({"copy_to": "s3://no-such-bucket/out", "storage_options": bucket.options}, "no-such-bucket"),
        ({"copy_to": "/scratch/out"}, "expected a URL"),
        ({"storage_options": bucket.options}, "leave them out, or set it"),
    ):
        with pytest.raises(InputError, match=said):
            workflow.run(
                validate({**settings(tmp_path / "x.npy"), "output": {"path": str(tmp_path / "run"), **output}})
            )


def test_a_copy_that_failed_is_made_by_resume_and_only_where_the_user_names_it(bucket, tmp_path, monkeypatch):
    """The run is whole; the error says how to go on; a run directory alone sends nothing anywhere."""
    opened, tried = Copy._open, []

    def cut(self: Copy) -> Any:
        """The file system, whose first copy of files ends after two of them."""
        filesystem, root = opened(self)
        put = filesystem.put

        def fails(here: list[str], there: list[str]) -> None:
            tried.append(there)
            if len(tried) == 1:
                put(here[:2], there[:2])
                raise OSError("the line is cut")
            put(here, there)

        monkeypatch.setattr(filesystem, "put", fails)
        return filesystem, root

    monkeypatch.setattr(Copy, "_open", cut)
    config = copying(bucket, tmp_path)
    with pytest.raises(StorageError, match=r"the line is cut.*resume .* --set output.copy_to=s3://rows/out"):
        workflow.run(config)
    made = tmp_path / "run"
    assert (made / "report.html").exists() and "report.html" not in copied(bucket)
    said: list[str] = []
    workflow.resume(made, listeners=[lambda event: said.append(str(event.get("message")))])
    assert "report.html" not in copied(bucket) and any("--set output.copy_to=s3://rows/out" in text for text in said)
    named = ["output.copy_to=s3://rows/out", f"output.storage_options={json.dumps(bucket.options)}"]
    workflow.resume(made, named)
    assert copied(bucket)["report.html"] == (made / "report.html").read_bytes()
    before = len(tried)
    workflow.resume(made, named)
    assert len(tried) == before, "a whole copy is not made again"


def test_results_are_copied_to_folders_too(tmp_path):
    """By a file system that has folders, whose copy is a run: `predict` takes it."""
    x = blobs()
    np.save(tmp_path / "x.npy", x)
    plain = settings(tmp_path / "x.npy")
    where = {"path": str(tmp_path / "run"), "copy_to": f"file://{tmp_path}/far/away"}
    made = workflow.run(validate({**plain, "output": {**plain.get("output", {}), **where}}))
    kept = {name for name in files(made) if not name.startswith(("checkpoints", "events", "."))}
    assert files(tmp_path / "far" / "away").keys() == kept
    labels = [zarr.open_group(workflow.predict(run), mode="r")["label"][:] for run in (made, tmp_path / "far" / "away")]
    np.testing.assert_array_equal(*labels)
