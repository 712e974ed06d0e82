"""The tiers of the tests: which examples of a law they draw, which tests they take, and who may start a process."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.laws.common import examples

ROOT = Path(__file__).resolve().parents[1]
drawn: list[int] = []


@examples(40)
@given(number=st.integers(0, 2**63))
def test_a_law_draws_examples(number):
    """Large numbers, so that examples need not be repeated."""
    drawn.append(number)


def test_a_law_draws_the_share_of_its_tier():
    """A law of 40 examples draws 4 in the fast tier, 14 in the full one, 120 in the slow one."""
    drawn.clear()
    test_a_law_draws_examples()
    assert len(drawn) == {10: 4, 35: 14, 300: 120}[settings.default.max_examples]


@pytest.mark.parametrize(
    ("tier", "percentage", "same_each_time"), [("fast", 10, True), ("full", 35, True), ("slow", 300, False)]
)
def test_a_tier_is_a_profile(tier, percentage, same_each_time):
    """Only the slow tier draws new examples each time; each prints how a failure is repeated, and none has a deadline."""
    profile = settings.get_profile(tier)
    assert (profile.max_examples, profile.derandomize) == (percentage, same_each_time)
    assert profile.print_blob and profile.database is None and profile.deadline is None


def test_a_test_without_a_mark_starts_no_process():
    """The fast tier runs this test, and no process: neither of a program, nor of multiprocessing."""
    with pytest.raises(pytest.fail.Exception, match="Mark it"):
        subprocess.run([sys.executable, "--version"])
    with pytest.raises(pytest.fail.Exception, match="Mark it"):
        multiprocessing.get_context("spawn").Process(target=print).start()


@pytest.mark.full
def test_the_slow_tier_takes_the_laws():
    """`-m slow` takes the law of this file, which has no mark, and none of the other tests."""
    program = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "--quiet",
        "-p",
        "no:cacheprovider",
        "-m",
        "slow",
        __file__,
    ]
    listed = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [line.partition("::")[2] for line in listed.splitlines() if "::" in line]
    assert found == ["test_a_law_draws_examples"]
