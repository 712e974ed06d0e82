"""What a JSON Schema says of the parts of a config that pydantic does not describe: what validators take before a type, and variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class AlsoWritten:
    """Annotation: what may be written instead of a value of the type, because a validator reads it. schema : of it."""

    schema: Mapping[str, Any]

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(core), dict(self.schema)]}


class ListOrItem:
    """Annotation of a tuple: a list with an entry or more, or the entry alone."""

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        item = handler(core)["items"]
        return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]}
