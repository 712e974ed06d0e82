"""The Python API: scikit-learn's estimators over the same loop, for rows that a program has in memory, in Dask or in xarray."""

from pipeline.estimators.gaussian import GaussianMixture, open_prior, save_prior
from pipeline.estimators.hmm import HiddenMarkovModel
from pipeline.estimators.kmeans import KMeans
from pipeline.estimators.lda import LatentDirichletAllocation
from pipeline.estimators.made import estimator_of, mixture_class
from pipeline.estimators.mixture import MixtureEstimator
from pipeline.estimators.multinomial import MultinomialMixture

# Classes of families that have more than what every class has; of any other family one is made.
OWN = {
    "gaussian": GaussianMixture,
    "hmm": HiddenMarkovModel,
    "kmeans": KMeans,
    "lda": LatentDirichletAllocation,
    "multinomial": MultinomialMixture,
}

__all__ = [
    "OWN",
    "GaussianMixture",
    "HiddenMarkovModel",
    "KMeans",
    "LatentDirichletAllocation",
    "MixtureEstimator",
    "MultinomialMixture",
    "estimator_of",
    "mixture_class",
    "open_prior",
    "save_prior",
]
