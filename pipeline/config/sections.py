"""The sections that do not depend on data or model: how to fit, how to choose, what to write.

A field's default, bounds and description are written once, here; the YAML that `em-pipeline config` prints and the
reference in docs are generated from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.paths import AnyPath, LocalPath, is_url
from pipeline.config.schema import AlsoWritten
from pipeline.config.section import Section


def _without_stepwise(method: Any) -> Any:
    if method == "stepwise":
        raise ValueError(
            "got 'stepwise', which was removed because it never ended better than auto; expected auto, em or incremental. "
            "Use incremental to begin with blocks of rows, or auto."
        )
    return method


class Preprocess(Section):
    """One affine step; steps apply in order and are fitted in one pass over the data."""

    kind: Literal["center", "standardize", "pca", "zca"] = Field(description="what to do")
    n_components: int | None = Field(None, ge=1, description="pca: how many principal components; null: all")
    by: Literal["feature", "variable"] = Field(
        "feature",
        description="standardize: the mean and variance of each feature, or one of all features of a variable of data.source: xarray",
    )
    whiten: bool = Field(False, description="pca: unit variance along each component")
    epsilon: float = Field(1e-6, ge=0, description="zca: added to each eigenvalue, as a share of their mean")

    @model_validator(mode="after")
    def _by_where_it_is_read(self) -> Preprocess:
        if self.by != "feature" and self.kind != "standardize":
            raise ValueError(f"by: is for kind: standardize, got kind: {self.kind}; leave it out")
        return self


class Fit(Section):
    """How to fit the model."""

    method: Annotated[
        Literal["auto", "em", "incremental", "newton", "gradient"], BeforeValidator(_without_stepwise)
    ] = Field(
        "auto",
        description="em: the textbook's loop and stopping rule; auto: a search for a start, extrapolation, and a stricter stopping rule; "
        "incremental: first by blocks of chunks, then as auto; newton, gradient: Newton's and quasi-Newton steps of the likelihood, for "
        "models in JAX",
    )
    assignment: Literal["soft", "hard"] | None = Field(
        None, description="soft responsibilities or hard labels; null: the family's default"
    )
    init: Literal["k-means||", "k-means++", "random", "near-mean", "labels", "explicit", "run"] = Field(
        "k-means||", description="where to start from"
    )
    init_path: AnyPath | None = Field(
        None,
        description="explicit: .npz or .zarr with weights, means, covariances (or centers, or weights, log_prob), or a .mat, .npz or .fits of `save_prior`; "
        "labels: .npy or .zarr, one integer a row; run: an earlier run directory, whose parameters are those of the start",
    )
    init_statistics: bool = Field(
        False,
        description="init: run: the statistics of that run's rows count beside those of these rows, as `em-pipeline update` sets it; "
        "true | false",
    )
    n_init: int = Field(
        1,
        ge=1,
        description="restarts; all share each read of the data, and the best one is the result; where a search begins from K-means, the first "
        "does, and the others begin from random rows",
    )
    max_iter: int | None = Field(None, ge=1, description="most iterations; null: the family's default")
    tol: float | None = Field(
        None,
        ge=0,
        description="stop when the objective changes by less, in nats per row, and, except for method em, the estimated "
        "remaining gain is less than a tenth of it; null: the family's default",
    )
    moves: Annotated[
        Literal["auto", "off"],
        BeforeValidator(lambda value: "off" if value is False else value),
        AlsoWritten({"const": False}),
    ] = Field("auto", description="moves of components during the search for a start; method em has no search")
    effort: Literal["low", "medium", "high"] = Field(
        "medium",
        description="how much the search for a start may cost: of candidate starts a half, two to three or ten fits, about; the same share of the "
        "moves",
    )
    random_state: int = Field(0, ge=0, description="the seed; every draw is keyed by it and the row's number")

    @model_validator(mode="after")
    def _path_where_it_is_read(self) -> Fit:
        reads = self.is_supplied
        if reads and self.init_path is None:
            raise ValueError(f"init_path: is missing; init: {self.init} needs the file that it starts from")
        if not reads and self.init_path is not None:
            raise ValueError(
                f"init_path: init: {self.init} and init_path do not go together; leave it out, or set init to labels, explicit or run"
            )
        if self.init_statistics and self.init != "run":
            raise ValueError(f"init_statistics: is for init: run, got init: {self.init}; set it to false")
        if self.init_statistics and (self.method == "incremental" or self.n_init > 1):
            raise ValueError(
                "init_statistics: is for method auto or em with n_init 1: blocks have no part of the statistics; correct these"
            )
        return self

    @property
    def is_supplied(self) -> bool:
        """Whether the start is the user's, of which components keep their order and are not moved."""
        return self.init in ("labels", "explicit", "run")


