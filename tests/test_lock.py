"""The lock of a run directory: one process at a time, however it ends."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer

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


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Who finds a lock without content does not wait long for it."""
    monkeypatch.setattr(lock, "UNFINISHED_SECONDS", 0.05)


@pytest.fixture
def no_links(monkeypatch):
    """A file system without hard links."""

    def link(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", link)


def test_a_file_system_without_hard_links(tmp_path, no_links, monkeypatch):
    """One owner at a time; what nobody finishes is taken over, and what somebody is writing is waited for."""
    path = tmp_path / ".lock"
    with locked(path), pytest.raises(Locked), locked(path):
        pass
    path.write_text("")
    with locked(path):
        assert path.read_text().split()[1] == str(os.getpid())
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(lock, "UNFINISHED_SECONDS", 30.0)
    path.write_text("")
    writer = Timer(0.1, lambda: path.write_text(line()))
    writer.start()
    with pytest.raises(Locked), locked(path):
        pass
    writer.join()


def test_of_many_threads_without_hard_links_one_has_it(tmp_path, no_links):
    """Exclusive creation decides; nobody is in it together with another."""
    inside, most = [0], [0]

    def enter(_):
        try:
            with locked(tmp_path / ".lock"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.002)
                inside[0] -= 1
        except Locked:
            return

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(enter, range(60)))
    assert most[0] == 1


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


ELSEWHERE = "0123/4026531836"  # the boot and the process table of another container


@pytest.fixture
def impatient(monkeypatch):
    """Touches and waits of a fraction of a second."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.4)


@pytest.mark.parametrize("host", [None, "another-machine"])
def test_a_process_that_cannot_be_looked_up_is_live_as_long_as_it_touches_its_lock(
    tmp_path, monkeypatch, impatient, host
):
    """Of another container with this host name, or of another machine: refused while touched, taken over afterwards."""
    path = tmp_path / ".lock"
    path.write_text(f"{line(host=host)} {ELSEWHERE}")  # its number is that of a process here, which says nothing
    owner, ended = line(host=host), lock.Event()
    toucher = lock.Thread(target=lock._beats, args=(path, f"{owner} {ELSEWHERE}", ended))
    toucher.start()
    try:
        assert lock.is_locked(path)
        with pytest.raises(Locked), locked(path):
            pass
    finally:
        ended.set()
        toucher.join()
    with locked(path):
        assert path.read_text().split()[4] == lock._table()
    os.utime(tmp_path)
    path.write_text(f"{owner} {ELSEWHERE}")
    os.utime(path, (1e9, 1e9))  # long ago: nobody waits
    monkeypatch.setattr(lock, "STALE_SECONDS", 60)
    assert not lock.is_locked(path)
    with locked(path):
        pass


def test_an_owner_touches_its_lock_and_knows_when_it_has_lost_it(tmp_path, impatient):
    """What was frozen for so long that another took over writes no checkpoint any more."""
    path = tmp_path / ".lock"
    with locked(path):
        os.utime(path, (1e9, 1e9))
        deadline = time.monotonic() + 10
        while lock._touched(path) == 1e9 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock._touched(path) > 1e9 and lock.is_mine(path)
        path.write_text(f"{line()} {ELSEWHERE}")
        assert not lock.is_mine(path)
    assert ELSEWHERE in path.read_text()


IN_ANOTHER_CONTAINER = """
import sys
from pathlib import Path
from pipeline.outputs.lock import Locked, locked
try:
    with locked(Path(sys.argv[1])):
        print("taken")
except Locked as other:
    print("refused", other.pid)
"""


@pytest.mark.slow
def test_two_containers_of_one_host_name_never_write_together(tmp_path):
    """Process tables of their own, by `unshare`: the second is refused within seconds, and takes over once the first is killed."""
    words = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("unshare is not permitted here")
    program = [
        *words,
        sys.executable,
        "-c",
        IN_ANOTHER_CONTAINER.replace('print("taken")', "print('taken', flush=True); input()"),
    ]
    path = str(tmp_path / ".lock")
    owner = subprocess.Popen([*program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "taken\n"
        other = [*words, sys.executable, "-c", IN_ANOTHER_CONTAINER, path]
        said = subprocess.run(other, capture_output=True, text=True, timeout=60)
        assert said.stdout.startswith("refused"), said
    finally:
        owner.kill()
        owner.communicate()
    said = subprocess.run(other, capture_output=True, text=True, timeout=60)
    assert said.stdout == "taken\n", said


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
