"""One writer at a time: a lock file that names its owner, on local and shared file systems.

A lock is a hard link to a complete file, so nobody reads a part of one. Linking is atomic on network file
systems too, where flock may be missing or cover one machine only. The lock of a process that has ended is stale. To
replace it, a process first takes a second lock, whose name is a digest of the stale one's content, and checks that the
stale one is unchanged: of many processes exactly one takes it over, and a slow one never replaces a new lock.
"""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

# The start of a process is known to a fraction of a second, but its clock may be reset. Mistaking another process of the
# same number for the owner refuses a run; mistaking the owner for another process would let two write.
SAME_START_SECONDS = 10.0


class Locked(Exception):
    """Another process has the lock. host, pid : of that process."""

    def __init__(self, text: str) -> None:
        self.host, self.pid, *_ = text.split()
        super().__init__(text)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock `path` during a block. Raises Locked if another process has the lock, and OSError from the disk."""
    text = f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time()} {uuid.uuid4().hex}"
    mine = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        mine.write_text(text, encoding="utf-8")
        _acquire(path, mine)
    finally:
        with suppress(OSError, ValueError):  # it is not there if nothing can be written
            mine.unlink()
    try:
        _remove_stale(path)
        yield
    finally:
        with suppress(OSError):  # on a disk that has become read-only the lock stays and is stale
            if _content(path) == text:  # else it was removed by hand and is another process's now
                path.unlink()


def is_locked(path: Path) -> bool:
    """Whether a process has the lock at `path`, as far as this machine can know."""
    found = _content(path)
    return found is not None and _is_live(found)


def _acquire(path: Path, mine: Path) -> None:
    while not _linked(mine, path):
        found = _content(path)
        if found is None:  # it was released in the meantime
            continue
        if _is_live(found):
            raise Locked(found)
        with locked(path.with_name(f"{path.name}.{hashlib.sha256(found.encode()).hexdigest()[:16]}")):
            if _content(path) == found:
                os.replace(mine, path)
                return


def _linked(whole: Path, name: Path) -> bool:
    """Give a file a second name; False if it exists."""
    try:
        os.link(whole, name)
    except FileExistsError:
        return os.stat(whole).st_nlink == 2  # a network file system may have repeated the request
    return True


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _is_live(text: str) -> bool:
    """Whether the process that wrote this may be running."""
    try:
        host, pid, created, _ = text.split()
        number, start = int(pid), float(created)
    except ValueError:
        return False  # a lock is complete as soon as it is there
    if host != socket.gethostname():
        return True  # a process of another machine cannot be checked
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
        if text and not _is_live(text):  # an empty file is being written
            other.unlink(missing_ok=True)
