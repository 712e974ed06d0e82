"""What a user writes: a class with parameters and a log joint density in `jax.numpy`.

    class ZeroInflatedPoisson(JaxModel):
        parameters = {"share": Parameter(support="probability"), "mean": Parameter(support="positive")}

        def log_joint(self, p, x): ...

Options are annotated attributes, as of a dataclass; in a config they are keys beside `model.path`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, dataclass_transform

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import stored
from pipeline.config import outside
from pipeline.errors import InputError
from pipeline.models.schema import SUPPORTS, Bounded, Field, Support, stem

# Arrays of model.zarr beside the parameters.
RESERVED = frozenset(
    (
        "fisher_norm",
        "log_likelihood",
        "lower_bound",
        "entropy",
        "rate",
        "remaining_gain",
        "objective",
        "rows",
        "phase",
        "sample",
    )
)


class Parameter(NamedTuple):
    """One array of the parameters.

    Attributes
    ----------
    dims : tuple of str
        Names of its dimensions; () for a number. The size of "feature" is the number of columns; that of another
        dimension, such as "component", is the attribute `n_components` of the model (or `n_component`).
    support : str or pair of float
        Values that it may have: real, positive, probability, simplex (sums to 1 along the last axis), ordered (increases along the last
        axis), positive definite (in the last two axes), or a lowest and a highest value.
    """

    dims: tuple[str, ...] = ()
    support: str | tuple[float, float] = "real"


class _Section:
    """The config section of a class."""

    def __get__(self, instance: Any, owner: type[JaxModel]) -> Any:
        from pipeline.models.autodiff.section import section_of  # which needs this module

        made: Any = section_of  # cached, and classes are hashable
        return made(owner)


@dataclass_transform(frozen_default=True, eq_default=True)
class JaxModel:
    """Base of models in JAX. A subclass is made a frozen dataclass, and defines the first two of these.

    Attributes
    ----------
    parameters : mapping of str to Parameter
    log_joint : method (p, x) -> array, shape (k,) or ()
        log p(x, z) of one row for each value z of the latent label, nats; () without a label. `p` has the parameters by
        name, `x` has shape (d,). Impossible values are -inf.
    e_step : method (p, x) -> (log p(x), statistics), optional
        In place of `log_joint`, where the latent variable is no label: the log-density of one row, and the expected
        statistics of `m_step` by name.
    statistics : method (x) -> mapping of str to array, optional
        Sufficient statistics of one row by name, each of shape (k, ...), for each value of the label; (...) without a label.
        Their expected sums are all that an M-step needs: it reads no rows.
    m_step : method (s) -> mapping of str to array, optional
        Parameters by name that maximize the expected log joint, from the sums of the statistics, by name.
    start : method (rows, rng) -> mapping of str to array, optional
        Initial values of some or all parameters. rows : (m, d), a sample.  rng : numpy.random.Generator.
    sizes : method (n_features) -> mapping of str to int, optional
        Sizes of dimensions.
    name : str, optional
        What reports call it; the name of the class by default.

    Notes
    -----
    With `statistics` and `m_step`, EM has the user's M-step. With `statistics` alone, the M-step is Newton's method on the expected
    log joint, which those sums determine. With neither, a step is one of Newton's method on the expected log joint, from sums of its
    gradient and curvature, and is shortened until the likelihood does not fall.
    """

    parameters: ClassVar[Mapping[str, Parameter]] = {}
    name: ClassVar[str] = ""
    section: ClassVar[Any] = _Section()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        stored(dataclass(frozen=True)(cls))

    def log_joint(self, p: Any, x: Any) -> Any:
        """Return log p(x, z) of one row, shape (k,) or ()."""
        raise InputError(f"{type(self).__name__}: has no log_joint. Define log_joint(self, p, x).")

    def sizes(self, n_features: int) -> Mapping[str, int]:
        """Return sizes of dimensions, beside those of attributes."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle with the source of the file, for a worker process that lacks the file."""
        cls = type(self)
        if (source := outside.source_of(cls.__module__)) is None:
            return super().__reduce_ex__(protocol)
        options = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        return _remade, (cls.__module__, source, cls.__qualname__, options)


