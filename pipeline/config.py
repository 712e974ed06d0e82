"""The config: one strict section per part of the job; unknown keys are errors.

A field's default, bounds and description are written once, here; the commented YAML that
`em-pipeline config` prints is generated from them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import InputError

Family = Literal["gaussian", "kmeans", "multinomial"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(value: Any) -> Any:
    """`1GiB`, `500 MB` or a plain number, in bytes; `auto` stays as it is."""
    if not isinstance(value, str) or value == "auto":
        return value
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", value)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{value!r} is not a size; write for example 1GiB, 500MB or auto")
    return int(float(match[1]) * _UNITS[match[2].upper()])


class Section(BaseModel):
    """A frozen part of the config that accepts its own keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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


class Model(Section):
    """What to fit."""

    family: Family = Field("gaussian", description="the kind of clustering")
    n_components: int = Field(8, ge=1, description="how many components or clusters")
    covariance_type: Literal["full", "tied", "diag", "spherical"] = Field("full", description="gaussian: its shape")
    reg_covar: float = Field(1e-6, ge=0, description="gaussian: added to each covariance's diagonal after an M-step")
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
        if (self.init in ("labels", "explicit")) != (self.init_path is not None):
            raise ValueError(f"init: {self.init} and init_path: {self.init_path} do not go together")
        return self


class Profile(Section):
    """A named cluster."""

    kind: Literal["local"] = Field("local", description="local: worker processes on this machine")
    workers: int | None = Field(None, ge=1, description="processes; null: one a core")
    threads_per_worker: int = Field(1, ge=1, description="threads in each process")


class Engine(Section):
    """Where to compute; nothing here changes a bit of the result."""

    scheduler: str = Field("threads", description="threads (in this process), or the name of a profile (local)")
    scheduler_address: str | None = Field(None, description="address of a running dask scheduler")
    scheduler_file: str | None = Field(None, description="scheduler file of a running dask scheduler")
    profiles: dict[str, Profile] = Field(default_factory=dict, description="clusters by name")
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="threads or processes; auto: one a core"
    )
    memory: Annotated[int | Literal["auto"], BeforeValidator(parse_bytes)] = Field(
        "auto", description="bytes that the job may use on this machine, such as 4GiB; auto: 60% of what is free"
    )

    keep_decoded: bool = Field(
        False, description="keep decoded chunks between passes, as far as memory allows; threads only"
    )

    @model_validator(mode="after")
    def _keeps_where_it_can(self) -> Engine:
        if self.keep_decoded and (self.scheduler_address or self.scheduler_file or self.scheduler != "threads"):
            raise ValueError(
                "keep_decoded: only threads share what they keep; use scheduler: threads, or leave it false"
            )
        return self

    @model_validator(mode="after")
    def _one_place(self) -> Engine:
        given = [self.scheduler_address, self.scheduler_file, None if self.scheduler == "threads" else self.scheduler]
        if sum(value is not None for value in given) > 1:
            names = ", ".join(repr(value) for value in given if value is not None)
            raise ValueError(f"{names}: give one of scheduler_address, scheduler_file and a scheduler by profile")
        return self


class Output(Section):
    """What to write."""

    path: str = Field("runs/run", description="the run directory")
    labels: bool = Field(True, description="write labels.zarr")
    top_k: int = Field(0, ge=0, description="responsibilities kept per row in labels.zarr")


class Config(Section):
    """The whole config of a job."""

    data: Data = Field(default_factory=Data, description="what to read")
    preprocess: list[Preprocess] = Field(
        default_factory=list, description="e.g. [{kind: pca, n_components: 16, whiten: true}]; applied in order"
    )
    model: Model = Field(default_factory=Model, description="what to fit")
    fit: Fit = Field(default_factory=Fit, description="how to fit it")
    engine: Engine = Field(default_factory=Engine, description="where to compute; changes no bit of the result")
    output: Output = Field(default_factory=Output, description="what to write")

    @model_validator(mode="after")
    def _parts_agree(self) -> Config:
        if self.model.family == "kmeans" and self.fit.assignment == "soft":
            raise ValueError("fit.assignment: kmeans assigns hard; choose family gaussian for soft assignment")
        if self.model.family == "kmeans" and self.fit.method in ("incremental", "stepwise"):
            raise ValueError(f"fit.method: {self.fit.method} is for mixtures; choose auto or em for kmeans")
        if self.data.source == "synthetic" and (self.data.n_rows is None or self.data.mixture is None):
            raise ValueError("data: source synthetic needs n_rows and mixture")
        if self.data.source not in ("synthetic", "bundled") and self.data.path is None:
            raise ValueError(f"data: source {self.data.source} needs a path")
        if self.data.source == "docword" and self.preprocess:
            raise ValueError("preprocess: counts are never made dense; leave it empty for docword")
        return self

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


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read and validate a YAML file; `overrides` are `section.key=value` strings.

    Raises InputError for anything that is not a valid config, naming the nearest key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config {path}: cannot be read ({error}). Give the path of a YAML file.") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"config {path}: not plain YAML ({error}). See `em-pipeline config`.") from error
    return validate({} if raw is None else raw, overrides or [], str(path))


