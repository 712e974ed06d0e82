"""YAML: read safely, with the line of each key, and with errors that name the usual causes.

Plain values have the meaning of YAML 1.2's core schema, not PyYAML's 1.1: 1e-3 is a number; 12:00:00, yes and 2024-01-31 are
text. Whole numbers that begin with 0 stay text too, such as account numbers; an option that is a number reads them as
decimal. A duplicate key is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from pipeline.errors import InputError

Place = tuple[str | int, ...]  # keys and indices from the top down

MOST_NODES = 10**6  # values, with aliases written out
GLUED = re.compile(r"^\s*(?:- +)?([A-Za-z_]\w*):([^\s/\\].*)$")  # a key whose colon has no space behind it
_OPEN = {
    "flow mapping": "The { of line {line} is not closed, or a comma is missing.",
    "flow sequence": "The [ of line {line} is not closed, or a comma is missing.",
}


class _Loader(yaml.SafeLoader):
    """The safe loader, with YAML 1.2's plain values."""


class _Dumper(yaml.SafeDumper):
    """The safe dumper, which quotes text that YAML 1.1 or 1.2 would read as something else."""


_Loader.yaml_implicit_resolvers = {}  # none of YAML 1.1's
_TAG = "tag:yaml.org,2002:"
_CORE = {  # https://yaml.org/spec/1.2.2/#1032-tag-resolution; merge keys are of YAML 1.1, and nothing else looks like them
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
for _name, (_pattern, _first) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})$"), list(_first))


def _in_quotes(dumper: yaml.SafeDumper, text: str) -> Any:
    """Text in whose plain form a character would be taken for a line's end, in double quotes."""
    return dumper.represent_scalar(f"{_TAG}str", text, style='"' if _BREAKS & set(text) else None)


_BREAKS = {"\x85", "\u2028", "\u2029"}
_Dumper.add_representer(str, _in_quotes)


def _text(loader: yaml.SafeLoader, node: Any) -> str:
    return str(loader.construct_scalar(node))


def _whole_number(loader: yaml.SafeLoader, node: Any) -> int:
    text = _text(loader, node)
    return int(text, 8 if text.startswith("0o") else 16 if text.startswith("0x") else 10)


def _float(loader: yaml.SafeLoader, node: Any) -> float:
    return float(_text(loader, node).lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor(f"{_TAG}int", _whole_number)
_Loader.add_constructor(f"{_TAG}float", _float)
_Loader.add_constructor(f"{_TAG}merge", _text)  # << as a value


def written(value: Any, **options: Any) -> str:
    """Return plain values as YAML, which reads as the same values here. options : of `yaml.dump`.

    Raises
    ------
    yaml.YAMLError
        For what has no form there.
    """
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **options))


def in_one_line(value: Any) -> str:
    """Return plain values as YAML on one line; values without a form in YAML as Python shows them."""
    try:
        return written(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
    except yaml.YAMLError:
        return repr(value)


def parse(text: str, name: str) -> tuple[Any, dict[Place, int]]:
    """Read a YAML text.

    Parameters
    ----------
    text : str
    name : str
        Of the text, for messages.

    Returns
    -------
    content : Any
    lines : dict
        The line of each key, from 1.

    Raises
    ------
    InputError
        With line and column, if it is not plain YAML.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        if _size(node, {}) > MOST_NODES:
            raise InputError(
                f"{name}: its aliases (*) stand for more than {MOST_NODES} values, or for themselves. Write the values out."
            )
        lines = dict(_places(node, (), name))
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        raise InputError(_in_words(error, text, name)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: is not plain YAML ({error}). `em-pipeline config` prints one.") from error


def _size(node: Any, known: dict[int, float]) -> float:
    """How many values a node stands for once its aliases are written out; infinite for one that holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        below = node.value if isinstance(node, (yaml.MappingNode, yaml.SequenceNode)) else []
        parts = (part for item in below for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _places(node: Any, at: Place, name: str) -> Iterator[tuple[Place, int]]:
    """Every key with its line. Raises InputError for a duplicate key."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            word, line = str(key.value), key.start_mark.line + 1
            if word in seen:
                raise InputError(
                    f"{name}, line {line}: {word} is given twice, first in line {seen[word]}. Make it one."
                )
            seen[word] = line
            yield (*at, word), line
            yield from _places(value, (*at, word), name)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*at, i), value.start_mark.line + 1
            yield from _places(value, (*at, i), name)


def _in_words(error: yaml.MarkedYAMLError, text: str, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"{name}: is not plain YAML ({error.problem}). `em-pipeline config` prints one."
    lines = text.splitlines() or [""]
    number, column, why = _usually(error, lines, mark)
    shown = lines[number].strip()
    return f"{name}, line {number + 1}, column {column + 1}: {shown[:60]!r} cannot be read as YAML. {why}"


def _usually(error: yaml.MarkedYAMLError, lines: list[str], mark: yaml.Mark) -> tuple[int, int, str]:
    """Line and column, from 0, of the usual cause, and what to do about it."""
    number, column = min(mark.line, len(lines) - 1), mark.column
    for i in range(number, max(number - 3, -1), -1):  # the error is at or before the line where it is noticed
        indent = lines[i][: len(lines[i]) - len(lines[i].lstrip())]
        if "\t" in indent:
            return i, indent.index("\t"), "A tab stands before it: YAML is indented with spaces, two for each level."
        if glued := GLUED.match(lines[i]):
            return i, glued.start(2), f"A space is missing after the colon: write `{glued[1]}: {glued[2]}`."
    opened = error.context_mark or mark
    for what, advice in _OPEN.items():
        if what in str(error.context):
            return number, column, advice.replace("{line}", str(opened.line + 1))
    if "quoted scalar" in str(error.context):
        return opened.line, opened.column, "The quote that begins here does not end."
    if (
        "alias" in str(error.context)
        or "anchor" in str(error.context)
        or "cannot start any token" in str(error.problem)
    ):
        return number, column, "Put the value in quotes: it begins with a character that YAML reserves."
    above = next((line for line in reversed(lines[:number]) if line.strip() and not line.lstrip().startswith("#")), "")
    if "constructor" in str(error.problem):
        return number, column, "It has a tag, which may stand for anything: plain YAML has none."
    has_value = not above.rstrip().endswith(":")
    if "mapping values" in str(error.problem) and has_value and _depth(lines[number]) > _depth(above):
        return number, column, "It is indented deeper than the line above: keys of one section begin in one column."
    if "mapping values" in str(error.problem):
        return number, column, "A second colon: put the value in quotes."
    return number, column, "Keys of one section begin in one column, and each has a colon and a space behind it."


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())
