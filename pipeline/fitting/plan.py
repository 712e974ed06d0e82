"""What a job needs, derived once from its config and the shapes of its chunks; refuses what cannot work.

Models, their parameters and attachments know their sizes; the plan adds them up. Memory decides how many tasks run at
once, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.packing import pack, unpack
from pipeline.arrays.tiles import TILE_BYTES
from pipeline.data.chunks import Chunks
from pipeline.data.profile import PROFILE_TILE, Profile, ProfileJob
from pipeline.data.sample import SampleRows, n_sampled, row_bytes
from pipeline.em.accumulate import EPOCHS, n_stored
from pipeline.em.heldout import Units
from pipeline.em.pruning import budget_of
from pipeline.em.search import EFFORT, PRINCIPAL, candidate_starts, centers_rows, levels, searched
from pipeline.engine.cluster import uses_processes
from pipeline.engine.memory import IMPORTS, SMALLER_CHUNKS, UNRETURNED, Plan, plan, task_bytes
from pipeline.engine.tree import shard_level
from pipeline.errors import InputError
from pipeline.jobconfig import Config
from pipeline.models.base import LatentModel
from pipeline.models.books import Quantizer
from pipeline.models.clusters import ClusterModel, NoRows
from pipeline.models.families import FAMILIES
from pipeline.models.overlap import OverlapOfRows
from pipeline.models.schema import n_bytes
from pipeline.models.starts import ROUNDS
from pipeline.outputs.labels import BLOCK_ROWS
from pipeline.outputs.labels import row_bytes as label_bytes

MIN_SAMPLE_ROWS = 2000
SAMPLE_PER_COMPONENT = 20
SAMPLE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class JobPlan:
    """What follows from config and chunks.

    Attributes
    ----------
    models : tuple of LatentModel
        One for each candidate, without data; they know how large things are.
    sample_rows : tuple of int
        Rows that a profile stores for each candidate alone: for starts and pictures.
    search_rows : tuple of int
        Rows in memory for the search of each candidate; empty without a search.
    """

    config: Config
    models: tuple[LatentModel, ...]
    sample_rows: tuple[int, ...]
    search_rows: tuple[int, ...]
    n_rows: int
    n_features: int
    sparse: bool
    errors: bool = False

    @property
    def searches(self) -> bool:
        """Whether the start is searched for on rows in memory."""
        return bool(self.search_rows)

    def refuse_unreadable(self) -> None:
        """Raise InputError for a model that could be written and not read again: before it is fitted."""
        for model in self.models:
            try:
                unpack(*pack(model))
            except (TypeError, ValueError) as error:
                advice = "Make it a frozen dataclass of plain values and arrays, with the decorator pipeline.arrays.packing.stored."
                raise InputError(f"model.family: {model.family}: {error}. {advice}") from error

    def profile_job(self) -> ProfileJob:
        """The job of the profiling pass."""
        full = any(step.kind in ("pca", "zca") for step in self.config.preprocess)
        moments = "none" if self.sparse else "matrix" if full else self.config.model.second_moments
        if self.config.preprocess and moments == "none":
            moments = "variances"
        return ProfileJob(moments, max(self.sample_rows), self.config.fit.random_state, self.leading)

    @property
    def leading(self) -> int | None:
        """How many columns of a row are its entries, where those of its errors follow; None where none do."""
        return self.n_features if self.errors else None

    def sampling(self) -> list[SampleRows]:
        """The job that samples rows for the search; with several candidates for the largest. Empty without a search."""
        if not self.searches:
            return []
        return [SampleRows(max(self.search_rows) / self.n_rows, self.config.fit.random_state)]

    def searches_of(self, candidate: int) -> list[tuple[ClusterModel, int]]:
        """What the search of a candidate refines in turn, each with the number of runs that it begins with."""
        fit, model, rows = self.config.fit, self.models[candidate], self.search_rows[candidate]
        assert isinstance(model, ClusterModel | Quantizer)
        parts = searched(model, fit.init, self.sparse, rows, EFFORT[fit.effort])
        return [(each, candidate_starts(each, levels(each, some), self.n_rows, part)[0]) for each, some, part in parts]

    def search_share(self, candidate: int) -> float:
        """Return the share of all rows that the search of a candidate uses."""
        return self.search_rows[candidate] / self.n_rows


def plan_job(config: Config, chunks: Chunks, fits: bool = True) -> JobPlan:
    """Derive what a job needs. fits : False for a prediction, which takes any number of rows.

    Raises
    ------
    InputError
        If these rows cannot be fitted as the config says.
    """
    _refuse_impossible(config, chunks, fits)
    # pca is the only step that changes how many features there are.
    d = min([chunks.n_features, *(step.n_components or chunks.n_features for step in config.preprocess)])
    models, largest = tuple(config.models(NoRows(d))), [c.model.largest for c in config.candidates()]
    sample = tuple(_sample_rows(k, chunks.n_features) for k in largest)
    search = tuple(n_sampled(chunks, k) for k in largest) if _searches(config, models) else ()
    return JobPlan(
        config, models, sample, search, chunks.n_rows, chunks.n_features, chunks.source.sparse, chunks.noise is not None
    )


def moves_of(config: Config, model: LatentModel, n_rows: int) -> tuple[bool, float]:
    """Return whether a search makes moves, and the rows that moves beside pruning may read.

    Where components are pruned, each number of them has moves of its own. n_rows : in memory.
    """
    wanted = config.fit.moves == "auto" and "weights" not in model.fixed  # fixed weights belong to their places
    if not config.select.pruning:
        return wanted, 0.0
    return False, budget_of(n_rows, EFFORT[config.fit.effort]) if wanted else 0.0


def _sample_rows(k: int, n_features: int) -> int:
    """Enough rows for k components, within a fixed number of bytes."""
    affordable = SAMPLE_BYTES // (8 * n_features)
    return max(k, min(max(MIN_SAMPLE_ROWS, SAMPLE_PER_COMPONENT * k), affordable))


def _searches(config: Config, models: tuple[LatentModel, ...]) -> bool:
    """Whether there is a search: not from user-supplied starts, nor with fixed locations, nor of whole units."""
    if config.fit.method == "em" or config.fit.is_supplied:
        return False
    if config.model.by_unit:  # rows of a sample have no units
        return False
    return all(isinstance(model, ClusterModel | Quantizer) and model.location not in model.fixed for model in models)


def _refuse_impossible(config: Config, chunks: Chunks, fits: bool) -> None:
    k, family = config.model.largest, config.model.family
    if fits and k > chunks.n_rows:
        raise InputError(
            f"model.n_components: {k}, but there are {chunks.n_rows} rows. Set it to at most {chunks.n_rows}."
        )
    if chunks.source.sparse and not config.model.sparse:
        others = " or ".join(name for name in FAMILIES if FAMILIES[name].sparse)
        raise InputError(f"model.family: {family}, but {config.data.source} rows are sparse counts; use {others}.")
    if fits:
        Units.of(chunks.source, config.select.heldout, config.fit.random_state)


def memory_plan(job: JobPlan, chunks: Chunks, imports: int = IMPORTS) -> Plan:
    """Plan as many tasks at a time as engine.memory allows. Raises InputError, with advice, if not even one fits.

    The statistics of all candidates and restarts are in memory together.
    """
    config = job.config
    engine, n_init, k = config.engine, config.fit.n_init, config.model.largest
    rows = int(np.diff(chunks.source.bounds).max())
    decoding, advice = chunks.decoding()

    def task(stats: int, tiles: int = TILE_BYTES, jobs: int = 1) -> int:
        # A binary counter over the chunks of a task holds as many partial sums as it has bits, and two while it adds.
        partials = shard_level(chunks.n_chunks, 1, 0.0) + 2
        return decoding + task_bytes(chunks.chunk_bytes, rows, stats * jobs, tiles, partials)

    d = job.models[0].sizes.get("feature", chunks.n_features)
    scratch = max((m.scratch_bytes() for m in job.models if isinstance(m, ClusterModel)), default=0)
    statistics = sum(model.e_step_bytes() for model in job.models)
    if config.output.overlap:
        statistics += sum(OverlapOfRows().nbytes(model) for model in job.models if isinstance(model, ClusterModel))
    square = chunks.n_features**2 * 8 if config.preprocess or config.model.second_moments == "matrix" else 0
    sample = min(max(job.sample_rows), chunks.n_rows) * row_bytes(chunks)
    # The profile looks at some thousand rows at a time in float64: themselves, about their mean, and weighted.
    look = 0 if chunks.source.sparse else 3 * 8 * min(PROFILE_TILE, rows) * chunks.n_features
    # A round of k-means|| draws 2K rows; the candidates of all rounds are dense, and looked up in a form of their own.
    drawn = 2 * k * d * 8 if config.fit.init == "k-means||" and not job.searches else 0
    drawing = task(drawn, jobs=n_init * len(job.models)) + 2 * ROUNDS * drawn
    longest = chunks.longest_unit() if config.model.by_unit else 0
    of_unit = longest * max((model.unit_bytes() for model in job.models if isinstance(model, ClusterModel)), default=0)
    fitting = max(
        task(square + sample, max(look, TILE_BYTES)), drawing, task(statistics, TILE_BYTES + scratch, n_init) + of_unit
    )
    # A block of labels is filled and concatenated while two finished ones wait to be written.
    labelling = (
        task(0)
        + of_unit
        + 4 * min(BLOCK_ROWS, chunks.n_rows) * max(label_bytes(model, config.output.top_k) for model in job.models)
    )
    # Rows for the search are sampled, then put in order: for a moment they are there twice.
    in_memory = 2 * max(job.search_rows, default=0) * row_bytes(chunks)
    if in_memory and d > 2 * PRINCIPAL and all(m.search.principal for m in job.models if isinstance(m, ClusterModel)):
        in_memory += 8 * PRINCIPAL * max(job.search_rows)  # their principal components stand beside them
    # What is left of some of them, while a book is searched for and the next one mapped.
    books = [model.books[0] for model in job.models if job.searches and isinstance(model, Quantizer)]
    in_memory += sum(3 * centers_rows(book, max(job.search_rows)) * row_bytes(chunks) for book in books)
    stored = (
        n_stored(config.fit.method, job.models[0]) if job.models[0].has_bound else 0
    )  # statistics between two passes
    # What is stored is there once more while a checkpoint is written. Parameters are there before and after an M-step, and twice more
    # for the candidate whose components are reset.
    driver = (4 + 2 * stored) * statistics * n_init + 3 * (square + sample + n_init * ROUNDS * drawn) + in_memory
    sizes = [_params_bytes(model) for model in job.models]
    parameters = 2 * n_init * sum(sizes) + 2 * max(sizes)
    searching = 0
    for refined, many in [part for i in range(len(job.search_rows)) for part in job.searches_of(i)]:
        # The runs of the lowest level share each pass, and store statistics between two; runs that are joined have 2K components.
        own, one = _params_bytes(refined), refined.e_step_bytes()
        searching = max(searching, task(max(2, many) * one, TILE_BYTES + 2 * refined.scratch_bytes()))
        parameters = max(parameters, n_init * sum(sizes) + many * (2 * own + (EPOCHS + 1) * one) + 4 * own)
    driver += parameters
    errors = 0
    if config.output.standard_errors:
        full = config.output.standard_errors is True
        information = max(model.score_products(None, full).nbytes for model in job.models)
        errors = task(information)
        driver = max(driver, 8 * information)
    driver += min(UNRETURNED, 4 * chunks.pass_bytes()) if imports else 0  # in proportion, where there are few rows
    resident, processes = chunks.source.resident(), uses_processes(engine)
    driver += resident
    each = max(fitting, searching, labelling, errors) + resident * processes
    advice = advice if decoding > chunks.chunk_bytes else SMALLER_CHUNKS
    if of_unit > TILE_BYTES:
        advice += f", split the longest unit, of {longest} rows, in data.units (a unit is in one chunk, whole)"
    return plan(engine.memory, engine.workers, each, chunks.chunk_bytes, driver, processes, imports, advice)


def _params_bytes(model: LatentModel) -> int:
    """Bytes of a model's parameters, with what is computed from them once."""
    stored = n_bytes(model.fields, model.sizes)
    return stored + model.prepared_bytes() if isinstance(model, ClusterModel) else stored


