"""The sections: one strict section per part of the job; unknown keys are errors.

A field's default, bounds and description are written once, here; the commented YAML that
`em-pipeline config` prints (`template.py`) is generated from them.
"""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from pipeline.config.engine import Engine
from pipeline.config.section import Section

T = TypeVar("T")
Family = Literal["gaussian", "kmeans", "multinomial"]
CovarianceType = Literal["full", "tied", "diag", "spherical"]


def _listed(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and not value:
        raise ValueError("came as an empty list; give at least one value")
    return value if isinstance(value, (list, tuple)) else [value]


def _unlisted(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else list(values)


# One value or a list of them, read and written as either.
OneOrMore = Annotated[tuple[T, ...], BeforeValidator(_listed), PlainSerializer(_unlisted)]


class Patch(Section):
    """How pictures are cut into rows."""

    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        (8, 8), description="height and width of a patch, in pixels"
    )
    stride: int = Field(1, ge=1, description="pixels from one patch to the next")
    remove_mean: bool = Field(
        True, description="drop each patch's mean: size-1 features in an orthonormal basis without the constant"
    )
    contrast: float | None = Field(
        None, gt=0, description="divide each patch by its deviation, floored at this value (pixels are 0 to 1)"
    )


class MixtureSpec(Section):
    """A known Gaussian mixture to draw rows from."""

    weights: list[float] = Field(min_length=1, description="one weight a component")
    means: list[list[float]] = Field(description="component x feature")
    covariances: list[Any] = Field(description="component x feature x feature, x feature, or one variance each")


class Data(Section):
    """What to read."""

    source: Literal["images", "zarr", "npy", "csv", "idx", "docword", "synthetic", "bundled"] = Field(
        "bundled", description="what kind of data this is"
    )
    path: str | None = Field(
        None,
        description="file, folder, zarr store, or any fsspec URL; bundled: digits or photographs; images: a folder, or photographs",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, description="passed on to fsspec; never written to the run directory"
    )
    variable: str | None = Field(None, description="which array of a zarr group")
    patch: Patch = Field(default_factory=Patch, description="images: how pictures are cut into rows, when read")
    n_rows: int | None = Field(None, ge=1, description="synthetic: how many rows")
    mixture: MixtureSpec | None = Field(None, description="synthetic: weights, means and covariances to draw from")
    random_state: int = Field(0, ge=0, description="synthetic: the seed of the data")
    dtype: Literal["float32", "float64"] = Field("float64", description="synthetic: the type of the data")
    delimiter: str | None = Field(None, description="csv: what separates columns; null finds out")
    weights: str | None = Field(None, description="path of a .npy or .zarr with one non-negative weight a row")
    vocabulary: str | None = Field(None, description="docword: path of a text file with one word a line")
    bad_rows: Literal["error", "drop"] = Field("error", description="what to do about rows with NaN or inf")
    missing_chunks: Literal["error", "fill"] = Field(
        "error", description="zarr: fill is for stores that left out chunks of nothing but the fill value"
    )
    cache: str | None = Field(
        None,
        description="docword and large .gz files: folder of the converted copy (workers must see it); null: beside the input",
    )


class Preprocess(Section):
    """One affine step; steps apply in order and are fitted in one pass over the data."""

    kind: Literal["center", "standardize", "pca", "zca"] = Field(description="what to do")
    n_components: int | None = Field(None, ge=1, description="pca: how many components are kept")
    whiten: bool = Field(False, description="pca: unit variance along each component")
    epsilon: float = Field(1e-6, ge=0, description="zca: added to each eigenvalue, as a share of their mean")


def _default_prior(value: Any) -> Any:
    """`auto` is the prior that nothing is said about."""
    if isinstance(value, str):
        if value != "auto":
            raise ValueError("write null for none, auto, or a mapping such as {shrinkage: 0.01}")
        return {}
    return value


class Prior(Section):
    """Conjugate priors, as rows that are imagined beside the data's; what is left out is Fraley and Raftery's (2007)."""

    weights: float = Field(1.0, ge=1, description="Dirichlet concentration of the weights; 1: none")
    shrinkage: float | None = Field(
        None, ge=0, description="gaussian: rows that each mean's pull to the data's mean counts as; 0: none; null: 0.01"
    )
    dof: float | None = Field(
        None, gt=0, description="gaussian: degrees of freedom of the covariances' inverse Wishart; null: features + 2"
    )
    scale: float | None = Field(
        None,
        ge=0,
        description="gaussian: its scale, as a share of the data's covariance; 0: none; null: n_components^(-2/features)",
    )


class Candidate(NamedTuple):
    """One of the models to choose from."""

    n_components: int
    covariance_type: CovarianceType


class Model(Section):
    """What to fit."""

    family: Family = Field("gaussian", description="the kind of clustering")
    n_components: OneOrMore[Annotated[int, Field(ge=1)]] = Field(
        (8,), description="how many components or clusters, or a list such as [5, 10, 20] to choose from (see select)"
    )
    covariance_type: OneOrMore[CovarianceType] = Field(
        ("full",), description="gaussian: its shape, or a list to choose from"
    )
    reg_covar: float = Field(
        1e-6,
        ge=0,
        description="gaussian: added to each covariance's diagonal after an M-step; under a prior of covariances, to the "
        "covariance that its scale comes from",
    )
    prior: Annotated[Prior | None, BeforeValidator(_default_prior)] = Field(
        None,
        description="conjugate priors, for the most probable parameters; null: none; auto: Fraley and Raftery's; or",
    )
    concentration: float = Field(
        1.1, ge=1, description="multinomial: Dirichlet prior on words; counts + concentration - 1"
    )
    fixed: list[Literal["weights", "means", "covariances"]] = Field(
        default_factory=list, description="parts held at their initial values"
    )

    @model_validator(mode="after")
    def _fixed_parts_exist(self) -> Model:
        allowed = {"gaussian": {"weights", "means", "covariances"}, "multinomial": {"weights"}, "kmeans": set()}
        extra = set(self.fixed) - allowed[self.family]
        if extra:
            raise ValueError(f"fixed: {sorted(extra)} cannot be held in a {self.family} model")
        return self

    @model_validator(mode="after")
    def _prior_has_parts(self) -> Model:
        prior = self.prior
        if prior is None:
            return self
        if self.family == "kmeans":
            raise ValueError("prior: kmeans has no density that a prior could join; use family gaussian, or null")
        of_rows = [prior.shrinkage, prior.dof, prior.scale]
        if self.family == "multinomial" and (prior.weights == 1 or any(value is not None for value in of_rows)):
            raise ValueError(
                "prior: a multinomial takes {weights: …} above 1 and nothing else; that of its words is model.concentration"
            )
        if prior.scale == 0 and prior.dof is not None:
            raise ValueError(f"prior: scale 0 means no prior of covariances, but dof is {prior.dof:g}; leave one out")
        return self

    @model_validator(mode="after")
    def _candidates_differ(self) -> Model:
        if len(set(self.candidates)) < len(self.candidates):
            raise ValueError("n_components or covariance_type: a list names one value twice; name each once")
        if len(self.covariance_type) > 1 and self.family != "gaussian":
            raise ValueError(f"covariance_type: a {self.family} model has none to choose from; leave it out")
        return self

    @property
    def candidates(self) -> list[Candidate]:
        """Every combination of the two lists, in their order; one where there is nothing to choose."""
        return [Candidate(*both) for both in product(self.n_components, self.covariance_type)]


class Fit(Section):
    """How to fit it."""

    method: Literal["auto", "em", "incremental", "stepwise"] = Field(
        "auto",
        description="em: the textbook's loop and its stopping; auto: accelerated, until less than tol is left to gain; "
        "incremental, stepwise: first by blocks of chunks, then as auto; kmeans: auto is em",
    )
    assignment: Literal["soft", "hard"] | None = Field(
        None, description="soft responsibilities or hard labels; null: soft for mixtures, hard for kmeans"
    )
    init: Literal["k-means||", "k-means++", "random", "near-mean", "labels", "explicit"] = Field(
        "k-means||", description="where to start from"
    )
    init_path: str | None = Field(
        None,
        description="explicit: .npz or .zarr with weights, means, covariances (or centers, or weights, log_prob); "
        "labels: .npy or .zarr, one integer a row",
    )
    n_init: int = Field(1, ge=1, description="restarts; all share each read of the data; the best one is kept")
    max_iter: int | None = Field(None, ge=1, description="most iterations; null: 100, kmeans 300")
    tol: float | None = Field(
        None,
        ge=0,
        description="stop when the objective moves less and, but for method em, less is left to gain, in nats per row; "
        "kmeans: as scikit-learn's; null: 1e-3, kmeans 1e-4",
    )
    moves: Annotated[Literal["auto", "off"], BeforeValidator(lambda value: "off" if value is False else value)] = Field(
        "auto", description="moves between optima that the method allows; em allows none"
    )
    random_state: int = Field(0, ge=0, description="the seed; every draw is keyed by it and the row's number")

    @model_validator(mode="after")
    def _path_is_given(self) -> Fit:
        given = self.init in ("labels", "explicit")
        if given and self.init_path is None:
            raise ValueError(f"init_path: is missing; init: {self.init} needs the file that it starts from")
        if not given and self.init_path is not None:
            raise ValueError(
                f"init_path: init: {self.init} and init_path do not go together; leave it out, or set init to labels or explicit"
            )
        return self


class Select(Section):
    """How to choose among several models: lists of model.n_components or model.covariance_type."""

    criterion: Literal["bic", "aic", "icl", "heldout"] = Field(
        "bic", description="what decides; heldout: the log-likelihood of the rows held out"
    )
    heldout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of pictures, documents, else rows, held out of the fits; the chosen model is refitted to all rows",
    )

    annihilation: bool = Field(
        False,
        description="gaussian: n_components is the most there may be; components that too few rows support are annihilated, and "
        "as many are fitted as make the shortest message; true | false",
    )


