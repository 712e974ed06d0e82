"""The schema of a model's parameters, and what follows from it for every model.

A model names its arrays, their dimensions and the values they may have. From that follow: checks of user-supplied arrays,
selecting and joining components, the number of free parameters, bytes, dimensions of stored arrays, and a map to numbers
without constraints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.errors import InputError

COMPONENT = "component"
TINY = 1e-300  # stands for 0 where a logarithm is taken


class Support:
    """Values that an array may have: real numbers; subclasses are narrower.

    `to_real` and `from_real` are a bijection between the interior of the support and vectors without constraints.
    """

    def problem(self, name: str, value: Array) -> str | None:
        """Return what is wrong with an array; None if it is valid."""
        return None if np.isfinite(value).all() else f"{name}: got NaN or infinity, expected finite numbers."

    def n_free(self, shape: tuple[int, ...]) -> int:
        """Return how many numbers of such an array are free."""
        return int(np.prod(shape))

    def to_real(self, value: Array) -> Array:
        """Return an array as `n_free` numbers without constraints, flat. Values on the boundary are moved inside."""
        return np.ravel(value)

    def from_real(self, u: Any, shape: tuple[int, ...], xp: Any = np) -> Any:
        """Return the array of flat numbers. xp : `numpy` or `jax.numpy`."""
        return xp.reshape(u, shape)


class Positive(Support):
    """Numbers above 0; their logarithms are real."""

    def problem(self, name: str, value: Array) -> str | None:
        wrong = super().problem(name, value)
        return wrong or (None if (value > 0).all() else f"{name}: got {value.min():.6g}, expected numbers above 0.")

    def to_real(self, value: Array) -> Array:
        return np.log(np.maximum(np.ravel(value), TINY))

    def from_real(self, u: Any, shape: tuple[int, ...], xp: Any = np) -> Any:
        return xp.reshape(xp.exp(u), shape)


class Bounded(Support):
    """Numbers from `low` to `high`; the logits of their places between are real."""

    def __init__(self, low: float, high: float) -> None:
        if not -np.inf < low < high < np.inf:
            raise InputError(f"bounded: got {low:g} to {high:g}, expected a finite low below a finite high.")
        self.low, self.high = float(low), float(high)

    def problem(self, name: str, value: Array) -> str | None:
        if wrong := super().problem(name, value):
            return wrong
        if value.min() >= self.low and value.max() <= self.high:
            return None
        expected = f"expected numbers from {self.low:g} to {self.high:g}"
        return f"{name}: got {value.min():.6g} to {value.max():.6g}, {expected}."

    def to_real(self, value: Array) -> Array:
        below, above = np.ravel(value) - self.low, self.high - np.ravel(value)
        return np.log(np.maximum(below, TINY)) - np.log(np.maximum(above, TINY))

    def from_real(self, u: Any, shape: tuple[int, ...], xp: Any = np) -> Any:
        return xp.reshape(self.low + (self.high - self.low) * (0.5 + 0.5 * xp.tanh(0.5 * u)), shape)


class Ordered(Support):
    """Numbers that increase along the last axis: the first, and the logarithms of the differences, are real."""

    def problem(self, name: str, value: Array) -> str | None:
        if wrong := super().problem(name, value):
            return wrong
        least = np.diff(value, axis=-1).min(initial=np.inf)
        return None if least > 0 else f"{name}: got a difference of {least:.6g}, expected numbers that increase."

    def to_real(self, value: Array) -> Array:
        gaps = np.log(np.maximum(np.diff(value, axis=-1), TINY))
        return np.ravel(np.concatenate([value[..., :1], gaps], axis=-1))

    def from_real(self, u: Any, shape: tuple[int, ...], xp: Any = np) -> Any:
        u = xp.reshape(u, shape)
        return xp.cumsum(xp.concatenate([u[..., :1], xp.exp(u[..., 1:])], axis=-1), axis=-1)


class Simplex(Support):
    """Numbers of at least 0 that sum to 1 along the last axis."""

    def problem(self, name: str, value: Array) -> str | None:
        if wrong := super().problem(name, value):
            return wrong
        sums = value.sum(axis=-1)
        if value.min() >= 0 and np.allclose(sums, 1.0):
            return None
        worst = np.atleast_1d(sums)[np.abs(np.atleast_1d(sums) - 1.0).argmax()]
        return f"{name}: got sum {worst:.6g} and lowest {value.min():.6g}, expected numbers >= 0 that sum to 1."

    def n_free(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape[:-1])) * (shape[-1] - 1)

    def to_real(self, value: Array) -> Array:
        """Logarithms of the ratios to the last number."""
        log = np.log(np.maximum(value, TINY))
        return np.ravel(log[..., :-1] - log[..., -1:])

    def from_real(self, u: Any, shape: tuple[int, ...], xp: Any = np) -> Any:
        u = xp.reshape(u, (*shape[:-1], shape[-1] - 1))
        u = xp.concatenate([u, xp.zeros((*shape[:-1], 1))], axis=-1)
        each = xp.exp(u - u.max(axis=-1, keepdims=True))
        return each / each.sum(axis=-1, keepdims=True)


class LogSimplex(Simplex):
    """Logarithms (or -inf) of numbers that sum to 1 along the last axis."""

    def problem(self, name: str, value: Array) -> str | None:
        if np.isnan(value).any() or (value == np.inf).any():
            return f"{name}: got NaN or +infinity, expected logarithms of probabilities."
        sums = np.atleast_1d(np.exp(value).sum(axis=-1))
        if np.allclose(sums, 1.0):
            return None
        k = int(np.abs(sums - 1.0).argmax())
        return f"{name}: exp sums to {sums[k]:.6g} for component {k}, expected 1."


class Unit(Support):
    """Vectors of length 1 along the last axis."""

    def problem(self, name: str, value: Array) -> str | None:
        if wrong := super().problem(name, value):
            return wrong
        lengths = np.linalg.norm(value, axis=-1)
        if np.allclose(lengths, 1.0, rtol=0, atol=1e-6):
            return None
        return f"{name}: got length {lengths.flat[np.abs(lengths - 1.0).argmax()]:.6g}, expected vectors of length 1."

    def n_free(self, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape[:-1])) * (shape[-1] - 1)


class PositiveDefinite(Support):
    """Symmetric positive definite matrices in the last two axes; definiteness is checked when they are factored."""

    def problem(self, name: str, value: Array) -> str | None:
        if wrong := super().problem(name, value):
            return wrong
        apart = np.abs(value - np.swapaxes(value, -1, -2)).max()
        if apart <= 1e-9 * np.abs(value).max():
            return None
        return f"{name}: differ from their transposes by {apart:.3g}; give symmetric ones."

    def n_free(self, shape: tuple[int, ...]) -> int:
        d = shape[-1]
        return int(np.prod(shape[:-2])) * d * (d + 1) // 2

    def to_real(self, value: Array) -> Array:
        """The Cholesky factor, with logarithms on its diagonal."""
        d = value.shape[-1]
        lower = np.linalg.cholesky(value)[..., *np.tril_indices(d)]
        return np.ravel(np.where(_on_diagonal(d), np.log(np.maximum(lower, TINY)), lower))

    def from_real(self, u: Any, shape: tuple[int, ...], xp: Any = np) -> Any:
        d = shape[-1]
        u = xp.reshape(u, (*shape[:-2], d * (d + 1) // 2))
        on_diagonal = _on_diagonal(d)
        entries = xp.where(on_diagonal, xp.exp(xp.where(on_diagonal, u, 0.0)), u)
        place = np.zeros((d * (d + 1) // 2, d * d))  # of each entry in the factor
        place[np.arange(len(place)), np.ravel_multi_index(np.tril_indices(d), (d, d))] = 1.0
        factor = xp.reshape(entries @ place, shape)
        return factor @ xp.swapaxes(factor, -1, -2)


def _on_diagonal(d: int) -> Array:
    """Which of the entries of a lower triangle are on the diagonal."""
    i, j = np.tril_indices(d)
    return i == j


REAL, POSITIVE, PROBABILITY, UNIT, SIMPLEX, LOG_SIMPLEX, POSITIVE_DEFINITE, ORDERED = (
    Support(),
    Positive(),
    Bounded(0.0, 1.0),
    Unit(),
    Simplex(),
    LogSimplex(),
    PositiveDefinite(),
    Ordered(),
)

SUPPORTS = {
    "real": REAL,
    "positive": POSITIVE,
    "probability": PROBABILITY,
    "simplex": SIMPLEX,
    "ordered": ORDERED,
    "positive definite": POSITIVE_DEFINITE,
}


class Field(NamedTuple):
    """One array of the parameters.

    Attributes
    ----------
    dims : tuple of str
        Names of its dimensions, as in model.zarr. Those that begin with ``component`` run over the components; a second
        dimension of one size has a number, such as ``feature_2``.
    support : Support
    names : mapping of str to sequence of str, or None
        What the entries of a dimension are called, for dimensions that have names of their own.
    """

    dims: tuple[str, ...]
    support: Support = REAL
    names: Mapping[str, Sequence[str]] | None = None

    @property
    def component_axes(self) -> tuple[int, ...]:
        """The axes that run over the components."""
        return tuple(i for i, name in enumerate(self.dims) if stem(name) == COMPONENT)

    @property
    def is_share(self) -> bool:
        """Whether the array holds the components' shares of all rows."""
        return self.dims == (COMPONENT,) and isinstance(self.support, Simplex)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for sizes of dimensions by name."""
        return tuple(sizes[stem(name)] for name in self.dims)


Fields = Mapping[str, Field]
Arrays = dict[str, Array]


def stem(name: str) -> str:
    """Return the name of a dimension without the number of a second one of its size."""
    first, _, number = name.rpartition("_")
    return first if number.isdigit() else name


def checked(fields: Fields, sizes: Mapping[str, int], arrays: Mapping[str, Array]) -> Arrays:
    """Return the arrays of a schema as float64.

    Raises
    ------
    InputError
        If one is missing, or has another shape or other values than the schema says.
    """
    values: Arrays = {}
    for name, field in fields.items():
        if name not in arrays:
            raise InputError(f"initial parameters: got {sorted(arrays)}, expected {sorted(fields)}; {name} is missing.")
        value, shape = np.asarray(arrays[name], dtype=np.float64), field.shape(sizes)
        if value.shape != shape:
            raise InputError(f"initial {name}: got shape {value.shape}, expected shape {shape}.")
        if wrong := field.support.problem(name, value):
            raise InputError(f"initial {wrong}")
        values[name] = value
    return values


def selected(fields: Fields, arrays: Mapping[str, Array], components: Array) -> Arrays:
    """Return the arrays of some components, in the order of `components`; shares are normalized if some are left out."""
    found: Arrays = {}
    for name, value in arrays.items():
        for axis in fields[name].component_axes:
            value = np.take(value, components, axis=axis)
        found[name] = value
    return found


def joined(fields: Fields, first: Mapping[str, Array], second: Mapping[str, Array]) -> Arrays:
    """Return the components of two models in one; arrays that components share are the first model's. Shares do not sum to 1 yet."""
    return {
        name: np.concatenate([value, second[name]]) if fields[name].component_axes else value
        for name, value in first.items()
    }


def normalized(fields: Fields, arrays: Arrays) -> Arrays:
    """Return the arrays with shares that sum to 1."""
    return {name: value / value.sum() if fields[name].is_share else value for name, value in arrays.items()}


def n_free(fields: Fields, sizes: Mapping[str, int], fixed: tuple[str, ...] = ()) -> int:
    """Return the number of estimated parameters: the free ones of each array that is not fixed."""
    return sum(field.support.n_free(field.shape(sizes)) for name, field in fields.items() if name not in fixed)


def n_bytes(fields: Fields, sizes: Mapping[str, int]) -> int:
    """Return the bytes of all arrays, float64."""
    return 8 * sum(int(np.prod(field.shape(sizes))) for field in fields.values())
