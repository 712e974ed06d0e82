"""What components with covariances of some type take in memory, for the plan of a job."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from pipeline.models.component import Component
from pipeline.models.covariance import Shape


class OfShape(Component):
    """Bytes of the statistics of a covariance type, and of what is computed from them and beside them."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """The functions of the covariance type."""

    def statistics_bytes(self) -> int:
        moments = self.shape.moments_shape(self.n_components, self.n_features)
        return 8 * (self.n_components * self.n_features + int(np.prod(moments)))

    def prepared_bytes(self) -> int:
        """Factors, and what passes read of them: triangles in the rows' dtype."""
        return 2 * 8 * int(np.prod(self.shape.array_shape(self.n_components, self.n_features)))

    def scratch_bytes(self) -> int:
        """Matrices of second moments, or factors and moments as features; a plan counts them twice."""
        if self.shape.is_matrix and self.shape.per_component:
            return 8 * self.n_components * self.n_features**2
        return 2 * self.statistics_bytes()
