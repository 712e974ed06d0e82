"""What a fit takes over from an earlier run: parameters, preprocessing, and the statistics of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.data.preprocess import Affine
from pipeline.models.base import Evidence, LatentModel, Partial, Totals
from pipeline.models.schema import selected


@stored
@dataclass(frozen=True)
class Statistics:
    """The last E-step of an earlier run: what it says of rows that are not read again.

    Attributes
    ----------
    model : LatentModel
        With the reference point and the prior that the statistics belong to.
    totals : Totals
        Of the rows, their latent variables as the final parameters have them. Their log-likelihood is left out: it is known of these
        parameters only, while their bound, the expected log joint plus the entropy, is known of all. For K-means, that is minus their
        inertia with fixed labels, which here is the one about the means of these.
    order : array of int, shape (k,), or None
        Components of the model in the order in which they are stored and shown.
    """

    model: LatentModel
    totals: Totals
    order: Array | None = None

    @classmethod
    def of(cls, model: LatentModel, params: Any, totals: Totals, order: Array | None = None) -> Statistics:
        """Return the statistics, without the log-likelihood. params : under which the totals were found, in the model's order."""
        found = totals.evidence
        evidence = Evidence(found.weight, found.entropy, None, found.label_entropy)
        return cls(model, Totals(model.restated(totals.stats, params, None), evidence), order)

    def with_rows(self, partial: Partial, params: Any) -> Partial:
        """Return the E-step of new rows under `params` with the earlier rows in its sums; what it attached is of the new rows alone."""
        stats = partial.stats + self.model.restated(self.totals.stats, None, params)
        return Partial(stats, partial.evidence + self.totals.evidence, partial.attached)

    def unordered(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return stored parameters with components in the model's order."""
        if self.order is None:
            return dict(arrays)
        return selected(self.model.fields, arrays, self.order.argsort())


@stored
@dataclass(frozen=True)
class Earlier:
    """What is taken over.

    Attributes
    ----------
    arrays : mapping of str to array
        Parameters by name.
    affine : Affine or None
        The preprocessing, in whose space they are.
    statistics : Statistics or None
        Of its rows, where they count beside the new ones.
    """

    arrays: Mapping[str, Array]
    affine: Affine | None = None
    statistics: Statistics | None = None
