"""The run directory: whose it is, who is writing to it, and how things appear in it whole.

Only directories that we made are ever changed, and in them only the names that are ours.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import InputError, StorageError, does_not_exist
from pipeline.outputs.lock import Held, held, is_held

MARK = "# em-pipeline run directory"
_OURS = (
    "config.yaml",
    "checkpoints",
    "iterations",
    "model.zarr",
    "labels.zarr",
    "candidates.zarr",
    "report.html",
    "events.jsonl",
)


class RunDirectory:
    """Paths and state of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.checkpoints = self.path / "config.yaml", self.path / "checkpoints"
        self.model, self.labels = self.path / "model.zarr", self.path / "labels.zarr"
        self.report, self.events = self.path / "report.html", self.path / "events.jsonl"
        self.candidates, self.iterations = self.path / "candidates.zarr", self.path / "iterations"

    @property
    def parts(self) -> list[Path]:
        """All that a run writes, whether it is there or not."""
        return [self.path / name for name in _OURS]

    @property
    def is_ours(self) -> bool:
        """Whether a run of ours made it."""
        try:
            with self.config.open(encoding="utf-8") as file:
                return file.readline().startswith(MARK)
        except (OSError, UnicodeDecodeError):
            return False

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to resume."""
        return any(any(self.checkpoints.glob(kind)) for kind in ("gen-*", "partial-*"))

    @property
    def is_held(self) -> bool:
        """Whether a process may be writing here: one of another machine cannot be looked at, and is believed its lock."""
        return is_held(self.path / ".lock")

    def refuse_unless_free(self, overwrite: bool) -> None:
        """Raise InputError if a run may not start here; changes nothing."""
        try:
            if not self.path.exists() or (self.path.is_dir() and all(map(_is_leftover, self.path.iterdir()))):
                return
        except OSError as error:
            raise _unwritable(self.path, error) from error
        if not self.is_ours:
            raise InputError(
                f"output {self.path}: exists and is not a run directory; it is left alone. Choose another --output."
            )
        if overwrite:
            return
        if self.model.exists() or self.labels.exists():
            what = "a finished run" if self.model.exists() else "the labels of other data"
            raise InputError(f"output {self.path}: holds {what}. Use --overwrite, or choose another --output.")
        if self.has_checkpoint:
            raise InputError(
                f"output {self.path}: holds a run that can go on. Use `em-pipeline resume {self.path}`, or --overwrite."
            )

    def create(self, content: Mapping[str, Any]) -> None:
        """Begin a run here: without what an earlier one of ours left, and with a config.yaml of this content.

        At no instant is there half a model, or something of ours without the config.yaml that says so.
        """
        try:
            for name in _OURS[1:]:
                self.discard(name)
            self.write_config(content)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def discard(self, name: str) -> None:
        """Remove one of our names and what was on its way to become it: gone from its place at once."""
        if (self.path / name).exists():
            remove(self.path / f".{name}.old")
            os.replace(self.path / name, self.path / f".{name}.old")
        for old in self.path.glob(f".{name}.*"):
            remove(old)

    def write_config(self, content: Mapping[str, Any]) -> None:
        """Write config.yaml, whose first line marks the directory as ours."""
        text = f"{MARK}\n{yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)}"
        temporary = self.path / ".config.yaml.partial"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.config)

    def read_config(self) -> dict[str, Any]:
        """What write_config wrote. Raises InputError when this is no run directory."""
        if not self.is_ours:
            raise InputError(f"{self.path}: {self._what_else()}")
        try:
            content = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            content = error
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise StorageError(
                f"{self.config}: damaged (it came as {str(content)[:200]!r}), expected what the run wrote. "
                "Start again with `em-pipeline run --overwrite`."
            )
        return content

    def _what_else(self) -> str:
        """What this is, if not a run directory, and which may have been meant."""
        if not os.path.lexists(self.path):
            return f"is not a run directory: it {does_not_exist(self.path)}"
        if self.path.is_file():
            return "is not a run directory: it is a file. Give the folder that a run wrote, its output.path."
        runs = sorted(str(path) for path in self.path.iterdir() if RunDirectory(path).is_ours)
        inside = f"{runs[0]} is one." if runs else "Give the folder that a run wrote, its output.path."
        return f"is not a run directory (no config.yaml of ours). {inside}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the directory and hold it; a second run is refused, a lock whose process has ended is taken over."""
        path = self.path / ".lock"
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held(path))
            except Held as other:
                raise InputError(
                    f"{self.path}: in use by process {other.pid} on {other.host}. Wait for it; if it is gone, remove {path}."
                ) from None
            except (OSError, ValueError) as error:  # ValueError: a name with a null byte
                raise _unwritable(self.path, error) from error
            yield


def _is_leftover(path: Path) -> bool:
    """What a run that died before its config.yaml was there can leave."""
    return path.name.startswith((".lock", ".config.yaml."))


def _unwritable(path: Path, error: Exception) -> StorageError:
    return StorageError(f"output {path}: cannot be used ({error}). Make it writable, or choose another --output.")


def remove(path: Path) -> None:
    """Remove a file or a directory tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish(temporary: Path, final: Path) -> None:
    """Make a finished temporary file or directory appear whole under its name, on disk before it is seen."""
    sync_tree(temporary)
    aside = final.with_name(f".{final.name}.old")
    if final.exists():
        remove(aside)
        os.replace(final, aside)
    os.replace(temporary, final)
    remove(aside)
    sync(final.parent)


def sync_tree(path: Path) -> None:
    """Flush a file, or a directory with all that is in it, to disk."""
    if path.is_dir():
        for entry in path.iterdir():
            sync_tree(entry)
    sync(path)


def sync(path: Path) -> None:
    """Flush one file or directory entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
