"""The config of a job, composed of the sections of data, models and the rest; and what is checked across sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, model_validator

from pipeline.config import EngineSection, Fit, Output, Preprocess, Section, Select, loading
from pipeline.config.schema import DIALECT
from pipeline.config.stored import read_job
from pipeline.config.syntax import Place
from pipeline.config.template import commented
from pipeline.config.variants import OUTSIDE
from pipeline.data.chunks import Chunks
from pipeline.data.preprocess import refuse_by_variable
from pipeline.data.section import DataSection
from pipeline.data.sources import SOURCES
from pipeline.errors import InputError, did_you_mean, without_secrets
from pipeline.models.base import LatentModel
from pipeline.models.clusters import Summary
from pipeline.models.families import FAMILIES
from pipeline.models.family import FamilySection
from pipeline.models.mixture import Mixture
from pipeline.models.overlap import MOST_COMPONENTS
from pipeline.models.separation import BY_SEPARATION

SCHEMA_FILE = "em-pipeline.schema.json"  # that templates name
# What a template shows first of a section; the rest comes below it, as seldom changed.
_FIRST = {
    "data": (
        "source",
        "path",
        "patch",
        "columns",
        "variable",
        "delimiter",
        "vocabulary",
        "weights",
        "labels",
        "units",
        "noise",
        "bad_rows",
    ),
    "model": ("family", "n_components", "covariance_type", "concentration"),
    "fit": ("init", "n_init", "max_iter", "tol", "random_state"),
    "engine": ("workers", "memory", "scheduler", "scheduler_file"),
    "output": ("path", "labels", "top_k"),
}


class Config(Section):
    """The whole config of a job."""

    data: Annotated[SerializeAsAny[DataSection], SOURCES] = Field(
        default_factory=SOURCES.default_section, description="what to read"
    )
    preprocess: list[Preprocess] = Field(
        default_factory=list, description="e.g. [{kind: pca, n_components: 16, whiten: true}]; applied in order"
    )
    model: Annotated[SerializeAsAny[FamilySection], FAMILIES] = Field(
        default_factory=FAMILIES.default_section, description="what to fit"
    )
    fit: Fit = Field(default_factory=Fit, description="how to fit it")
    select: Select = Field(default_factory=Select, description="how to choose among several models")
    engine: EngineSection = Field(
        default_factory=EngineSection, description="where to compute; changes no bit of the result"
    )
    output: Output = Field(default_factory=Output, description="what to write")

    @model_validator(mode="after")
    def _family_takes_the_rest(self) -> Config:
        model, fit, family = self.model, self.fit, self.model.said
        takes = {"assignment": model.assignments, "method": model.methods, "init": model.inits}
        for name, values in takes.items():
            got = getattr(fit, name)
            if got is not None and got not in values:
                raise ValueError(
                    f"fit.{name}: got {got}, expected {' or '.join(values)} for family {family}; choose that, or another family"
                )
        if self.preprocess and model.raw:
            raise ValueError(f"preprocess: codes and counts stay what they are; leave it empty for family {family}")
        if self.preprocess and (model.counts or self.data.sparse):
            of = f"source {self.data.source}" if self.data.sparse else f"family {family}"
            raise ValueError(f"preprocess: counts are never made dense; leave it empty for {of}")
        if self.output.standard_errors:
            if not model.has_standard_errors:
                raise ValueError(f"output.standard_errors: family {family} has none; set it to false")
            if (fit.assignment or model.assignments[0]) == "hard":
                raise ValueError("output.standard_errors: are those of soft assignment; set it to false")
            if {"weights", "means"} <= set(model.fixed_parts):
                raise ValueError("output.standard_errors: weights and means are both fixed; set it to false")
        if self.output.overlap:
            if not model.has_overlap or (fit.assignment or model.assignments[0]) == "hard":
                raise ValueError(
                    f"output.overlap: is for mixtures with soft assignment; got family {family}; set it to false"
                )
            if model.largest > MOST_COMPONENTS:
                raise ValueError(
                    f"output.overlap: is a matrix of all pairs of components; got {model.largest}, expected at most {MOST_COMPONENTS}; "
                    "set it to false"
                )
        if self.output.silhouette and not (model.has_silhouette and self.data.labels is None and self.output.labels):
            names = ", ".join(name for name in FAMILIES if name != OUTSIDE and FAMILIES[name].has_silhouette)
            raise ValueError(
                f"output.silhouette: is for family {names}, with output.labels and without data.labels; got family {family}; set it to "
                "false, or correct these"
            )
        if getattr(self.data, "tf_idf", False) and model.counts:
            raise ValueError(
                f"data.tf_idf: makes no counts, which family {family} needs; set it to false, or use a family of directions"
            )
        if self.output.write_back is not None and not (self.data.takes_labels_back and self.output.labels):
            raise ValueError(
                f"output.write_back: is for source anndata with output.labels; got source {self.data.source}; leave it out"
            )
        if self.data.labels_true is not None and not self.output.labels:
            raise ValueError("data.labels_true: is compared with labels; set output.labels to true, or leave it out")
        of_labels = {
            "output.top_k": self.output.top_k,
            "data.labels_true": self.data.labels_true,
            "output.write_back": self.output.write_back,
        }
        for name, got in of_labels.items():
            if got and not model.gives_labels:
                raise ValueError(f"{name}: is of labels, and family {family} gives a row none; leave it out")
        if self.data.labels is not None and not model.takes_labels:
            raise ValueError(
                f"data.labels: rows of family {family} as configured do not belong to one component that could be known; leave it out"
            )
        if self.data.units is not None and not (model.by_unit or self.select.heldout):
            raise ValueError(
                "data.units: is for select.heldout above 0, and for families that model units; leave it out, or set one"
            )
        return self

    @model_validator(mode="after")
    def _can_have_missing(self) -> Config:
        if self.data.bad_rows != "missing":
            return self
        advice = "set bad_rows to drop, or"
        if not self.model.takes_missing:
            names = [name for name in FAMILIES if name != OUTSIDE and FAMILIES[name].takes_missing]
            raise ValueError(
                f"data.bad_rows: got missing, but family {self.model.family} needs whole rows; {advice} model.family to one of "
                f"{', '.join(names)}"
            )
        if self.data.sparse:
            raise ValueError(f"data.bad_rows: source {self.data.source} has no missing entries; leave it out")
        if self.model.needs_box:
            raise ValueError(f"data.bad_rows: got missing, but model.noise needs whole rows; {advice} noise to null")
        if any(step.kind in ("pca", "zca") for step in self.preprocess):
            raise ValueError(
                f"data.bad_rows: got missing, but pca and zca mix the features of whole rows; {advice} preprocess to center or standardize"
            )
        if self.output.standard_errors:
            raise ValueError(
                f"data.bad_rows: got missing, but standard errors are of whole rows; {advice} output.standard_errors to false"
            )
        return self

    @model_validator(mode="after")
    def _can_have_errors(self) -> Config:
        if self.data.noise is None:
            return self
        beside = {
            "data.bad_rows missing": self.data.bad_rows == "missing",
            "model.noise": self.model.needs_box,
            "output.standard_errors": bool(self.output.standard_errors),
            f"source {self.data.source}": self.data.sparse,
            f"family {self.model.family}": not self.model.takes_errors,
        }
        for what, is_so in beside.items():
            if is_so:
                names = [name for name in FAMILIES if name != OUTSIDE and FAMILIES[name].takes_errors]
                raise ValueError(
                    f"data.noise: known errors of rows are for family {', '.join(names)}, and not beside {what}; leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _can_choose(self) -> Config:
        fit, family, several = self.fit, self.model.said, len(self.model.candidates()) > 1
        criteria = self.model.criteria
        if not criteria and (several or self.select != Select()):
            raise ValueError(
                f"model: {family} has no likelihood to choose by; give one n_components and leave select out, or use a "
                "family that has one"
            )
        if self.select.heldout and "heldout" not in criteria:
            raise ValueError(f"select.heldout: family {family} has no likelihood of held-out rows; leave it out")
        if (several or self.select.criterion != "bic") and self.select.criterion not in criteria:
            raise ValueError(
                f"select.criterion: got {self.select.criterion}, which family {family} does not know; choose by "
                f"{' or '.join(criteria)}"
            )
        if self.select.criterion in BY_SEPARATION and self.data.labels is not None:
            raise ValueError(
                f"select.criterion: {self.select.criterion} is of labels by distance alone; leave data.labels out"
            )
        if self.select.criterion == "heldout" and self.select.heldout == 0:
            raise ValueError(
                "select: criterion heldout needs heldout above 0, the share of rows to hold out, such as 0.1"
            )
        if self.select.pruning:
            if not self.model.can_prune:
                raise ValueError(f"select.pruning: is not for family {family}; set it to false")
            if several or self.model.fixed_parts or fit.n_init > 1:
                raise ValueError(
                    "select.pruning: is for one n_components, the largest number, with nothing fixed and n_init 1; "
                    "correct these, or set it to false"
                )
            if self.data.labels is not None:
                raise ValueError("select.pruning: would rename the components of data.labels; set it to false")
            if fit.method == "em" or fit.is_supplied:
                raise ValueError(
                    f"select.pruning: is part of the search for a start, which method {fit.method} with init {fit.init} does "
                    "not make; use method auto and another init"
                )
        if (fit.init in ("explicit", "run") or self.model.from_run) and several:
            raise ValueError(
                "model: parameters of a file or run are those of one model; give one value of each list in model"
            )
        if fit.init == "labels" and len({each.largest for each in self.model.candidates()}) > 1:
            raise ValueError("fit.init: labels are those of one number of components; give one n_components")
        return self

    @model_validator(mode="after")
    def _takes_over_one_run(self) -> Config:
        fit, prior = self.fit, self.model.from_run
        if prior is not None and fit.init == "run" and fit.init_path != prior:
            raise ValueError(
                f"model.prior.from_run: is {prior}, but fit.init_path is {fit.init_path}; name one run, or leave fit.init_path and init out"
            )
        if prior is not None and "init" in fit.model_fields_set and not fit.is_supplied:
            raise ValueError(
                f"model.prior.from_run: has a prior for each component, but fit.init: {fit.init} does not start with these components; "
                "leave fit.init out, which starts from the run, or set it to run, explicit or labels"
            )
        if prior is not None and self.select.pruning:
            raise ValueError(
                "model.prior.from_run: has a prior for each component, so that none is pruned; leave select.pruning out"
            )
        if fit.init_statistics and (self.select.heldout or self.output.standard_errors):
            raise ValueError(
                "fit.init_statistics: goes with neither select.heldout nor output.standard_errors, which need all rows; leave these out"
            )
        return self

    @property
    def earlier_run(self) -> str | None:
        """The run directory that something is taken over from; None without one."""
        return self.fit.init_path if self.fit.init == "run" else self.model.from_run

    @property
    def key_of_earlier_run(self) -> str:
        """The option that names it."""
        return "fit.init_path" if self.fit.init == "run" else "model.prior.from_run"

    def open_chunks(self) -> Chunks:
        """Open the rows as the model reads them. Raises InputError or StorageError."""
        chunks = self.data.open_chunks(self.model.by_unit)
        described = chunks.source.describe()
        self.model.refuse_features(described.get("features"), chunks.n_features)
        refuse_by_variable(self.preprocess, described.get("index", {}).get("variable"))
        return chunks

    def candidates(self) -> list[Config]:
        """Return one config for each of the models to choose from."""
        return [self.model_copy(update={"model": model}) for model in self.model.candidates()]

    def models(self, summary: Summary) -> list[LatentModel]:
        """Return the model of each candidate. summary : statistics of the rows."""
        missing = self.data.bad_rows == "missing" and summary.n_missing
        if summary.earlier is not None and summary.earlier.statistics is not None:
            model = summary.earlier.statistics.model
            if missing and isinstance(model, Mixture) and not model.incomplete:
                model = model.for_rows("missing")
                # Others need sums that the earlier rows lack: in how many of them an entry is there.
                if not model.component.has_own_latents:
                    raise InputError(
                        "got rows with missing entries, but the earlier ones were whole, and their statistics are of whole rows. Fit all rows "
                        "together."
                    )
            return [model]
        assignment = self.fit.assignment or self.model.assignments[0]
        models = [each.build_for(summary, assignment, self.fit.method) for each in self.model.candidates()]
        errors = self.data.noise is not None or summary.sample.x.shape[1] > len(summary.mean)
        if missing or errors:
            return [
                model.for_rows("missing" if missing else "errors") for model in models if isinstance(model, Mixture)
            ]
        return models

    def resolved(self) -> Config:
        """Return the same config with the family's defaults in place of null."""
        fit, model = self.fit, self.model
        update = {
            "assignment": fit.assignment or model.assignments[0],
            "max_iter": fit.max_iter or model.default_max_iter,
            "tol": model.default_tol if fit.tol is None else fit.tol,
        }
        if model.from_run is not None and not fit.is_supplied:
            update |= {"init": "run", "init_path": model.from_run}
        used = model.used_columns()
        data = self.data if used is None else self.data.with_columns(used)
        return self.model_copy(update={"fit": fit.model_copy(update=update), "data": data})

    def settled(self) -> Config:
        """Return the same config with what has to be found out of the data once: the names of categories."""
        data = self.data.settled()
        categories = getattr(data, "categories", None) or {}
        model = self.model.with_categories({name: len(names) for name, names in categories.items()})
        return self.model_copy(update={"data": data, "model": model})

    def written_to(self, path: Path) -> Config:
        """Return the same config with another run directory."""
        return self.model_copy(update={"output": self.output.model_copy(update={"path": str(path.absolute())})})

    def code(self) -> dict[str, str]:
        """Return the SHA-256 of each file of the user's own that the config names, by the key that names it."""
        found = {"data.path": self.data.code(), "model.path": self.model.code()}
        return {key: sha256 for key, sha256 in found.items() if sha256 is not None}


