"""From a YAML file and `section.key=value` strings to a Config, or to an error that names the nearest key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config.explaining import explain, home_of
from pipeline.config.sections import Config
from pipeline.config.syntax import Place, parse
from pipeline.errors import InputError, does_not_exist

_BEGIN = "`em-pipeline config > job.yaml` writes one to begin with."


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read and validate a YAML file; `overrides` are `section.key=value` strings.

    Raises InputError for anything that is not a valid config, naming the nearest key.
    """
    raw, lines = parse(_text(Path(path)), f"config {path}")
    return validate({} if raw is None else raw, overrides or [], f"config {path}", lines)


def _text(path: Path) -> str:
    if not path.exists() and not os.path.lexists(path):
        raise InputError(f"config {path}: {does_not_exist(path)} {_BEGIN}")
    if path.is_dir():
        raise InputError(f"config {path}: is a folder, expected a YAML file. {_BEGIN}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"config {path}: is not text, expected a YAML file. {_BEGIN}") from error
    except OSError as error:
        raise InputError(f"config {path}: cannot be read ({error.strerror}). Make it readable.") from error


def validate(
    raw: Any, overrides: list[str] | None = None, name: str = "config", lines: Mapping[Place, int] | None = None
) -> Config:
    """A Config from plain dicts and lists, or an InputError that names what is wrong. lines : where keys were given."""
    if not isinstance(raw, dict):
        came = f"{raw!r:.40}" if isinstance(raw, str) else f"a {type(raw).__name__}"
        raise InputError(f"{name}: came as {came}, expected sections such as data: and model:. {_BEGIN}")
    of: dict[Place, str] = {place: f"{name}, line {line}" for place, line in (lines or {}).items()}
    for override in overrides or []:
        place, leaf = _override(override)
        for part in reversed(place[1:]):
            leaf = {part: leaf}
        raw = _merge(raw, {place[0]: leaf})
        for i in range(1, len(place)):
            of.setdefault(place[:i], f"--set {override}")
        of[place] = f"--set {override}"
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise InputError(explain(error.errors(), raw, of, name)) from None


def _override(override: str) -> tuple[tuple[str, ...], Any]:
    """The place and the value of `section.key=value`."""
    key, separator, value = override.partition("=")
    parts = tuple(key.strip().split("."))
    if not separator or not all(parts):
        raise InputError(f"--set {override!r}: expected section.key=value, such as fit.max_iter=50.")
    if len(parts) == 1 and (home := home_of(parts[0])):
        raise InputError(f"--set {override!r}: expected section.key=value; did you mean {home}={value}?")
    return parts, parse(value, f"--set {override!r}")[0]


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def to_plain(config: Config) -> dict[str, Any]:
    """The config as plain dicts and lists, without `storage_options`: credentials are never written."""
    return config.model_dump(mode="json", exclude={"data": {"storage_options"}})