def validate(raw: Any, overrides: list[str] | None = None, name: str = "config") -> Config:
    """A Config from plain dicts and lists, or an InputError that names what is wrong."""
    if not isinstance(raw, dict):
        raise InputError(f"{name}: came as {type(raw).__name__}, expected sections such as data: and model:.")
    for override in overrides or []:
        raw = _override(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
        raise InputError(
            f"{name}: not a valid config.\n{problems}\nSee `em-pipeline config` for every option."
        ) from None


def _override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    key, separator, value = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise InputError(f"--set {override!r}: expected section.key=value, such as fit.max_iter=50.")
    try:
        leaf = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override!r}: the value is not YAML ({error}).") from error
    for part in reversed(parts[1:]):
        leaf = {part: leaf}
    return _merge(raw, {parts[0]: leaf})


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = list(_section_at(problem["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.0)
        return f"{where}: there is no such key; did you mean {near[0]}?"
    got = problem.get("input")
    came = f" (got {got!r})" if isinstance(got, (str, int, float, bool, type(None))) else ""
    return f"{where or 'config'}: {problem['msg'].removeprefix('Value error, ')}{came}"


def _section_at(loc: tuple[Any, ...]) -> type[Section]:
    section: type[Section] = Config
    for part in loc:
        field = section.model_fields.get(str(part))
        inner = list(_sections_in(field.annotation)) if field else []
        if inner:
            section = inner[0]
    return section


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _sections_in(part)


def to_plain(config: Config) -> dict[str, Any]:
    """The config as plain dicts and lists, without `storage_options`: credentials are never written."""
    return config.model_dump(mode="json", exclude={"data": {"storage_options"}})


# What a family's template sets beside the defaults: data that ship with a dependency.
_TEMPLATES: dict[str, dict[str, Any]] = {
    "gaussian": {"data": {"source": "images", "path": "photographs"}, "output": {"path": "runs/patches"}},
    "kmeans": {"data": {"source": "bundled", "path": "digits"}, "model": {"family": "kmeans", "n_components": 10}},
    "multinomial": {
        "data": {"source": "docword", "path": "docword.txt.gz", "vocabulary": "vocab.txt"},
        "model": {"family": "multinomial", "n_components": 20},
    },
}


def template(family: str) -> str:
    """A commented YAML with every option, its default, bounds and meaning."""
    if family not in _TEMPLATES:
        raise InputError(f"config {family}: expected one of {', '.join(_TEMPLATES)}.")
    config = Config.model_validate(_TEMPLATES[family])
    lines = [f"# em-pipeline: a {family} job. `em-pipeline run CONFIG` runs it; every line may be left out."]
    lines += _commented(config, indent=0)
    return "\n".join(lines) + "\n"


def _commented(section: Section, indent: int) -> Iterator[str]:
    pad = "  " * indent
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        notes = [field.description or ""] + [f"{_bound(m)}" for m in field.metadata if _bound(m)]
        choices = _choices(field.annotation)
        if choices:
            notes.append(" | ".join(choices))
        comment = "; ".join(note for note in notes if note)
        if isinstance(value, Section):
            yield f"{pad}{name}:  # {comment}"
            yield from _commented(value, indent + 1)
        else:
            dumped = yaml.safe_dump(_plain(value), default_flow_style=True, width=10_000).strip()
            yield f"{pad}{name}: {dumped.removesuffix('...').strip()}  # {comment}"


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _bound(constraint: Any) -> str:
    for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        bound = getattr(constraint, attribute, None)
        if bound is not None:
            return f"{sign} {bound}"
    return ""


def _choices(annotation: Any) -> list[str]:
    args = getattr(annotation, "__args__", ())
    if getattr(annotation, "__origin__", None) is Literal:
        return [str(arg) for arg in args]
    return [choice for arg in args for choice in _choices(arg)]