def refuse_negative(config: Config, profile: Profile) -> None:
    """Raise InputError for counts below 0."""
    if config.model.counts and profile.low.min() < 0:
        raise InputError(
            f"counts: the lowest value is {profile.low.min():g}; a {config.model.words.name} needs counts of 0 or more. "
            "Choose a model.family for rows of other numbers."
        )


def warnings_of(config: Config, profile: Profile) -> list[str]:
    """Yield warnings about the rows, from the profile."""
    found = []
    if profile.n_bad:
        what = "nothing but missing entries" if profile.n_missing else "NaN or inf"
        found.append(f"{profile.n_bad} rows with {what} are left out, the first is {profile.first_bad}")
    if profile.n_missing:
        share = profile.n_missing / ((profile.n_rows - profile.n_bad) * len(profile.mean))
        found.append(f"{profile.n_missing} entries are missing, {share:.2%}")
    if config.model.counts:
        return found
    if len(profile.mean) > profile.n_rows:
        found.append(f"there are more features ({len(profile.mean)}) than rows ({profile.n_rows}): are they exchanged?")
    constant = profile.constant_features()
    if len(constant):
        found.append(f"{len(constant)} features have one value only: {_first(constant)}")
    floor = getattr(config.model, "reg_covar", None)
    if floor is not None and not config.preprocess:
        variance = profile.covariance if profile.covariance.ndim == 1 else np.diagonal(profile.covariance)
        hidden = np.setdiff1d(np.flatnonzero(variance < floor), constant)
        if len(hidden):
            found.append(
                f"the variance of {len(hidden)} features is below model.reg_covar {floor:g}, which hides their "
                f"clusters: {_first(hidden)}. Rescale the data, or lower it"
            )
    distinct, n = profile.distinct_sample_rows(), len(profile.sample.row)
    fewer = distinct < min(config.model.largest, n)
    if fewer or 2 * distinct <= n:
        found.append(
            f"the sample of {n} rows has {distinct} distinct ones" + (", fewer than n_components" if fewer else "")
        )
    return found


def _first(indices: Array) -> str:
    return ", ".join(str(i) for i in indices[:10]) + (", …" if len(indices) > 10 else "")
