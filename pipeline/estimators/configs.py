"""The configs of fits from Python, validated once for equal parameters: that takes as long as some passes over a thousand rows."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from pipeline.jobconfig import Config, validate


def config_of(name: str, **sections: Any) -> Config:
    """Return the config of sections, as plain dicts and lists. name : of the class, for messages.

    Raises
    ------
    InputError
        For parameters that are not valid.
    """
    try:
        text = json.dumps(sections)
    except (TypeError, ValueError):  # an array, perhaps
        return validate(sections, name=name).resolved()
    return _of_text(name, text)


@lru_cache(maxsize=64)
def _of_text(name: str, text: str) -> Config:
    return validate(json.loads(text), name=name).resolved()
