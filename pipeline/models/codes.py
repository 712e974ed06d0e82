"""Codes: rows, and units of rows such as pictures, as features by the components of a fitted model.

    hard        1 for the component of a row, else 0
    soft        responsibilities
    distances   z_k = |x - m_k|
    triangle    max(0, mean of z - z_k)                     [Coates, Lee and Ng 2011, sec. 3.2.1]
    words       how many rows of a unit have each label     [Csurka et al. 2004]
    vlad        sums of x - m_k over the rows of label k, divided by the length of the whole  [Jégou et al. 2010, eq. 1]
    fisher      with u_k the row that component k has given identity covariance, of n rows:
                sum of r_k u_k / (n sqrt(w_k)), then sum of r_k (u_k² - 1) / (n sqrt(2 w_k)); then signed square roots, divided by
                the length of the whole                     [Perronnin, Sánchez and Mensink 2010, sec. 2]

The first four are codes of rows, pooled where units are asked for. What is pooled are sums, or maxima, over the rows of a cell of a unit:
those of two sets of rows add, so that a unit may have any number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.rows import unit
from pipeline.arrays.tiles import tiles
from pipeline.errors import InputError
from pipeline.models.clusters import ClusterModel
from pipeline.models.mixture import Mixture

TILE_NUMBERS = 2**21  # of responsibilities; larger tiles than those of passes, since calls are by component
LEAST = 1e-14  # responsibilities below are left out of Fisher vectors: nearly all are
CENTRES = ("centers", "means")  # locations that are points among the rows
POOLS = ("sum", "mean", "max")
OF_UNITS = ("words", "vlad", "fisher")  # codes of units alone; the others are of rows, or pooled


class Kind(NamedTuple):
    """How a code is computed.

    Attributes
    ----------
    of_rows : callable
        (code, x (n, d), kernels) -> (n, k), or (n,) labels: what a row contributes, or what its contribution is computed from.
    needs : tuple of str
        Of "centres", "soft", "variances".
    parts : tuple of str
        Names of what a component has d numbers of; empty where it has one.
    added : callable, or None where `of_rows` is pooled
        (code, x, of_rows, weight (n,), group (n,), n_groups) -> sums (n_groups, k, parts, d).
    finished : callable, or None
        (code, sums, counts (n_groups,)) -> the code, of the same shape.
    """

    of_rows: Callable[..., Array]
    needs: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    added: Callable[..., Array] | None = None
    finished: Callable[..., Array] | None = None


@dataclass(frozen=True)
class Code:
    """A code by the components of a model.

    Attributes
    ----------
    name : str
        Of `KINDS`.
    model : ClusterModel
    params : object
    pool : {"sum", "mean", "max"} or None
        How codes of rows become one of a unit; None for codes of rows.
    grid : tuple of int
        Units are cut into g x g cells, for each g; codes of cells follow each other.

    Raises
    ------
    InputError
        If the model has no such code, or the options do not go together.
    """

    name: str
    model: Any
    params: Any
    pool: str | None = None
    grid: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise InputError(f"encode: got {self.name!r}, expected one of {', '.join(KINDS)}. Correct --as.")
        _refuse_model(self.name, self.model)
        if self.pool is not None and (self.pool not in POOLS or not self.pools):
            expected = f"one of {', '.join(POOLS)}" if self.pools else f"none: {self.name} has its own"
            raise InputError(f"encode: got pool {self.pool!r}, expected {expected}. Correct --pool.")
        if not self.grid or min(self.grid) < 1 or len(set(self.grid)) < len(self.grid):
            raise InputError(
                f"encode: got grids {self.grid}, expected different numbers of at least 1. Correct --grid."
            )
        if self.grid != (1,) and not self.of_units:
            raise InputError(f"encode: got a grid, but {self.name} without --pool is a code of rows. Give --pool sum.")

    @property
    def kind(self) -> Kind:
        """How the code is computed."""
        return KINDS[self.name]

    @property
    def pools(self) -> bool:
        """Whether `pool` says how rows become a unit."""
        return self.name not in OF_UNITS

    @property
    def of_units(self) -> bool:
        """Whether it is a code of units."""
        return self.pool is not None or not self.pools

    @property
    def k(self) -> int:
        """Components."""
        return int(self.model.n_components)

    @property
    def centres(self) -> Array:
        """The locations of the components, (k, d)."""
        return np.asarray(self.model.arrays(self.params)[self.model.location])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the code of a cell: (k, 1, 1), or (k, parts, d)."""
        return (self.k, len(self.kind.parts), self.model.n_features) if self.kind.parts else (self.k, 1, 1)

    @property
    def cells(self) -> int:
        """Cells of a unit."""
        return sum(g * g for g in self.grid)

    @property
    def width(self) -> int:
        """Columns of the code."""
        return self.cells * int(np.prod(self.shape)) if self.of_units else self.k

    def names(self) -> list[str]:
        """Return the name of each column: that of the code and the component; part and feature; and the cell where there are several."""
        if self.kind.parts:
            d = range(self.model.n_features)
            own = [f"{self.name}_{part}_{j}_{i}" for part in self.kind.parts for j in range(self.k) for i in d]
        else:
            own = [f"{self.name}_{j}" for j in range(self.k)]
        at = [f"_in_{g}x{g}_{i // g}_{i % g}" if g > 1 else "" for g in self.grid for i in range(g * g)]
        return [f"{name}{cell}" for cell in (at if self.of_units else [""]) for name in own]

    def rows(self, x: Matrix, kernels: Any) -> Array:
        """Return the codes of rows, (n, k) float64. x : (n, d)."""
        parts = [self.kind.of_rows(self, x[rows], kernels) for rows in self._tiles(x)]
        return np.concatenate(parts) if parts else np.empty((0, self.k))

    def zeros(self, n: int) -> Sums:
        """Return the sums of n units without rows."""
        return Sums(np.zeros((n * self.cells, *self.shape)), np.zeros(n * self.cells))

    def add(self, sums: Sums, x: Matrix, weight: Array | None, own: Array, place: Array | None, kernels: Any) -> None:
        """Add rows to the sums of units.

        Parameters
        ----------
        sums : Sums
        x : array or csr_array, shape (n, d)
        weight : array, shape (n,), or None for ones
            Rows of weight 0 do not count.
        own : array of int, shape (n,)
            The unit of each row, from 0.
        place : array, shape (n, 2), or None
            Where the row is in its unit, from 0 to 1 down and across; None where it is nowhere.
        kernels : Kernels
        """
        for rows in self._tiles(x):
            kept = np.arange(rows.start, rows.stop)
            kept = kept if weight is None else kept[weight[kept] > 0]
            if not len(kept):
                continue
            tile, w = x[kept], np.ones(len(kept)) if weight is None else weight[kept]
            found, first = self.kind.of_rows(self, tile, kernels), 0
            for g in self.grid:
                group = own[kept] * self.cells + first
                if place is not None and g > 1:
                    down, across = np.minimum(np.floor(place[kept] * g + 1e-9), g - 1).astype(np.int64).T
                    group = group + down * g + across
                first += g * g
                self._add(sums, tile, found, w, group)

    def _add(self, sums: Sums, x: Matrix, found: Array, weight: Array, group: Array) -> None:
        """Add a tile to the sums. group : the cell of each row among those of all units."""
        inside, group = np.unique(group, return_inverse=True)
        n = len(inside)
        sums.rows[inside] += np.bincount(group, weight, n)
        if self.kind.added is not None:
            sums.value[inside] += self.kind.added(self, x, found, weight, group, n)
        elif self.pool == "max":
            order = np.argsort(group, kind="stable")
            first = np.searchsorted(group[order], np.arange(n))
            most = np.maximum.reduceat(found[order], first, axis=0)[:, :, None, None]
            sums.value[inside] = np.maximum(sums.value[inside], most)
        else:
            sums.value[inside] += _summed(found, weight, group, n)[:, :, None, None]

    def finish(self, sums: Sums) -> Array:
        """Return the codes of units, (n, width) float64; 0 for cells without rows."""
        value, count = sums.value, np.maximum(sums.rows, np.finfo(float).tiny)[:, None, None, None]
        if self.pool == "mean":
            value = value / count
        if self.kind.finished is not None:
            value = self.kind.finished(self, value, count)
        return value.swapaxes(1, 2).reshape(-1, self.cells * int(np.prod(self.shape)))

    def _tiles(self, x: Matrix) -> Any:
        return tiles(x.shape[0], max(64, min(2**13, TILE_NUMBERS // (self.k + self.model.n_features))))


class Sums(NamedTuple):
    """What is known of units so far. value : (units x cells, *shape of the code).  rows : (units x cells,) their weights."""

    value: Array
    rows: Array


def _refuse_model(name: str, model: Any) -> None:
    """Raise InputError unless a model has a code."""
    title = model.words.name
    if not isinstance(model, ClusterModel) or model.unit_bytes():
        raise InputError(f"encode: a {title} has no labels of single rows. Fit a mixture or K-means.")
    needs = KINDS[name].needs
    if "soft" in needs and not isinstance(model, Mixture):
        raise InputError(f"encode: a {title} has no responsibilities, which {name} needs. Use hard, or fit a mixture.")
    if "centres" in needs and (model.location not in CENTRES or model.incomplete):
        raise InputError(
            f"encode: a {title} has no centres among whole rows, which {name} needs. Use hard, soft or words, or fit another family."
        )
    component: Any = getattr(model, "component", None)
    if "variances" in needs and (component.has_own_latents or not hasattr(component, "shape")):
        raise InputError(
            f"encode: a {title} has no {name} vectors, which are of normal distributions. Use words or vlad, or fit such a mixture."
        )


def _summed(values: Array, weight: Array, group: Array, n: int) -> Array:
    """Weighted sums of rows by group, (n, m). values : (rows, m)."""
    shares = sp.csr_array((weight, (group, np.arange(len(group)))), shape=(n, len(group)))
    return np.asarray(shares @ values)


def _labels(code: Code, x: Matrix, kernels: Any) -> Array:
    """Labels, (n,); below 0 for rows that belong to none."""
    return np.concatenate([found.label for _, found in code.model.assign(code.params, x, kernels)])


def _hard(code: Code, x: Matrix, kernels: Any) -> Array:
    return (_labels(code, x, kernels)[:, None] == np.arange(code.k)).astype(np.float64)


def _soft(code: Code, x: Matrix, kernels: Any) -> Array:
    return np.exp(np.concatenate([found.log_resp for _, found in code.model.assign(code.params, x, kernels)]))


def _points(code: Code, x: Matrix) -> Array:
    """Rows as points among the centres, dense float64."""
    dense = x.toarray() if sp.issparse(x) else x
    return np.asarray(unit(dense) if code.model.unit_rows else dense, dtype=np.float64)


def _distances(code: Code, x: Matrix, kernels: Any) -> Array:
    centres = code.centres
    about = centres.mean(axis=0)  # far from the origin, squares would lose digits
    points, centres = _points(code, x) - about, centres - about
    squares = np.einsum("nd,nd->n", points, points)[:, None] + np.einsum("kd,kd->k", centres, centres)
    return np.sqrt(np.maximum(squares - 2.0 * points @ centres.T, 0.0))


def _triangle(code: Code, x: Matrix, kernels: Any) -> Array:
    z = _distances(code, x, kernels)
    return np.maximum(z.mean(axis=1, keepdims=True) - z, 0.0)


def _vlad(code: Code, x: Matrix, label: Array, weight: Array, group: Array, n: int) -> Array:
    seen = label >= 0
    own, points = label[seen], _points(code, x)[seen]
    sums = _summed(points - code.centres[own], weight[seen], group[seen] * code.k + own, n * code.k)
    return sums.reshape(n, *code.shape)


def _fisher(code: Code, x: Matrix, share: Array, weight: Array, group: Array, n: int) -> Array:
    points, sums, theta = np.asarray(x, dtype=np.float64), np.zeros((n, *code.shape)), code.params.theta
    for k in range(code.k):
        near = np.flatnonzero(share[:, k] > LEAST)
        white = code.model.component.shape.whitened(points[near] - theta.means[k], theta.factors, k)
        both = np.concatenate([white, white * white - 1.0], axis=1)
        sums[:, k] = _summed(both, weight[near] * share[near, k], group[near], n).reshape(n, 2, -1)
    return sums


def _gradients(code: Code, sums: Array, count: Array) -> Array:
    """Fisher vectors, from the sums of whitened rows."""
    weights = np.maximum(code.model.shares(code.params, None), np.finfo(float).tiny)[:, None, None]
    scaled = sums / (count * np.sqrt(weights * np.array([1.0, 2.0])[:, None]))
    return _unit_length(code, np.sign(scaled) * np.sqrt(np.abs(scaled)), count)


def _unit_length(code: Code, value: Array, count: Array) -> Array:
    """Codes of cells scaled to length 1; those of zeros stay."""
    return np.asarray(unit(value.reshape(len(value), -1))).reshape(value.shape)


KINDS = {
    "hard": Kind(_hard),
    "soft": Kind(_soft, needs=("soft",)),
    "triangle": Kind(_triangle, needs=("centres",)),
    "distances": Kind(_distances, needs=("centres",)),
    "words": Kind(_hard),
    "vlad": Kind(_labels, ("centres",), ("mean",), _vlad, _unit_length),
    "fisher": Kind(_soft, ("soft", "centres", "variances"), ("mean", "variance"), _fisher, _gradients),
}
