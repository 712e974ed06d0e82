"""Small jobs for tests: their data and configs, the command in this process, and what a run left on disk."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import yaml

from pipeline.cli import main
from pipeline.jobconfig import Config, validate

Files = dict[str, bytes]


def blobs(n: int = 600, d: int = 3, seed: int = 0) -> np.ndarray:
    """Rows around three centres, (n, d) float64."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) + 4.0 * rng.normal(size=(3, d))[rng.integers(3, size=n)]


def write_rows(path: Path, x: np.ndarray, rows: int = 100) -> Path:
    """A zarr array with a stored chunk every `rows` rows, each protected by a checksum."""
    import zarr
    from zarr.codecs import ZstdCodec

    array = zarr.create_array(
        path, shape=x.shape, chunks=(rows, x.shape[1]), dtype=x.dtype, compressors=ZstdCodec(checksum=True)
    )
    array[:] = x
    return path


def settings(rows: Path, /, **changes: Any) -> dict[str, Any]:
    """A short Gaussian job on a .npy or zarr store, by plain EM; `changes` are sections whose keys replace the defaults."""
    plain: dict[str, Any] = {
        "data": {"source": "npy" if rows.suffix == ".npy" else "zarr", "path": str(rows)},
        "model": {"n_components": 3, "covariance_type": "diag"},
        "fit": {"method": "em", "max_iter": 6, "tol": 0, "init": "k-means++"},
        "output": {},
    }
    if changes.get("model", {}).get("family", "gaussian") != "gaussian":
        plain["model"].pop("covariance_type")
    for section, value in changes.items():
        plain[section] = {**plain.get(section, {}), **value} if isinstance(value, dict) else value
    return plain


def job(rows: Path, /, **changes: Any) -> Config:
    """The config of `settings`."""
    return validate(settings(rows, **changes))


def write_config(path: Path, rows: Path, /, **changes: Any) -> Path:
    """The config of `settings` as a YAML file."""
    path.write_text(yaml.safe_dump(settings(rows, **changes)))
    return path


class Outcome(NamedTuple):
    """What a command left on the screen."""

    code: int
    out: str
    err: str


def command(*words: object) -> Outcome:
    """The command in this process. Whatever happens, it shows no traceback and no bug."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = mock.patch.object(sys, "argv", ["em-pipeline", *map(str, words)])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), argv:
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    outcome = Outcome(code, out.getvalue(), err.getvalue())
    assert "Traceback" not in outcome.err and "bug:" not in outcome.err, outcome.err
    return outcome


def refused(*words: object, code: int = 2) -> str:
    """The message of a command that has to end with this exit code."""
    outcome = command(*words)
    assert outcome.code == code, outcome
    return outcome.err


class Interrupt:
    """A listener that ends the job at the n-th event of a name, as Ctrl-C would; or does something else then."""

    def __init__(self, event: str, nth: int = 1, act: Callable[[], None] | None = None) -> None:
        self.event, self.left, self.act = event, nth, act or self._ctrl_c

    def __call__(self, event: dict[str, Any]) -> None:
        """Count down."""
        self.left -= event["event"] == self.event
        if event["event"] == self.event and self.left == 0:
            self.act()

    def _ctrl_c(self) -> None:
        raise KeyboardInterrupt


def files(path: Path) -> Files:
    """Every file below a directory, by its path in it."""
    return {str(found.relative_to(path)): found.read_bytes() for found in path.rglob("*") if found.is_file()}


def results(run: Path) -> Files:
    """The bytes of model.zarr and labels.zarr."""
    return {
        f"{name}/{key}": value for name in ("model.zarr", "labels.zarr") for key, value in files(run / name).items()
    }
