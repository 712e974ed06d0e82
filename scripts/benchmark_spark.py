#!/usr/bin/env python3
"""The Spark row of the table: `scripts/benchmark.py spark`, for the environment that has pyspark and a Java runtime.

    scripts/benchmark_spark.py --json results.jsonl

Takes the options of scripts/benchmark.py. JAVA_HOME says which Java, as Spark has it.
"""

import sys

from benchmark import main

if __name__ == "__main__":
    sys.exit(main(["spark", *sys.argv[1:]]))
