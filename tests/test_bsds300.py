"""The rows of the BSDS300 benchmark: as Uria, Murray and Larochelle made them, in pixel coordinates."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "experiments" / "bsds300.py"


@pytest.fixture(scope="module")
def bsds300():
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("bsds300", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_noisy_grey_patches_without_mean_and_last_pixel(bsds300, tmp_path):
    """Of a picture of one colour the noise is left, of one grey level; a seed gives the same rows, of every picture as many."""
    Image.new("RGB", (9, 12), (10, 200, 30)).save(tmp_path / "b.png")
    Image.fromarray(np.tile(np.arange(0, 80, 10, dtype=np.uint8), (8, 1))).save(tmp_path / "a.png")
    pictures = bsds300.pictures_in(tmp_path)
    assert [one.name for one in pictures] == ["a.png", "b.png"]
    flat = bsds300.patches(pictures[1], 2000, np.random.default_rng(0))
    assert flat.shape == (2000, 63) and flat.dtype == np.float32 and np.abs(flat).max() < 1 / 256
    assert flat.var() == pytest.approx(63 / 64 / 12 / 256**2, rel=0.02)
    [row] = bsds300.patches(pictures[0], 1, np.random.default_rng(0))
    ramp = np.tile(np.arange(0, 80, 10), (8, 1)).ravel()[:63] / 256 - 35 / 256
    assert np.abs(row - ramp).max() < 1 / 256
    rows = bsds300.all_patches(pictures, 11, seed=3)
    assert (rows == bsds300.all_patches(pictures, 11, seed=3)).all() and (np.abs(rows).max(axis=1) > 0.1).sum() in (
        5,
        6,
    )


def test_log_8_lies_between_pixels_and_an_orthonormal_basis(bsds300):
    """63 of 64 pixels are a linear map of orthonormal coordinates, with determinant 1/8."""
    assert bsds300.orthonormal_constant() == pytest.approx(np.log(8), abs=1e-12)


def test_a_fit_is_a_config_and_test_pictures_are_named_once(bsds300, tmp_path, capsys):
    """The defaults of the benchmark reach the config; both kinds of test pictures, or none, are refused."""
    options = bsds300.arguments(["pictures", "--hold-out", "1", "--set", "fit.random_state=3"])
    config = bsds300.config_of("student-t:5", tmp_path / "rows.zarr", tmp_path / "run", options)
    assert config.model.reg_covar == 1e-9 and config.model.family == "student-t" and config.fit.random_state == 3
    with pytest.raises(SystemExit):
        bsds300.arguments(["pictures"])
    assert "neither" in capsys.readouterr().err
