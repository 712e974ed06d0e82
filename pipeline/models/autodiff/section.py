"""The config section of a user's model: its options, and what it can be fitted by, follow from the class."""

from __future__ import annotations

from dataclasses import MISSING, fields
from functools import cache
from typing import Any, ClassVar, Literal, Self, get_type_hints

import numpy as np
from pydantic import Field, create_model, model_validator

from pipeline.config import OneOrMore
from pipeline.config.section import lists_of
from pipeline.errors import InputError
from pipeline.models.autodiff.compiled import layout_of, shapes_of
from pipeline.models.autodiff.declare import JaxModel, has
from pipeline.models.autodiff.latent import AutodiffModel
from pipeline.models.autodiff.sufficient import anchors_of
from pipeline.models.base import LatentModel
from pipeline.models.clusters import Summary
from pipeline.models.family import FamilySection
from pipeline.models.words import Words

PACKAGES = ("jax", "jaxlib")
ANCHOR_ROWS = 512  # of the sample, among which anchors are found
PLAIN = (bool, int, float, str)  # types of options that may be lists to choose from


class JaxSection(FamilySection):
    """A model in JAX that a file defines."""

    fixed: list[str] = Field(default_factory=list, description="parameters that stay at their initial values")

    user: ClassVar[type[JaxModel]]
    packages: ClassVar[tuple[str, ...]] = PACKAGES
    assignments: ClassVar[tuple[str, ...]] = ("soft",)
    inits: ClassVar[tuple[str, ...]] = ("random", "explicit")
    default_max_iter: ClassVar[int] = 500
    default_tol: ClassVar[float] = 1e-8
    has_standard_errors: ClassVar[bool] = True

    @model_validator(mode="after")
    def _fixed_are_parameters(self) -> Self:
        if unknown := sorted(set(self.fixed) - set(self.user.parameters)):
            raise ValueError(f"fixed: got {', '.join(unknown)}, expected some of {', '.join(self.user.parameters)}")
        return self

    def model(self) -> JaxModel:
        """Return the user's model with the options of a section that is one candidate."""
        listed = lists_of(type(self))
        values = {each.name: getattr(self, each.name) for each in fields(self.user)}  # type: ignore[arg-type]
        found = self.user(**{name: value[0] if name in listed else value for name, value in values.items()})
        try:
            hash(found)
        except TypeError as error:
            raise InputError(
                f"{self.user.__name__}: {error}. Options are numbers, text, or tuples of these."
            ) from error
        return found

    def build(self, summary: Summary, assignment: str) -> LatentModel:
        return self.build_for(summary, assignment, self.methods[0])

    def build_for(self, summary: Summary, assignment: str, method: str) -> LatentModel:
        user, d = self.model(), len(summary.mean)
        layout, shapes, rule = layout_of(user, d), shapes_of(user, d), rule_of(type(user), method)
        anchors, reference = np.empty((max(1, shapes.n_labels), 0, d)), np.zeros(layout.size)
        if rule == "sufficient" and summary.sample.x.shape[0]:
            sample = np.asarray(summary.sample.x[:ANCHOR_ROWS], dtype=np.float64)
            other = reference + 0.5 * np.cos(np.arange(layout.size))
            anchors = anchors_of(user, sample, reference, other)
        return AutodiffModel(user, d, rule, anchors, reference, tuple(self.fixed))


def rule_of(user: type[JaxModel], method: str) -> str:
    """Return how parameters are updated. method : as `fit.method`."""
    if method in ("newton", "gradient"):
        return method
    for rule, needed in (("m_step", "m_step"), ("sufficient", "statistics")):
        if has(user, needed):
            return rule
    return "newton" if method == "auto" else "em"


def _methods(user: type[JaxModel]) -> tuple[str, ...]:
    if has(user, "m_step"):
        return ("auto", "em", "newton", "gradient")
    if has(user, "statistics"):
        return ("auto", "em", "incremental", "newton", "gradient")
    return ("auto", "newton", "gradient") if has(user, "e_step") else ("auto", "em", "newton", "gradient")


@cache
def section_of(user: type[JaxModel]) -> type[JaxSection]:
    """Return the section of a user's class, whose keys are the options of the class."""
    hints, options = get_type_hints(user), {}
    for each in fields(user):  # type: ignore[arg-type]
        kind = hints[each.name]
        default: Any = ... if each.default is MISSING else each.default
        if kind in PLAIN:
            kind, default = OneOrMore[kind], default if default is ... else (default,)  # type: ignore[valid-type]
        if each.name in JaxSection.model_fields or hasattr(JaxSection, each.name):
            raise InputError(f"{user.__name__}: an option cannot be called {each.name}. Rename it.")
        options[each.name] = (kind, Field(default, description=f"option of {user.__name__}"))
    family = (Literal["python"], Field("python", description="a family in a file of your own"))
    make: Any = create_model  # whose types do not know of fields in a dict
    section: Any = make(user.__name__, __base__=JaxSection, __module__=user.__module__, family=family, **options)
    section.__doc__ = user.__doc__ or f"A model in JAX: {user.__name__}."
    section.user, section.methods = user, _methods(user)
    name = user.name or user.__name__
    section.words = Words(name, name)
    return section
