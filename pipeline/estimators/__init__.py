"""The Python face: scikit-learn's estimators over the same loop, for rows that a program holds."""

from pipeline.estimators.gaussian import GaussianMixture
from pipeline.estimators.kmeans import KMeans
from pipeline.estimators.multinomial import MultinomialMixture

__all__ = ["GaussianMixture", "KMeans", "MultinomialMixture"]
