"""Volumes and n-dimensional images in zarr: every patch as a loop cuts it, on its own coordinates, and wrong stores in a sentence."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.data import source as chunking
from pipeline.data.patch import patch_basis
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import validate
from pipeline.workflow import predict, run
from tests.laws.common import examples

OME = [{"name": "t", "type": "time", "unit": "second"}, {"name": "c", "type": "channel"}]
OME += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]


def opened(path: Path, **options: Any) -> Any:
    """The source of a config."""
    return validate({"data": {"source": "volume", "path": str(path), **options}}).data.open()


def rows_by_loop(voxels: np.ndarray, axes: str, size: tuple[int, ...], stride: int) -> np.ndarray:
    """The pixels of all patches, channels fastest, one by one."""
    cut = dict(zip("zyx"[-len(size) :], size, strict=True))
    dims = [axis for axis in axes if axis != "c"]
    counts = [voxels.shape[axes.index(d)] for d in dims]
    counts = [(n - cut[d]) // stride + 1 if d in cut else n for d, n in zip(dims, counts, strict=True)]
    found = []
    for at in product(*map(range, counts)):
        box = {d: slice(i * stride, i * stride + cut[d]) if d in cut else i for d, i in zip(dims, at, strict=True)}
        patch = voxels[tuple(box.get(axis, slice(None)) for axis in axes)]
        left = [axis for axis in axes if axis in cut or axis == "c"]
        order = [left.index(axis) for axis in ("z", "y", "x", "c") if axis in left]
        found.append(patch.transpose(order).ravel())
    return np.array(found)


@examples(60)
@given(
    axes=st.sampled_from(["yx", "zyx", "czyx", "tczyx", "yxc", "xzy", "tyx", "cyx"]),
    planes=st.booleans(),
    stride=st.integers(1, 3),
    chunk=st.integers(1, 6),
    target=st.sampled_from([256, 2**12, 2**23]),
    seed=st.integers(0, 99),
)
def test_every_patch_is_that_of_a_loop(tmp_path_factory, axes, planes, stride, chunk, target, seed):
    """Any order of the axes, any stored chunks, any chunks of rows; and the mean-free features by the basis."""
    rng = np.random.default_rng(seed)
    sizes = {"t": 2, "c": 3, "z": 5, "y": 6, "x": 7}
    voxels = rng.integers(
        1,
        1000,
        [  # 0 is the fill value, and chunks of it are not stored
            sizes[axis] for axis in axes
        ],
    ).astype(np.uint16)
    path = tmp_path_factory.mktemp("volume") / "v.zarr"
    zarr.create_array(path, data=voxels, chunks=tuple(min(chunk, n) for n in voxels.shape))
    size = (2, 3) if planes or "z" not in axes else (2, 3, 2)
    patch = {"size": list(size), "stride": stride, "remove_mean": False}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunking, "TARGET_BYTES", target)
        source = opened(path, axes=list(axes), patch=patch)
        x = np.concatenate([source.read(i) for i in range(source.n_chunks)])
        centred = opened(path, axes=list(axes), patch=patch | {"remove_mean": True})
        features = np.concatenate([centred.read(i) for i in range(centred.n_chunks)])
    expected = rows_by_loop(voxels, axes, size, stride)
    np.testing.assert_array_equal(x, expected.astype(np.float32))
    assert source.n_rows == len(x) and x.shape[1] == source.n_features
    channels = 3 if "c" in axes else 1
    np.testing.assert_allclose(features, expected @ patch_basis(size, channels), rtol=1e-4, atol=1e-2)


def ome(path: Path, voxels: np.ndarray, version: str) -> Path:
    """An OME-Zarr image of two levels, the second of every other voxel."""
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for level, step in enumerate((1, 2)):
        part = voxels[..., ::step, ::step]
        group.create_array(str(level), data=part, chunks=(1, 1, 2, 8, 8))
        scale = [2.0, 1.0, 0.5, 0.25 * step, 0.25 * step]
        moved = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": [0, 0, 10, 0, 0]}]
        datasets.append({"path": str(level), "coordinateTransformations": moved})
    images = [{"version": version, "axes": OME, "datasets": datasets}]
    group.attrs.update(
        {"ome": {"multiscales": images, "version": version}} if version == "0.5" else {"multiscales": images}
    )
    return path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_of_an_ome_zarr_image_lie_on_its_own_places(tmp_path: Path, version: str) -> None:
    """Two materials in halves of a volume are found, voxel by voxel, at micrometres and seconds; a coarser level has its own."""
    rng = np.random.default_rng(0)
    truth = np.zeros((2, 4, 16, 16), int)
    truth[:, :, :, 8:] = 1
    voxels = np.stack([truth * 50 + 100, 300 - truth * 80], axis=1) + rng.normal(size=(2, 2, 4, 16, 16))
    path = ome(tmp_path / "image.ome.zarr", voxels.astype(np.float32), version)
    data = {"source": "volume", "path": str(path), "patch": {"size": [1, 1, 1], "remove_mean": False}}
    made = run(validate({"data": data, "model": {"n_components": 2}, "output": {"path": str(tmp_path / "run")}}))
    labels = xr.open_dataset(made / "labels.zarr", engine="zarr", consolidated=False)
    assert labels["label"].dims == ("t", "z", "y", "x") and labels["label"].shape == truth.shape
    found = labels["label"].values
    assert (found == truth).all() or (found == 1 - truth).all()
    np.testing.assert_allclose(labels["z"], 10 + 0.5 * np.arange(4))
    np.testing.assert_allclose(labels["x"], 0.25 * np.arange(16))
    assert labels["x"].attrs["units"] == "micrometer" and labels["t"].values.tolist() == [0.0, 2.0]
    coarse = predict(made, ["data.level=1"], output=tmp_path / "coarse")
    coarse = xr.open_dataset(coarse, engine="zarr", consolidated=False)
    assert (coarse["label"].values == found[..., ::2, ::2]).all()
    np.testing.assert_allclose(coarse["x"], 0.5 * np.arange(8))


def test_patches_of_a_volume_in_the_report(tmp_path: Path) -> None:
    """Components as pictures with their planes side by side; centres of patches as coordinates."""
    rng = np.random.default_rng(1)
    voxels = rng.normal(size=(12, 14, 13))
    voxels[:, :, 6:] += 20 * np.sin(np.arange(12))[:, None, None]
    zarr.create_array(tmp_path / "v.zarr", data=voxels, chunks=(4, 7, 13), dimension_names=("z", "y", "x"))
    data = {"source": "volume", "path": str(tmp_path / "v.zarr"), "patch": {"size": [2, 3, 3], "stride": 2}}
    made = run(validate({"data": data, "model": {"n_components": 2}, "output": {"path": str(tmp_path / "run")}}))
    text = (made / "report.html").read_text()
    for said in ("216 patches of 2 × 3 × 3 voxels", "The planes of a volume stand side by side."):
        assert said in text, said
    with pytest.raises(InputError, match="patches of a volume, expected"):
        pipeline.save_prior(made, tmp_path / "prior.npz")
    sampled = pipeline.sample(made, 5, tmp_path / "sample")
    assert zarr.open_group(sampled, mode="r")["x"].shape == (5, 17)
    labels = xr.open_dataset(made / "labels.zarr", engine="zarr", consolidated=False)
    assert labels["label"].shape == (6, 6, 6)
    np.testing.assert_allclose(labels["z"], 2 * np.arange(6) + 0.5)


def test_wrong_volumes_get_one_sentence(tmp_path: Path) -> None:
    """What was found, and what to write."""
    voxels = np.zeros((4, 5, 6), np.float32)
    zarr.create_array(tmp_path / "v.zarr", data=voxels, chunks=(2, 5, 6))
    zarr.create_array(tmp_path / "line.zarr", data=np.zeros(5))
    zarr.create_array(tmp_path / "complex.zarr", data=np.ones((4, 4), complex))
    zarr.create_array(tmp_path / "six.zarr", data=np.zeros((1,) * 6))
    zarr.create_array(tmp_path / "named.zarr", data=voxels, dimension_names=("depth", "y", "x"))
    group = zarr.create_group(tmp_path / "group.zarr")
    group.create_array("a", data=voxels)
    group.create_array("b", data=voxels)
    image = ome(tmp_path / "image.zarr", np.zeros((1, 2, 3, 8, 8), np.float32), "0.5")
    bad = zarr.create_group(tmp_path / "bad.zarr")
    bad.attrs["multiscales"] = [
        {
            "axes": [{"name": "y"}],
            "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 2]}]}],
        }
    ]
    whole = {"size": [2, 2, 2]}
    for name, options, said in [
        ("v.zarr", {"patch": {"size": [5, 2, 2]}}, "has 4 voxels along z, expected at least the 5"),
        ("v.zarr", {"patch": {"size": [1, 1, 1]}}, "leaves nothing"),
        ("v.zarr", {"axes": ["z", "y"]}, "has shape (4, 5, 6). Name each dimension once"),
        ("v.zarr", {"axes": ["t", "y", "x"], "patch": whole}, "has no z, its axes are t, y, x. Give two numbers"),
        ("v.zarr", {"variable": "a"}, "is an array. Leave it out"),
        ("v.zarr", {"level": 1}, "is no OME-Zarr image"),
        ("line.zarr", {}, "shape (5,), expected numbers with two to five dimensions"),
        ("complex.zarr", {}, "got dtype complex128 and shape (4, 4), expected numbers"),
        ("six.zarr", {}, "the axes without names, expected y and x"),
        ("named.zarr", {}, "the axes depth, y, x, expected y and x, and perhaps t, c and z. Set data.axes"),
        ("group.zarr", {}, "expected OME-Zarr or one array. Set data.variable"),
        ("group.zarr", {"variable": "c"}, "c"),
        ("image.zarr", {"level": 2, "patch": whole}, "got 2, but"),
        ("bad.zarr", {}, "multiscales of its attributes are not those of OME-Zarr"),
    ]:
        with pytest.raises(InputError) as raised:
            opened(tmp_path / name, **options)
        assert said in str(raised.value), (name, str(raised.value))
    assert opened(image, patch=whole).n_rows == 2 * 7 * 7
    zarr.create_array(tmp_path / "huge.zarr", shape=(2000, 2000, 2000), chunks=(2000, 2000, 2000), dtype="u1")
    with pytest.raises(InputError, match=r"Store it in smaller chunks"):
        opened(tmp_path / "huge.zarr")


def test_a_chunk_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Not zeros."""
    zarr.create_array(tmp_path / "v.zarr", data=np.ones((8, 8, 8)), chunks=(4, 4, 4))
    source = opened(tmp_path / "v.zarr")
    (tmp_path / "v.zarr" / "c" / "1" / "0" / "1").unlink()
    with pytest.raises(StorageError, match="chunk c/1/0/1 is missing"):
        for i in range(source.n_chunks):
            source.read(i)