def _remade(module: str, source: str, name: str, options: dict[str, Any]) -> Any:
    found: Any = outside.module_of(module, source)
    for part in name.split("."):
        found = getattr(found, part)
    return found(**options)


def has(model: JaxModel | type[JaxModel], method: str) -> bool:
    """Whether a model, or a class, defines an optional method."""
    return getattr(model, method, None) is not None


class Layout:
    """Where the parameters of a model are in one vector without constraints.

    Attributes
    ----------
    fields : dict of str to Field
    sizes : dict of str to int
    shapes : dict of str to tuple of int
    slices : dict of str to slice
    size : int
        Length of the vector, p.
    """

    def __init__(self, model: JaxModel, n_features: int) -> None:
        if not model.parameters:
            raise InputError(
                f"{type(model).__name__}: has no parameters. Give it parameters = {{'mean': Parameter(...)}}."
            )
        self.fields: dict[str, Field] = {}
        self.sizes: dict[str, int] = {"feature": n_features}
        own = dict(model.sizes(n_features))
        for name, each in model.parameters.items():
            if (
                name in RESERVED
                or name.endswith("_se")
                or name.startswith(("preprocess_", "outlier", "representative"))
            ):
                raise InputError(
                    f"{type(model).__name__}.parameters: {name} is an array of model.zarr already. Rename it."
                )
            support = _support(model, name, each)
            self.fields[name] = Field(each.dims, support)
            for dim in map(stem, each.dims):
                if dim not in self.sizes:
                    self.sizes[dim] = _size(model, dim, own)
        self.shapes = {name: field.shape(self.sizes) for name, field in self.fields.items()}
        lengths = [field.support.n_free(self.shapes[name]) for name, field in self.fields.items()]
        ends = np.cumsum([0, *lengths])
        self.slices = {name: slice(int(a), int(b)) for name, a, b in zip(self.fields, ends, ends[1:], strict=False)}
        self.size = int(ends[-1])
        self._type: Any = NamedTuple("Parameters", [(name, Any) for name in self.fields])  # type: ignore[misc]

    def to_real(self, arrays: Mapping[str, Array]) -> Array:
        """Return the vector of parameters, (p,)."""
        return np.concatenate([field.support.to_real(arrays[name]) for name, field in self.fields.items()])

    def from_real(self, u: Any, xp: Any = np) -> dict[str, Any]:
        """Return the parameters of a vector. xp : `numpy` or `jax.numpy`."""
        with np.errstate(over="ignore", invalid="ignore"):
            return {
                name: field.support.from_real(u[self.slices[name]], self.shapes[name], xp)
                for name, field in self.fields.items()
            }

    def named(self, arrays: Mapping[str, Any]) -> Any:
        """Return parameters as attributes, for the user's functions."""
        return self._type(**arrays)

    def place(self, i: int) -> str:
        """Return the name of the parameter that the i-th number belongs to, with its place: rate[2]."""
        name = next(name for name, part in self.slices.items() if part.start <= i < part.stop)
        return name if not self.shapes[name] else f"{name}[{i - self.slices[name].start}]"


def _support(model: JaxModel, name: str, declared: Any) -> Support:
    dims, support = (declared.dims, declared.support) if isinstance(declared, Parameter) else (None, None)
    if isinstance(dims, tuple) and isinstance(support, str) and support in SUPPORTS:
        return SUPPORTS[support]
    if isinstance(dims, tuple) and isinstance(support, tuple) and len(support) == 2:
        return Bounded(*support)
    raise InputError(
        f"{type(model).__name__}.parameters: {name} is {declared!r}, expected Parameter(dims, support), where dims is a tuple of names and "
        f"support is {', '.join(SUPPORTS)}, or a pair of numbers."
    )


def _size(model: JaxModel, dim: str, own: Mapping[str, int]) -> int:
    found = own.get(dim, getattr(model, f"n_{dim}s", getattr(model, f"n_{dim}", None)))
    if not isinstance(found, int) or found < 1:
        raise InputError(
            f"{type(model).__name__}: dimension {dim!r} has no size. Give the class an attribute n_{dim}s, or a method "
            "sizes(self, n_features) that returns it."
        )
    return found
