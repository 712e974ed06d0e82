"""The wheel has every file of the package and no other; installed into an empty environment, it does a whole job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.jobconfig import validate
from tests.jobs import blobs, write_config, write_rows

ROOT = Path(__file__).resolve().parents[1]
CACHES = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")


def ran(*words: object, cwd: Path) -> str:
    """Standard output of a program that finds nothing of this repository by itself."""
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by this environment's setuptools, from a copy: a folder `build` of an earlier build would end in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = shutil.copytree(ROOT, folder / "em-pipeline", ignore=CACHES)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    ran(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, copy, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.mark.full
def test_the_wheel_is_the_package(wheel):
    """Each file of pipeline/, templates and styles included, and nothing of tests/ or scripts/."""
    files = [path for path in (ROOT / "pipeline").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    assert {Path(name).suffix for name in expected} >= {".py", ".jinja", ".css", ".typed"}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A function that runs a program of a fresh environment, in which pip installed the wheel, in a folder of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    ran(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    bin_ = folder / "venv" / "bin"
    ran(bin_ / "python", "-m", "pip", "install", "-qq", "--no-compile", wheel, cwd=folder)
    return lambda program, *words: ran(bin_ / program, *words, cwd=folder)


@pytest.mark.slow
def test_the_installed_package_is_found_and_typed(installed):
    """Python imports the package from the environment, py.typed beside it, and none of the tests' dependencies is there."""
    program = (
        "import importlib.util as u, pipeline; print(pipeline.__file__, u.find_spec('tests'), u.find_spec('pytest'))"
    )
    place, *absent = installed("python", "-c", program).split()
    package = Path(place).parent
    assert "site-packages" in package.parts and ROOT not in package.parents
    assert (package / "py.typed").exists()
    assert absent == ["None", "None"]


@pytest.mark.slow
def test_both_names_of_the_command_print_a_config(installed):
    """`em-pipeline config` and `python -m pipeline config` print the same, a valid config."""
    printed = installed("em-pipeline", "config")
    assert printed == installed("python", "-m", "pipeline", "config")
    validate(yaml.safe_load(printed))


@pytest.mark.slow
def test_a_job_of_the_installed_command_ends_with_a_report(installed, tmp_path):
    """A small fit writes a model, labels and a report with its style sheet."""
    config = write_config(tmp_path / "c.yaml", write_rows(tmp_path / "x.zarr", blobs()))
    installed("em-pipeline", "run", config, "--output", tmp_path / "run")
    assert {"model.zarr", "labels.zarr"} <= {path.name for path in (tmp_path / "run").iterdir()}
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "</html>" in report and "<style>" in report
