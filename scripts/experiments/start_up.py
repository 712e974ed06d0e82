#!/usr/bin/env python3
"""What a small job costs beside its arithmetic: seconds and CPU seconds of whole processes, medians of several.

    scripts/experiments/start_up.py [--rounds 5] [--cold]
    scripts/experiments/start_up.py --package EARLIER      the same of another commit's package, a folder with pipeline/

Jobs fit 5,000 rows of 2 features. Bytecode is compiled into a temporary folder by a run that is not counted, and kernels into their
cache; --cold also measures the first run with neither bytecode nor kernels. Where other work shares the machine only CPU seconds say much.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FIT = """
import time, numpy as np
from {module} import KMeans
x = np.random.default_rng(0).normal(size=(1000, 2))
def fit():
    began = time.process_time()
    KMeans(5, random_state=0).fit(x)
    return time.process_time() - began
first, later = fit(), sorted(fit() for _ in range(31))
print(first, later[15])
"""


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float, str]:
    """Seconds, CPU seconds and output of a process. Its folder holds no package: Python would import that first."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=True)
    took, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return took, cpu, done.stdout


def main() -> int:
    """Print a line for each thing measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="also the first run, with empty caches")
    parser.add_argument("--package", type=Path, default=ROOT, help="the folder of the package to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        rng = np.random.default_rng(0)
        means = 6 * rng.normal(size=(5, 2))
        np.save(scratch / "rows.npy", rng.normal(size=(5000, 2)) + means[rng.integers(5, size=5000)])
        environment = os.environ | {"PYTHONPATH": str(options.package.resolve())}
        environment |= {"PYTHONPYCACHEPREFIX": str(scratch / "bytecode"), "XDG_CACHE_HOME": str(scratch / "cache")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        commands = {"import pipeline": [sys.executable, "-c", "import pipeline"]}
        for family in ("gaussian", "kmeans"):
            config = {
                "data": {"source": "npy", "path": str(scratch / "rows.npy")},
                "model": {"family": family, "n_components": 5},
                "output": {"path": str(scratch / family)},
            }
            (scratch / f"{family}.yaml").write_text(json.dumps(config))  # JSON is YAML
            job = ["run", str(scratch / f"{family}.yaml"), "--overwrite"]
            commands[f"em-pipeline run, {family}"] = [sys.executable, "-m", "pipeline", *job]
        for module in ("pipeline", "sklearn.cluster"):
            commands[f"KMeans of {module}"] = [sys.executable, "-c", FIT.format(module=module)]
        print("| process | seconds | CPU seconds | CPU ms of the first fit, of later ones |\n|---|---|---|---|")
        for name, command in commands.items():
            first = run(command, environment)
            if options.cold:
                print(f"| {name}, for the first time | {first[0]:.2f} | {first[1]:.2f} | |", flush=True)
            found = [run(command, environment) for _ in range(options.rounds)]
            took, cpu = (statistics.median(each[i] for each in found) for i in (0, 1))
            fits = [[1000 * float(word) for word in each[2].split()] for each in found if "KMeans" in name]
            said = ", ".join(f"{statistics.median(each):.1f}" for each in zip(*fits, strict=True))
            print(f"| {name} | {took:.2f} | {cpu:.2f} | {said} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
