"""The commented YAML that `em-pipeline config` prints, generated from the sections."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pipeline.config.section import Section
from pipeline.config.syntax import in_one_line
from pipeline.config.variants import Variants, sections_in, variants_in

COLUMN, WIDTH = 28, 120  # where comments begin, and lines end
_FIXED = "\N{NO-BREAK SPACE}"  # where no line may end


def commented(
    config: Section,
    about: Sequence[str],
    first: Mapping[str, Sequence[str]],
    nulls: Mapping[str, Mapping[str, str]],
    others: Sequence[str] = (),
) -> str:
    """Write a config as YAML with a comment on every option.

    Parameters
    ----------
    config : Section
        The whole config.
    about : sequence of str
        Paragraphs at the top.
    first : mapping
        Names of the options that come first, by section; the others follow as seldom changed.
    nulls : mapping
        What null means, by section and option; added to descriptions.
    others : sequence of str
        Sections of which the keys of all variants are written, as comments.
    """
    lines = [f"# {line}" for text in about for line in textwrap.wrap(text, WIDTH - 2)]
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        lines.append("#")
        if not isinstance(value, Section):
            lines += _option(config, name, 0)
            continue
        lines.append(f"{name}:  # {field.description}")
        fields, variants = type(value).model_fields, variants_in(field)
        names = [each for each in first.get(name, fields) if each in fields]
        rest = [each for each in fields if each not in names]
        ends = {key: f", {text}" for key, text in nulls.get(name, {}).items()}
        if variants is not None:
            ends[variants.key] = f"; {' | '.join(variants)}"
        lines += _options(value, 1, names, ends)
        lines += ["  # seldom changed:", *_options(value, 1, rest, ends)] if rest else []
        lines += _others(variants, value) if variants is not None and name in others else []
    return "\n".join(lines) + "\n"


def _options(
    section: Section, indent: int, names: Iterable[str], ends: Mapping[str, str] | None = None
) -> Iterator[str]:
    for name in names:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _beside(f"{'  ' * indent}{name}:", str(type(section).model_fields[name].description))
            yield from _options(value, indent + 1, type(value).model_fields)
        else:
            yield from _option(section, name, indent, (ends or {}).get(name, ""))


def _option(section: Section, name: str, indent: int, end: str = "") -> Iterator[str]:
    """An option with its value and meaning; an empty one also with what it may have."""
    field = type(section).model_fields[name]
    said = name in section.model_fields_set  # a default as it stands in the code: a path of it is not absolute
    value = section.model_dump(mode="json", include={name})[name] if said else _plain(type(section), name)
    yield from _beside(f"{'  ' * indent}{name}: {in_one_line(value)}", _meaning(field, end))
    if getattr(section, name) is None:
        yield from (f"{'  ' * indent}#   {line}" for line in _absent(field))


def _meaning(field: Any, end: str = "") -> str:
    """Description, bounds and choices of a field."""
    said = (field.description or "") + end
    bounds = [_bound(constraint) for constraint in (*field.metadata, *_inner(field.annotation))]
    choices = _choices(field.annotation)
    unsaid = [choice for choice in choices if choice not in re.split(r"[ :;,|]+", said)]
    several = " | ".join(choices) if len(choices) > 1 else "".join(unsaid)
    return "; ".join(note for note in (said, *dict.fromkeys(bounds), several) if note)


def _others(variants: Variants[Any], chosen: Section) -> Iterator[str]:
    """The keys of the other variants, as comments."""
    fields = type(chosen).model_fields
    yield f"  # the other values of {variants.key}, and the keys that come with each:"
    for name in variants:
        section = variants[name]
        if isinstance(chosen, section):
            continue
        about = section.model_fields[variants.key].description
        yield from (f"  # {line}" for line in _beside(f"{variants.key}: {name}", str(about)))
        for key, field in section.model_fields.items():
            if key not in fields:
                value = "…" if field.is_required() else in_one_line(_plain(section, key))
                yield from (f"  # {line}" for line in _beside(f"  {key}: {value}", _meaning(field)))


def _plain(section: type[Section], name: str) -> Any:
    """The default of a field, as YAML."""
    value = section.model_fields[name].get_default(call_default_factory=True)
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _beside(text: str, comment: str) -> Iterator[str]:
    """A line and its comment, continued below if it is long."""
    at = max(COLUMN, len(text) + 2)
    first, *more = textwrap.wrap(comment, max(40, WIDTH - at - 4), break_long_words=False, break_on_hyphens=False)
    yield f"{text:{at}}# {first}".replace(_FIXED, " ")
    yield from (f"{'':{at}}# {line}".replace(_FIXED, " ") for line in more)


def _absent(field: Any) -> Iterator[str]:
    """The defaults of an optional section, as comments."""
    for section in sections_in(field):
        if not any(inner.is_required() for inner in section.model_fields.values()):
            yield from _options(section(), 0, section.model_fields)


def _inner(annotation: Any) -> Iterator[Any]:
    """The constraints of the items of a list or of a union."""
    for field in getattr(annotation, "__metadata__", ()):
        yield from getattr(field, "metadata", ())
    for argument in getattr(annotation, "__args__", ()):
        yield from _inner(argument)


def _bound(constraint: Any) -> str:
    for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        bound = getattr(constraint, attribute, None)
        if bound is not None:
            return f"{sign}{_FIXED}{bound}"
    return ""


def _choices(annotation: Any) -> list[str]:
    args = getattr(annotation, "__args__", ())
    if getattr(annotation, "__origin__", None) is Literal:
        return [str(arg) for arg in args]
    return [choice for arg in args for choice in _choices(arg)]
