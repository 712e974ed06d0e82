"""One writer at a time: a lock file that names its holder, on local and shared file systems.

A lock is a hard link to a file that already says whose it is, so nobody sees half of one. To link is atomic on network
file systems too, where flock may be missing or mean one machine only. The lock of a process that has ended is replaced by
whoever holds the lock on replacing that very one (its name is a digest of what the stale one says) and finds it
unchanged: of many that meet a stale lock one takes it over, and none that was slow replaces a fresh one.
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

# The start of a process is known to a fraction of a second, but by a clock that may be set anew meanwhile. To take a
# stranger with our number for the holder is a refusal; to take the holder for a stranger would be two writers.
SAME_START_SECONDS = 10.0


class Held(Exception):
    """Somebody else has the lock. host, pid : who."""

    def __init__(self, text: str) -> None:
        self.host, self.pid, *_ = text.split()
        super().__init__(text)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock at `path` for the length of a block. Raises Held where somebody has it, and what the disk raises."""
    text = f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time()} {uuid.uuid4().hex}"
    mine = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        mine.write_text(text, encoding="utf-8")
        _acquire(path, mine)
    finally:
        with suppress(OSError, ValueError):  # there is none where nothing can be written
            mine.unlink()
    try:
        _sweep(path)
        yield
    finally:
        with suppress(OSError):  # on a disk that takes nothing any more the lock stays, and is a stale one
            if _content(path) == text:  # else somebody removed it by hand, and it is another's now
                path.unlink()


def is_held(path: Path) -> bool:
    """Whether somebody has the lock at `path`, as far as that can be known from here."""
    found = _content(path)
    return found is not None and _is_live(found)


def _acquire(path: Path, mine: Path) -> None:
    while not _linked(mine, path):
        found = _content(path)
        if found is None:  # released meanwhile
            continue
        if _is_live(found):
            raise Held(found)
        with held(path.with_name(f"{path.name}.{hashlib.sha256(found.encode()).hexdigest()[:16]}")):
            if _content(path) == found:
                os.replace(mine, path)
                return


def _linked(whole: Path, name: Path) -> bool:
    """Give a file a second name, unless that is taken."""
    try:
        os.link(whole, name)
    except FileExistsError:
        return os.stat(whole).st_nlink == 2  # a network file system may have answered a repeated request
    return True


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _is_live(text: str) -> bool:
    """Whether the process that wrote this may still run."""
    try:
        host, pid, created, _ = text.split()
        number, start = int(pid), float(created)
    except ValueError:
        return False  # no lock is ever seen before all of it is written
    if host != socket.gethostname():
        return True  # another machine's process cannot be looked at
    try:
        process = psutil.Process(number)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return not ended and abs(process.create_time() - start) < SAME_START_SECONDS
    except psutil.NoSuchProcess:
        return False


def _sweep(path: Path) -> None:
    """Remove what processes left that ended while they waited for this lock, which is ours now."""
    for other in path.parent.glob(f"{path.name}.*"):
        text = _content(other)
        if text and not _is_live(text):  # an empty one is being written
            other.unlink(missing_ok=True)
