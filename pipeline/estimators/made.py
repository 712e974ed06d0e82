"""The Python class of any family: one of this package, or one that is made from the family's config section."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

from pipeline.config.variants import OUTSIDE
from pipeline.estimators.mixture import FIT_OPTIONS, MixtureEstimator
from pipeline.models.families import FAMILIES
from pipeline.models.family import FamilySection


def estimator_of(family: str) -> Any:
    """Return the Python class of a family, by the name that `model.family` has for it.

    A class that is not defined in this package is made. Its arguments are the options of the family's config section,
    initial values of the parameters (such as `rates_init`), and the options of a fit.
    """
    from pipeline.estimators import OWN

    return OWN.get(family) or made_class(family)


def mixture_class(name: str) -> type[MixtureEstimator] | None:
    """Return the Python class of the family whose class has this name, such as PoissonMixture; None where there is none."""
    families = (each for each in FAMILIES if each != OUTSIDE and _class_name(each) == name)
    return next((estimator_of(each) for each in families if "heldout" in FAMILIES[each].criteria), None)


def _class_name(family: str) -> str:
    return f"{''.join(part.capitalize() for part in family.split('-'))}Mixture"


@cache
def made_class(family: str) -> Any:
    """Return the class that is made from the config section of a family."""
    section = FAMILIES[family]
    own = [name for name in section.model_fields if name not in ("family", "path")]
    defaults = {name: _default(section, name) for name in own} | dict(FIT_OPTIONS)
    defaults |= {f"{name}_init": None for name in section.parameter_names()}

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        bound = signature.bind(self, *args, **options)
        bound.apply_defaults()
        for name in defaults:
            setattr(self, name, bound.arguments[name])

    first, *rest = defaults
    kinds = {first: inspect.Parameter.POSITIONAL_OR_KEYWORD, **dict.fromkeys(rest, inspect.Parameter.KEYWORD_ONLY)}
    parameters = [inspect.Parameter(name, kinds[name], default=value) for name, value in defaults.items()]
    signature = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *parameters])
    __init__.__signature__ = signature  # type: ignore[attr-defined]  # scikit-learn reads the arguments from it
    return type(
        _class_name(family),
        (MixtureEstimator,),
        {"__init__": __init__, "section": section, "__doc__": _doc(section, own)},
    )


def _default(section: type[FamilySection], name: str) -> Any:
    default = section.model_fields[name].get_default(call_default_factory=True)
    if name == "n_components":
        return 1
    return default[0] if isinstance(default, tuple) and len(default) == 1 else default


def _doc(section: type[FamilySection], own: Sequence[str]) -> str:
    options = "\n".join(f"{name}\n    {section.model_fields[name].description}" for name in own)
    return (
        f"{section.words.name[0].upper()}{section.words.name[1:]} by EM, with scikit-learn's methods.\n\n"
        f"Parameters\n----------\n{options}\n{', '.join(FIT_OPTIONS)}\n    As of the other classes.\n\n"
        f"Attributes\n----------\n{', '.join(f'{name}_' for name in section.parameter_names())}\n"
        "converged_, n_iter_, lower_bound_, lower_bounds_, stop_reason_\n    As of the other classes."
    )
