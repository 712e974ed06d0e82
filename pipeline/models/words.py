"""What a family is called in the report, the terminal and messages."""

from __future__ import annotations

from typing import NamedTuple


class Words(NamedTuple):
    """Names of a family and of its parts, in the singular unless said.

    Attributes
    ----------
    name : str
        The kind of model, such as ``Gaussian mixture``.
    title : str
        What was fitted, for ``str.format(k=…)``, such as ``A mixture of {k} Gaussians``; a report also fills in the
        sizes of other dimensions of the parameters, such as ``{factor}``.
    component, components : str
        One of the K parts and several: component, cluster, topic, state.
    location : str
        Where a component is: mean, centre, rate, word probabilities.
    objective : str
        What the iterations improve: log-likelihood, inertia. With ``_`` for ``-``, the name of its history.
    unit : str
        Its unit: nats, squared distance.
    sign : int
        1 where the objective is reported as it is, -1 where its negative is (inertia).
    score : str
        What labels.zarr stores of each row beside its label, and what ranks the rows that fit worst.
    score_text : str
        The same in words.
    until : str
        When iterations stop early, for ``str.format(tol=…)``: the end of a sentence that begins with "until".
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
    until: str = "the objective changes by less than {tol} nats per row"

    @property
    def series(self) -> str:
        """Name of the objective in model.zarr and in events, such as log_likelihood."""
        return self.objective.replace("-", "_")

    def entitle(self, k: int, **sizes: int) -> str:
        """The title of a model with k components, and with dimensions of these sizes.

        >>> Words("Poisson mixture", "A mixture of {k} Poissons").entitle(5)
        'A mixture of 5 Poissons'
        >>> Words("factor analysis", "Factor analysis with {factor} factors").entitle(0, factor=2)
        'Factor analysis with 2 factors'
        """
        name = f"{self.name[:1].upper()}{self.name[1:]}"
        if k == 1:
            return f"{name} with 1 {self.component}"
        if k == 0 and "{k}" in self.title:
            return name
        return self.title.format(k=f"{k:,}", **sizes)
