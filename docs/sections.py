"""The reference of the config, from the sections themselves: a table for each, of its keys, defaults, bounds and meanings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.config import Config, Section
from pipeline.config.explaining import sections_in

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def in_markdown() -> str:
    """A heading and a table for each section, those inside of another after it."""
    return "\n".join(_table(where, section) for where, section in _sections(Config))


def _sections(owner: type[Section], above: str = "") -> Iterator[tuple[str, type[Section]]]:
    for key, field in owner.model_fields.items():
        for section in sections_in(field.annotation):
            yield above + key, section
            yield from _sections(section, f"{above}{key}.")


def _table(where: str, section: type[Section]) -> str:
    schema = section.model_json_schema()
    rows = []
    for key, part in schema["properties"].items():
        cells = (f"`{key}`", _default(part, key in schema.get("required", ())), _meaning(part))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    about = " ".join((section.__doc__ or "").split())
    return "\n".join([f"## {where}", "", about, "", "| key | default | meaning |", "|---|---|---|", *rows, ""])


def _default(part: dict[str, Any], required: bool) -> str:
    """The value that a key has where it is left out, as in YAML."""
    if required:
        return "*needed*"
    if "default" not in part:
        return "below" if "$ref" in part else "empty"
    value = part["default"]
    if isinstance(value, list) and len(value) == 1:
        [value] = value
    words = {None: "null", True: "true", False: "false"}
    return f"`{words[value] if value is None or isinstance(value, bool) else value}`"


def _meaning(part: dict[str, Any]) -> str:
    """The description, the bounds of numbers and the values to choose from."""
    kinds = list(_kinds(part))
    bounds = [
        f"{sign}\N{NO-BREAK SPACE}{kind[name]:g}" for kind in kinds for name, sign in BOUNDS.items() if name in kind
    ]
    values = [value for kind in kinds for value in kind.get("enum", [kind["const"]] if "const" in kind else [])]
    notes = [part.get("description", "").removesuffix("; or"), *dict.fromkeys(bounds)]
    notes += [
        ", ".join(f"`{value}`" for value in values),
        "keys: below" if any("$ref" in kind for kind in kinds) else "",
    ]
    return "; ".join(note for note in notes if note)


def _kinds(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A part of a schema and what it is a choice, a list or a tuple of."""
    yield part
    for inner in (*part.get("anyOf", ()), *part.get("prefixItems", ()), part.get("items")):
        if isinstance(inner, dict):
            yield from _kinds(inner)
