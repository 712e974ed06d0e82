"""The section of K-means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pipeline.errors import InputError
from pipeline.models.clusters import Summary, reference
from pipeline.models.family import ClusterSection
from pipeline.models.hierarchy import Hierarchy
from pipeline.models.lloyd import Lloyd
from pipeline.models.quantizers import ProductQuantizer, ResidualQuantizer
from pipeline.models.separation import BY_SEPARATION
from pipeline.models.words import Words


class CentersSection(ClusterSection):
    """What K-means by distance and by cosine have in common: scikit-learn's stopping rule, and hard assignment alone."""

    words: ClassVar[Words] = Lloyd.words
    default_max_iter: ClassVar[int] = 300
    default_tol: ClassVar[float] = 1e-4
    assignments: ClassVar[tuple[str, ...]] = ("hard",)
    has_overlap: ClassVar[bool] = False
    methods: ClassVar[tuple[str, ...]] = ("auto", "em")
    criteria: ClassVar[tuple[str, ...]] = ()
    has_silhouette: ClassVar[bool] = True
    template_help: ClassVar[str] = (
        "Set data.source and data.path to your data, and model.n_components to how many clusters you look for. As it is, it "
        "clusters 1797 handwritten digits that are installed with scikit-learn."
    )


class KMeansSection(CentersSection):
    """K-means, with scikit-learn's stopping rule."""

    family: Literal["kmeans"] = Field("kmeans", description="K-means")
    levels: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="hierarchical K-means, for very many clusters: [1000, 100] has 100,000 clusters in 1000 groups of 100 on average; "
        "n_components is their product, or left out",
    )

    parts: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="a product quantiser: K-means of each of so many parts of the features, with n_components entries each; 8 parts of 256 "
        "entries take 8 bytes a row",
    )
    stages: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="a residual quantiser: K-means of rows, and in each further stage of what is left of them, with n_components entries each",
    )

    also_called: ClassVar[tuple[str, ...]] = ("lloyd",)
    criteria: ClassVar[tuple[str, ...]] = BY_SEPARATION
    template: ClassVar[dict[str, Any]] = {
        "data": {"source": "bundled", "path": "digits"},
        "model": {"family": "kmeans", "n_components": 10},
    }

    @classmethod
    def resolve(cls, raw: Mapping[str, Any]) -> type[Self]:
        given = [section for name, section in _WITH.items() if raw.get(name) is not None]
        return given[0] if given else cls  # type: ignore[return-value]  # of a subclass

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in _WITH if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{given[0]}: does not go with {given[1]}; leave one of them out")
        return self

    def build(self, summary: Summary, assignment: str) -> Lloyd:
        [k] = self.n_components
        return Lloyd(k, reference(summary), float(np.mean(summary.variance)))


class HierarchySection(KMeansSection):
    """K-means with `levels`."""

    takes_labels: ClassVar[bool] = False
    inits: ClassVar[tuple[str, ...]] = ("k-means||", "k-means++", "random", "explicit", "run")

    @model_validator(mode="before")
    @classmethod
    def _has_their_product(cls, raw: Any) -> Any:
        levels = raw.get("levels") if isinstance(raw, Mapping) else None
        if not isinstance(levels, list | tuple) or not all(isinstance(each, int) for each in levels):
            return raw  # which the type refuses
        k = int(np.prod(levels))
        given = raw.get("n_components", k)
        if given not in (k, [k], (k,)):
            raise ValueError(
                f"n_components: got {given}, but levels {list(levels)} make {k}; leave n_components out, or correct one of them"
            )
        return {**raw, "n_components": k}

    def build(self, summary: Summary, assignment: str) -> Hierarchy:
        flat = super().build(summary, assignment)
        assert self.levels is not None
        return Hierarchy(flat.k, flat.shift, flat.variance, self.levels[0])


class QuantizerSection(KMeansSection):
    """K-means with `parts` or `stages`: a row has an entry of each, and no label."""

    takes_labels: ClassVar[bool] = False
    gives_labels: ClassVar[bool] = False
    methods: ClassVar[tuple[str, ...]] = ("auto",)
    inits: ClassVar[tuple[str, ...]] = ("k-means||", "k-means++", "random", "explicit", "run")
    criteria: ClassVar[tuple[str, ...]] = ()
    has_silhouette: ClassVar[bool] = False

    @property
    def said(self) -> str:
        return f"{self.family} with {'parts' if self.parts else 'stages'}"


class ProductSection(QuantizerSection):
    """K-means with `parts`."""

    words: ClassVar[Words] = ProductQuantizer.words

    def build(self, summary: Summary, assignment: str) -> ProductQuantizer:  # type: ignore[override]  # it has no labels
        [k], parts, d = self.n_components, self.parts, len(summary.mean)
        assert parts is not None
        if parts > d:
            raise InputError(
                f"model.parts: got {parts}, but rows have {d} features after preprocess. Set it to at most {d}."
            )
        return ProductQuantizer(k, reference(summary), summary.variance, parts)


class ResidualSection(QuantizerSection):
    """K-means with `stages`."""

    words: ClassVar[Words] = ResidualQuantizer.words

    def build(self, summary: Summary, assignment: str) -> ResidualQuantizer:  # type: ignore[override]  # it has no labels
        [k], stages = self.n_components, self.stages
        assert stages is not None
        return ResidualQuantizer(k, reference(summary), float(np.mean(summary.variance)), stages)


_WITH: dict[str, type[KMeansSection]] = {"levels": HierarchySection, "parts": ProductSection, "stages": ResidualSection}
