"""Mixtures of patches in the files of other programs: of pixels in grey, full covariances.

    .mat   of the EPLL code (Zoran and Weiss 2011): a struct, GS or GMM, with nmodels, means (d, k), covs (d, d, k), invcovs,
           mixweights (k, 1); the pixels of a patch column by column. Jolideco reads the same.
    .npz   for deepinv's GaussianMixtureModel: mu (k, d), cov (k, d, d), weights (k,); pixels row by row.
    .fits  of Jolideco: a table with a row for each component and the columns weights, means (d,), covariances (d, d); pixels row by row. In its
           header PNPTYPE is subtract-mean; of std-subtract-mean, patches would be divided by their mean, which rows are not.

A mixture of patches without their mean says nothing of the mean. In .mat and .fits the mean is independent and has a small variance, the same in all components, which
adds one number to all log-densities of patches without their mean: Jolideco needs covariances that have a Cholesky factor in float32. In the files that were
released it is 0 but for rounding. deepinv looks at patches with their mean, so in .npz it has that of values evenly spread from 0 to 1: mean 1/2, variance 1/12.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.data.files import open_binary
from pipeline.data.patch import patch_basis
from pipeline.errors import InputError, StorageError

FLAT = 1e-6  # of the mean variance of a pixel: a constant patch that varies less is none
STAND_IN = 1e-4  # the variance of the constant patch of length 1 in .mat and .fits, of pixels from 0 to 1
SUFFIXES = (".mat", ".npz", ".fits")
NORM = "PNPTYPE", "subtract-mean"


def read_prior(path: str) -> dict[str, Array]:
    """Return weights (k,), means (k, d) and covariances (k, d, d) of pixels, row by row, float64.

    Raises
    ------
    InputError
        If the file has another layout.
    """
    try:
        with open_binary(path, {}) as file:
            found = _READ[Path(path).suffix](file)
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, UserWarning) as error:
        raise InputError(
            f"{path}: cannot be read ({error}), expected .mat with the struct GS or GMM of the EPLL code, .npz with mu, cov and weights, or .fits with "
            "a table of weights, means and covariances."
        ) from error
    k, d = found["means"].shape
    if found["covariances"].shape != (k, d, d) or found["weights"].shape != (k,):
        shapes = ", ".join(f"{name} {value.shape}" for name, value in found.items())
        raise InputError(f"{path}: got {shapes}, expected (k,), (k, d) and (k, d, d). Write it again.")
    return found


def is_prior(path: str) -> bool:
    """Whether a file has one of these layouts, by its name, and of .npz by the names of its arrays."""
    if not path.endswith(".npz"):
        return path.endswith(SUFFIXES)
    with open_binary(path, {}) as file, np.load(file, allow_pickle=False) as stored:
        return {"mu", "cov", "weights"} <= set(stored.files)


def _from_npz(file: Any) -> dict[str, Array]:
    with np.load(file, allow_pickle=False) as stored:
        names = {"weights": "weights", "means": "mu", "covariances": "cov"}
        return {name: np.asarray(stored[key], np.float64) for name, key in names.items()}


def _from_mat(file: Any) -> dict[str, Array]:
    from scipy.io import loadmat

    structs = [value for value in loadmat(file, simplify_cells=True).values() if isinstance(value, dict)]
    found = next((one for one in structs if {"covs", "mixweights"} <= set(one)), None)
    if found is None:
        raise ValueError("no struct with covs and mixweights")
    weights = np.asarray(found["mixweights"], np.float64).reshape(-1)
    k = len(weights)
    covs = np.asarray(found["covs"], np.float64)
    d = len(np.atleast_2d(covs))
    covs = covs.reshape(d, d, k)
    means = np.asarray(found.get("means", np.zeros((d, k))), np.float64).reshape(d, k)
    order = _by_columns(d)
    by_row = np.empty((k, d)), np.empty((k, d, d))
    by_row[0][:, order] = means.T
    by_row[1][:, order[:, None], order] = covs.transpose(2, 0, 1)
    return {"weights": weights, "means": by_row[0], "covariances": by_row[1]}


def _from_fits(file: Any) -> dict[str, Array]:
    fits = _astropy()
    if file.read(6) != b"SIMPLE":  # compressed files may have any size
        raise ValueError("no FITS file")
    file.seek(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*truncated")  # or memory is taken for rows that are not there
        with fits.open(file, memmap=False) as units:
            found = next((one for one in units if isinstance(one, fits.BinTableHDU)), None)
            if found is None:
                raise ValueError("no table")
            if (norm := found.header.get(*NORM)) != NORM[1]:
                raise ValueError(f"{NORM[0]} is {norm}, expected {NORM[1]}")
            return {name: np.asarray(found.data[name], np.float64) for name in ("weights", "means", "covariances")}


def _astropy() -> Any:
    try:
        from astropy.io import fits
    except ImportError as error:
        raise InputError(
            "a mixture in .fits is read and written by astropy, which is not installed. Install it: pip install 'em-pipeline[fits]'."
        ) from error
    return fits


_READ: dict[str, Callable[[Any], dict[str, Array]]] = {".mat": _from_mat, ".npz": _from_npz, ".fits": _from_fits}


def _by_columns(d: int) -> Array:
    """The row-by-row number of each pixel of a square patch, column by column."""
    side = round(d**0.5)
    if side * side != d:
        raise ValueError(f"got patches of {d} pixels, expected square ones")
    return np.arange(d).reshape(side, side).T.ravel()


def write_prior(path: Path, arrays: dict[str, Array], size: tuple[int, int], mean_free: bool) -> None:
    """Write a mixture of patches. arrays : as of `read_prior`, but of features if `mean_free`.

    Raises
    ------
    InputError
        If the name does not end with .mat, .npz or .fits, or patches are not square; or if astropy is not installed, for .fits.
    StorageError
        If it cannot be written.
    """
    if path.suffix not in _WRITE:
        raise InputError(f"{path}: got {path.suffix or 'no suffix'}, expected .mat, .npz or .fits. Rename it.")
    if size[0] != size[1]:
        raise InputError(f"{path}: got patches of {size[0]} x {size[1]} pixels, expected square ones.")
    weights, means, covariances = (arrays[name] for name in ("weights", "means", "covariances"))
    if mean_free:
        basis = patch_basis(size)
        means, covariances = means @ basis.T, basis @ covariances @ basis.T
        if path.suffix == ".npz":
            means, covariances = means + 0.5, covariances + 1 / 12
        else:
            covariances = covariances + STAND_IN / len(basis)
    try:
        _WRITE[path.suffix](path, weights, means, covariances)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error}). Make room, then write it again.") from error


def _write_npz(path: Path, weights: Array, means: Array, covariances: Array) -> None:
    with path.open("wb") as file:
        np.savez(file, weights=weights, mu=means, cov=covariances)


def _write_fits(path: Path, weights: Array, means: Array, covariances: Array) -> None:
    fits, d = _astropy(), means.shape[1]
    columns = [
        fits.Column("weights", "D", array=weights),
        fits.Column("means", f"{d}D", array=means),
        fits.Column("covariances", f"{d * d}D", dim=f"({d},{d})", array=covariances),
    ]
    table = fits.BinTableHDU.from_columns(columns)
    table.header[NORM[0]] = NORM[1]
    table.writeto(path, overwrite=True)


def _write_mat(path: Path, weights: Array, means: Array, covariances: Array) -> None:
    from scipy.io import savemat

    order = _by_columns(means.shape[1])
    covs = covariances[:, order[:, None], order].transpose(1, 2, 0)
    inverse = np.linalg.inv(covs.transpose(2, 0, 1)).transpose(1, 2, 0)
    struct = {
        "dim": float(len(covs)),
        "nmodels": float(len(weights)),
        "means": means[:, order].T,
        "covs": covs,
        "invcovs": inverse,
        "mixweights": weights[:, None],
    }
    savemat(path, {"GS": struct})


_WRITE: dict[str, Callable[[Path, Array, Array, Array], None]] = {
    ".mat": _write_mat,
    ".npz": _write_npz,
    ".fits": _write_fits,
}


def without_mean(found: dict[str, Array], size: tuple[int, int]) -> dict[str, Array]:
    """Return a mixture of the features of patches without their mean. found : of pixels, as of `read_prior`."""
    basis = patch_basis(size)
    if len(basis) != found["means"].shape[1]:
        raise InputError(
            f"got patches of {found['means'].shape[1]} pixels, expected {size[0]} x {size[1]}. Set data.patch.size to theirs."
        )
    return {
        "weights": found["weights"],
        "means": found["means"] @ basis,
        "covariances": basis.T @ found["covariances"] @ basis,
    }


def features_of(found: dict[str, Array]) -> dict[str, Array]:
    """Return a mixture of pixels, or where it says nothing of the mean of a patch of the features without it. found : as of `read_prior`."""
    d = found["means"].shape[1]
    of_constant = found["covariances"].mean(axis=2)  # times the constant patch
    variance = of_constant.mean(axis=1) * d  # of that of length 1
    flat = variance <= FLAT * np.trace(found["covariances"], axis1=1, axis2=2) / d
    stands_in = np.allclose(of_constant, STAND_IN / d, rtol=1e-3) and np.allclose(
        found["means"].mean(axis=1), 0, atol=1e-6
    )
    side = round(d**0.5)
    return without_mean(found, (side, side)) if (flat.all() or stands_in) and side * side == d > 1 else found
