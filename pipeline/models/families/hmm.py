"""Hidden Markov models: the component of a row, its state, depends on that of the row before it in the same unit.

    p(x_1 … x_T) = sum over paths z of  p(z_1) p(x_1 | z_1) prod_t a(z_t-1, z_t) p(x_t | z_t)

Units are sequences. The emissions p(x | z) are the component of any mixture. Forward-backward gives the E-step, Viterbi's
path the labels. [Baum, Petrie, Soules and Weiss 1970; Rabiner 1989]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
from pydantic import AfterValidator, ValidationError
from pydantic import Field as Option
from scipy.special import xlogy

from pipeline.arrays.additive import Additive
from pipeline.arrays.dtypes import Array, Matrix
from pipeline.arrays.packing import stored
from pipeline.arrays.rows import Rows
from pipeline.arrays.tiles import tile_height, tiles
from pipeline.errors import InputError
from pipeline.models.base import Evidence, Expectation, LatentModel, Reset, Totals
from pipeline.models.clusters import Summary, top_ranked
from pipeline.models.families import FAMILIES
from pipeline.models.family import ClusterSection
from pipeline.models.mixture import Mixture, MixtureParams, relative_squares
from pipeline.models.schema import SIMPLEX, Field, Fields
from pipeline.models.weights import log_dirichlet, map_weights, share_with
from pipeline.models.words import Words

INITIAL, TRANSITIONS = "start_probabilities", "transitions"


@dataclass(frozen=True)
class Chain:
    """start_probabilities : (k,).  transitions : (k, k), each row sums to 1.  theta : the emissions' parameters."""

    start_probabilities: Array
    transitions: Array
    theta: Any

    @cached_property
    def weights(self) -> Array:
        """(k,) shares of the states in a long sequence: the stationary distribution."""
        k = len(self.transitions)
        equations = np.vstack([self.transitions.T - np.eye(k), np.ones(k)])
        found = np.maximum(np.linalg.lstsq(equations, np.append(np.zeros(k), 1.0), rcond=None)[0], 0.0)
        return np.asarray(found / found.sum())


@stored
@dataclass(frozen=True)
class ChainStats(Additive):
    """sum_w : (k,) soft counts of rows.  initial : (k,) of first rows.  transitions : (k, k).  component : the emissions'."""

    sum_w: Array
    initial: Array
    transitions: Array
    component: Any


class Posterior(NamedTuple):
    """Some units after forward-backward. rows : of the chunk.  log_density, share : (n, k).  log_norm : (n,)."""

    rows: slice
    starts: Array
    weight: Array
    log_density: Array
    log_norm: Array
    share: Array
    initial: Array
    transitions: Array


