"""Errors of a config in words: what was found, what is valid, and the nearest key or value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from pipeline.config.section import Section
from pipeline.config.syntax import GLUED, Place, in_one_line
from pipeline.config.variants import OUTSIDE, Variants, sections_in, variants_in
from pipeline.errors import did_you_mean, without_secrets

# What other libraries and habits call our keys.
_ALIASES = {
    **dict.fromkeys(("k", "K", "n_clusters", "clusters", "components", "num_components"), "model.n_components"),
    **dict.fromkeys(("iterations", "n_iter", "epochs", "max_iterations", "maxiter"), "fit.max_iter"),
    **dict.fromkeys(("seed", "random_seed"), "fit.random_state"),
    **dict.fromkeys(("restarts", "n_restarts"), "fit.n_init"),
    **dict.fromkeys(("covariance", "covariances_type", "cov_type"), "model.covariance_type"),
    **dict.fromkeys(("tolerance", "eps"), "fit.tol"),
    **dict.fromkeys(("file", "filename", "folder", "directory"), "data.path"),
    **dict.fromkeys(("n_workers", "n_jobs", "threads"), "engine.workers"),
}
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text (in quotes, where it looks like something else)",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}


def explain(problems: Sequence[Any], raw: Any, of: Mapping[Place, str], name: str, root: type[Section]) -> str:
    """Put pydantic's errors into words.

    Parameters
    ----------
    problems : sequence
        Of `ValidationError.errors()`.
    raw : Any
        What was validated.
    of : mapping
        Where a key was written, such as ``c.yaml, line 3``.
    name : str
        Of the config, for errors without a key.
    root : type
        The section that validated it.
    """
    config = _Config(root, raw)
    found = []
    for at, group in groupby(problems, key=config.place_of):
        together = list(group)
        where = next((of[at[:i]] for i in range(len(at), 0, -1) if at[:i] in of), name)
        found.append(f"{where}: {config.explained(at, together)}")
    if len(found) > 1:
        found = [f"{name}: {len(found)} mistakes.", *(f"  {each}" for each in found)]
    return "\n".join([*found, "`em-pipeline config` prints every option and its meaning."])


def home_of(name: str, root: type[Section]) -> str | None:
    """Return the dotted key of which this is the last name, or another name of the last; None where there is none."""
    return _ALIASES.get(name) or next((path for path, last in _keys(root) if last == name), None)


@dataclass(frozen=True)
class _Config:
    """An invalid config. root : the section that validates it.  raw : what was written."""

    root: type[Section]
    raw: Any

    def place_of(self, problem: Any) -> Place:
        """Where it was written, without the names of types and indices that pydantic adds."""
        at: list[str | int] = []
        raw = self.raw
        for i, part in enumerate(problem["loc"]):
            if (isinstance(raw, dict) and part in raw) or (
                isinstance(raw, (list, tuple)) and isinstance(part, int) and part < len(raw)
            ):
                raw = raw[part]
            elif isinstance(raw, dict) and problem["type"] == "missing" and i == len(problem["loc"]) - 1:
                pass
            else:
                continue
            at.append(part)
        return tuple(at)

    def explained(self, at: Place, problems: Sequence[Any]) -> str:
        """Return the error at one key, in words."""
        key, first = ".".join(map(str, at)), problems[0]
        if first["type"] == "extra_forbidden":
            return f"{key}: there is no such key{self._nearest_key(at)}"
        if first["type"] == "missing" and isinstance(self._at(at[:-1]), dict) and at[-1] not in self._at(at[:-1]):
            return f"{key}: is missing{self._who_needs(at)}."
        if first["type"] == "value_error":
            return self._own_words(at, first["msg"].removeprefix("Value error, "))
        expected = " or ".join(dict.fromkeys(self._expected(at, problem) for problem in problems))
        got = self._at(at)
        choices = [choice for problem in problems for choice in _choices(problem)]
        if isinstance(got, str) and choices:
            expected += did_you_mean(self._meant(at, got), choices, cutoff=0.5) or "."
        elif isinstance(got, str) and GLUED.match(got):
            expected += "; a space is missing after its colon."
        else:
            expected += "."
        return f"{key}: got {_shown(got)}, expected {expected}"

    def _at(self, at: Place) -> Any:
        raw = self.raw
        for part in at:
            raw = raw[part]
        return raw

    def _field(self, at: Place) -> Any:
        """The field at a place; None without one."""
        while at and not isinstance(at[-1], str):
            at = at[:-1]
        return self.section(at[:-1]).model_fields.get(str(at[-1])) if at else None

    def section(self, at: Place) -> type[Section]:
        """Return the section at or around a place; of variants the one that its keys name."""
        section, raw = self.root, self.raw
        for part in at:
            field = section.model_fields.get(str(part))
            try:
                raw = raw[part]
            except (KeyError, IndexError, TypeError):
                raw = None
            if field is not None:
                section = _chosen(variants, raw) if (variants := variants_in(field)) else _first(field) or section
        return section

    def _variants(self, at: Place) -> Variants[Any] | None:
        """The variants of which the section at a place is one."""
        field = self._field(at)
        return None if field is None else variants_in(field)

    def _meant(self, at: Place, got: str) -> str:
        """The value that another name stands for, such as gaussian for gmm."""
        variants = self._variants(at[:-1])
        return variants.meant(got) if variants is not None and at[-1] == variants.key else got

    def _who_needs(self, at: Place) -> str:
        """Which variant needs a missing key, and its meaning."""
        variants, section = self._variants(at[:-1]), self.section(at[:-1])
        if variants is None:
            return ""
        about = section.model_fields[str(at[-1])].description
        return f"; {variants.key} {self._at(at[:-1]).get(variants.key, variants.default)} needs it: {about}"

    def _own_words(self, at: Place, words: str) -> str:
        """The message of one of our validators, which may begin with a key of its section."""
        key = ".".join(map(str, at))
        if not key:
            return words
        section, begins = self.section(at), re.match(r"\w+", words)
        inside = begins and begins[0] in section.model_fields and section is not self.section(at[:-1])
        return f"{key}.{words}" if inside else f"{key}: {words}"

    def _expected(self, at: Place, problem: Any) -> str:
        kind, context = problem["type"], problem.get("ctx", {})
        if choices := _choices(problem):
            return f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]
        if kind == "dict_type":
            return "keys of its own, indented below it"
        if kind in ("model_type", "model_attributes_type"):
            return f"keys of its own, indented below it, such as {self._example(at, problem['input'])}"
        if kind.startswith(("tuple", "too_", "missing")):
            example = self._default(at)
            return "a list" if example is None else f"a list such as {example}"
        if kind.startswith("list"):
            return f"a list, such as [{in_one_line(problem['input'])}]"
        words = _EXPECTED.get(kind) or _EXPECTED.get(kind.split("_")[0])
        if words is None:
            return str(problem["msg"])
        example = self._default(at) if kind.startswith(("int", "float")) else None
        return words.format(**context) + (f", such as {example}" if example is not None else "")

    def _nearest_key(self, at: Place) -> str:
        """The key that was probably meant: of this section, of another, or the whole list."""
        section, word = self.section(at[:-1]), str(at[-1])
        if ":" in word:
            return "; a space is missing after its colon."
        if word in _ALIASES:
            key = _ALIASES[word]
            here = section is self.section(tuple(key.split(".")[:-1]))
            return f"; did you mean {key.split('.')[1] if here else key}?"
        variants = self._variants(at[:-1])
        if variants is not None and (owners := variants.owners(word)):
            return f"; it belongs to {variants.key} {_or(owners)}."
        elsewhere = dict(_keys(self.root))
        homes = [path.rpartition(".")[0] for path, last in elsewhere.items() if last == word]
        near = did_you_mean(word, section.model_fields)
        if homes and not near:
            return f"; it belongs to {_or(homes)}."
        if not near and (far := did_you_mean(word, elsewhere.values(), cutoff=0.75)):
            meant = far.removeprefix("; did you mean ").removesuffix("?")
            return f"; did you mean {next(path for path, name in elsewhere.items() if name == meant)}?"
        return near or f"; expected one of {', '.join(section.model_fields)}."

    def _example(self, at: Place, got: Any) -> str:
        """The section at a place with one key: a single word is usually its first."""
        section = self.section(at)
        inner = next(iter(section.model_fields))
        default = section.model_fields[inner].get_default(call_default_factory=True)
        value = got if isinstance(got, str) and not GLUED.match(got) else default
        example = f"{inner}: {value if isinstance(value, (str, int, float)) else '…'}"
        return f"{at[-1]}: {{{example}}}" if isinstance(at[-1], str) else f"{{{example}}}"

    def _default(self, at: Place) -> str | None:
        """The default of the field at or around a place, as YAML; None if it would not help."""
        field = self._field(at)
        if field is None or field.is_required():
            return None
        default = field.get_default(call_default_factory=True)
        if isinstance(default, tuple) and len(default) == 1:
            default = default[0]
        if default is None or isinstance(default, (str, Section, dict)) or default == []:
            return None
        return in_one_line(list(default) if isinstance(default, tuple) else default)


def _first(field: Any) -> type[Section] | None:
    return next(sections_in(field), None)


def _chosen(variants: Variants[Any], raw: Any) -> type[Section]:
    """The variant that some keys name, else what all variants have in common."""
    try:
        return variants.section_of(raw) if isinstance(raw, Mapping) else variants.base
    except ValidationError:
        return variants.base


def _keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of a section and those below, with their last names."""
    for name, field in section.model_fields.items():
        variants, inner = variants_in(field), _first(field)
        if variants is not None:
            for each in (variants.base, *(variants[own] for own in variants.own if own != OUTSIDE)):
                yield from _keys(each, f"{prefix}{name}.")
        elif inner is None:
            yield prefix + name, name
        elif isinstance(field.get_default(call_default_factory=True), Section):
            yield from _keys(inner, f"{prefix}{name}.")


def _or(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _choices(problem: Any) -> list[str]:
    expected = problem.get("ctx", {}).get("expected", "") if problem["type"] == "literal_error" else ""
    return re.findall(r"'([^']*)'", expected)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    value = without_secrets(value)  # before it is cut: half a password is one
    text = repr(value) if isinstance(value, str) else in_one_line(value)
    return text if len(text) <= 60 else text[:57] + "…"
