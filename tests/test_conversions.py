"""Inputs that are converted once, what killed conversions leave, and what cannot be read."""

import gzip
import os
import time

import numpy as np
import pytest
from PIL import Image

from pipeline.data import files
from pipeline.errors import InputError, StorageError
from pipeline.fitting.plan import memory_plan, plan_job
from pipeline.jobconfig import validate
from tests.jobs import blobs

DOCWORD = "2\n4\n3\n1 1 2\n1 3 1\n2 2 4\n"


def source(**keys):
    """The open source of a data section."""
    return validate({"data": keys, "model": {"family": "kmeans"} if keys["source"] != "docword" else {}}).data.open()


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_npy_gz_is_unpacked_once(tmp_path, monkeypatch, order):
    """gzip cannot seek: a pass would decompress all that comes before each chunk."""
    from pipeline.data import source as chunking

    monkeypatch.setattr(files, "GZIP_BYTES", 100)
    monkeypatch.setattr(chunking, "TARGET_BYTES", 400)
    x = np.asarray(blobs(), order=order)
    with gzip.open(tmp_path / "x.npy.gz", "wb") as file:
        np.save(file, x)
    found = source(source="npy", path=str(tmp_path / "x.npy.gz"), cache=str(tmp_path / "cache"))
    (copy,) = (tmp_path / "cache").iterdir()
    assert copy.stat().st_size == 128 + x.nbytes
    monkeypatch.setattr(files, "_Unzipped", None)  # no chunk is decompressed again
    np.testing.assert_array_equal(np.concatenate([found.read(i) for i in range(found.n_chunks)]), x)


@pytest.mark.parametrize("kind", ["npy", "docword", "csv"])
def test_what_killed_conversions_left_is_removed(tmp_path, monkeypatch, kind):
    """By its age: that of a conversion at work is as it was, and so is what is not ours."""
    monkeypatch.setattr(files, "GZIP_BYTES", 10)
    if kind == "npy":
        with gzip.open(tmp_path / "x.npy.gz", "wb") as file:
            np.save(file, blobs())
        path, name = tmp_path / "x.npy.gz", "x.npy"
    elif kind == "csv":
        with gzip.open(tmp_path / "x.csv.gz", "wt") as file:
            file.write("a,b\n" + "1,2\n" * 50)
        path, name = tmp_path / "x.csv.gz", "x.csv"
    else:
        path = tmp_path / "x.txt"
        path.write_text(DOCWORD)
    cache = tmp_path / "cache"
    source(source=kind, path=str(path), cache=str(cache))
    (converted,) = cache.iterdir()
    name = converted.name if kind == "docword" else name
    old, young, other = (cache / f".{name}.{word}" for word in ("old", "young", "other"))
    other = cache / ".mine.old"
    for part in (old, young, other):
        part.mkdir()
        (part / "c").write_bytes(b"x" * 100)
    long_ago = time.time() - 2 * files.ABANDONED_SECONDS
    for path_of in (old / "c", old, other / "c", other):
        os.utime(path_of, (long_ago, long_ago))
    if converted.is_dir():
        import shutil

        shutil.rmtree(converted)
    else:
        converted.unlink()
    source(source=kind, path=str(path), cache=str(cache))
    assert sorted(path.name for path in cache.iterdir()) == sorted([converted.name, young.name, other.name])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\u2028b\nc\x0bd\ne\x85f\ng\x1ch\n".encode(), ["a\u2028b", "c\x0bd", "e\x85f", "g\x1ch"]),
        (b"\xef\xbb\xbfone\r\ntwo\r\nthree\r\nfour", ["one", "two", "three", "four"]),
        (b"a\rb\rc\rd\r", ["a", "b", "c", "d"]),
        (b"a\n\nc\nd\n", ["a", "", "c", "d"]),
    ],
)
def test_a_vocabulary_is_one_word_a_line(tmp_path, content, words):
    """Lines end as on any system; nothing else cuts a word, and a byte order mark is none."""
    (tmp_path / "x.txt").write_text(DOCWORD)
    (tmp_path / "v.txt").write_bytes(content)
    found = source(source="docword", path=str(tmp_path / "x.txt"), vocabulary=str(tmp_path / "v.txt"))
    assert found.vocabulary() == words


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "in the middle"])
def test_an_unreadable_picture_is_named(tmp_path, damage):
    """Ours is the sentence, with the file and what to do."""
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)).save(tmp_path / name)
    file = tmp_path / "b.png"
    whole = file.read_bytes()
    content = {
        "text": b"no picture",
        "empty": b"",
        "cut": whole[:300],
        "in the middle": whole[:99] + b"\xff" * 99 + whole[198:],
    }
    file.write_bytes(content[damage])
    with pytest.raises((StorageError, InputError)) as error:
        found = source(source="images", path=str(tmp_path))
        for i in range(found.n_chunks):
            found.read(i)
    assert str(file) in str(error.value) and "Restore it, or move it out of the folder" in str(error.value)


def test_few_rows_need_little_memory(tmp_path):
    """94 KiB of rows fit a job of 512 MiB; a job of many rows is planned as before."""
    np.save(tmp_path / "x.npy", np.zeros((3000, 4)) + np.arange(4))
    config = validate(
        {"data": {"source": "npy", "path": str(tmp_path / "x.npy")}, "engine": {"memory": "512MiB", "workers": 2}}
    ).resolved()
    chunks = config.open_chunks()
    assert memory_plan(plan_job(config, chunks), chunks).workers == 2
