"""From a YAML file and `section.key=value` strings to a Config, or to an error that names the nearest key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config.section import Section
from pipeline.config.sections import Config
from pipeline.errors import InputError


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read and validate a YAML file; `overrides` are `section.key=value` strings.

    Raises InputError for anything that is not a valid config, naming the nearest key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: cannot be read ({error}). Give the path of a YAML file.") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"config {path}: not plain YAML ({error}). See `em-pipeline config`.") from error
    return validate({} if raw is None else raw, overrides or [], str(path))


def validate(raw: Any, overrides: list[str] | None = None, name: str = "config") -> Config:
    """A Config from plain dicts and lists, or an InputError that names what is wrong."""
    if not isinstance(raw, dict):
        raise InputError(f"{name}: came as {type(raw).__name__}, expected sections such as data: and model:.")
    for override in overrides or []:
        raw = _override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
        raise InputError(
            f"{name}: not a valid config.\n{problems}\nSee `em-pipeline config` for every option."
        ) from None


def _override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise InputError(f"--set {override!r}: expected section.key=value, such as fit.max_iter=50.")
    try:
        leaf = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override!r}: the value is not YAML ({error}).") from error
    for part in reversed(parts[1:]):
        leaf = {part: leaf}
    return _merge(raw, {parts[0]: leaf})


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = list(_section_at(problem["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.0)
        return f"{where}: there is no such key; did you mean {near[0]}?"
    got = problem.get("input")
    came = f" (got {got!r})" if isinstance(got, (str, int, float, bool, type(None))) else ""
    return f"{where or 'config'}: {problem['msg'].removeprefix('Value error, ')}{came}"


def _section_at(loc: tuple[Any, ...]) -> type[Section]:
    section: type[Section] = Config
    for part in loc:
        field = section.model_fields.get(str(part))
        inner = list(sections_in(field.annotation)) if field else []
        if inner:
            section = inner[0]
    return section


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that an annotation is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from sections_in(part)


def to_plain(config: Config) -> dict[str, Any]:
    """The config as plain dicts and lists, without `storage_options`: credentials are never written."""
    return config.model_dump(mode="json", exclude={"data": {"storage_options"}})
