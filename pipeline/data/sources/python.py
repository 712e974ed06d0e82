"""Rows of a source in a file of the user's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline.config import LocalPath, outside
from pipeline.config.explaining import explain
from pipeline.data.section import DataSection
from pipeline.data.source import Source
from pipeline.errors import InputError


class PythonSection(DataSection):
    """A source that a file defines: a subclass of `Source`, made of `options`, or of `DataSection`, which validates them."""

    source: Literal["python"] = Field("python", description="a source in a file of your own")
    path: LocalPath = Field(
        description="a Python file and a class in it, such as my_source.py:MySource; the file is executed"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="what the class is made of")

    def open(self) -> Source:
        found, _ = outside.load(self.path, "data.path")
        if isinstance(found, type) and issubclass(found, Source):
            try:
                return found(**self.options)
            except TypeError as error:
                raise InputError(
                    f"data.options: {found.__name__} does not take them ({error}). Correct them."
                ) from error
        if isinstance(found, type) and issubclass(found, DataSection):
            try:
                return found.model_validate(self.options).open()
            except ValidationError as error:
                raise InputError(explain(error.errors(), self.options, {}, "data.options", found)) from error
        raise InputError(f"data.path: got {self.path}, expected a subclass of Source or DataSection (pipeline.data).")

    def code(self) -> str:
        return outside.sha256_of(self.path, "data.path")
