"""One writer at a time: a lock file that names its owner, on local and shared file systems.

A lock is a hard link to a complete file, so nobody reads a part of one. Linking is atomic on network file
systems too, where flock may be missing or cover one machine only. File systems without hard links (CIFS, exFAT, gcsfuse) create the
lock exclusively and fill it at once; who finds it unfinished waits for its content. The lock of a process that has ended is stale. To
replace it, a process first takes a second lock, whose name is a digest of the stale one's content, and checks that the
stale one is unchanged: of many processes exactly one takes it over, and a slow one never replaces a new lock.

Whether a process of this machine has ended is looked up. One of another machine, or of another container on this one, cannot
be: containers have process tables of their own, and may share a host name. So an owner touches its lock every few seconds,
and a lock that nobody touches for some time is stale.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import psutil

from pipeline.errors import refuse_special

# The start of a process is known to a fraction of a second, but its clock may be reset. Mistaking another process of the
# same number for the owner refuses a run; mistaking the owner for another process would let two write.
SAME_START_SECONDS = 10.0
BEAT_SECONDS = 5.0  # between two touches of a lock by its owner
STALE_SECONDS = (
    25.0  # without a touch, seen by who waits, after which an owner that cannot be looked up counts as ended
)
UNFINISHED_SECONDS = 3.0  # after which a lock without content is nobody's
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK}
LONG_SECONDS = 300.0  # the same by the times of the files, or by this machine's clock


class Locked(Exception):
    """Another process has the lock. host, pid : of that process."""

    def __init__(self, text: str) -> None:
        self.host, self.pid, *_ = text.split()
        super().__init__(text)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock `path` during a block. Raises Locked if another process has the lock, and OSError from the disk."""
    text = f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time()} {uuid.uuid4().hex} {_table()}"
    mine = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        mine.write_text(text, encoding="utf-8")
        _acquire(path, mine)
    finally:
        with suppress(OSError, ValueError):  # it is not there if nothing can be written
            mine.unlink()
    ended = Event()
    Thread(target=_beats, args=(path, text, ended), daemon=True).start()
    try:
        _remove_stale(path)
        yield
    finally:
        ended.set()
        with suppress(OSError):  # on a disk that has become read-only the lock stays and is stale
            if _content(path) == text:  # else it was removed by hand and is another process's now
                path.unlink()


def is_locked(path: Path) -> bool:
    """Whether a process has the lock at `path`, as far as this machine can know without waiting."""
    found = _content(path)
    if found is None:
        return False
    live = _is_live(found)
    return time.time() - _touched(path) < LONG_SECONDS if live is None else live


def is_mine(path: Path) -> bool:
    """Whether this process still has the lock that it took: one that was frozen for long may have lost it to another."""
    words = (_content(path) or "").split()
    return words[:2] == [socket.gethostname(), str(os.getpid())] and words[4:] == [_table()]


def _table() -> str:
    """The boot of this machine and the process table of this container, where the system names them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "-"


def _beats(path: Path, text: str, ended: Event) -> None:
    """Touch a lock until its owner has ended with it, or has lost it."""
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            if _content(path) != text:
                return
            os.utime(path)


def _touched(path: Path) -> float:
    """When a lock was touched last, by the clock of its file system; 0 where it is gone."""
    try:
        with path.open("rb") as file:  # on network file systems only opening asks the server
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return 0.0


def _is_touched(path: Path, mine: Path) -> bool:
    """Whether the owner of a lock touches it. mine : a file that was written just now."""
    before, deadline = _touched(path), time.monotonic() + STALE_SECONDS
    if _touched(mine) - before > LONG_SECONDS:
        return False
    while _touched(path) == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _acquire(path: Path, mine: Path) -> None:
    while not _linked(mine, path):
        found, touched = _finished(path), _touched(path)
        if found is None:  # it was released in the meantime
            continue
        live = _is_live(found)
        if live is None:
            live = _is_touched(path, mine)
        if live:
            raise Locked(found)
        with locked(path.with_name(f"{path.name}.{hashlib.sha256(found.encode()).hexdigest()[:16]}")):
            if _content(path) == found and _touched(path) == touched:
                os.replace(mine, path)
                return


def _linked(whole: Path, name: Path) -> bool:
    """Give a file a second name, or copy it where files have one only; False if the name exists."""
    try:
        os.link(whole, name)
    except FileExistsError:
        return os.stat(whole).st_nlink == 2  # a network file system may have repeated the request
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        text = whole.read_text(encoding="utf-8")
        try:
            with name.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return _content(name) == text  # else somebody has taken it for one that is never finished
    return True


def _finished(path: Path) -> str | None:
    """The content of a lock, for which a file system without hard links may take a moment; None where it is gone."""
    deadline = time.monotonic() + UNFINISHED_SECONDS
    while (text := _content(path)) is not None and len(text.split()) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    return text


def _content(path: Path) -> str | None:
    refuse_special(path)
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _is_live(text: str) -> bool | None:
    """Whether the process that wrote this may still run; None where only its touches tell."""
    try:
        host, pid, created, _, *table = text.split()
        number, start = int(pid), float(created)
    except ValueError:
        return False  # a lock is complete as soon as it is there
    if table and (host != socket.gethostname() or table != [_table()]):
        return None
    if host != socket.gethostname():
        return True  # a lock of an earlier version, whose owner does not touch it
    try:
        process = psutil.Process(number)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return not ended and abs(process.create_time() - start) < SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return False


def _remove_stale(path: Path) -> None:
    """Remove files of processes that ended while they waited for this lock."""
    for other in path.parent.glob(f"{path.name}.*"):
        text = _content(other)
        live = _is_live(text) if text else True
        if live is False or (
            live is None and time.time() - _touched(other) > LONG_SECONDS
        ):  # an empty file is being written
            other.unlink(missing_ok=True)