def load_config(path: str | Path, overrides: Sequence[str] | None = None) -> Config:
    """Read and validate a YAML file.

    Parameters
    ----------
    path : str or Path
        Of a config, or of the config.yaml of a run.
    overrides : sequence of str, optional
        ``section.key=value``, in place of what is in the file.

    Returns
    -------
    Config

    Raises
    ------
    InputError
        For anything that is not a valid config, naming the nearest key.
    """
    raw, lines = read_job(path, overrides or ())
    return validate(raw, overrides or (), f"config {path}", lines)


def validate(
    raw: Any, overrides: Sequence[str] = (), name: str = "config", lines: Mapping[Place, int] | None = None
) -> Config:
    """Return the config of plain dicts and lists; the parameters are those of `pipeline.config.loading.validate`."""
    return loading.validate(Config, raw, overrides, name, lines)


def to_plain(config: Config) -> dict[str, Any]:
    """Return the config as plain dicts and lists, without `storage_options`: credentials are never written."""
    return dict(
        without_secrets(
            config.model_dump(mode="json", exclude={"data": {"storage_options"}, "output": {"storage_options"}})
        )
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of configs: keys, types, bounds and meanings, without what is checked across sections."""
    return {"$schema": DIALECT, **Config.model_json_schema(), "title": "Config of em-pipeline"}


def template(family: str | None = None) -> str:
    """Return a commented YAML with every option of a family, its default, bounds and meaning. family : None for the default."""
    family = family or FAMILIES.default
    families = [name for name in FAMILIES if name != OUTSIDE]
    if family not in families:
        near = did_you_mean(family, families) or "."
        raise InputError(f"config {family}: expected one of {', '.join(families)}{near}")
    section = FAMILIES[family]
    config = Config.model_validate(
        {**section.template, "model": {"family": family, **section.template.get("model", {})}}
    )
    about = [
        f"A {family} job of em-pipeline. {section.template_help}",
        "`em-pipeline check FILE` says what it would cost, `em-pipeline run FILE` runs it. Every other line may be left out, but "
        "for model.family: what stands there is the default.",
    ]
    about.append(
        f"The first line is for editors: `em-pipeline config --schema > {SCHEMA_FILE}` writes the file that it names."
    )
    fit = config.resolved().fit
    nulls = {name: str(getattr(fit, name)) for name in ("assignment", "max_iter", "tol")}
    line = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
    return line + commented(config, about, _FIRST, {"fit": nulls}, others=("data",))
