"""From YAML and `section.key=value` strings to a validated section, or to an error that names the nearest key."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.config.explaining import explain, home_of
from pipeline.config.section import Section
from pipeline.config.syntax import Place, parse
from pipeline.errors import InputError, does_not_exist, printable, refuse_special, remember_secrets

S = TypeVar("S", bound=Section)

# Keys that had another name in earlier versions, which goes on working.
RENAMED = {("select", "annihilation"): "pruning"}
MOST_BYTES = 2**24  # of a config; those of run directories list the stored chunks
_BEGIN = "`em-pipeline config > job.yaml` writes one to begin with."


def read_yaml(path: str | Path) -> tuple[Any, dict[Place, int]]:
    """Read a YAML file.

    Returns
    -------
    raw : Any
        Its content; an empty file is an empty mapping.
    lines : dict
        The line of each key.

    Raises
    ------
    InputError
        If there is no such file, or it is no YAML.
    """
    raw, lines = parse(_text(Path(path)), f"config {path}")
    return {} if raw is None else raw, lines


def _text(path: Path) -> str:
    if not path.exists() and not os.path.lexists(path):
        raise InputError(f"config {path}: {does_not_exist(path)} {_BEGIN}")
    if path.is_dir():
        raise InputError(f"config {path}: is a folder, expected a YAML file. {_BEGIN}")
    refuse_special(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"config {path}: has {path.stat().st_size} bytes, expected at most {MOST_BYTES}. {_BEGIN}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"config {path}: is not text, expected a YAML file. {_BEGIN}") from error
    except OSError as error:
        raise InputError(f"config {path}: cannot be read ({error.strerror}). Make it readable.") from error


def validate(
    root: type[S],
    raw: Any,
    overrides: Sequence[str] = (),
    name: str = "config",
    lines: Mapping[Place, int] | None = None,
) -> S:
    """Validate plain dicts and lists.

    Parameters
    ----------
    root : type
        The section of the whole.
    raw : Any
        What was written.
    overrides : sequence of str
        Of the form ``section.key=value``, in place of what was written.
    name : str
        Of the config, for messages.
    lines : mapping, optional
        Where keys were written.

    Returns
    -------
    Section
        An instance of `root`.

    Raises
    ------
    InputError
        Naming all that is wrong.
    """
    if not isinstance(raw, dict):
        got = f"{raw!r:.40}" if isinstance(raw, str) else f"a {type(raw).__name__}"
        raise InputError(f"{name}: got {got}, expected sections such as data: and model:. {_BEGIN}")
    of: dict[Place, str] = {place: f"{name}, line {line}" for place, line in (lines or {}).items()}
    for override in overrides:
        place, leaf = _override(override, root)
        for part in reversed(place[1:]):
            leaf = {part: leaf}
        raw = _merge(raw, {place[0]: leaf})
        for i in range(1, len(place)):
            of.setdefault(place[:i], f"--set {override}")
        of[place] = f"--set {override}"
    remember_secrets(raw)
    raw = _with_new_names(raw, of, name)
    try:
        return root.model_validate(raw)
    except ValidationError as error:
        raise InputError(explain(error.errors(), raw, of, name, root)) from None


def asked_for(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the content of overrides, merged, as plain dicts; invalid ones are left to `validate`."""
    asked: dict[str, Any] = {}
    for override in overrides:
        key, separator, value = override.partition("=")
        leaf = parse(value, f"--set {override!r}")[0]
        for part in reversed(key.strip().split(".")):
            leaf = {part: leaf}
        if separator:
            asked = _merge(asked, leaf)
    return asked


def _override(override: str, root: type[Section]) -> tuple[tuple[str, ...], Any]:
    """Place and value of `section.key=value`."""
    key, separator, value = override.partition("=")
    parts = tuple(key.strip().split("."))
    if not separator or not all(parts):
        raise InputError(f"--set {override!r}: expected section.key=value, such as fit.max_iter=50.")
    if len(parts) == 1 and parts[0] not in root.model_fields and (home := home_of(parts[0], root)):
        raise InputError(f"--set {override!r}: expected section.key=value; did you mean {home}={value}?")
    if printable(value) != value:  # the name of a file that is no UTF-8, which YAML cannot have
        return parts, value
    return parts, parse(value, f"--set {override!r}")[0]


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _with_new_names(raw: dict[str, Any], of: dict[Place, str], name: str) -> dict[str, Any]:
    """Keys by their present names. of : where keys were written, with the same changes."""
    for (section, old), new in RENAMED.items():
        inner = raw.get(section)
        if isinstance(inner, dict) and old in inner:
            if new in inner:
                where = of.get((section, old), name)
                raise InputError(
                    f"{where}: {section}.{old}: is the old name of {section}.{new}, which is there too. Remove it."
                )
            raw = {**raw, section: {new if key == old else key: value for key, value in inner.items()}}
            of[section, new] = of.get((section, old), name)
    return raw
