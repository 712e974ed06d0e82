"""Patches in colour and of many bands: what is read equals what was written, in the order height, width, channel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from sklearn.feature_extraction.image import extract_patches_2d

from pipeline.data import source
from pipeline.data.patch import patch_basis
from pipeline.data.source import Source
from pipeline.errors import InputError, StorageError
from pipeline.jobconfig import validate

rng = np.random.default_rng(5)


def opened(folder: Path, **patch: Any) -> Source:
    """The patches of a folder."""
    config = {"data": {"source": "images", "path": str(folder), "patch": patch}, "model": {"family": "gaussian"}}
    return validate(config).data.open()


def rows(found: Source) -> np.ndarray:
    """All rows."""
    return np.concatenate([np.asarray(found.read(i)) for i in range(found.n_chunks)])


@pytest.fixture
def photographs(tmp_path: Path) -> list[np.ndarray]:
    """Two pictures in colour and a grey one, and their pixels in three channels from 0 to 1."""
    colour = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((14, 9), (8, 21))]
    grey = rng.integers(0, 256, (12, 12), dtype=np.uint8)
    for name, pixels in zip(("a.png", "b.bmp", "c.png"), (*colour, grey), strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    return [pixels / 255 for pixels in (*colour, np.repeat(grey[:, :, None], 3, axis=2))]


@pytest.mark.parametrize("target", [400, 10**6])
def test_patches_in_colour_are_those_of_scikit_learn(
    tmp_path: Path, photographs: list[np.ndarray], target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they fall into chunks; three channels of a grey picture are equal, and a note says so."""
    monkeypatch.setattr(source, "TARGET_BYTES", target)
    found = opened(tmp_path, size=(3, 5), channels="rgb", remove_mean=False)
    expected = [extract_patches_2d(pixels, (3, 5)).reshape(-1, 45) for pixels in photographs]
    np.testing.assert_allclose(rows(found), np.concatenate(expected), rtol=1e-6)
    assert found.describe()["channels"] == 3
    assert any("1 of 3 pictures are grey, and have three equal channels" in note for note in found.notes())


def test_the_mean_of_each_channel_is_dropped(tmp_path: Path, photographs: list[np.ndarray]) -> None:
    """Features map back to the pixels less the mean colour of the patch."""
    found = opened(tmp_path, size=(4, 4), stride=2, channels="rgb")
    assert found.n_features == 45
    expected = [
        np.lib.stride_tricks.sliding_window_view(pixels, (4, 4), axis=(0, 1))[::2, ::2].transpose(0, 1, 3, 4, 2)
        for pixels in photographs
    ]
    flat = np.concatenate([each.reshape(-1, 16, 3) for each in expected])
    flat = (flat - flat.mean(axis=1, keepdims=True)).reshape(-1, 48)
    basis = patch_basis((4, 4), channels=3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(45), atol=1e-12)
    np.testing.assert_allclose(rows(found) @ basis.T, flat, atol=1e-6)


KINDS: dict[str, dict[str, Any]] = {
    "16-bit colours": {"dtype": np.uint16, "channels": 3, "photometric": "rgb"},
    "seven bands in planes": {
        "dtype": np.uint16,
        "channels": 7,
        "planarconfig": "separate",
        "photometric": "minisblack",
    },
    "BigTIFF, compressed": {
        "dtype": np.uint8,
        "channels": 4,
        "bigtiff": True,
        "compression": "zlib",
        "photometric": "rgb",
    },
    "OME-TIFF of two channels": {"dtype": np.uint16, "channels": 2, "ome": True, "metadata": {"axes": "CYX"}},
    "floats of one band": {"dtype": np.float32, "channels": 1},
    "other byte order": {"dtype": np.uint16, "channels": 3, "byteorder": ">", "photometric": "rgb"},
    "stored on its side": {
        "dtype": np.uint16,
        "channels": 3,
        "photometric": "rgb",
        "extratags": [(274, 3, 1, 6, True)],
    },
    "0 is white": {"dtype": np.uint16, "channels": 1, "photometric": "miniswhite"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_tiff_files_are_read_as_they_are_stored(tmp_path: Path, kind: str) -> None:
    """All channels, all bits: one row a pixel is the picture."""
    options = dict(KINDS[kind])
    dtype, channels = np.dtype(options.pop("dtype")), options.pop("channels")
    top = 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
    pixels = (rng.random((6, 11, channels)) * top).astype(dtype)
    in_planes = options.get("planarconfig") == "separate" or options.get("ome")
    stored = np.moveaxis(pixels, -1, 0) if in_planes else pixels if channels > 1 else pixels[:, :, 0]
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    patch: dict[str, Any] = {"size": (1, 1), "channels": "all", "remove_mean": False}
    found = opened(tmp_path, **patch, range={8: 255, 16: 65535, 32: 1.0})
    expected = pixels / top
    if options.get("photometric") == "miniswhite":
        expected = 1 - expected
    if "extratags" in options:
        expected = np.rot90(expected, -1)
    np.testing.assert_allclose(rows(found), expected.reshape(-1, channels), rtol=1e-6, atol=1e-7)
    assert found.describe()["channels"] == channels


def test_what_all_cannot_mean_is_refused(tmp_path: Path, photographs: list[np.ndarray]) -> None:
    """Each with a sentence: mixed channels, stacks, other types, damage."""
    with pytest.raises(InputError, match=r"different numbers of channels \(1 as c.png, 3 as a.png\), expected one"):
        opened(tmp_path, channels="all", size=(3, 3))
    for name, pixels, message in (
        ("stack.tif", np.zeros((3, 9, 9), np.uint8), "has the axes ZYX of 3 x 9 x 9, expected one picture"),
        ("wide.tif", np.zeros((9, 9)), "got dtype float64, expected one of uint8"),
    ):
        tifffile.imwrite(tmp_path / name, pixels, photometric="minisblack", metadata={"axes": "ZYX"[-pixels.ndim :]})
        with pytest.raises(InputError, match=message):
            opened(tmp_path / name, channels="all", size=(3, 3))
    (tmp_path / "damaged.tif").write_bytes((tmp_path / "stack.tif").read_bytes()[:40])
    with pytest.raises(StorageError, match=r"damaged.tif: is damaged, or no TIFF file that tifffile reads"):
        opened(tmp_path / "damaged.tif", channels="all", size=(3, 3))


def test_a_picture_that_changes_is_refused(tmp_path: Path) -> None:
    """Other channels than when it was opened are not read as if they were the same."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 9, 3), np.uint16), photometric="rgb")
    found = opened(tmp_path / "a.tif", channels="all", size=(3, 3))
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 9), np.uint16))
    with pytest.raises(StorageError, match="not what it had when opened"):
        found.read(0)
