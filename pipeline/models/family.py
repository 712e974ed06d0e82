"""What the `model` sections of all families have in common: properties of the family, candidates, the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.config import OneOrMore, Variant
from pipeline.config.section import lists_of
from pipeline.models.base import LatentModel
from pipeline.models.clusters import NoRows, Summary
from pipeline.models.words import Words


class FamilySection(Variant):
    """What to fit. A family derives from this, with `family` a Literal of its name, options of its own, and `build`.

    A field that is `OneOrMore` may be given as a list of values to choose from.

    Attributes
    ----------
    words : Words
        What the family is called, wherever people read of it.
    packages : tuple of str
        Packages beside ours that compute its bits.
    default_max_iter, default_tol : int, float
        What null means for `fit.max_iter` and `fit.tol`.
    assignments : tuple of str
        The values of `fit.assignment` that it takes; the first is what null means.
    methods, inits : tuple of str
        The values of `fit.method` and `fit.init` that it takes.
    criteria : tuple of str
        The values of `select.criterion` that it takes; those of a likelihood by default, none without one.
    takes_labels : bool
        Whether `data.labels` is for it: whether a row belongs to one component.
    counts : bool
        Whether rows must be counts of 0 or more, which are never preprocessed.
    sparse : bool
        Whether rows may be sparse.
    raw : bool
        Whether rows are never preprocessed: their values are codes.
    by_unit : bool
        Whether the rows of a unit (a sequence, a picture) are read together and come with `Rows.units`.
    second_moments : {"matrix", "variances", "none"}
        Which second moments of the rows the profile has to form for it.
    gives_labels : bool
        Whether `predict` gives a row a label.
    takes_missing : bool
        Whether entries of rows may be missing (`data.bad_rows: missing`).
    takes_errors : bool
        Whether rows may have known errors (`data.noise`).
    can_prune, has_standard_errors, has_silhouette, has_overlap : bool
        Whether `select.pruning`, `output.standard_errors`, `output.silhouette` and `output.overlap` are for it.
    template : dict
        What the commented YAML sets beside the defaults: sections of a job that can be run as it is.
    template_help : str
        What to do first with that YAML.
    """

    family: str = Field("gaussian", description="the kind of model")

    words: ClassVar[Words]
    packages: ClassVar[tuple[str, ...]] = ()
    default_max_iter: ClassVar[int] = 100
    default_tol: ClassVar[float] = 1e-3
    assignments: ClassVar[tuple[str, ...]] = ("soft", "hard")
    methods: ClassVar[tuple[str, ...]] = ("auto", "em", "incremental")
    inits: ClassVar[tuple[str, ...]] = ("k-means||", "k-means++", "random", "near-mean", "labels", "explicit", "run")
    criteria: ClassVar[tuple[str, ...]] = ("bic", "aic", "icl", "heldout")
    takes_labels: ClassVar[bool] = False
    gives_labels: ClassVar[bool] = True
    counts: ClassVar[bool] = False
    sparse: ClassVar[bool] = False
    raw: ClassVar[bool] = False
    by_unit: ClassVar[bool] = False
    second_moments: ClassVar[Literal["matrix", "variances", "none"]] = "variances"
    takes_missing: ClassVar[bool] = False
    takes_errors: ClassVar[bool] = False
    can_prune: ClassVar[bool] = False
    has_standard_errors: ClassVar[bool] = False
    has_silhouette: ClassVar[bool] = False
    has_overlap: ClassVar[bool] = False
    template: ClassVar[dict[str, Any]] = {"data": {"path": "digits"}}
    template_help: ClassVar[str] = "Set data.source and data.path to your data."

    @model_validator(mode="after")
    def _candidates_differ(self) -> Self:
        for name in lists_of(type(self)):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: the list names one value twice; name each once")
        return self

    @property
    def said(self) -> str:
        """The family in messages, with what makes it another model."""
        return self.family

    @property
    def fixed_parts(self) -> tuple[str, ...]:
        """The parts of the parameters that stay at their initial values: the option `fixed`, where there is one."""
        return tuple(getattr(self, "fixed", ()))

    @property
    def needs_box(self) -> bool:
        """Whether the model needs the extremes of the rows after preprocessing, which take a pass of their own."""
        return False

    @property
    def largest(self) -> int:
        """The largest number of components of a candidate, each of which needs a row to start from; 1 without components."""
        return 1

    def candidates(self) -> list[Self]:
        """Return a section with one value of each list, for every combination, in the order of the lists."""
        names = lists_of(type(self))
        if all(len(getattr(self, name)) == 1 for name in names):
            return [self]
        return [
            self.model_copy(update={name: (value,) for name, value in zip(names, values, strict=True)})
            for values in product(*(getattr(self, name) for name in names))
        ]

    @property
    def from_run(self) -> str | None:
        """The run directory that a prior is made of; None for the most families."""
        return None

    @abstractmethod
    def build(self, summary: Summary, assignment: str) -> LatentModel:
        """Return the model of a section that is one candidate.

        Parameters
        ----------
        summary : Summary
        assignment : {"soft", "hard"}
        """

    def build_for(self, summary: Summary, assignment: str, method: str) -> LatentModel:
        """Return the model for a method, as `fit.method`: most models are the same for all."""
        return self.build(summary, assignment)

    def used_columns(self) -> Mapping[str, bool] | None:
        """Return the columns that it names, and whether each holds categories; None where it names none."""
        return None

    def with_categories(self, counts: Mapping[str, int]) -> Self:
        """Return the section for columns of so many categories. counts : of columns by name."""
        return self

    def refuse_features(self, names: Sequence[str] | None, d: int) -> None:
        """Raise InputError if rows of these features are not what it names. names : None where they have none."""
        return None

    def for_few_rows(self) -> Self:
        """Return the section for a fit to a few chunks, which may lack words or labels that all rows have."""
        return self

    def of_no_rows(self, d: int) -> LatentModel:
        """Return a model for rows of d features, without data, to ask it for sizes."""
        return self.candidates()[0].build(NoRows(d), self.assignments[0])

    @classmethod
    def parameter_names(cls) -> list[str]:
        """Return the names of the parameters."""
        required = {"path": "-"} if "path" in cls.model_fields else {}
        return list(cls.model_validate(required).of_no_rows(1).fields)

    @classmethod
    def name(cls) -> str:
        """Return the family's name in `model.family`."""
        return str(cls.model_fields["family"].default)


class ClusterSection(FamilySection):
    """A family with components, such as mixtures and K-means."""

    n_components: OneOrMore[Annotated[int, Field(ge=1)]] = Field(
        (8,), description="how many components or clusters, or a list such as [5, 10, 20] to choose from (see select)"
    )

    takes_labels: ClassVar[bool] = True
    has_overlap: ClassVar[bool] = True
    template_help: ClassVar[str] = (
        "Set data.source and data.path to your data, and model.n_components to how many you look for."
    )

    @property
    def largest(self) -> int:
        return max(self.n_components)

    @property
    def fixed_of_components(self) -> tuple[str, ...]:
        """The fixed parts without the weights, which are of the mixture."""
        return tuple(part for part in self.fixed_parts if part != "weights")
