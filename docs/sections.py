"""The reference of the config, from the sections themselves: a table for each, of its keys, defaults, bounds and meanings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.config import Section
from pipeline.config.variants import Variants, sections_in, variants_in
from pipeline.jobconfig import Config
from pipeline.models.family import FamilySection

BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def in_markdown() -> str:
    """A heading and a table for each section, those inside of another after it."""
    return "\n".join(_sections(Config))


def _sections(owner: type[Section], above: str = "", without: tuple[str, ...] = (), of: str = "") -> Iterator[str]:
    """Tables of the sections inside of another. of : which variant that is, for headings."""
    for key, field in owner.model_fields.items():
        if key in without:
            continue
        if (variants := variants_in(field)) is not None:
            yield from _variants(above + key, variants)
            continue
        for section in sections_in(field):
            yield _table(f"{above}{key}{of}", section)
            yield from _sections(section, f"{above}{key}.")


def _variants(where: str, variants: Variants[Any]) -> Iterator[str]:
    """What all variants have in common, then for each the keys of its own."""
    common = tuple(variants.base.model_fields)
    about = f"The keys of every {variants.key}; each of {', '.join(f'`{name}`' for name in variants.own)} has others."
    yield _table(where, variants.base, about=about)
    for name in variants.own:
        section = variants[name]
        of = f", {variants.key}: {name}"
        yield _table(where + of, section, common, _about(section))
        yield from _sections(section, f"{where}.", common, of)


def _about(section: type[Section]) -> str:
    """What a variant is; of a family also what it says to the section `fit`."""
    about = _prose(section)
    if issubclass(section, FamilySection):
        defaults = f"`max_iter` {section.default_max_iter}, `tol` {section.default_tol:g}"
        takes = f"`method` {_listed(section.methods)}; `assignment` {_listed(section.assignments)}"
        about += f" In `fit`: null stands for {defaults}; it takes {takes}."
    return about


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _prose(section: type[Section]) -> str:
    """The docstring up to its parts for programmers."""
    return " ".join((section.__doc__ or "").split("\n\n    Attributes\n")[0].split())


def _table(where: str, section: type[Section], without: tuple[str, ...] = (), about: str | None = None) -> str:
    schema = section.model_json_schema()
    rows = []
    for key, part in schema["properties"].items():
        if key not in without:
            cells = (f"`{key}`", _default(part, key in schema.get("required", ())), _meaning(part))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    table = ["| key | default | meaning |", "|---|---|---|", *rows, ""] if rows else []
    return "\n".join([f"## {where}", "", _prose(section) if about is None else about, "", *table])


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
        ", ".join(f"`{value}`" for value in dict.fromkeys(values)),
        "keys: below" if any("$ref" in kind for kind in kinds) else "",
    ]
    return "; ".join(note for note in notes if note)


def _kinds(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A part of a schema and what it is a choice, a list or a tuple of."""
    yield part
    for inner in (*part.get("anyOf", ()), *part.get("prefixItems", ()), part.get("items")):
        if isinstance(inner, dict):
            yield from _kinds(inner)
