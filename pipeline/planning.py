"""What a job will need, known before it runs: what cannot work is refused, and memory decides how many tasks run at once."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.data.chunks import Chunks
from pipeline.em.folds import BLOCKS
from pipeline.engine.cluster import uses_processes
from pipeline.engine.memory import Plan, plan, task_bytes
from pipeline.errors import InputError
from pipeline.models.base import TILE_BYTES
from pipeline.models.families import stats_bytes
from pipeline.outputs.labels import block_bytes

MIN_SAMPLE_ROWS = 2000
SAMPLE_PER_COMPONENT = 20
SAMPLE_BYTES = 16 * 2**20
_KEPT = {"em": 0, "auto": 4, "stepwise": 4, "incremental": BLOCKS}


def refuse_impossible(config: Config, chunks: Chunks) -> None:
    """Raise InputError if these rows cannot be fitted as the config asks."""
    k, family = config.model.n_components, config.model.family
    if k > chunks.n_rows:
        raise InputError(
            f"model.n_components: {k}, but there are {chunks.n_rows} rows. Set it to at most {chunks.n_rows}."
        )
    if chunks.source.sparse and family != "multinomial":
        raise InputError(f"model.family: {family}, but {config.data.source} rows are sparse counts; use multinomial.")
    if family == "multinomial" and config.preprocess:
        raise InputError("preprocess: counts stay counts; leave it empty for a multinomial model.")


def sample_size(config: Config, n_features: int) -> int:
    """Rows that the profile keeps for starts and pictures: enough for K, within a fixed number of bytes."""
    k = config.model.n_components
    affordable = SAMPLE_BYTES // (8 * n_features)
    return max(k, min(max(MIN_SAMPLE_ROWS, SAMPLE_PER_COMPONENT * k), affordable))


def memory_plan(config: Config, chunks: Chunks) -> Plan:
    """As many tasks at a time as engine.memory allows. Raises InputError, with advice, when not even one fits."""
    model, engine, n_init = config.model, config.engine, config.fit.n_init
    d = min([chunks.n_features, *(step.n_components or chunks.n_features for step in config.preprocess)])
    statistics = stats_bytes(model.family, model.covariance_type, model.n_components, d)
    square = chunks.n_features**2 * 8 if config.preprocess or model.family == "gaussian" else 0
    sample = sample_size(config, chunks.n_features) * chunks.n_features * 8
    fitting = task_bytes(chunks.chunk_bytes(), max(statistics, square + sample), TILE_BYTES, n_init)
    # A block of labels is filled and concatenated while two finished ones wait to be written.
    labelling = task_bytes(chunks.chunk_bytes(), 0, TILE_BYTES, 0) + 4 * block_bytes(config.output.top_k)
    kept = 0 if model.family == "kmeans" else _KEPT[config.fit.method]  # statistics between two passes
    driver = (8 + 2 * kept) * statistics * n_init + 3 * (square + sample)  # once more while a checkpoint is written
    each, processes = max(fitting, labelling), uses_processes(engine)
    return plan(engine.memory, engine.workers, each, chunks.chunk_bytes(), driver, processes)
