"""What is wrong with a config, in words: what came, what was expected, and the nearest key or value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import yaml

from pipeline.config.section import Section
from pipeline.config.sections import Config
from pipeline.config.syntax import GLUED, Place
from pipeline.errors import did_you_mean

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
_VALUES = {"gmm": "gaussian", "lda": "multinomial", "lloyd": "kmeans"}
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


def explain(problems: Sequence[Any], raw: Any, of: Mapping[Place, str], name: str) -> str:
    """The message for what pydantic found. of : where a key was given, such as `c.yaml, line 3`.  name : of the config."""
    found = []
    for at, group in groupby(problems, key=lambda problem: _place(problem, raw)):
        together = list(group)
        where = next((of[at[:i]] for i in range(len(at), 0, -1) if at[:i] in of), name)
        found.append(f"{where}: {_explain(at, together, raw)}")
    if len(found) > 1:
        found = [f"{name}: {len(found)} mistakes.", *(f"  {each}" for each in found)]
    return "\n".join([*found, "`em-pipeline config` prints every option and its meaning."])


def _place(problem: Any, raw: Any) -> Place:
    """Where it is in what was given: pydantic also names the type of a union that it tried, and an item of a lone value."""
    at: list[str | int] = []
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


def _explain(at: Place, problems: Sequence[Any], raw: Any) -> str:
    key, first = ".".join(map(str, at)), problems[0]
    if first["type"] == "extra_forbidden":
        return f"{key}: there is no such key{_nearest_key(at, raw)}"
    if first["type"] == "missing" and isinstance(_at(raw, at[:-1]), dict) and at[-1] not in _at(raw, at[:-1]):
        return f"{key}: is missing."
    if first["type"] == "value_error":
        return _own_words(at, first["msg"].removeprefix("Value error, "))
    expected = " or ".join(dict.fromkeys(_expected(at, problem) for problem in problems))
    came = _at(raw, at)
    choices = [choice for problem in problems for choice in _choices(problem)]
    if isinstance(came, str) and choices:
        meant = _VALUES.get(came.lower(), came)
        expected += did_you_mean(meant, choices, cutoff=0.5) or "."
    elif isinstance(came, str) and GLUED.match(came):
        expected += "; a space is missing after its colon."
    else:
        expected += "."
    return f"{key}: came {_came(came)}, expected {expected}"


def _own_words(at: Place, words: str) -> str:
    """What a validator of ours says; it may begin with a key of its section."""
    section = _section_at(at)
    key = ".".join(map(str, at))
    begins = re.match(r"\w+", words)
    if not key:
        return words
    return f"{key}.{words}" if begins and begins[0] in section.model_fields and _is_section(at) else f"{key}: {words}"


def _expected(at: Place, problem: Any) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if choices := _choices(problem):
        return f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]
    if kind == "dict_type":
        return "keys of its own, indented below it"
    if kind in ("model_type", "model_attributes_type"):
        return f"keys of its own, indented below it, such as {_example(at, problem['input'])}"
    if kind.startswith(("tuple", "too_", "missing")):
        example = _default(at)
        return "a list" if example is None else f"a list such as {example}"
    if kind.startswith("list"):
        return f"a list, such as [{_flow(problem['input'])}]"
    words = _EXPECTED.get(kind) or _EXPECTED.get(kind.split("_")[0])
    if words is None:
        return str(problem["msg"])
    example = _default(at) if kind.startswith(("int", "float")) else None
    return words.format(**context) + (f", such as {example}" if example is not None else "")


def _choices(problem: Any) -> list[str]:
    expected = problem.get("ctx", {}).get("expected", "") if problem["type"] == "literal_error" else ""
    return re.findall(r"'([^']*)'", expected)


def _came(value: Any) -> str:
    if value is None:
        return "empty"
    text = repr(value) if isinstance(value, str) else _flow(value)
    return f"as {text if len(text) <= 60 else text[:57] + '…'}"


def _flow(value: Any) -> str:
    """As one would write it in YAML; what has no form there (a config made in Python) as Python shows it."""
    try:
        return str(yaml.safe_dump(value, default_flow_style=True, width=10_000)).removesuffix("\n...\n").strip()
    except yaml.YAMLError:
        return repr(value)


def _nearest_key(at: Place, raw: Any) -> str:
    """What was probably meant: a key of this section, one of another, or the whole list."""
    section, word = _section_at(at[:-1]), str(at[-1])
    if ":" in word:
        return "; a space is missing after its colon."
    known = list(section.model_fields)
    if word in _ALIASES:
        key = _ALIASES[word]
        return f"; did you mean {key.split('.')[1] if section is _type_of(key) else key}?"
    elsewhere = dict(_keys(Config, ""))
    homes = [path for path, name in elsewhere.items() if name == word]
    near = did_you_mean(word, known)
    if homes and not near:
        return f"; it belongs to {' or '.join(home.rpartition('.')[0] for home in homes)}."
    if not near and (far := did_you_mean(word, elsewhere.values(), cutoff=0.75)):
        meant = far.removeprefix("; did you mean ").removesuffix("?")
        return f"; did you mean {next(path for path, name in elsewhere.items() if name == meant)}?"
    return near or f"; expected one of {', '.join(known)}."


def home_of(name: str) -> str | None:
    """The dotted key of which this is the last name, or what others call it; None where there is none."""
    return _ALIASES.get(name) or next((path for path, last in _keys(Config, "") if last == name), None)


def _type_of(key: str) -> type[Section]:
    """The section that a dotted key is of."""
    return _section_at(tuple(key.split(".")[:-1]))


def _keys(section: type[Section], prefix: str) -> Iterator[tuple[str, str]]:
    """Dotted keys of a section and those below, with their last names."""
    for name, field in section.model_fields.items():
        inner = list(sections_in(field.annotation))
        if not inner:
            yield prefix + name, name
        elif isinstance(field.get_default(call_default_factory=True), Section):
            yield from _keys(inner[0], f"{prefix}{name}.")


def _at(raw: Any, at: Place) -> Any:
    for part in at:
        raw = raw[part]
    return raw


def _section_at(at: Place) -> type[Section]:
    section: type[Section] = Config
    for part in at:
        field = section.model_fields.get(str(part))
        inner = list(sections_in(field.annotation)) if field else []
        if inner:
            section = inner[0]
    return section


def _is_section(at: Place) -> bool:
    return _section_at(at) is not _section_at(at[:-1])


def _example(at: Place, came: Any) -> str:
    """The section at a place with one key: a lone word is most often its first."""
    section = _section_at(at)
    inner = next(iter(section.model_fields))
    default = section.model_fields[inner].get_default(call_default_factory=True)
    value = came if isinstance(came, str) and not GLUED.match(came) else default
    example = f"{inner}: {value if isinstance(value, (str, int, float)) else '…'}"
    return f"{at[-1]}: {{{example}}}" if isinstance(at[-1], str) else f"{{{example}}}"


def _default(at: Place) -> str | None:
    """The default of the field at or around a place, as it would be written; None where it says nothing."""
    names = [part for part in at if isinstance(part, str)]
    section, field = _section_at(tuple(names[:-1])), names[-1] if names else ""
    if field not in section.model_fields or section.model_fields[field].is_required():
        return None
    default = section.model_fields[field].get_default(call_default_factory=True)
    if isinstance(default, tuple) and len(default) == 1:
        default = default[0]
    if default is None or isinstance(default, (str, Section, dict)) or default == []:
        return None
    return _flow(list(default) if isinstance(default, tuple) else default)


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that an annotation is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from sections_in(part)
