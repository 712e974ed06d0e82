"""How far the components of a mixture overlap: which labels the rows of each component get.

References
----------
Maitra and Melnykov (2010), section 2: the overlap of two components is the sum of the two probabilities of misclassification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows
from pipeline.models.base import Expectation
from pipeline.models.clusters import ClusterModel

MOST_COMPONENTS = 1000  # of a matrix of all pairs


@stored
@dataclass(frozen=True)
class Overlap(Additive):
    """Sums over rows, float64. by_label : (k, k), the weighted responsibilities of each component by the label of the row."""

    by_label: Array


@dataclass(frozen=True)
class OverlapOfRows:
    """Attachment: the overlap of the components of a mixture, without rows that are noise.

    Labels are the model's own, also of rows whose label is known.
    """

    name: ClassVar[str] = "overlap"

    def of(self, model: ClusterModel, params: Any, rows: Rows, found: Expectation, kernels: Any) -> Overlap:
        k = model.n_components
        by_label = np.zeros((k, k))
        for part, labels in model.assign(params, rows.x, kernels):
            weight = 1.0 if rows.weight is None else rows.weight[part]
            weight = weight * (labels.label >= 0)
            own = sp.csr_array(
                (weight, np.maximum(labels.label, 0), np.arange(len(weight) + 1)), shape=(len(weight), k)
            )
            by_label += own.T @ np.exp(labels.log_resp)
        return Overlap(by_label.T.copy())

    def nbytes(self, model: ClusterModel) -> int:
        return 8 * model.n_components**2
