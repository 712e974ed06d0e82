"""A family in a file of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.config import LocalPath, outside
from pipeline.errors import InputError
from pipeline.models.base import LatentModel
from pipeline.models.clusters import Summary
from pipeline.models.family import FamilySection
from pipeline.models.words import Words


class PythonFamilySection(FamilySection):
    """A family that a file defines: a subclass of `FamilySection`, which validates the keys beside `path`.

    The class may also be a model, whose attribute `section` is such a subclass.
    """

    family: Literal["python"] = Field("python", description="a family in a file of your own")
    path: LocalPath = Field(
        description="a Python file and a class in it, such as my_model.py:Poisson; the file is executed"
    )

    words: ClassVar[Words] = Words("model", "A model with {k} components")

    @classmethod
    def resolve(cls, raw: Mapping[str, Any]) -> type[FamilySection]:  # type: ignore[override]  # not of this class: of its family
        path = raw.get("path")
        if not isinstance(path, str):
            return cls
        found, sha256 = outside.load(path, "model.path")
        section = getattr(found, "section", found)
        if not (isinstance(section, type) and issubclass(section, FamilySection)):
            raise InputError(
                f"model.path: got {path}, which is no FamilySection and has none as its attribute section. "
                "Derive it from pipeline.models.family.FamilySection."
            )
        return _with_path(section, sha256)

    def build(self, summary: Summary, assignment: str) -> LatentModel:
        raise AssertionError("the section that the file defines builds the model")


@cache
def _with_path(section: type[FamilySection], sha256: str) -> type[FamilySection]:
    """The section of a file, with the keys that name the file."""

    class FromFile(section):  # type: ignore[valid-type, misc]  # the class is not known before the config is read
        __doc__ = section.__doc__
        family: Literal["python"] = Field("python", description="a family in a file of your own")
        path: LocalPath = Field(description=PythonFamilySection.model_fields["path"].description)

        def code(self) -> str:
            return sha256

    return FromFile
