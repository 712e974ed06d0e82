"""An EM iteration of Spark MLlib's GaussianMixture on two local threads, against ours in the same run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.common import THREADS, InMemory, Record, Setting, SkippedError, Timed, interleaved, one_pass, record
from benchmarks.mixtures import draw, random_mixture
from pipeline.data.chunks import Chunks

D, K, ROWS, TARGET = 16, 32, 200_000, 15.0
FEW, MANY = 2, 12  # iterations of two fits; their difference leaves out what is done once
SETTINGS = {
    "spark.driver.host": "127.0.0.1",  # nothing listens outside
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "2g",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.default.parallelism": str(THREADS),
}


def spark(setting: Setting) -> Iterator[Record]:
    """Float64, one partition a thread, cached and counted before the first fit. Spark starts from rows that it draws
    itself; an iteration takes as long from any start.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise SkippedError("pyspark is not installed; install the bench extra") from error
    mixture, n = random_mixture(D, K), setting.pick(ROWS, 5_000)
    x = draw(mixture, n, "float64")
    model, params = mixture.model()
    ours = {"ours": one_pass(Chunks(InMemory(x), clean=True), model, params)}
    interleaved(ours, 1)
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    builder = SparkSession.builder.master(f"local[{THREADS}]").appName("benchmark")
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    try:
        frame = _cached(session, x)
        _fit(frame, FEW)  # until the JVM has compiled what an iteration does
        mine: list[float] = []
        theirs: list[float] = []
        for _ in range(setting.rounds):
            mine += interleaved(ours, 1, warm=False)["ours"].seconds
            theirs.append((_fit(frame, MANY) - _fit(frame, FEW)) / (MANY - FEW))
        version = session.version
    finally:
        session.stop()
    one, other = Timed(mine, None), Timed(theirs, None)
    yield record(
        "spark",
        f"full d={D} K={K} float64, an iteration",
        "peer / ours",
        other.median / one.median,
        TARGET,
        rounds=setting.rounds,
        n=n,
        **one.fields("ours"),
        peer=f"Spark {version} local[{THREADS}]",
        **other.fields("peer"),
        ours_ns=one.median / n / K * 1e9,
        peer_ns=other.median / n / K * 1e9,
    )


def _cached(session: Any, x: np.ndarray) -> Any:
    """The rows as a data frame in the JVM's memory."""
    from pyspark.ml.linalg import Vectors

    rows = session.sparkContext.parallelize(((Vectors.dense(row),) for row in x.tolist()), THREADS)
    frame = session.createDataFrame(rows, ["features"]).cache()
    frame.count()
    return frame


def _fit(frame: Any, n_iter: int) -> float:
    """Seconds of a fit that does not stop early."""
    from pyspark.ml.clustering import GaussianMixture

    began = time.perf_counter()
    GaussianMixture(k=K, maxIter=n_iter, tol=0.0, seed=0).fit(frame)
    return time.perf_counter() - began
