"""The scripts that no other test runs say what they do, and refuse what they cannot do, without what they measure."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import open_run
from tests.jobs import command

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"


def ran(*arguments):
    """The finished process of a script."""
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)


def test_the_benchmark_lists_its_rows_without_any_peer():
    """Every row has a name and a sentence; nothing that only the bench extra brings is needed for that."""
    done = ran(SCRIPTS / "benchmark.py", "--list")
    assert done.returncode == 0, done.stderr
    names = {line.split()[0] for line in done.stdout.splitlines()}
    assert {"gaussian", "kmeans", "counts", "fit", "out_of_core", "overhead", "spark"} <= names


@pytest.mark.parametrize(
    ("arguments", "said"), [(["gausian"], "no rows named gausian"), (["gemm", "--rounds", "0"], "at least 1")]
)
def test_the_benchmark_refuses_what_it_cannot_do(arguments, said):
    """A mistyped row or no repeats at all: an error before anything is measured."""
    done = ran(SCRIPTS / "benchmark.py", *arguments)
    assert done.returncode == 2 and said in done.stderr


@pytest.mark.slow
def test_the_quickstart_ends_with_a_report(tmp_path):
    """The README's first command, without its environment: pictures through a search that moves components, to the page."""
    done = command("run", ROOT / "configs" / "quickstart.yaml", "--output", tmp_path / "run")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "report.html").exists()
    assert any(level["moved"] for level in open_run(tmp_path / "run").attrs["search"])
