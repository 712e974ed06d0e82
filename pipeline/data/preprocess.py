"""Preprocessing: a chain of affine maps, fitted from the mean and covariance of one pass.

Centring, scaling, PCA and ZCA are all x -> (x - offset) @ matrix, and the moments of mapped rows follow from
those of the rows; so the whole chain is one map, fitted in one pass over the data.
[PCA: Jolliffe 2002; ZCA: Bell and Sejnowski 1997]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.arrays.dtypes import Array, compute_dtype
from pipeline.arrays.packing import stored
from pipeline.config import Preprocess
from pipeline.errors import InputError


@stored
@dataclass(frozen=True)
class Affine:
    """The map x -> (x - offset) @ matrix, in float64.

    Attributes
    ----------
    offset : array, shape (D,)
    matrix : array, shape (D, d) or (D,)
        Of shape (D,) for one factor a feature.
    """

    offset: Array
    matrix: Array

    @property
    def n_out(self) -> int:
        """The columns of a mapped row, d."""
        return self.matrix.shape[-1]

    def apply(self, x: Array) -> Array:
        """Map rows.

        Parameters
        ----------
        x : array, shape (n, D), (n, D + D) or (n, D + D D)
            Rows, and what is known of their errors: variances or covariances.

        Returns
        -------
        array, shape (n, d), (n, d + d) or (n, d + d d)
            In the dtype that rows of x's dtype are computed in.
        """
        dtype = compute_dtype(x.dtype)
        if x.shape[1] > len(self.offset):
            x, errors = np.split(x, [len(self.offset)], axis=1)
            return np.concatenate([self.apply(x), self._errors(errors.astype(np.float64)).astype(dtype)], axis=1)
        # The difference is formed in float64: the offset's rounding would shift every row of float32 data.
        centred = np.subtract(x, self.offset, dtype=np.float64).astype(dtype, copy=False)
        matrix = self.matrix.astype(dtype)
        return centred * matrix if matrix.ndim == 1 else centred @ matrix

    def _errors(self, errors: Array) -> Array:
        """Variances (n, D) or covariances (n, D D) of mapped rows, (n, d) or (n, d d); variances are covariances once features are mixed."""
        n, d = len(errors), len(self.offset)
        if errors.shape[1] == d and self.matrix.ndim == 1:
            return errors * np.square(self.matrix)
        full = errors[:, :, None] * np.eye(d) if errors.shape[1] == d else errors.reshape(n, d, d)
        matrix = self.full_matrix()
        return (matrix.T @ full @ matrix).reshape(n, -1)

    def full_matrix(self) -> Array:
        """Return the matrix in shape (D, d)."""
        return np.diag(self.matrix) if self.matrix.ndim == 1 else self.matrix

    def inverse(self) -> Array:
        """Return the pseudo-inverse, shape (d, D): mapped @ inverse + offset is the closest row of the data's space."""
        if self.matrix.ndim == 1:
            return np.diag(1.0 / self.matrix)
        return np.linalg.pinv(self.matrix)

    def log_jacobian(self) -> float | None:
        """Return log |det matrix|, which added to a log-density gives that of the raw rows; None if dimensions were dropped."""
        if self.matrix.ndim == 1:
            return float(np.log(np.abs(self.matrix)).sum())
        if self.matrix.shape[0] != self.matrix.shape[1]:
            return None
        return float(np.linalg.slogdet(self.matrix)[1])

    def then(self, offset: Array, matrix: Array) -> Affine:
        """Return this map followed by x -> (x - offset) @ matrix, whose matrix may have shape (d,) for a diagonal."""
        if self.matrix.ndim == 1:
            new_offset = self.offset + offset / self.matrix
            product = self.matrix * matrix if matrix.ndim == 1 else self.matrix[:, None] * matrix
            return Affine(new_offset, product)
        # (x - o) M - c = (x - o - c M⁺) M: c lies in the row space of M.
        shifted = self.offset + (offset @ np.linalg.pinv(self.matrix) if offset.any() else 0.0)
        return Affine(shifted, self.matrix * matrix if matrix.ndim == 1 else self.matrix @ matrix)


