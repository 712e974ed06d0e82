"""The base of all sections: strict, frozen, with sizes as people write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationInfo, field_validator

from pipeline.config.schema import ListOrItem

T = TypeVar("T")

SIZE = r"^\s*([0-9]{1,30}(?:\.[0-9]*)?)\s*([A-Za-z]*)\s*$"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class Section(BaseModel):
    """A frozen part of the config that accepts its own keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject true and false as numbers, which pydantic accepts as 1 and 0."""
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"got {str(value)[:20]}…, expected a number below 2**63")
        types = set(_types(cls.model_fields[info.field_name or ""].annotation))
        return _without_bools(value) if {int, float} & types and not {bool, Any} & types else value


class _Truth:
    """A true or false in place of a number."""


def _without_bools(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_without_bools(item) for item in value]
    return _Truth() if isinstance(value, bool) else value


def _types(annotation: Any) -> Iterator[Any]:
    """The types in an annotation, without those of sections."""
    yield annotation
    for part in get_args(annotation):
        yield from _types(part)


def parse_bytes(value: Any) -> Any:
    """Read a size in bytes.

    Parameters
    ----------
    value : int or str
        Such as ``1GiB``, ``500 MB``, a plain number, or ``auto``.

    Returns
    -------
    int or str
        The number of bytes; ``auto`` as it is.

    Raises
    ------
    ValueError
        If the text is not a size.
    """
    if not isinstance(value, str) or value == "auto":
        return value
    match = re.fullmatch(SIZE, value)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{value[:40]!r} is not a size; write for example 1GiB, 500MB or auto")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _as_list(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and not value:
        raise ValueError("got an empty list; give at least one value")
    return value if isinstance(value, (list, tuple)) else [value]


def _as_written(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else list(values)


_LISTED = BeforeValidator(_as_list)

OneOrMore = Annotated[tuple[T, ...], _LISTED, PlainSerializer(_as_written), ListOrItem()]
"""One value or a list of values to choose from, read and written as either."""


def lists_of(section: type[Section]) -> list[str]:
    """Names of the fields of a section that are `OneOrMore`."""
    return [name for name, field in section.model_fields.items() if any(item is _LISTED for item in field.metadata)]
