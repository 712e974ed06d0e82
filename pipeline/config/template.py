"""The commented YAML that `em-pipeline config` prints: every option, its default, bounds and meaning, from the config."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import yaml

from pipeline.config.explaining import sections_in
from pipeline.config.section import Section
from pipeline.config.sections import Config
from pipeline.errors import InputError, did_you_mean

# What a family's template sets beside the defaults: data that ship with a dependency.
_TEMPLATES: dict[str, dict[str, Any]] = {
    "gaussian": {"data": {"source": "images", "path": "photographs"}},
    "kmeans": {"data": {"source": "bundled", "path": "digits"}, "model": {"family": "kmeans", "n_components": 10}},
    "multinomial": {
        "data": {"source": "docword", "path": "docword.txt.gz", "vocabulary": "vocab.txt"},
        "model": {"family": "multinomial", "n_components": 20},
    },
}


# What to do first, by family.
_BEGIN = {
    "gaussian": "Set data.source and data.path to your data, and model.n_components to how many components you look for. As it "
    "is, it fits the 8 x 8 patches of two photographs that the installation brings along.",
    "kmeans": "Set data.source and data.path to your data, and model.n_components to how many clusters you look for. As it is, "
    "it clusters 1797 handwritten digits that the installation brings along.",
    "multinomial": "Set data.path to your counts (UCI's docword format: D, W and NNZ on a line each, then `document word count` "
    "lines), data.vocabulary to their words or null, and model.n_components to how many topics you look for.",
}
# What is looked at first; the rest of a section comes below it.
_FIRST = {
    "data": ("source", "path", "patch", "vocabulary", "weights", "bad_rows"),
    "model": ("family", "n_components", "covariance_type"),
    "fit": ("init", "n_init", "max_iter", "tol", "random_state"),
    "engine": ("workers", "memory", "scheduler", "scheduler_file"),
    "output": ("path", "labels", "top_k"),
}
COLUMN, WIDTH = 28, 120  # where comments begin, and lines end
_HELD = "\N{NO-BREAK SPACE}"  # where no line may end


def template(family: str) -> str:
    """A commented YAML with every option, its default, bounds and meaning."""
    if family not in _TEMPLATES:
        near = did_you_mean(family, _TEMPLATES) or "."
        raise InputError(f"config {family}: expected one of {', '.join(_TEMPLATES)}{near}")
    config = Config.model_validate(_TEMPLATES[family])
    about = [
        f"A {family} job of em-pipeline. {_BEGIN[family]}",
        "`em-pipeline check FILE` says what it would cost, `em-pipeline run FILE` runs it. Every other line may be left "
        "out, but for model.family: what stands there is the default.",
    ]
    lines = [f"# {line}" for text in about for line in textwrap.wrap(text, WIDTH - 2)]
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        lines.append("#")
        if isinstance(value, Section):
            lines.append(f"{name}:  # {field.description}")
            first = _FIRST.get(name, tuple(type(value).model_fields))
            rest = [each for each in type(value).model_fields if each not in first]
            lines += _commented(value, 1, first)
            lines += ["  # seldom changed:", *_commented(value, 1, rest)] if rest else []
        else:
            lines += _option(config, name, 0)
    return "\n".join(lines) + "\n"


def _commented(section: Section, indent: int, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _beside(f"{'  ' * indent}{name}:", str(type(section).model_fields[name].description))
            yield from _commented(value, indent + 1, type(value).model_fields)
        else:
            yield from _option(section, name, indent)


def _option(section: Section, name: str, indent: int) -> Iterator[str]:
    """An option with its default, meaning, bounds and choices; and what it could hold where it is empty."""
    field, pad = type(section).model_fields[name], "  " * indent
    plain = section.model_dump(mode="json", include={name})[name]
    said = field.description or ""
    bounds = [_bound(constraint) for constraint in (*field.metadata, *_inner(field.annotation))]
    choices = [choice for choice in _choices(field.annotation) if choice not in re.split(r"[ :;,|]+", said)]
    several = " | ".join(_choices(field.annotation)) if len(_choices(field.annotation)) > 1 else "".join(choices)
    notes = [said, *dict.fromkeys(bounds), several]
    dumped = yaml.safe_dump(plain, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
    yield from _beside(f"{pad}{name}: {dumped}", "; ".join(note for note in notes if note))
    if getattr(section, name) is None:
        yield from (f"{pad}#   {line}" for line in _absent(field.annotation))


def _beside(text: str, comment: str) -> Iterator[str]:
    """A line and its comment, which goes on below where it is long."""
    at = max(COLUMN, len(text) + 2)
    first, *more = textwrap.wrap(comment, WIDTH - at - 2, break_long_words=False, break_on_hyphens=False)
    yield f"{text:{at}}# {first}".replace(_HELD, " ")
    yield from (f"{'':{at}}# {line}".replace(_HELD, " ") for line in more)


def _absent(annotation: Any) -> Iterator[str]:
    """What a section that may be given could say, where it has defaults."""
    for section in sections_in(annotation):
        if not any(field.is_required() for field in section.model_fields.values()):
            yield from _commented(section(), 0, section.model_fields)


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
            return f"{sign}{_HELD}{bound}"
    return ""


def _choices(annotation: Any) -> list[str]:
    args = getattr(annotation, "__args__", ())
    if getattr(annotation, "__origin__", None) is Literal:
        return [str(arg) for arg in args]
    return [choice for arg in args for choice in _choices(arg)]
