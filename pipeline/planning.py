"""What a job will need, known before it runs: what cannot work is refused, and memory decides how many tasks run at once."""

from __future__ import annotations

import numpy as np

from pipeline.data.chunks import Chunks
from pipeline.data.profile import PROFILE_TILE, Profile
from pipeline.data.sample import n_sampled as draw_rows
from pipeline.data.sample import row_bytes
from pipeline.em.folds import KEPT
from pipeline.em.heldout import Units
from pipeline.em.search import PRINCIPAL
from pipeline.engine.cluster import uses_processes
from pipeline.engine.memory import Plan, plan, task_bytes
from pipeline.engine.tree import shard_level
from pipeline.errors import InputError
from pipeline.jobconfig import Config
from pipeline.models.base import TILE_BYTES
from pipeline.models.information import information_bytes
from pipeline.models.init import ROUNDS
from pipeline.models.stats import Array
from pipeline.outputs.labels import block_bytes
from pipeline.outputs.standard_errors import learns_covariances

MIN_SAMPLE_ROWS = 2000
SAMPLE_PER_COMPONENT = 20
SAMPLE_BYTES = 16 * 2**20


def refuse_impossible(config: Config, chunks: Chunks) -> None:
    """Raise InputError if these rows cannot be fitted as the config asks."""
    k, family = max(config.model.n_components), config.model.family
    if k > chunks.n_rows:
        raise InputError(
            f"model.n_components: {k}, but there are {chunks.n_rows} rows. Set it to at most {chunks.n_rows}."
        )
    if chunks.source.sparse and not config.model.sparse:
        raise InputError(f"model.family: {family}, but {config.data.source} rows are sparse counts; use multinomial.")
    Units.of(chunks.source, config.select.heldout, config.fit.random_state)


def refuse_negative(config: Config, profile: Profile) -> None:
    """Raise InputError for counts below 0."""
    if config.model.counts and profile.low.min() < 0:
        raise InputError(
            f"counts: the lowest value is {profile.low.min():g}; a multinomial needs counts of 0 or more. "
            "Rows of numbers are for model.family gaussian or kmeans."
        )


def warnings_of(config: Config, profile: Profile) -> list[str]:
    """What the profile shows that a person should know."""
    found = []
    if profile.n_bad:
        found.append(f"{profile.n_bad} rows with NaN or inf are left out, the first is {profile.first_bad}")
    if config.model.counts:
        return found
    constant = profile.constant_features()
    if len(constant):
        found.append(f"{len(constant)} features have one value only: {_first(constant)}")
    reg_covar = getattr(config.model, "reg_covar", None)
    if reg_covar is not None and not config.preprocess:
        variance = profile.covariance if profile.covariance.ndim == 1 else np.diagonal(profile.covariance)
        hidden = np.setdiff1d(np.flatnonzero(variance < reg_covar), constant)
        if len(hidden):
            found.append(
                f"the variance of {len(hidden)} features is below model.reg_covar {reg_covar:g}, which hides their "
                f"clusters: {_first(hidden)}. Rescale the data, or lower it"
            )
    distinct, n = profile.distinct_sample_rows(), len(profile.sample.row)
    fewer = distinct < min(max(config.model.n_components), n)
    if fewer or 2 * distinct <= n:
        found.append(
            f"the sample of {n} rows has {distinct} distinct ones" + (", fewer than n_components" if fewer else "")
        )
    return found


def _first(indices: Array) -> str:
    return ", ".join(str(i) for i in indices[:10]) + (", …" if len(indices) > 10 else "")


def sample_size(config: Config, n_features: int) -> int:
    """Rows that the profile keeps for starts and pictures: enough for the largest K, within a fixed number of bytes."""
    k = max(config.model.n_components)
    affordable = SAMPLE_BYTES // (8 * n_features)
    return max(k, min(max(MIN_SAMPLE_ROWS, SAMPLE_PER_COMPONENT * k), affordable))


def searches(config: Config) -> bool:
    """Whether a search on rows in memory looks for the start. Who gives one wants the hill above it, and held means stay
    where they are put.
    """
    given = config.fit.init in ("explicit", "labels") or "means" in config.model.fixed_parts
    return config.fit.method != "em" and not given


def held_share(config: Config, chunks: Chunks) -> float:
    """The share of all rows that the search holds; with several candidates that of the largest."""
    return draw_rows(chunks, max(config.model.n_components)) / chunks.n_rows


def memory_plan(config: Config, chunks: Chunks) -> Plan:
    """As many tasks at a time as engine.memory allows. Raises InputError, with advice, when not even one fits.

    The statistics of all candidates stand beside each other, as those of restarts do.
    """
    model, engine, n_init, k = config.model, config.engine, config.fit.n_init, max(config.model.n_components)
    rows = int(np.diff(chunks.source.bounds).max())

    def task(stats: int, tiles: int = TILE_BYTES, jobs: int = 1) -> int:
        # A binary counter over the chunks of a task holds as many partial sums as it has bits, and two while it adds.
        return task_bytes(chunks.chunk_bytes(), rows, stats * jobs, tiles, shard_level(chunks.n_chunks, 1, 0.0) + 2)

    d = min([chunks.n_features, *(step.n_components or chunks.n_features for step in config.preprocess)])
    statistics = sum(candidate.statistics_bytes(d) for candidate in model.candidates())
    square = chunks.n_features**2 * 8 if config.preprocess or model.second_moments == "full" else 0
    sample = min(sample_size(config, chunks.n_features), chunks.n_rows) * row_bytes(chunks)
    # The profile looks at some thousand rows at a time in float64: themselves, about their mean, and weighted.
    look = 0 if chunks.source.sparse else 3 * 8 * min(PROFILE_TILE, rows) * chunks.n_features
    # A round of k-means|| draws 2K rows; the candidates of all rounds are dense, and looked up in a form of their own.
    drawn = 2 * k * d * 8 if config.fit.init == "k-means||" and not searches(config) else 0
    drawing = task(drawn, jobs=n_init * len(model.candidates())) + 2 * ROUNDS * drawn
    fitting = max(task(square + sample, max(look, TILE_BYTES)), drawing, task(statistics, jobs=n_init))
    # A block of labels is filled and concatenated while two finished ones wait to be written.
    labelling = task(0) + 4 * block_bytes(config.output.top_k)
    # Rows for the search are drawn, then put in order: for a moment they are held twice.
    held = 2 * draw_rows(chunks, k) * row_bytes(chunks) if searches(config) else 0
    if held and model.family == "kmeans" and d > 2 * PRINCIPAL:  # their principal components stand beside them
        held += 8 * PRINCIPAL * draw_rows(chunks, k)
    kept = 0 if model.family == "kmeans" else KEPT[config.fit.method]  # statistics between two passes
    # What is kept is there once more while a checkpoint is written.
    driver = (8 + 2 * kept) * statistics * n_init + 3 * (square + sample + n_init * ROUNDS * drawn) + held
    errors = 0
    if config.output.standard_errors:
        learned = learns_covariances(config)
        information = max(
            information_bytes(each.n_components[0], d, each.covariance_type[0], learned)  # type: ignore[attr-defined]  # a Gaussian's
            for each in model.candidates()
        )
        errors = task(information)
        driver = max(driver, 8 * information)
    each, processes = max(fitting, labelling, errors), uses_processes(engine)
    return plan(engine.memory, engine.workers, each, chunks.chunk_bytes(), driver, processes)
