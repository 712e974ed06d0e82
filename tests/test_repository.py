"""What the repository says beside its code: versions of dependencies, the options of scripts/test, who may cite it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lower_bounds(project):
    """What scripts/lower_bounds.py makes of this table."""
    spec = importlib.util.spec_from_file_location("lower_bounds", ROOT / "scripts" / "lower_bounds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.lower_bounds(project)


# --- versions of dependencies


def test_lower_bounds_are_exact_versions():
    """`>=` becomes `==`, extras go, exact pins are left out; what has no lower bound or two is refused."""
    extras = {"test": ["moto[s3]>=5.0", "Numpy>=2.0"], "bench": ["pyspark==4.3.0"]}
    assert lower_bounds({"dependencies": ["numpy>=2.0"], "optional-dependencies": extras}) == [
        "moto==5.0",
        "numpy==2.0",
    ]
    with pytest.raises(ValueError, match="expected name>=version"):
        lower_bounds({"dependencies": ["numpy<3"], "optional-dependencies": {}})
    with pytest.raises(ValueError, match=r"got lower bounds 5\.0 and 5\.1"):
        lower_bounds({"dependencies": ["moto[s3]>=5.0"], "optional-dependencies": {"test": ["moto>=5.1"]}})


def test_every_dependency_has_a_lower_bound():
    """pyproject.toml is one that scripts/test --lowest can use."""
    assert len(lower_bounds(PROJECT)) > len(PROJECT["dependencies"])


def test_the_lock_file_has_all_that_is_installed_in_versions_that_are_allowed():
    """Each line after the first is name==version; those of our own dependencies are within their bounds."""
    lines = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8").splitlines()[1:]
    locked = {}
    for line in lines:
        found = re.fullmatch(r"([\w.-]+)==([\w.!+]+)", line)
        assert found, line
        locked[canonicalize_name(found[1])] = found[2]
    extras = PROJECT["optional-dependencies"]
    for wanted in map(Requirement, [*PROJECT["dependencies"], *extras["test"], *extras["dev"], *extras["docs"]]):
        if wanted.name != "setuptools":  # pip freeze leaves it out
            assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), f"{wanted}: run scripts/lock"


# --- the options of scripts/test

STAND_IN = """#!/bin/sh
# Python as scripts/test needs it: notes its arguments, makes environments that hold itself alone.
echo "${0#$HERE/} $*" >> "$HERE/log"
[ "$1 $2" != "-m venv" ] || { mkdir -p "$3/bin"; cp "$HERE/python" "$3/bin/python"; }
[ "${1##*/}" != lower_bounds.py ] || echo numpy==2.0
"""
LINT = ["-m ruff check", "-m ruff format --check", "-m mypy"]
FAST = "-m not slow and not full --hypothesis-profile fast"


@pytest.mark.full
@pytest.mark.parametrize(
    ("options", "venv", "constraints", "extras", "steps"),
    [
        ("", ".venv", "/dev/null", "test,dev", [*LINT, "-m pytest -n auto"]),
        ("-m slow -k tied", ".venv", "/dev/null", "test,dev", [*LINT, "-m pytest -n auto -m slow -k tied"]),
        ("--fast tests/laws", ".venv", "/dev/null", "test,dev", [*LINT, f"-m pytest -n auto {FAST} tests/laws"]),
        ("--locked", ".venv-locked", "requirements-dev.lock", "test,dev", [*LINT, "-m pytest -n auto"]),
        ("--lowest --fast", ".venv-lowest", ".venv-lowest/lower-bounds", "test", [f"-m pytest -n auto {FAST}"]),
    ],
)
def test_options_choose_environment_and_tests(tmp_path, options, venv, constraints, extras, steps):
    """The environment is made once, with the constraints asked for; then each step runs in it."""
    (tmp_path / "scripts").mkdir()
    for name in (
        "scripts/test",
        "scripts/_environment",
        "scripts/lower_bounds.py",
        "pyproject.toml",
        "requirements-dev.lock",
    ):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    env = os.environ | {"HERE": str(tmp_path), "PYTHON": str(tmp_path / "python")}
    log = tmp_path / "log"

    def steps_of() -> list[str]:
        log.write_text("")
        subprocess.run(
            ["bash", tmp_path / "scripts" / "test", *options.split()], env=env, check=True, capture_output=True
        )
        return log.read_text().splitlines()

    first, again = steps_of(), steps_of()
    expected = [f"{venv}/bin/python {step}" for step in steps]
    assert first[-len(expected) :] == expected
    [install] = [line for line in first if " pip install " in line]
    place = constraints if constraints.startswith("/") else f"{tmp_path}/{constraints}"
    assert install.startswith(f"{venv}/bin/python ")
    assert install.endswith(f"--constraint {place} --editable {tmp_path}[{extras}]")
    assert again == expected
    if venv == ".venv-lowest":
        assert (tmp_path / constraints).read_text() == "numpy==2.0\n"


# --- files that other programs read


def test_the_citation_is_that_of_the_package():
    """CITATION.cff and pyproject.toml agree on name, version and licence."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert [citation[key] for key in ("title", "version", "license")] == [
        PROJECT[key] for key in ("name", "version", "license")
    ]


def test_hooks_run_what_the_dev_extra_installs():
    """Each hook of pre-commit is a program of the environment, so that nothing is fetched."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    installed = {Requirement(each).name for each in PROJECT["optional-dependencies"]["dev"]}
    for repo in config["repos"]:
        assert repo["repo"] == "local"
        for hook in repo["hooks"]:
            program = Path(hook["entry"].split()[0])
            assert hook["language"] == "system" and program.parent == Path(".venv/bin")
            assert program.name in installed
