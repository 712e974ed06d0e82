"""What every part of the config is: strict, frozen, with sizes a person can write."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(value: Any) -> Any:
    """`1GiB`, `500 MB` or a plain number, in bytes; `auto` stays as it is."""
    if not isinstance(value, str) or value == "auto":
        return value
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write for example 1GiB, 500MB or auto")
    return int(float(match[1]) * _UNITS[match[2].upper()])


class Section(BaseModel):
    """A frozen part of the config that accepts its own keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
