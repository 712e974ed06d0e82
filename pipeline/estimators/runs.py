"""From a run to an estimator, and from an estimator to what other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.preprocess import Affine
from pipeline.data.priors import SUFFIXES
from pipeline.errors import InputError
from pipeline.estimators import estimator_of, open_prior
from pipeline.models.books import Quantizer
from pipeline.models.families import FAMILIES
from pipeline.outputs.model_store import load_model, load_statistics, read_model
from pipeline.outputs.run_directory import RunDirectory


def open_estimator(path: str | Path) -> Any:
    """Return the fitted estimator of a run, for rows as the run read them; or of a mixture of patches in a file of another program.

    Such a file is a .mat of the EPLL code, a .npz for deepinv or a .fits of Jolideco, as `save_prior` writes them: for pixels from 0 to 1 of a patch, row by row, or
    where the patches have no mean, for the features of `data.patch.remove_mean`.

    Where the run preprocessed its rows, it is a scikit-learn Pipeline of two steps, `preprocess` (an affine map, as a PCA) and
    `model`.

    Raises
    ------
    InputError
        When the run is not finished.
    StorageError
        If it is damaged.
    """
    if str(path).endswith(SUFFIXES):
        return open_prior(str(path))
    stored = read_model(RunDirectory(path).model)
    model, params, affine = load_model(stored)
    attrs = stored.attrs
    if model.family in FAMILIES and FAMILIES[model.family].by_unit:
        raise InputError(
            f"{path}: a {model.words.name} has no Python class, which knows no units. Use pipeline.predict."
        )
    if isinstance(model, Quantizer):
        raise InputError(
            f"{path}: a {model.words.name} has no Python class. Use pipeline.open_run, pipeline.predict and pipeline.compress."
        )
    estimator = estimator_of(attrs["family"]).of_model(model, params, attrs)
    estimator.n_iter_, estimator.stop_reason_ = attrs["n_iter"], attrs["stop_reason"]
    estimator.n_features_in_ = model.sizes["feature"]
    if "statistics" in attrs:
        estimator.statistics_ = load_statistics(stored)
    return estimator if affine is None else _after(affine, estimator)


def to_onnx(estimator: Any) -> Any:
    """Return an estimator, or a Pipeline that ends with one, as an ONNX model of float64 rows.

    Returns
    -------
    onnx.ModelProto
        Its outputs are those of skl2onnx for the estimator of `to_sklearn`.

    Raises
    ------
    InputError
        If skl2onnx is not installed.
    """
    try:
        from skl2onnx import to_onnx as converted
        from skl2onnx.common.data_types import DoubleTensorType
    except ImportError as error:
        raise InputError(f"to_onnx: {error}. Install it: pip install 'em-pipeline[onnx]'.") from error
    plain = as_sklearn(estimator)
    options = {type(plain): {"zipmap": False}} if hasattr(plain, "classes_") else None
    return converted(plain, initial_types=[("X", DoubleTensorType([None, plain.n_features_in_]))], options=options)


def as_sklearn(estimator: Any) -> Any:
    """Return the estimator, or the Pipeline that ends with one, in scikit-learn's classes."""
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, Pipeline):
        return Pipeline([*estimator.steps[:-1], (estimator.steps[-1][0], estimator.steps[-1][1].to_sklearn())])
    return estimator.to_sklearn()


def to_numpy(estimator: Any) -> dict[str, np.ndarray]:
    """Return the parameters by name, such as weights, means and covariances.

    Saved by `numpy.savez`, they are a start for ``fit.init: explicit``.
    """
    arrays: dict[str, np.ndarray] = estimator._stored()
    return arrays


def _after(affine: Affine, estimator: Any) -> Any:
    """A Pipeline of the map and the estimator: (x - offset) @ matrix is what a PCA does; with missing entries it only scales."""
    from sklearn.decomposition import PCA
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if getattr(estimator, "missing", False):
        scaler = StandardScaler()
        scaler.mean_, scaler.scale_, scaler.n_features_in_ = affine.offset, 1.0 / affine.matrix, len(affine.offset)
        return Pipeline([("preprocess", scaler), ("model", estimator)])
    matrix = affine.full_matrix()
    n_in, n_out = matrix.shape
    step = PCA(n_components=n_out, whiten=False)
    step.mean_, step.components_, step.n_components_, step.n_features_in_ = affine.offset, matrix.T, n_out, n_in
    step.explained_variance_ = np.ones(n_out)  # what whitening would divide by, were it asked for
    return Pipeline([("preprocess", step), ("model", estimator)])
