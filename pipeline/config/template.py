"""The commented YAML that `em-pipeline config` prints: every option, its default, bounds and meaning, from the config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import yaml

from pipeline.config.loading import sections_in
from pipeline.config.section import Section
from pipeline.config.sections import Config
from pipeline.errors import InputError

# What a family's template sets beside the defaults: data that ship with a dependency.
_TEMPLATES: dict[str, dict[str, Any]] = {
    "gaussian": {"data": {"source": "images", "path": "photographs"}, "output": {"path": "runs/patches"}},
    "kmeans": {"data": {"source": "bundled", "path": "digits"}, "model": {"family": "kmeans", "n_components": 10}},
    "multinomial": {
        "data": {"source": "docword", "path": "docword.txt.gz", "vocabulary": "vocab.txt"},
        "model": {"family": "multinomial", "n_components": 20},
    },
}


def template(family: str) -> str:
    """A commented YAML with every option, its default, bounds and meaning."""
    if family not in _TEMPLATES:
        raise InputError(f"config {family}: expected one of {', '.join(_TEMPLATES)}.")
    config = Config.model_validate(_TEMPLATES[family])
    lines = [f"# em-pipeline: a {family} job. `em-pipeline run CONFIG` runs it; every line may be left out."]
    lines += _commented(config, indent=0)
    return "\n".join(lines) + "\n"


def _commented(section: Section, indent: int) -> Iterator[str]:
    pad, plain = "  " * indent, section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        bounds = [_bound(constraint) for constraint in (*field.metadata, *_inner(field.annotation))]
        notes = [field.description or "", *dict.fromkeys(bounds)]
        choices = _choices(field.annotation)
        if choices:
            notes.append(" | ".join(choices))
        comment = "; ".join(note for note in notes if note)
        if isinstance(value, Section):
            yield f"{pad}{name}:  # {comment}"
            yield from _commented(value, indent + 1)
        else:
            dumped = yaml.safe_dump(plain[name], default_flow_style=True, width=10_000).strip()
            yield f"{pad}{name}: {dumped.removesuffix('...').strip()}  # {comment}"
            if value is None:
                yield from (f"{pad}#   {line}" for line in _absent(field.annotation))


def _absent(annotation: Any) -> Iterator[str]:
    """What a section that may be given could say, where it has defaults."""
    for section in sections_in(annotation):
        if not any(field.is_required() for field in section.model_fields.values()):
            yield from _commented(section(), 0)


def _inner(annotation: Any) -> Iterator[Any]:
    """The constraints of what a list or a choice of types holds."""
    for field in getattr(annotation, "__metadata__", ()):
        yield from getattr(field, "metadata", ())
    for argument in getattr(annotation, "__args__", ()):
        yield from _inner(argument)


def _bound(constraint: Any) -> str:
    for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        bound = getattr(constraint, attribute, None)
        if bound is not None:
            return f"{sign} {bound}"
    return ""


def _choices(annotation: Any) -> list[str]:
    args = getattr(annotation, "__args__", ())
    if getattr(annotation, "__origin__", None) is Literal:
        return [str(arg) for arg in args]
    return [choice for arg in args for choice in _choices(arg)]
