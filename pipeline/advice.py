"""Advice that makes a job cheaper: chunks, reading, memory, precision. Each item says why, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pipeline.checking import Cost
from pipeline.data.chunks import Chunks
from pipeline.data.source import TARGET_BYTES
from pipeline.engine.reading import worth_ahead
from pipeline.jobconfig import Config
from pipeline.outputs.progress import duration, size

TOO_MUCH = 0.2  # of a pass
BOUND_BY_READING = 0.6  # of a pass
LONG = 1800.0  # seconds of a job, from which on levers are named
WANTED = 3600.0  # seconds that a cluster is proposed for
PRINCIPAL = 16  # components
SMALL_OBJECT = 2**20  # bytes; opening one takes as long as reading some hundred KiB


def advice(cost: Cost, config: Config, chunks: Chunks) -> list[str]:
    """Return advice about a job; nothing if it is well configured."""
    return [
        *(f"{note}." for note in chunks.source.notes()),
        *(text for rule in (_levers, _chunking, _reading, _memory, _precision) for text in rule(cost, config, chunks)),
    ]


def _levers(cost: Cost, config: Config, chunks: Chunks) -> Iterator[str]:
    """What makes a long job shorter, each with its factor."""
    if cost.seconds < LONG:
        return
    patch, d, levers = getattr(config.data, "patch", None), cost.features, []
    if patch is not None and patch.stride < max(patch.size):
        levers.append(f"data.patch.stride: {2 * patch.stride} (1/4 of the time: a quarter of the rows)")
    if d >= 2 * PRINCIPAL and not chunks.source.sparse and not config.model.counts and not config.preprocess:
        square = config.model.second_moments == "matrix"
        factor = d * (d + 1) / (PRINCIPAL * (PRINCIPAL + 1)) if square else d / PRINCIPAL
        step = f"preprocess: [{{kind: pca, n_components: {PRINCIPAL}}}]"
        levers.append(f"{step} (about 1/{factor:.0f} of the time of iterations)")
    if config.model.largest > 1:
        levers.append("half of model.n_components (1/2)")
    workers = min(cost.chunks, math.ceil(cost.seconds * cost.workers / WANTED))
    if workers > cost.workers:
        factor = workers / cost.workers
        levers.append(f"a cluster of {workers} workers (1/{factor:.3g}, and the same result; see docs/clusters.md)")
    if levers:
        yield f"it takes {duration(cost.seconds)} at most. What makes it shorter, each by itself: {'; '.join(levers)}."


def _chunking(cost: Cost, config: Config, chunks: Chunks) -> Iterator[str]:
    if cost.chunks < cost.workers:
        yield (
            f"the rows are in {cost.chunks} chunks, fewer than the {cost.workers} workers, some of which will idle. "
            "Store them in smaller chunks."
        )
    if cost.overhead_seconds > TOO_MUCH * cost.seconds_per_pass and cost.chunks > 8 * cost.workers:
        yield (
            f"{cost.overhead_seconds / cost.seconds_per_pass:.0%} of a pass is spent on tasks and chunks, not on rows. "
            f"Store the rows in larger chunks than {size(cost.chunk_bytes)}."
        )
    stored, touched = getattr(chunks.source, "stored_chunk", None), cost.objects / cost.chunks
    if stored is None or touched < 2:
        return
    rows, features = stored
    itemsize = chunks.source.dtype.itemsize
    if features < cost.features:
        yield (
            f"stored chunks hold {features} of the {cost.features} features, so that each read opens "
            f"{touched:.0f} objects. Rechunk to ({max(rows, 1)}, {cost.features}): whole rows."
        )
    elif rows * features * itemsize < SMALL_OBJECT:
        wanted = max(1, TARGET_BYTES // (cost.features * itemsize))
        yield (
            f"stored chunks are of {size(rows * features * itemsize)}, so that each read opens {touched:.0f} objects. "
            f"Rechunk, or shard, to about {wanted} rows ({size(TARGET_BYTES)})."
        )


def _reading(cost: Cost, config: Config, chunks: Chunks) -> Iterator[str]:
    if cost.read_seconds < BOUND_BY_READING * cost.seconds_per_pass:
        return
    share = f"reading takes {min(1.0, cost.read_seconds / cost.seconds_per_pass):.0%} as long as a pass"
    spare = cost.memory["limit"] - cost.memory["peak"]
    if config.data.source == "csv":
        yield f"{share}: text is parsed again in each. Convert it once to zarr or .npy."
    elif config.engine.scheduler == "threads" and not config.engine.keep_decoded and cost.pass_bytes < spare:
        yield f"{share}, and the decoded rows would fit in what memory is left. Set engine.keep_decoded: true."


def _memory(cost: Cost, config: Config, chunks: Chunks) -> Iterator[str]:
    plan, wanted = cost.memory, cost.memory["wanted"]
    remedy = "Raise engine.memory, or store smaller chunks"
    if plan["workers"] < wanted:
        each = size(plan["per_task"])
        yield f"memory allows {plan['workers']} tasks at a time of {wanted}: each needs {each}. {remedy}."
    elif not plan["ahead"] and worth_ahead(chunks):
        yield f"memory does not allow to read ahead: each pass waits for its reads. {remedy}."


def _precision(cost: Cost, config: Config, chunks: Chunks) -> Iterator[str]:
    if cost.exact_in_float32:
        yield (
            f"every value looked at fits float32, but {cost.dtype} is computed in float64. Stored as float32, rows take "
            "half the memory and about half the time; sums stay float64."
        )
