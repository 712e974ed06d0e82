"""The section of K-means."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.models.clusters import Summary, reference
from pipeline.models.family import ClusterSection
from pipeline.models.lloyd import Lloyd
from pipeline.models.words import Words


class KMeansSection(ClusterSection):
    """K-means, with scikit-learn's stopping rule."""

    family: Literal["kmeans"] = Field("kmeans", description="K-means")

    also_called: ClassVar[tuple[str, ...]] = ("lloyd",)
    words: ClassVar[Words] = Lloyd.words
    default_max_iter: ClassVar[int] = 300
    default_tol: ClassVar[float] = 1e-4
    assignments: ClassVar[tuple[str, ...]] = ("hard",)
    methods: ClassVar[tuple[str, ...]] = ("auto", "em")
    criteria: ClassVar[tuple[str, ...]] = ()
    has_silhouette: ClassVar[bool] = True
    template: ClassVar[dict[str, Any]] = {
        "data": {"source": "bundled", "path": "digits"},
        "model": {"family": "kmeans", "n_components": 10},
    }
    template_help: ClassVar[str] = (
        "Set data.source and data.path to your data, and model.n_components to how many clusters you look for. As it is, it "
        "clusters 1797 handwritten digits that are installed with scikit-learn."
    )

    def build(self, summary: Summary, assignment: str) -> Lloyd:
        [k] = self.n_components
        return Lloyd(k, reference(summary), float(np.mean(summary.variance)))
