"""The run directory: its files, its lock, and how files appear in it complete or not at all.

Only directories made by this package are changed, and in them only the names listed here.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.config.loading import read_yaml
from pipeline.config.paths import expanded
from pipeline.config.syntax import written
from pipeline.errors import InputError, StorageError, does_not_exist, refuse_special, shown_path
from pipeline.outputs.lock import Locked, is_locked, is_mine, locked

# CIFS, sshfs, gcsfuse and others: there is no such call, or not for a directory or a file that is open to be read.
_NO_SYNC = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EBADF,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
}
MARK = "# em-pipeline run directory"
_OURS = (
    "config.yaml",
    "checkpoints",
    "iterations",
    "model.zarr",
    "labels.zarr",
    "labels.parquet",
    "labels.csv",
    "candidates.zarr",
    "sample.zarr",
    "impute.zarr",
    "outliers.zarr",
    "encode.zarr",
    "summarize.zarr",
    "compress.zarr",
    "decompress.zarr",
    "pictures",
    "pictures.csv",
    "sheet.png",
    "report.html",
    "events.jsonl",
)


class RunDirectory:
    """Paths and state of one run."""

    def __init__(self, path: str | Path) -> None:
        try:
            self.path = Path(expanded(str(path)))
        except ValueError as error:
            raise InputError(f"run directory: {error}.") from error
        self.config, self.checkpoints = self.path / "config.yaml", self.path / "checkpoints"
        self.model, self.labels = self.path / "model.zarr", self.path / "labels.zarr"
        self.report, self.events = self.path / "report.html", self.path / "events.jsonl"
        self.candidates, self.iterations = self.path / "candidates.zarr", self.path / "iterations"

    def __str__(self) -> str:
        return shown_path(self.path)

    @property
    def parts(self) -> list[Path]:
        """Everything that a run may write."""
        return [self.path / name for name in _OURS]

    @property
    def is_ours(self) -> bool:
        """Whether em-pipeline made it."""
        try:
            if not self.config.is_file():
                return False
            with self.config.open(encoding="utf-8") as file:
                return file.readline(len(MARK) + 1).startswith(MARK)
        except (OSError, UnicodeDecodeError):
            return False

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run can be resumed."""
        return any(any(self.checkpoints.glob(kind)) for kind in ("gen-*", "partial-*"))

    @property
    def has_results(self) -> bool:
        """Whether what a command computes by the model of a run is here, complete."""
        return any(path.exists() for path in self.parts if path.suffix in (".zarr", ".html"))

    @property
    def is_locked(self) -> bool:
        """Whether a process may be writing here. A lock whose process cannot be looked up counts until nobody has touched it for some minutes."""
        return is_locked(self.path / ".lock")

    def refuse_unless_free(self, overwrite: bool) -> None:
        """Raise InputError if a run may not start here; changes nothing."""
        try:
            if not self.path.exists() or (self.path.is_dir() and all(map(_is_leftover, self.path.iterdir()))):
                return
        except OSError as error:
            raise _unwritable(self, error) from error
        if not self.is_ours:
            raise InputError(
                f"output {self}: got a path that exists and is not a run directory, expected a new path or a run directory. "
                "Nothing was changed. Choose another --output."
            )
        if overwrite:
            return
        if self.model.exists() or self.has_results:
            beside = "the labels of other data" if self.labels.exists() else "the results of another command"
            what = "a finished run" if self.model.exists() else beside
            raise InputError(f"output {self}: contains {what}. Use --overwrite, or choose another --output.")
        if self.has_checkpoint:
            raise InputError(
                f"output {self}: contains an unfinished run. Use `em-pipeline resume {self}`, or --overwrite."
            )

    def create(self, content: Mapping[str, Any]) -> None:
        """Start a run here: remove the files of an earlier run, and write config.yaml.

        At no time is there a partial model, or a file of a run without its config.yaml.
        """
        try:
            for name in _OURS[1:]:
                self.discard(name)
            self.write_config(content)
        except OSError as error:
            raise _unwritable(self, error) from error

    def discard(self, name: str) -> None:
        """Remove one of a run's files and the temporary ones of its name, by a rename."""
        if (self.path / name).exists():
            remove(self.path / f".{name}.old")
            os.replace(self.path / name, self.path / f".{name}.old")
        for old in self.path.glob(f".{name}.*"):
            remove(old)

    def write_config(self, content: Mapping[str, Any]) -> None:
        """Write config.yaml, whose first line marks a run directory."""
        text = f"{MARK}\n{written(dict(content))}"
        temporary = self.path / ".config.yaml.partial"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.config)

    def read_config(self) -> dict[str, Any]:
        """Return the content of config.yaml. Raises InputError if this is not a run directory, StorageError if it is damaged."""
        if not self.is_ours:
            raise InputError(f"{self}: {self._what_else()}")
        self.refuse_special()
        content: Any
        try:
            content, _ = read_yaml(self.config)
        except InputError as error:
            content = error
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise StorageError(
                f"{self.config}: damaged: got {str(content)[:200]!r}, expected the config that the run wrote. "
                "Start again with `em-pipeline run --overwrite`."
            )
        return content

    def refuse_special(self) -> None:
        """Raise InputError where a pipe or device stands for one of its files; stores have a guard of their own."""
        for folder in (self.path, self.checkpoints, *self.checkpoints.glob("*-*")):
            if folder.is_dir():
                for file in folder.iterdir():
                    refuse_special(file)

    def _what_else(self) -> str:
        """What this path is instead of a run directory, and which one may have been meant."""
        if not os.path.lexists(self.path):
            return f"is not a run directory: it {does_not_exist(self.path)}"
        if self.path.is_file():
            return "is not a run directory: it is a file. Give the folder of a run, its output.path."
        runs = sorted(str(path) for path in self.path.iterdir() if RunDirectory(path).is_ours)
        inside = f"{runs[0]} is one." if runs else "Give the folder of a run, its output.path."
        return f"is not a run directory (it has no config.yaml of a run). {inside}"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the directory and lock it. Raises InputError if another process has locked it; a stale lock is taken over."""
        path = self.path / ".lock"
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(path))
            except Locked as other:
                raise InputError(
                    f"{self}: in use by process {other.pid} on {other.host}. Wait until it ends. If it does not exist any more, "
                    f"remove {path}."
                ) from None
            except (OSError, ValueError) as error:  # ValueError: a name with a null byte
                raise _unwritable(self, error) from error
            yield

    def refuse_if_lost(self) -> None:
        """Raise StorageError if another process has taken the lock over, as it may from one that was frozen for long."""
        if not is_mine(self.path / ".lock"):
            raise StorageError(
                f"{self}: is not locked by this process any more: it did not run for some time, and another took over. Let that one end."
            )


def _is_leftover(path: Path) -> bool:
    """Whether it may be left from a run that ended before it wrote config.yaml."""
    return path.name.startswith((".lock", ".config.yaml."))


def _unwritable(path: RunDirectory, error: Exception) -> StorageError:
    return StorageError(
        f"output {path}: cannot be written ({error}). Change its permissions, or choose another --output."
    )


def remove(path: Path) -> None:
    """Remove a file or a directory tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish(temporary: Path, final: Path) -> None:
    """Rename a complete temporary file or directory to its final name, after it is on disk."""
    sync_tree(temporary)
    aside = final.with_name(f".{final.name}.old")
    if final.exists():
        remove(aside)
        os.replace(final, aside)
    os.replace(temporary, final)
    remove(aside)
    sync(final.parent)


def sync_tree(path: Path) -> None:
    """Flush a file, or a directory with everything in it, to disk."""
    if path.is_dir():
        for entry in path.iterdir():
            sync_tree(entry)
    sync(path)


def sync(path: Path) -> None:
    """Flush one file or directory entry to disk, as far as its file system can: some cannot, above all directories."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
