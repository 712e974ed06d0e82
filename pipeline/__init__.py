"""Exact clustering of data larger than memory by Expectation-Maximization.

Public names are imported when first used, so that `import pipeline` is cheap and what must be
set before NumPy loads still can be.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.numerics import NUMERICS

_HOMES = {
    "Config": "pipeline.jobconfig",
    "Encoder": "pipeline.estimators.encoder",
    "GaussianMixture": "pipeline.estimators",
    "HiddenMarkovModel": "pipeline.estimators",
    "JaxModel": "pipeline.models.autodiff.declare",
    "KMeans": "pipeline.estimators",
    "LatentDirichletAllocation": "pipeline.estimators",
    "MultinomialMixture": "pipeline.estimators",
    "Parameter": "pipeline.models.autodiff.declare",
    "check_model": "pipeline.estimators.model_check",
    "compress": "pipeline.workflow",
    "decompress": "pipeline.workflow",
    "denoise": "pipeline.workflow",
    "encode": "pipeline.workflow",
    "estimator_of": "pipeline.estimators",
    "fit": "pipeline.estimators.models",
    "impute": "pipeline.workflow",
    "load_config": "pipeline.jobconfig",
    "open_estimator": "pipeline.estimators.runs",
    "open_run": "pipeline.workflow",
    "outliers": "pipeline.workflow",
    "predict": "pipeline.workflow",
    "resume": "pipeline.workflow",
    "run": "pipeline.workflow",
    "sample": "pipeline.workflow",
    "save_prior": "pipeline.estimators",
    "show": "pipeline.outputs.report.inline",
    "summarize": "pipeline.workflow",
    "to_numpy": "pipeline.estimators.runs",
    "to_onnx": "pipeline.estimators.runs",
    "update": "pipeline.workflow",
}
__all__ = [
    "NUMERICS",
    "Config",
    "Encoder",
    "GaussianMixture",
    "HiddenMarkovModel",
    "JaxModel",
    "KMeans",
    "LatentDirichletAllocation",
    "MultinomialMixture",
    "Parameter",
    "check_model",
    "compress",
    "decompress",
    "denoise",
    "encode",
    "estimator_of",
    "fit",
    "impute",
    "load_config",
    "open_estimator",
    "open_run",
    "outliers",
    "predict",
    "resume",
    "run",
    "sample",
    "save_prior",
    "show",
    "summarize",
    "to_numpy",
    "to_onnx",
    "update",
]

if TYPE_CHECKING:
    from pipeline.estimators import (
        GaussianMixture,
        HiddenMarkovModel,
        KMeans,
        LatentDirichletAllocation,
        MultinomialMixture,
        estimator_of,
        save_prior,
    )
    from pipeline.estimators.encoder import Encoder
    from pipeline.estimators.model_check import check_model
    from pipeline.estimators.models import fit
    from pipeline.estimators.runs import open_estimator, to_numpy, to_onnx
    from pipeline.jobconfig import Config, load_config
    from pipeline.models.autodiff.declare import JaxModel, Parameter
    from pipeline.outputs.report.inline import show
    from pipeline.workflow import (
        compress,
        decompress,
        denoise,
        encode,
        impute,
        open_run,
        outliers,
        predict,
        resume,
        run,
        sample,
        summarize,
        update,
    )


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("em-pipeline")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name.endswith("Mixture"):  # of a family that has no class of its own
        from pipeline.estimators import mixture_class

        if (found := mixture_class(name)) is not None:
            return found
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