def fit_preprocess(
    steps: Sequence[Preprocess], mean: Array, covariance: Array, variables: Sequence[str] | None = None
) -> Affine | None:
    """Fit a chain of steps as one map.

    Parameters
    ----------
    steps : sequence of Preprocess
    mean : array, shape (D,)
    covariance : array, shape (D, D) or (D,)
        Of shape (D,) where only scales matter.
    variables : sequence of str, or None
        Which variable each feature is of, for ``standardize`` by variable.

    Returns
    -------
    Affine or None
        None where there are no steps.

    Raises
    ------
    InputError
        If a step asks for more dimensions than vary, or for variables where there are none.
    """
    if not steps:
        return None
    refuse_by_variable(steps, variables)
    d = len(mean)
    affine = Affine(np.zeros(d), np.ones(d))
    for step in steps:
        if step.by == "variable":
            offset, matrix = _by_variable(mean, covariance, variables or ())
        else:
            offset, matrix = _fit_step(step, mean, covariance)
        affine = affine.then(offset, matrix)
        mean, covariance = mapped_moments(Affine(offset, matrix), mean, covariance)
    return affine


def refuse_by_variable(steps: Sequence[Preprocess], variables: Sequence[str] | None) -> None:
    """Raise InputError for a step by variable where the features are of none. variables : as of `fit_preprocess`."""
    for step in steps:
        if step.by == "variable" and variables is None:
            raise InputError(
                "preprocess standardize: got by: variable, but the features are of no variables. Set data.source: xarray, let no step "
                "before it mix features, or leave out by."
            )
        variables = None if step.kind in ("pca", "zca") else variables


def mapped_moments(affine: Affine, mean: Array, covariance: Array) -> tuple[Array, Array]:
    """Return mean and covariance of the mapped rows."""
    centred = mean - affine.offset
    mapped = centred * affine.matrix if affine.matrix.ndim == 1 else centred @ affine.matrix
    return mapped, _mapped_covariance(covariance, affine.matrix)


def _mapped_covariance(covariance: Array, matrix: Array) -> Array:
    if matrix.ndim == 1:
        outer = matrix * matrix if covariance.ndim == 1 else np.outer(matrix, matrix)
        return covariance * outer
    full = np.diag(covariance) if covariance.ndim == 1 else covariance
    return matrix.T @ full @ matrix


def _fit_step(step: Preprocess, mean: Array, covariance: Array) -> tuple[Array, Array]:
    """(offset, matrix) of one step."""
    variances = covariance if covariance.ndim == 1 else np.diagonal(covariance)
    if step.kind == "center":
        return mean, np.ones(len(mean))
    if step.kind == "standardize":
        return mean, _scales(mean, variances)
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    # The sign of an eigenvector is arbitrary; its largest entry is made positive, so that it is always the same.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    if step.kind == "zca":
        widened = values + step.epsilon * values.mean()
        return mean, (
            vectors / np.sqrt(np.where(widened > 0, widened, 1.0))
        ) @ vectors.T  # where nothing varies: as it is
    wanted = step.n_components or len(mean)
    varying = int((values > values[0] * 1e-14 * len(mean)).sum())
    if wanted > (varying if step.whiten else len(mean)):
        raise InputError(
            f"preprocess pca: got n_components {wanted}, but only {varying} of {len(mean)} dimensions vary. "
            f"Set n_components to at most {varying}."
        )
    return mean, vectors[:, :wanted] / np.sqrt(values[:wanted]) if step.whiten else vectors[:, :wanted]


def _scales(mean: Array, variances: Array) -> Array:
    """Factors to unit variance. A constant feature stays as it is, as in scikit-learn: its variance is 0, or the square of its mean's rounding."""
    varies = variances > (1e-13 * mean) ** 2
    return 1.0 / np.sqrt(np.where(varies, variances, 1.0))


def _by_variable(mean: Array, covariance: Array, variables: Sequence[str]) -> tuple[Array, Array]:
    """(offset, matrix): mean and variance of all entries of a variable, of which each of its features has the same number of rows."""
    _, of_each = np.unique(np.asarray(variables, dtype=object).astype(str), return_inverse=True)
    count = np.bincount(of_each)
    common = (np.bincount(of_each, mean) / count)[of_each]
    variances = (covariance if covariance.ndim == 1 else np.diagonal(covariance)) + np.square(mean - common)
    return common, _scales(common, (np.bincount(of_each, variances) / count)[of_each])
