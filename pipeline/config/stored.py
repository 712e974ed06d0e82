"""The config of a run directory, which may come from a stranger.

Its options of rows and models are used. Its options that start processes, connect to other machines or execute a file are
not: the user must repeat them, on the command line or in a file of their own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.loading import asked_for, read_yaml
from pipeline.config.profiles import LOCAL, users_own
from pipeline.config.syntax import Place
from pipeline.config.variants import OUTSIDE
from pipeline.errors import HIDDEN, InputError

_BOUNDS = ("workers", "memory", "keep_decoded")  # of engine: what this machine gives
_PLACES = ("scheduler", "scheduler_address", "scheduler_file")
# Storages that only read what a URL names; fsspec has others, such as reference://, which fills templates.
_STORAGES = {
    "abfs",
    "abfss",
    "adl",
    "az",
    "file",
    "ftp",
    "gcs",
    "gs",
    "hdfs",
    "http",
    "https",
    "local",
    "memory",
    "s3",
    "s3a",
    "sftp",
    "ssh",
}
_COPY = ("copy_to", "storage_options")  # of `output`
_KINDS = {"data": "source", "model": "family"}  # sections that may name a Python file, and the key that says so


def engine_of(path: Path | None) -> list[str]:
    """Return overrides that replace a run's section `engine` by that of a user's file. Raises InputError."""
    if path is None:
        return []
    engine = _section(read_yaml(path)[0], "engine")
    if not engine:
        raise InputError(f"--engine {path}: has no section engine, expected a config with one. Add it.")
    return [f"engine={json.dumps(engine, default=str)}"]


def trusted(raw: Any, overrides: Sequence[str], name: str) -> Any:
    """Return the part of a run's config that may be used, before the overrides.

    Parameters
    ----------
    raw : Any
        The section `config` of a config.yaml.
    overrides : sequence of str
        ``section.key=value`` of the user.
    name : str
        Of the file, for messages.

    Raises
    ------
    InputError
        If a Python file would be executed that the user has not named, or for a profile that only the run describes.
    """
    if not isinstance(raw, dict):
        return raw
    asked, engine, safe = asked_for(overrides), _section(raw, "engine"), dict(raw)
    scheduler, own = _section(asked, "engine").get("scheduler"), _section(_section(asked, "engine"), "profiles")
    if isinstance(scheduler, str) and scheduler in _section(engine, "profiles") and not _known(scheduler, own):
        raise InputError(
            f"{name}: describes the profile {scheduler}, but profiles of a run directory are not used, because they may start "
            "anything. Give a config of your own that describes it: --engine CONFIG."
        )
    safe["engine"] = {key: value for key, value in engine.items() if key in _BOUNDS}
    if _names_a_place(asked):
        safe["engine"].pop("keep_decoded", None)  # was said of the place where it ran
    elif _is_the_users(engine):
        safe["engine"]["scheduler"] = engine.get("scheduler", "threads")
    unnamed = []
    for section, key in _KINDS.items():
        stored, said = _section(raw, section), _section(asked, section)
        if said.get(key, stored.get(key)) == OUTSIDE:
            if isinstance(said.get("path"), str):
                safe[section] = {**stored, "path": said["path"]}  # the very file, also for what is compared with it
            else:
                unnamed.append(f"--set {section}.path={_short(stored.get('path'))}")
    if unnamed:
        raise InputError(
            f"{name}: names Python files, which are not executed unless you name them: a run directory may come from someone else. "
            f"If you trust them, add {' '.join(unnamed)}"
        )
    urls = [
        (f"--set {section}.{key}=", value)
        for section in ("data", "fit")
        for key, value in _section(raw, section).items()
        if isinstance(value, str) and "://" in value and key not in _section(asked, section)
    ]
    if again := [f"{option}…" for option, value in urls if HIDDEN in value]:
        raise InputError(
            f"{name}: credentials are never stored, and URLs had some. Give the URLs again: {' '.join(again)}"
        )
    if odd := [
        option + value for option, value in urls if "::" in value or value.partition("://")[0].lower() not in _STORAGES
    ]:
        raise InputError(
            f"{name}: has URLs of storages that may do more than read files, such as reference://, which are not opened unless you "
            f"name them. If you trust them, add {' '.join(odd)}"
        )
    if isinstance(raw.get("data"), dict):  # we never write its credentials, nor to whom they go
        safe["data"] = {key: value for key, value in safe["data"].items() if key != "storage_options"}
    if isinstance(raw.get("output"), dict):  # nothing is written to a place that only a run directory names
        safe["output"] = {key: value for key, value in safe["output"].items() if key not in _COPY}
    return safe


def read_job(path: str | Path, overrides: Sequence[str]) -> tuple[Any, dict[Place, int]]:
    """Read the YAML file of a job: a config, or the config.yaml of a run, which has one below `config`.

    Returns
    -------
    raw : Any
        The config; of a run what may be used of it.
    lines : dict
        The line of each key.

    Raises
    ------
    InputError
        As `read_yaml` and `trusted` do.
    """
    raw, lines = read_yaml(path)
    if not (isinstance(raw, dict) and "config" in raw and "fingerprint" in raw):
        return raw, lines
    inner = {place[1:]: line for place, line in lines.items() if place[0] == "config" and len(place) > 1}
    return trusted(raw["config"], overrides, f"config {path}"), inner


def refuse_unnamed_engine(raw: Any, overrides: Sequence[str], name: str) -> None:
    """Raise InputError if a run's config says where to compute and the user does not."""
    asked, engine = asked_for(overrides), _section(raw, "engine")
    if _names_a_place(asked) or _is_the_users(engine):
        return
    found = {key: engine[key] for key in (*_PLACES, "security") if engine.get(key) not in (None, "threads")}
    if found:
        again = (f"--{key.replace('_', '-')} {_short(found[key])}" for key in _PLACES[1:] if key in found)
        raise InputError(
            f"{name}: has {', '.join(f'engine.{key}: {_short(value)}' for key, value in found.items())}, but the engine settings "
            "of a run directory are not used unless you repeat them. Add "
            f"{next(again, '--engine CONFIG, a config of your own')}, or --set engine.scheduler=threads to compute here."
        )


def _section(raw: Any, name: str) -> Mapping[str, Any]:
    found = raw.get(name) if isinstance(raw, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _names_a_place(asked: Mapping[str, Any]) -> bool:
    return any(key in _section(asked, "engine") for key in _PLACES)


def _is_the_users(engine: Mapping[str, Any]) -> bool:
    """Whether it computed on this machine, or on a profile of the user's file."""
    scheduler = engine.get("scheduler", "threads")
    if any(engine.get(key) is not None for key in (*_PLACES[1:], "security")) or not isinstance(scheduler, str):
        return False
    return scheduler == "threads" or (scheduler not in _section(engine, "profiles") and _known(scheduler, {}))


def _known(scheduler: str, own: Mapping[str, Any]) -> bool:
    return scheduler == LOCAL or scheduler in own or scheduler in users_own()


def _short(value: Any) -> str:
    """A value to copy into a command: whole, unless it is longer than paths are."""
    text = value if isinstance(value, str) else "…"
    return shlex.quote(text if len(text) <= 1000 else text[:999] + "…")