class Select(Section):
    """How to choose among several models: lists of model.n_components or model.covariance_type."""

    criterion: Literal["bic", "aic", "icl", "heldout", "silhouette", "davies_bouldin", "calinski_harabasz"] = Field(
        "bic",
        description="the criterion of the choice; heldout: log-likelihood of held-out rows; silhouette and the following: of K-means",
    )
    heldout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of pictures, documents or rows that are held out of the fits; the chosen model is refitted to all rows",
    )
    refit: bool = Field(
        True,
        description="false: the chosen model is not refitted, and held-out rows calibrate em-pipeline outliers; needs heldout; true | false",
    )
    pruning: bool = Field(
        False,
        description="n_components is the largest number of components; those that too few rows support are pruned, to the smallest "
        "number whose message is at most 5 nats longer than the shortest; only for some families; true | false",
    )

    @model_validator(mode="after")
    def _refit_of_held_out_rows(self) -> Self:
        if not self.refit and self.heldout == 0:
            raise ValueError(
                "refit: false needs heldout above 0, the share of rows to hold out, such as 0.2; set one of them"
            )
        return self


class Output(Section):
    """What to write."""

    path: LocalPath = Field("runs/run", validate_default=True, description="the run directory")
    copy_to: str | None = Field(
        None,
        min_length=1,
        description="an fsspec URL, such as s3://bucket/runs/run, to which model, labels and report are copied when they are finished",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, description="of copy_to, passed on to fsspec; never written to the run directory"
    )
    labels: bool = Field(True, description="write labels.zarr")
    top_k: int = Field(0, ge=0, description="responsibilities stored per row in labels.zarr")
    write_back: str | None = Field(
        None,
        min_length=1,
        description="data.source: anndata: a new column of obs for the labels, in the file or store that is read; null: that is not changed",
    )
    silhouette: bool = Field(
        False,
        description="store the simplified silhouette of each row, (b - a) / b for the distances a and b to the nearest and the next centre, "
        "and report its mean; only for some families; true | false",
    )
    overlap: bool = Field(
        False,
        description="overlap in model.zarr: of the rows that a component is expected to have, how many get the label of each, from all rows; "
        "the report then counts these, not a sample; only for mixtures; true | false",
    )
    standard_errors: bool | Literal["given-covariances"] = Field(
        False,
        description="weights_se and means_se in model.zarr, for one more read of the data; given-covariances: as if "
        "covariances were known, which needs less memory and gives too small errors; only for some families; true | false",
    )
    keep_checkpoints: int = Field(
        3, ge=1, description="how many of the newest checkpoints are stored; if one is damaged, the one before is used"
    )
    keep_iterations: Literal["all"] | list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list,
        description="iterations whose parameters are stored in RUN/iterations, for the report or for inspection, such as "
        "[0, 1, 2, 3, 5, 10, 20]; 0 is the start",
    )

    @model_validator(mode="after")
    def _copy_to_a_url(self) -> Self:
        if self.copy_to is not None and not is_url(self.copy_to):
            raise ValueError(
                f"copy_to: got {self.copy_to}, expected a URL such as s3://bucket/run; a local path is that of output.path"
            )
        if self.storage_options and self.copy_to is None:
            raise ValueError("storage_options: are of copy_to; leave them out, or set it")
        return self
