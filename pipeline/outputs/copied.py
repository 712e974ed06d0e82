"""Results of a run on object storage: a copy of what is finished, where `output.copy_to` asks for one.

The run itself stays in its directory, with its lock and checkpoints, which object storage could not give.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.data.files import remedy, said
from pipeline.errors import InputError, PipelineError, StorageError
from pipeline.outputs.run_directory import MARK, RunDirectory

if TYPE_CHECKING:
    from pipeline.jobconfig import Config

# In the order in which they are copied: a copy with a report is whole.
_COPIED = ("config.yaml", "candidates.zarr", "iterations", "labels.zarr", "model.zarr", "report.html")
_FILES = 500  # that are copied at a time


@dataclass(frozen=True)
class Copy:
    """Where the results of a run are copied to. options : of its file system."""

    url: str
    options: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, config: Config) -> Copy | None:
        """Return that of a config; None where it asks for none."""
        url = config.output.copy_to
        return None if url is None else cls(url.rstrip("/"), config.output.storage_options)

    def refuse_unless_free(self, overwrite: bool) -> None:
        """Raise InputError if something else is there, an earlier copy too unless it may be replaced; changes nothing."""
        with self._reached(InputError, "Correct output.copy_to"):
            filesystem, root = self._open()
            there = list(filesystem.ls(root, detail=False)) if filesystem.exists(root) else []
            mark = _content(filesystem, f"{root}/config.yaml") if there else b""
        if there and not mark.startswith(MARK.encode()):
            raise InputError(
                f"output.copy_to: {self.url} holds {PurePosixPath(there[0]).name}, and is no copy of a run. Nothing was changed. Give another URL."
            )
        if there and not overwrite:
            raise InputError(
                f"output.copy_to: {self.url} holds the copy of a run. Use --overwrite, or give another URL."
            )

    def begin(self, directory: RunDirectory) -> None:
        """Copy config.yaml alone, which marks the place and shows before the fit that it can be written to."""
        with self._reached(InputError, "Ask for permission to write there, or correct output.copy_to"):
            filesystem, root = self._open()
            if filesystem.exists(f"{root}/report.html"):
                filesystem.rm_file(f"{root}/report.html")
            _make_folders(filesystem, {root})
            filesystem.pipe_file(f"{root}/config.yaml", directory.config.read_bytes())

    def is_whole(self, directory: RunDirectory) -> bool:
        """Whether the copy is that of the directory: the same files of the same sizes, and the same config and report."""
        with self._reached(StorageError, self._again(directory)):
            filesystem, root = self._open()
            same = all(
                _content(filesystem, f"{root}/{path.name}") == path.read_bytes()
                for path in (directory.config, directory.report)
            )
            return same and _there(filesystem, root) == _here(directory)

    def write(self, directory: RunDirectory, log: Callable[..., None]) -> None:
        """Copy all results, and remove what an earlier copy had beside them. Raises StorageError."""
        began, here = time.perf_counter(), _here(directory)
        with self._reached(StorageError, self._again(directory)):
            filesystem, root = self._open()
            there = _there(filesystem, root)
            for name in [name for name in there if name == "report.html" or name not in here]:
                filesystem.rm_file(f"{root}/{name}")
            _make_folders(filesystem, {f"{root}/{name}".rpartition("/")[0] for name in here})
            names = sorted(here, key=lambda name: _COPIED.index(name.partition("/")[0]))
            *others, report = names
            for part in (*(others[i : i + _FILES] for i in range(0, len(others), _FILES)), [report]):
                filesystem.put([str(directory.path / name) for name in part], [f"{root}/{name}" for name in part])
            found = _there(filesystem, root)
        if found != here:
            wrong = next(name for name in [*here, *found] if here.get(name) != found.get(name))
            raise StorageError(
                f"{self.url}/{wrong}: has {found.get(wrong, 'no')} bytes after it was copied, expected {here.get(wrong, 'no')}. {self._again(directory)}."
            )
        log("copied", to=self.url, bytes=sum(here.values()), seconds=time.perf_counter() - began)

    def _open(self) -> tuple[Any, str]:
        import fsspec

        filesystem, root = fsspec.core.url_to_fs(self.url, **self.options)
        filesystem.invalidate_cache()
        return filesystem, str(root).rstrip("/")

    def _again(self, directory: RunDirectory) -> str:
        return f"The run is whole in {directory}: `em-pipeline resume {directory} --set output.copy_to={self.url}` copies it"

    @contextmanager
    def _reached(self, kind: type[PipelineError], advice: str) -> Iterator[None]:
        """Context in which errors of the file system become those of a kind. advice : what to do about them."""
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:  # every file system has its own kinds
            helps = (remedy(self.url, error) or "").replace("data.storage_options", "output.storage_options")
            raise kind(
                f"output.copy_to: {self.url}: cannot be written ({type(error).__name__}: {said(error)}). {helps and f'{helps}. '}{advice}."
            ) from error


def not_copied(stored: Mapping[str, Any], config: Config) -> str | None:
    """Return a warning where a run was to be copied and the user who resumes it does not say where; else None. stored : its config."""
    url = stored.get("output", {}).get("copy_to")
    if not url or config.output.copy_to is not None:
        return None
    return f"results are copied to {url} only if you name it again: add --set output.copy_to={url}"


def _here(directory: RunDirectory) -> dict[str, int]:
    """The bytes of each file of the results, by its path in the directory."""
    found: dict[str, int] = {}
    for name in _COPIED:
        top = directory.path / name
        files: list[Path] = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        found |= {path.relative_to(directory.path).as_posix(): path.stat().st_size for path in files}
    return found


def _there(filesystem: Any, root: str) -> dict[str, int]:
    """The same of the copy."""
    filesystem.invalidate_cache()
    found = filesystem.find(root, detail=True) if filesystem.exists(root) else {}
    sizes = {str(name).removeprefix(f"{root}/"): int(entry["size"]) for name, entry in found.items()}
    return {name: size for name, size in sizes.items() if name.partition("/")[0] in _COPIED}


def _make_folders(filesystem: Any, folders: set[str]) -> None:
    """Make folders where there are such: in object storage there are none, and a bucket is never made."""
    from fsspec.asyn import AsyncFileSystem

    if not isinstance(filesystem, AsyncFileSystem):
        for folder in sorted(folders):
            filesystem.makedirs(folder, exist_ok=True)


def _content(filesystem: Any, path: str) -> bytes:
    return bytes(filesystem.cat_file(path)) if filesystem.exists(path) else b""