@stored
@dataclass(frozen=True)
class HiddenMarkov(Mixture):
    """A mixture whose labels are Markov chains, one for each unit.

    `weight_concentration` is that of the Dirichlet prior on the start probabilities and on each row of the transitions.

    Attributes
    ----------
    fixed_chain : tuple of str
        Which of start probabilities and transitions stay at their initial values.
    """

    fixed_chain: tuple[str, ...] = ()

    @property
    def family(self) -> str:  # type: ignore[override]  # not the component's
        return "hmm"

    @property
    def words(self) -> Words:  # type: ignore[override]  # with the component's location
        return WORDS._replace(location=self.component.words.location)

    @property
    def fields(self) -> Fields:
        chain = {INITIAL: Field(("component",), SIMPLEX), TRANSITIONS: Field(("component", "component_2"), SIMPLEX)}
        return {**chain, **self.component.fields}

    @property
    def fixed(self) -> tuple[str, ...]:  # type: ignore[override]  # of chain and component
        return (*self.fixed_chain, *self.component.fixed)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "emission": str(self.component.family)}

    def params(self, **arrays: Array) -> Chain:  # type: ignore[override]  # of its own kind, here and below
        return Chain(arrays.pop(INITIAL), arrays.pop(TRANSITIONS), self.component.theta(**arrays))

    def arrays(self, params: Chain) -> dict[str, Array]:  # type: ignore[override]
        chain = {INITIAL: params.start_probabilities, TRANSITIONS: params.transitions}
        return {**chain, **self.component.arrays(params.theta)}

    def e_step(self, params: Chain, rows: Rows, kernels: Any) -> Expectation:  # type: ignore[override]
        k, score, total, entropy = self.n_components, np.empty(rows.n), None, 0.0
        live = np.ones(rows.n) if rows.bad is None else np.where(rows.bad, 0.0, 1.0)
        for part in self._posteriors(params, rows, kernels):
            score[part.rows] = part.log_norm
            weight = np.repeat(part.weight, np.diff(part.starts, append=len(part.share)))
            resp = part.share * (weight * live[part.rows])[:, None]
            stats = None
            for tile in tiles(len(resp), tile_height(self.n_features, k)):
                found = self.component.statistics(params.theta, rows.x[part.rows][tile], resp[tile])
                stats = found if stats is None else stats + found
            sums = ChainStats(resp.sum(axis=0), part.initial, part.transitions, stats)
            total = sums if total is None else total + sums
            possible = resp > 0
            entropy += float(weight @ np.where(weight > 0, part.log_norm, 0.0))
            entropy -= float(resp[possible] @ part.log_density[possible])
        assert total is not None, "a chunk has at least one unit"
        log_likelihood = float(score.sum())
        if rows.weight is not None:
            each = np.repeat(self._unit_weights(rows, live), np.diff(self._starts(rows), append=rows.n))
            log_likelihood = float(each @ np.where(each > 0, score, 0.0))
            score = np.where(each * live > 0, score, np.inf)
        if not np.isfinite(log_likelihood):
            self._refuse_impossible(score, rows.start)
        entropy -= float(xlogy(total.initial, params.start_probabilities).sum())
        entropy -= float(xlogy(total.transitions, params.transitions).sum())
        own = self.component.has_own_latents  # missing entries, beside the states
        of_all = log_likelihood - self.expected_log_joint(total, params) if own else entropy
        return Expectation(total, Evidence(rows.total_weight, of_all, log_likelihood, entropy), score)

    def _starts(self, rows: Rows) -> Array:
        """First rows of the units."""
        if rows.units is None:
            raise InputError("hmm: got rows without units, expected them. Run it by a config with data.units.")
        return rows.units

    def _unit_weights(self, rows: Rows, live: Array) -> Array:
        """(n_units,) weights, the same for all rows of a unit but bad ones. live : (n,), 0 for those."""
        starts = self._starts(rows)
        if rows.weight is None:
            return np.ones(len(starts))
        high = np.maximum.reduceat(rows.weight, starts)
        low = np.minimum.reduceat(np.where(live > 0, rows.weight, np.inf), starts)
        if (differ := np.flatnonzero(low < high)).size:
            first = rows.start + int(starts[differ[0]])
            raise InputError(
                f"data.weights: the unit that begins with row {first} has weights from {low[differ[0]]:g} to {high[differ[0]]:g}, "
                "expected one weight for all rows of a unit: how often the sequence counts. Correct them."
            )
        return high

    def _batches(self, rows: Rows) -> Iterator[tuple[slice, Array]]:
        """Yield consecutive rows, of whole units, about a tile at a time, and which units."""
        starts, height = self._starts(rows), tile_height(self.n_features, self.n_components)
        ends, u = np.append(starts[1:], rows.n), 0
        while u < len(starts):
            stop = max(int(np.searchsorted(ends, starts[u] + height, side="right")), u + 1)
            yield slice(int(starts[u]), int(ends[stop - 1])), np.arange(u, stop)
            u = stop

    def _log_densities(self, params: Chain, rows: Rows, part: slice, kernels: Any) -> Array:
        """(n, k) of some rows in each state; those of bad rows are 0, those of known rows -inf in other states."""
        k, known = self.n_components, self.checked_labels(rows)
        x, found = rows.x[part], np.empty((part.stop - part.start, k))
        for tile in tiles(len(found), tile_height(self.n_features, k)):
            found[tile] = self.component.log_joint(params.theta, np.zeros(k), x[tile], kernels)
        if known is not None:
            label = known[part]
            found[(label >= 0)[:, None] & (label[:, None] != np.arange(k))] = -np.inf
        if rows.bad is not None:
            found[rows.bad[part]] = 0.0
        return found

    def _posteriors(self, params: Chain, rows: Rows, kernels: Any) -> Iterator[Posterior]:
        live = np.ones(rows.n) if rows.bad is None else np.where(rows.bad, 0.0, 1.0)
        weights, starts = self._unit_weights(rows, live), self._starts(rows)
        for part, units in self._batches(rows):
            log_density = self._log_densities(params, rows, part, kernels)
            own, weight, first = starts[units] - part.start, weights[units], params.start_probabilities
            found = kernels.chain_pass(log_density.copy(), own, weight, first, params.transitions)
            yield Posterior(part, own, weight, log_density, *found)

    def m_step(self, stats: ChainStats, params: Chain | None) -> Chain:  # type: ignore[override]
        first = self._equal_weights(None) if params is None else params
        before, theta = (first.start_probabilities, first.transitions), first.theta
        initial, transitions = before[0], before[1].copy()
        if INITIAL not in self.fixed_chain and stats.initial.sum() > 0:
            initial = map_weights(stats.initial, self.weight_concentration)
        if TRANSITIONS not in self.fixed_chain:
            for i in np.flatnonzero(stats.transitions.sum(axis=1) > 0):
                transitions[i] = map_weights(stats.transitions[i], self.weight_concentration)
        return Chain(initial, transitions, self.component.m_step(stats.component, stats.sum_w, theta))

    def expected_log_joint(self, stats: ChainStats, params: Chain) -> float:  # type: ignore[override]
        one = np.ones(self.n_components)
        of_rows = self.component.expected_log_joint(params.theta, one, stats.sum_w, stats.component)
        of_paths = xlogy(stats.initial, params.start_probabilities).sum()
        return float(of_rows + of_paths + xlogy(stats.transitions, params.transitions).sum())

    def log_prior(self, params: Chain) -> float:  # type: ignore[override]
        found = float(self.component.log_prior(params.theta))
        for name, lines in ((INITIAL, params.start_probabilities[None]), (TRANSITIONS, params.transitions)):
            if name not in self.fixed_chain:
                found += sum(log_dirichlet(line, self.weight_concentration) for line in lines)
        return found

    def fisher_norm(self, totals: Totals, params: Chain, new: Chain) -> float:  # type: ignore[override]
        """sqrt of the shares of first rows and of states before others, times Δp²/p, + the components' part."""
        stats, total = totals.stats, totals.evidence.weight
        initial = (new.start_probabilities - params.start_probabilities)[None]
        squares = stats.initial.sum() * relative_squares(np.ones(1), initial, params.start_probabilities[None]).sum()
        leaving = stats.transitions.sum(axis=1)
        squares += leaving @ relative_squares(leaving, new.transitions - params.transitions, params.transitions)
        parts = self.component.step_squares(stats.component, stats.sum_w, params.theta, new.theta)
        return float(np.sqrt(squares / total + sum(parts)))

    def change_norm(self, change: Totals, totals: Totals, params: Chain) -> float:  # type: ignore[override]
        stats, moved, total = totals.stats, change.stats, totals.evidence.weight
        parts = self.component.change_squares(moved.component, moved.sum_w, stats.component, stats.sum_w, params.theta)
        if parts is None:
            return LatentModel.change_norm(self, change, totals, params)
        squares = 0.0
        for sums, by, prob, name in (
            (stats.initial[None], moved.initial[None], params.start_probabilities[None], INITIAL),
            (stats.transitions, moved.transitions, params.transitions, TRANSITIONS),
        ):
            counts = sums.sum(axis=1, keepdims=True)
            step = np.divide(by - by.sum(axis=1, keepdims=True) * prob, counts, out=np.zeros_like(by), where=counts > 0)
            if name not in self.fixed_chain:
                squares += counts[:, 0] @ relative_squares(counts[:, 0], step, prob)
        return float(np.sqrt(squares / total + sum(parts)))

    def feasible(self, totals: Totals, known: Totals) -> Totals | None:
        """Expected transitions that would be negative stay as they are."""
        stats, possible = totals.stats, known.stats
        if not (stats.sum_w > 0).all():
            return None
        initial, transitions = (
            np.where(getattr(stats, name) >= 0, getattr(stats, name), getattr(possible, name))
            for name in ("initial", "transitions")
        )
        component = self.component.feasible(stats.component, possible.component)
        return replace(totals, stats=ChainStats(stats.sum_w, initial, transitions, component))

    def shares(self, params: Chain, stats: ChainStats) -> Array:  # type: ignore[override]
        return stats.sum_w / stats.sum_w.sum()

    def reset(  # type: ignore[override]
        self, new: Chain, old: Chain, stats: ChainStats, attached: Mapping[str, Any], resets: tuple[int, ...]
    ) -> tuple[Chain, list[Reset]]:
        """As of a mixture: to the rows that fit worst; a state that was reset begins, comes and goes with probability 1/K."""
        weights: Any = MixtureParams(new.weights, new.theta)
        moved, happened = super().reset(weights, cast(Any, old), cast(Any, stats), attached, resets)
        places = np.array([reset.component for reset in happened if reset.done], dtype=int)
        if not len(places):
            return (new if not happened else replace(new, theta=moved.theta)), happened
        initial, transitions = new.start_probabilities, new.transitions
        if INITIAL not in self.fixed_chain:
            initial = share_with(initial, places)
        if TRANSITIONS not in self.fixed_chain:
            transitions = np.stack([share_with(line, places) for line in transitions])
            transitions[places] = 1.0 / self.n_components
        return Chain(initial, transitions, moved.theta), happened

    def label_statistics(self, x: Matrix, labels: Array, weight: Array | None = None) -> ChainStats:  # type: ignore[override]
        """Of rows without their order: no transitions."""
        found, k = super().label_statistics(x, labels, weight), self.n_components
        return ChainStats(found.sum_w, np.zeros(k), np.zeros((k, k)), found.component)

    def _equal_weights(self, theta: Any) -> Chain:  # type: ignore[override]
        k = self.n_components
        return Chain(np.full(k, 1.0 / k), np.full((k, k), 1.0 / k), theta)

    def predict(self, params: Chain, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        """Return Viterbi's path, log p(x_t | x_1 … x_t-1) and the largest probabilities of states given the unit."""
        rows = replace(rows, weight=None)
        parts: dict[str, list[Array]] = {name: [] for name in self.row_arrays(top_k)}
        for part in self._posteriors(params, rows, kernels):
            path = kernels.best_path(part.log_density, part.starts, params.start_probabilities, params.transitions)
            with np.errstate(divide="ignore"):
                ranked = top_ranked(np.log(part.share), top_k)
            for name, value in {self.words.score: part.log_norm, "label": path, **ranked}.items():
                parts[name].append(value)
        return {name: np.concatenate(each) for name, each in parts.items()}

    def sample(self, params: Chain, n: int, rng: np.random.Generator) -> tuple[Matrix, Array]:  # type: ignore[override]
        """Return one sequence of n rows, (n, d), and its states, (n,)."""
        states = np.empty(n, np.int64)
        for t in range(n):
            states[t] = rng.choice(
                self.n_components, p=params.start_probabilities if t == 0 else params.transitions[states[t - 1]]
            )
        return self.component.sample(params.theta, states, rng), states

    def statistics_bytes(self) -> int:
        return super().statistics_bytes() + 8 * self.n_components * (1 + self.n_components)

    def unit_bytes(self) -> int:
        return 8 * 6 * self.n_components


WORDS = Words(
    name="hidden Markov model",
    title="A hidden Markov model with {k} states",
    component="state",
    components="states",
    score_text="log-density given the rows before",
)


def _emission(value: Any) -> Any:
    """Check the section of the emissions, and that the family is a mixture whose component knows no other latent variables."""
    raw = {"family": value} if isinstance(value, str) else value
    if not isinstance(raw, Mapping) or not isinstance(raw.get("family"), str):
        raise ValueError("got no family; give the name of one, or {family: …} with its options")
    names = [name for name in FAMILIES if name != "hmm" and issubclass(FAMILIES[name], ClusterSection)]
    if raw["family"] not in names:
        raise ValueError(f"got family {raw['family']}, expected one of {', '.join(names)}")
    if "n_components" in raw:
        raise ValueError("n_components: is model.n_components, the number of states; leave it out here")
    try:
        section = FAMILIES[raw["family"]].model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if len(section.candidates()) > 1:
        raise ValueError("got a list of values to choose from; give one value of each option")
    mixture = section.of_no_rows(1)
    if type(mixture) is not Mixture or mixture.fixed_weights or mixture.component.has_own_latents:
        raise ValueError(f"emissions of family {raw['family']} with these options are not supported; choose other ones")
    return value


class HmmSection(ClusterSection):
    """A hidden Markov model: sequences of rows, with states in place of components."""

    family: Literal["hmm"] = Option(
        "hmm", description="a hidden Markov model, over the sequences that data.units names"
    )
    emission: Annotated[str | dict[str, Any], AfterValidator(_emission)] = Option(
        "gaussian",
        description="the distribution of a row given its state: the name of a family of mixtures, or with its options, such as "
        "{family: gaussian, covariance_type: diag}",
    )
    fixed: list[Literal["start_probabilities", "transitions"]] = Option(
        default_factory=list, description="parts that stay at their initial values"
    )

    words: ClassVar[Words] = WORDS
    assignments: ClassVar[tuple[str, ...]] = ("soft",)
    by_unit: ClassVar[bool] = True
    has_overlap: ClassVar[bool] = False
    template: ClassVar[dict[str, Any]] = {"data": {"source": "npy", "path": "x.npy", "units": "sequence.npy"}}
    template_help: ClassVar[str] = (
        "Set data.path to your rows, data.units to one number a row, the same for the rows of a sequence, and model.n_components."
    )

    @property
    def of_rows(self) -> ClusterSection:
        """The section of the emissions, with the states as components."""
        raw = {"family": self.emission} if isinstance(self.emission, str) else self.emission
        found = FAMILIES[raw["family"]].model_validate({**raw, "n_components": list(self.n_components)})
        assert isinstance(found, ClusterSection)
        return found

    @property
    def counts(self) -> bool:  # type: ignore[override]  # the emissions', here and below
        return self.of_rows.counts

    @property
    def sparse(self) -> bool:  # type: ignore[override]
        return self.of_rows.sparse

    @property
    def takes_missing(self) -> bool:  # type: ignore[override]
        return self.of_rows.takes_missing

    @property
    def second_moments(self) -> Literal["matrix", "variances", "none"]:  # type: ignore[override]
        return self.of_rows.second_moments

    def build(self, summary: Summary, assignment: str) -> HiddenMarkov:
        mixture: Any = self.of_rows.build(summary, assignment)
        prior = mixture.weight_concentration
        return HiddenMarkov(mixture.component, weight_concentration=prior, fixed_chain=tuple(self.fixed))

    def for_few_rows(self) -> HmmSection:
        few = self.of_rows.for_few_rows().model_dump(exclude={"n_components"})
        return self.model_copy(update={"emission": few})
