"""What a family is called, wherever people read of it: report, terminal, messages."""

from __future__ import annotations

from typing import NamedTuple


class Words(NamedTuple):
    """Names of a family and of its parts, in the singular unless said.

    Attributes
    ----------
    name : str
        The kind of model, such as ``Gaussian mixture``.
    title : str
        What was fitted, for ``str.format(k=…)``, such as ``A mixture of {k} Gaussians``.
    component, components : str
        One of the K parts and several: component, cluster, topic, state.
    location : str
        Where a component is: mean, centre, word probabilities.
    objective : str
        What the iterations improve: log-likelihood, inertia.
    unit : str
        Its unit: nats, squared distance.
    sign : int
        1 where the objective is reported as it is, -1 where its negative is (inertia).
    score : str
        What labels.zarr stores of each row beside its label, and what ranks the rows that fit worst.
    score_text : str
        The same in words.
    """

    name: str
    title: str
    component: str = "component"
    components: str = "components"
    location: str = "mean"
    objective: str = "log-likelihood"
    unit: str = "nats"
    sign: int = 1
    score: str = "log_density"
    score_text: str = "log-density"
