"""The lock of a run directory: one process at a time, however it ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.outputs import lock
from pipeline.outputs.lock import Locked, locked

# Take the lock again and again; while it is locked, no other process may be at work. Then end, sometimes without release.
COMPETITOR = """
import os, random, sys, time
from pathlib import Path
from pipeline.outputs.lock import Locked, locked

path, seed = Path(sys.argv[1]), int(sys.argv[2])
rng, work = random.Random(seed), path.with_name("at-work")
path.with_name(f"ready-{seed}").touch()
while not path.with_name("go").exists():
    time.sleep(0.001)
taken = 0
while taken < int(sys.argv[3]):
    child = os.fork()  # a process of its own each time, whose end makes its lock stale
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, 1), code
        taken += code
        continue
    try:
        with locked(path):
            os.close(os.open(work, os.O_CREAT | os.O_EXCL))  # fails if two are at work
            time.sleep(0.002 * rng.random())
            work.unlink()
            if os.getpid() % 3:
                os._exit(1)
    except Locked:
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(2)
    os._exit(1)
"""


@pytest.mark.full
@pytest.mark.parametrize("times", [5, pytest.param(300, marks=pytest.mark.slow)])
def test_of_many_processes_one_has_it(tmp_path, times):
    """Eight processes take stale and released locks from each other: never two at work, and none is stuck."""
    program = [sys.executable, "-c", COMPETITOR, tmp_path / ".lock"]
    started = [
        subprocess.Popen([*map(str, program), str(seed), str(times)], stdout=subprocess.PIPE, text=True)
        for seed in range(8)
    ]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < len(started) and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=60 + times)[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), said
    with locked(tmp_path / ".lock"):
        assert [path.name for path in tmp_path.glob(".lock*")] == [".lock"]
    assert not list(tmp_path.glob(".lock*"))


def line(host=None, pid=None, start=None) -> str:
    """What a lock says; by default that of this process."""
    start = psutil.Process().create_time() if start is None else start
    return f"{host or socket.gethostname()} {pid or os.getpid()} {start} {'0' * 32}"


STALE = {
    "empty": "",
    "one word": "somewhere-else",
    "no numbers": "a b c d",
    "another process of this number": line(start=1.0),
    "no such process": line(pid=2**22 + 1),
}
LIVE = {
    "this process": line(),
    "another machine": line(host="another-machine", pid=7),
    "another machine, long ago": line(host="another-machine", start=1.0),
}


@pytest.mark.parametrize("text", STALE.values(), ids=STALE)
def test_a_stale_lock_is_taken_over(tmp_path, text):
    """Of a process that is no more, of another one with its number, or of nobody."""
    path = tmp_path / ".lock"
    path.write_text(text)
    with locked(path):
        assert path.read_text().split()[1] == str(os.getpid())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", LIVE.values(), ids=LIVE)
def test_a_lock_that_may_be_live_is_left_alone(tmp_path, text):
    """That of a process here, or of any on a machine that cannot be looked at: host and number are named."""
    path = tmp_path / ".lock"
    path.write_text(text)
    with pytest.raises(Locked) as other, locked(path):
        pass
    assert [other.value.host, other.value.pid] == text.split()[:2]
    assert path.read_text() == text and len(list(tmp_path.iterdir())) == 1


@pytest.mark.full
def test_a_killed_child_that_nobody_waited_for_holds_nothing(tmp_path):
    """A zombie has a number and a start, and writes no more."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / ".lock").write_text(line(pid=child.pid, start=psutil.Process(child.pid).create_time()))
    with pytest.raises(Locked), locked(tmp_path / ".lock"):
        pass
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    with locked(tmp_path / ".lock"):
        pass
    child.wait()


def test_who_is_slow_does_not_replace_a_fresh_lock(tmp_path, monkeypatch):
    """Between looking at a stale lock and replacing it, another took it over: that one is respected."""
    path, original = tmp_path / ".lock", lock._is_live
    path.write_text(line(pid=2**22 + 1))
    fresh = line(host="another-machine")

    def slow(text: str) -> bool:
        live = original(text)
        if not live:
            path.write_text(fresh)
        return live

    monkeypatch.setattr(lock, "_is_live", slow)
    with pytest.raises(Locked), locked(path):
        pass
    assert path.read_text() == fresh


def test_a_lock_that_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
    """On a disk that has turned read-only the error is that of the work, and the lock is taken over later."""

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    with pytest.raises(ZeroDivisionError), locked(tmp_path / ".lock"):
        monkeypatch.setattr(Path, "unlink", refuse)
        raise ZeroDivisionError
    assert (tmp_path / ".lock").exists()


def test_a_lock_that_was_removed_by_hand_is_not_taken_from_its_next_holder(tmp_path):
    """At its end a process removes its own lock only."""
    path: Path = tmp_path / ".lock"
    with locked(path):
        path.unlink()
        path.write_text(line(host="another-machine"))
    assert "another-machine" in path.read_text()
