"""The section of multinomial mixtures."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field

from pipeline.config import Section
from pipeline.models.family import FamilySection, Summary
from pipeline.models.multinomial import Multinomial
from pipeline.models.words import Words

_LEAST_CONCENTRATION = 1.1  # of a fit to few documents: any word may come


def _no_word(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("write null for none, or {weights: …} above 1; the prior of the words is model.concentration")
    return value


class WeightPriorSection(Section):
    """A conjugate prior on the weights; that of the words is `concentration`."""

    weights: float = Field(gt=1, description="Dirichlet concentration of the weights")


class MultinomialSection(FamilySection):
    """A mixture of multinomials over counts, such as words in documents."""

    family: Literal["multinomial"] = Field("multinomial", description="a mixture of multinomials, for counts")
    prior: Annotated[WeightPriorSection | None, BeforeValidator(_no_word)] = Field(
        None,
        description="conjugate prior on the weights, for the most probable parameters; null: none; or {weights: 2}",
    )
    concentration: float = Field(1.1, ge=1, description="Dirichlet prior on words: counts + concentration - 1")
    fixed: list[Literal["weights"]] = Field(default_factory=list, description="parts that stay at their initial values")

    also_called: ClassVar[tuple[str, ...]] = ("lda",)
    words: ClassVar[Words] = Multinomial.words
    counts: ClassVar[bool] = True
    sparse: ClassVar[bool] = True
    template: ClassVar[dict[str, Any]] = {
        "data": {"source": "docword", "path": "docword.txt.gz", "vocabulary": "vocab.txt"},
        "model": {"family": "multinomial", "n_components": 20},
    }
    template_help: ClassVar[str] = (
        "Set data.path to your counts (UCI's docword format: D, W and NNZ on a line each, then `document word count` lines), "
        "data.vocabulary to their words or null, and model.n_components to how many topics you look for."
    )

    @property
    def fixed_parts(self) -> tuple[str, ...]:
        return tuple(self.fixed)

    def build(self, summary: Summary, assignment: str) -> Multinomial:
        [k] = self.n_components
        of_weights = 1.0 if self.prior is None else self.prior.weights
        origin = np.zeros(len(summary.mean))
        return Multinomial(k, origin, self.concentration, assignment, self.fixed_parts, of_weights)

    def for_few_rows(self) -> Self:
        return self.model_copy(update={"concentration": max(self.concentration, _LEAST_CONCENTRATION)})
