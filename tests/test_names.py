"""Names of files that are not UTF-8: of pictures, of data and of the run directory."""

import os

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from tests.jobs import blobs, command

pytestmark = pytest.mark.full

LATIN = b"caf\xe9"


@pytest.mark.parametrize("where", ["pictures", "data", "output"])
def test_a_name_that_is_not_utf8_ends_nothing(tmp_path, where):
    """A run, its resume, its labels and its report are as with any other name."""
    top = os.fsencode(tmp_path)
    data, output, name = os.path.join(top, b"x.npy"), os.path.join(top, b"run"), os.path.join(top, LATIN)
    if where == "pictures":
        os.mkdir(os.path.join(top, b"p"))
        for file in (b"a.png", LATIN + b".png"):
            pixels = np.random.default_rng(len(file)).integers(0, 255, (40, 40)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "b.png")
            os.rename(tmp_path / "b.png", os.path.join(top, b"p", file))
        changes = ["data.source=images", f"data.path={tmp_path / 'p'}", "data.patch={size: [4, 4], stride: 4}"]
    else:
        np.save(tmp_path / "x.npy", blobs())
        if where == "data":
            os.rename(data, name)
            data = name
        changes = ["data.source=npy", f"data.path={os.fsdecode(data)}"]
        output = name if where == "output" else output
    (tmp_path / "c.yaml").write_text("model: {family: kmeans, n_components: 2}\nfit: {method: em}\n")
    sets = [word for change in changes for word in ("--set", change)]
    run = os.fsdecode(output)
    done = command("run", str(tmp_path / "c.yaml"), *sets, "--output", run)
    assert done.code == 0, done.err
    assert os.path.exists(os.path.join(output, b"report.html"))
    os.unlink(os.path.join(output, b"report.html"))
    for name in ("resume", "status", "predict", "report"):
        done = command(name, run)
        assert done.code == 0, done.err
    if where == "pictures":
        assert "caf\\udce9.png" in xr.open_zarr(tmp_path / "run/labels.zarr", consolidated=False).picture.values