class Output(Section):
    """What to write."""

    path: str = Field("runs/run", description="the run directory")
    labels: bool = Field(True, description="write labels.zarr")
    top_k: int = Field(0, ge=0, description="responsibilities kept per row in labels.zarr")
    standard_errors: bool | Literal["given-covariances"] = Field(
        False,
        description="gaussian: weights_se and means_se in model.zarr, for one more read of the data; given-covariances: as if "
        "those were known, which needs less memory and gives errors that are too small; true | false",
    )
    keep_checkpoints: int = Field(
        3, ge=1, description="newest checkpoints that are kept; should one be damaged, the one before is used"
    )
    keep_iterations: Literal["all"] | list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list,
        description="iterations whose parameters are kept in RUN/iterations, to be looked at or replayed, such as "
        "[0, 1, 2, 3, 5, 10, 20]; 0 is the start",
    )


class Config(Section):
    """The whole config of a job."""

    data: Data = Field(default_factory=Data, description="what to read")
    preprocess: list[Preprocess] = Field(
        default_factory=list, description="e.g. [{kind: pca, n_components: 16, whiten: true}]; applied in order"
    )
    model: Model = Field(default_factory=Model, description="what to fit")
    fit: Fit = Field(default_factory=Fit, description="how to fit it")
    select: Select = Field(default_factory=Select, description="how to choose among several models")
    engine: Engine = Field(default_factory=Engine, description="where to compute; changes no bit of the result")
    output: Output = Field(default_factory=Output, description="what to write")

    @model_validator(mode="after")
    def _parts_agree(self) -> Config:
        if self.model.family == "kmeans" and self.fit.assignment == "soft":
            raise ValueError("fit.assignment: kmeans assigns hard; choose family gaussian for soft assignment")
        if self.model.family == "kmeans" and self.fit.method in ("incremental", "stepwise"):
            raise ValueError(f"fit.method: {self.fit.method} is for mixtures; choose auto or em for kmeans")
        if self.data.source == "synthetic" and (self.data.n_rows is None or self.data.mixture is None):
            raise ValueError("data: source synthetic needs n_rows and mixture (configs/ has an example)")
        if self.data.source not in ("synthetic", "bundled") and self.data.path is None:
            raise ValueError(f"data.path: is missing; source {self.data.source} needs a path to read")
        if self.data.source == "docword" and self.preprocess:
            raise ValueError("preprocess: counts are never made dense; leave it empty for docword")
        if self.output.standard_errors:
            if self.model.family != "gaussian" or self.fit.assignment == "hard":
                raise ValueError(
                    "output.standard_errors: only of a gaussian mixture with soft assignment; set it to false"
                )
            if {"weights", "means"} <= set(self.model.fixed):
                raise ValueError("output.standard_errors: weights and means are both held; set it to false")
        return self

    @model_validator(mode="after")
    def _can_choose(self) -> Config:
        several = len(self.model.candidates) > 1
        if self.model.family == "kmeans" and (several or self.select != Select()):
            raise ValueError(
                "model: kmeans has no likelihood to choose by, and inertia falls with every cluster more; give one "
                "n_components and no select, or use family gaussian with covariance_type spherical"
            )
        if self.select.criterion == "heldout" and self.select.heldout == 0:
            raise ValueError(
                "select: criterion heldout needs heldout above 0, the share of rows to hold out, such as 0.1"
            )
        if self.select.annihilation:
            if self.model.family != "gaussian" or several or self.model.fixed or self.fit.n_init > 1:
                raise ValueError(
                    "select: annihilation is for a gaussian mixture of one n_components, the most there may be, with nothing "
                    "fixed and n_init 1"
                )
            if self.fit.method == "em" or self.fit.init in ("explicit", "labels"):
                raise ValueError(
                    f"select: annihilation is part of the search for a start, which method {self.fit.method} with init "
                    f"{self.fit.init} does not make; use method auto and another init"
                )
        if self.fit.init == "explicit" and several:
            raise ValueError("fit.init: explicit parameters are those of one model; give one n_components and type")
        if self.fit.init == "labels" and len(self.model.n_components) > 1:
            raise ValueError("fit.init: labels are those of one number of components; give one n_components")
        return self

    def candidates(self) -> list[Config]:
        """One config for each of the models to choose from."""
        return [self._with_model(n_components=(k,), covariance_type=(shape,)) for k, shape in self.model.candidates]

    def _with_model(self, **changes: Any) -> Config:
        return self.model_copy(update={"model": self.model.model_copy(update=changes)})

    def resolved(self) -> Config:
        """The same config with every default that depends on the family written out."""
        kmeans = self.model.family == "kmeans"
        fit = self.fit.model_copy(
            update={
                "assignment": self.fit.assignment or ("hard" if kmeans else "soft"),
                "max_iter": self.fit.max_iter or (300 if kmeans else 100),
                "tol": (1e-4 if kmeans else 1e-3) if self.fit.tol is None else self.fit.tol,
            }
        )
        return self.model_copy(update={"fit": fit})
