"""The table of families: from a config and what is known of the rows to a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.config import Config
from pipeline.models.clusters import ClusterModel as Model
from pipeline.models.clusters import Summary as Known
from pipeline.models.covariance import full_matrix
from pipeline.models.gaussian import Gaussian
from pipeline.models.lloyd import Lloyd
from pipeline.models.mixture import Mixture
from pipeline.models.multinomial import Multinomial
from pipeline.models.prior import SHRINKAGE, Prior
from pipeline.models.words import Words


def _gaussian(config: Config, known: Known) -> Model:
    m = config.model
    [(k, covariance_type)] = m.candidates
    assignment = config.fit.assignment or "soft"
    # Rounded to float32, the reference point is the same in either precision, and moments need not be moved to it.
    with np.errstate(over="ignore"):
        shift = known.mean.astype(np.float32).astype(np.float64)
    shift = np.where(np.isfinite(shift), shift, known.mean)
    fixed = tuple(part for part in m.fixed if part != "weights")
    component = Gaussian(k, shift, covariance_type, m.reg_covar, fixed, _prior(config, known, k))
    return Mixture(component, assignment, "weights" in m.fixed, 1.0 if m.prior is None else m.prior.weights)


def _prior(config: Config, known: Known, k: int) -> Prior | None:
    """The prior that a config asks for; what it leaves open is as Fraley and Raftery (2007, sec. 4.2) have it."""
    m, d = config.model, len(known.mean)
    if m.prior is None:
        return None
    shrinkage = SHRINKAGE if m.prior.shrinkage is None else m.prior.shrinkage
    factor = k ** (-2.0 / d) if m.prior.scale is None else m.prior.scale
    # reg_covar keeps features that never vary from a scale of 0, as it keeps covariances where there is no prior.
    spread = full_matrix(known.covariance) + m.reg_covar * np.eye(d)
    scale = factor * spread if factor > 0 else None
    return Prior(known.mean, shrinkage, m.prior.dof or d + 2.0, scale)


def _kmeans(config: Config, known: Known) -> Model:
    [(k, _)] = config.model.candidates
    return Lloyd(k, known.mean, float(np.mean(known.variance)))


def _multinomial(config: Config, known: Known) -> Model:
    m = config.model
    [(k, _)] = m.candidates
    of_weights = 1.0 if m.prior is None else m.prior.weights
    assignment = config.fit.assignment or "soft"
    component = Multinomial(k, len(known.mean), m.concentration)
    return Mixture(component, assignment, "weights" in m.fixed, of_weights)


FAMILIES: dict[str, Callable[[Config, Known], Model]] = {
    "gaussian": _gaussian,
    "kmeans": _kmeans,
    "multinomial": _multinomial,
}


def build_model(config: Config, known: Known) -> Model:
    """The model that a config of one candidate asks for, about the mean of the rows."""
    return FAMILIES[config.model.family](config, known)


def words_of(family: str) -> Words:
    """What a family is called; one that is not in the table, by its own name."""
    words = {model.family: model.words for model in (Gaussian, KMeans, Multinomial)}
    return words.get(family) or Words(f"{family} model", f"A {family} model with {{k}} components")


def stats_bytes(family: str, covariance_type: str, k: int, d: int) -> int:
    """Bytes of one chunk's statistics and the lists beside them, for the memory plan."""
    second = {"full": k * d * (d + 1) // 2, "tied": d * d, "diag": k * d, "spherical": k}[covariance_type]
    moments = {"gaussian": k * d + second, "kmeans": k * d, "multinomial": k * d}[family]
    return 8 * (moments + 2 * k + min(k, 8 if family != "kmeans" else k) * d)
