"""The tiers of the tests, and fixtures that several test files share.

====  ==========================  ========================================  ====================================
tier  run by                      tests                                     examples of each law
====  ==========================  ========================================  ====================================
fast  ``scripts/test --fast``     neither marked ``slow`` nor ``full``      a tenth, the same ones each time
full  ``scripts/test``            not marked ``slow``                       a third, the same ones each time
slow  ``scripts/test -m slow``    marked ``slow``, and all laws over        three times as many, new ones each
                                  random problems                           time
====  ==========================  ========================================  ====================================

The examples follow from a hypothesis profile, which ``--hypothesis-profile`` sets for any selection of tests.
"""

import multiprocessing.process
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# max_examples is a percentage here: tests.laws.common.examples takes that share of what a law asks for.
# No deadline: cores may be shared. No health checks: laws leave out problems in which a component collapses. No database:
# a failure is repeated by its falsifying example, or by the `@reproduce_failure(...)` printed below it.
for _name, _percentage in {"fast": 10, "full": 35, "slow": 300}.items():
    settings.register_profile(
        _name,
        max_examples=_percentage,
        derandomize=_name != "slow",
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[*HealthCheck],
    )


def _profile(config: pytest.Config) -> str:
    return config.getoption("--hypothesis-profile") or ("slow" if config.option.markexpr == "slow" else "full")


def pytest_configure(config: pytest.Config) -> None:
    """Load the profile of the tier, before test files are imported: their decorators read it."""
    settings.load_profile(_profile(config))


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the slow tier, laws over random problems are slow tests."""
    if _profile(config) == "slow":
        for item in items:
            if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
                item.add_marker("slow")


@pytest.fixture(autouse=True)
def no_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that starts a process, unless it is marked `full` or `slow`: the fast tier starts none."""
    popen = subprocess.Popen.__init__

    def refuse(process: Any, *args: Any, **options: Any) -> None:
        if args and args[0][0] in (
            "lscpu",
            "uname",
        ):  # joblib counts the cores, the platform module asks for the processor
            return popen(process, *args, **options)
        pytest.fail("This test starts a process. Mark it with pytest.mark.full, so that the fast tier leaves it out.")

    if not {"full", "slow"} & {marker.name for marker in request.node.iter_markers()}:
        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
        monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", refuse)


@pytest.fixture(autouse=True)
def no_secrets_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the credentials that configs of other tests held: in this process they would be hidden wherever they occur."""
    monkeypatch.setattr("pipeline.errors._known_secrets", set())


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EM_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder
