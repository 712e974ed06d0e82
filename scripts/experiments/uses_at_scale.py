#!/usr/bin/env python3
"""Every use of a fitted model on a folder of pictures that is larger than memory, killed (-9) on the way and resumed.

    scripts/experiments/uses_at_scale.py PICTURES                                  4 GB made of the folder's photographs, 1 GiB of memory
    scripts/experiments/uses_at_scale.py PICTURES --bytes 1e8 --denoise 60         smaller
    scripts/experiments/uses_at_scale.py PICTURES --only compress decompress       some commands; those that they need are run too

Each picture that is made is a part of 464 x 304 pixels of one of PICTURES at a random place, or of its mirror image, as a BMP file in colour. K-means and
a Gaussian mixture of 16 components are fitted to one 8 x 8 patch in 24 x 24, in grey, in three iterations. Then each command runs once undisturbed and
once killed twice: after a random time between 0.2 and 0.8 of what the undisturbed one took, half of that where the machine has become faster and no kill took effect. It goes on by `em-pipeline
resume`, or before there is anything to resume by the same command. Equal means the same bytes in all stores and pictures. Denoising the whole folder takes too long:
the command is killed twice and stopped by SIGTERM after --denoise seconds, and the pictures that it wrote are compared with those of a command for these alone.

Memory is PSS of the process tree, five times a second. Seconds are of CPU, of the undisturbed command and of all processes of the killed one.
Exit code 0 only if all results are equal and no command took more than --memory.
"""

from __future__ import annotations

import argparse
import filecmp
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import zarr
from PIL import Image

SIZE = 304, 464  # pixels of a picture, which every photograph of BSDS300 has in one orientation
EVERY = 0.2  # seconds between looks at memory
SEED = 0
UNEQUAL = {"config.yaml", "events.jsonl", "report.html", "pictures.csv", "checkpoints", ".lock"}  # times, paths
FIT = """\
data: {{source: images, path: {pictures}, patch: {{size: [8, 8], stride: 24}}}}
model: {{family: {family}, n_components: 16}}
fit: {{method: em, init: random, max_iter: 3, tol: 0}}
engine: {{memory: {memory}, workers: {workers}}}
"""
COMMANDS = {  # words with {other} directories that they begin with, the array whose length counts
    "kmeans": (["run", "{work}/kmeans.yaml"], "labels.zarr/label"),
    "gaussian": (["run", "{work}/gaussian.yaml"], "labels.zarr/label"),
    "encode": (["encode", "{gaussian}", "--as", "triangle", "--pool", "sum", "--grid", "2"], "encode.zarr/code"),
    "outliers": (["outliers", "{gaussian}", "--rate", "0.01"], "outliers.zarr/outlier"),
    "summarize": (["summarize", "{gaussian}", "--per-cluster", "100"], "summarize.zarr/row"),
    "impute": (["impute", "{gaussian}", "--feature", "0", "--feature", "9"], "impute.zarr/imputed"),
    "sample": (["sample", "{gaussian}", "--rows", "500000"], "sample.zarr/label"),
    "compress": (["compress", "{kmeans}"], "compress.zarr/code"),
    "decompress": (["decompress", "{compress}"], "pictures"),
}


@dataclass
class Spent:
    """Of the processes of a command: CPU seconds, the largest memory in bytes, kills that took effect, the last exit code."""

    seconds: float = 0.0
    wall: float = 0.0
    peak: int = 0
    kills: int = 0
    code: int = 0


def make(photographs: list[Path], folder: Path, n_bytes: float) -> int:
    """Write pictures until they have so many bytes; how many."""
    rng, (height, width), count = np.random.default_rng(SEED), SIZE, 0
    folder.mkdir(parents=True)
    while n_bytes > 0:
        picture = np.asarray(Image.open(photographs[count % len(photographs)]).convert("RGB"))
        if picture.shape[0] > picture.shape[1]:
            picture = picture.swapaxes(0, 1)
        top, left = (rng.integers(0, n - m + 1) for n, m in zip(picture.shape, SIZE, strict=False))
        part = picture[top : top + height, left : left + width, :: rng.choice([-1, 1])]
        part = part[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        path = folder / f"{count:05d}.bmp"
        Image.fromarray(np.ascontiguousarray(part)).save(path)
        n_bytes, count = n_bytes - path.stat().st_size, count + 1
    return count


def memory_of(process: psutil.Process) -> int:
    """PSS of a process and its descendants, bytes."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
    return total


def ran(words: list[str], log: Path, spent: Spent, until: float = np.inf, end: int = signal.SIGKILL) -> bool:
    """Start a command, and send it a signal after some seconds; whether it ended before. Adds to what was spent."""
    began = time.monotonic()
    with log.open("ab") as file:
        job = psutil.Popen([sys.executable, "-m", "pipeline", *words], stdout=file, stderr=file)
    sent = False
    while job.poll() is None and job.status() != psutil.STATUS_ZOMBIE:
        try:
            spent.peak = max(spent.peak, memory_of(job))
            times = job.cpu_times()
        except psutil.NoSuchProcess:
            break
        if not sent and time.monotonic() - began > until:
            job.send_signal(end)
            sent = True
        time.sleep(EVERY)
    spent.code = job.wait()
    spent.seconds += times.user + times.system
    spent.wall += time.monotonic() - began
    return not sent or spent.code == 0


def killed(words: list[str], output: Path, spent: Spent, instants: Iterator[float], last: float = np.inf) -> None:
    """Run a command that is killed at these seconds after each of its starts, and after `last` of the final one asked to stop."""
    log = output.with_suffix(".log")
    for seconds in instants:
        if ran(begun(words, output), log, spent, seconds):
            return
        spent.kills += 1
    ran(begun(words, output), log, spent, last, signal.SIGTERM)


def begun(words: list[str], output: Path) -> list[str]:
    """`resume` if there is something to resume, else the command."""
    run = words[0] == "run"
    known = any((output / "checkpoints").glob("gen-*")) if run else (output / "config.yaml").exists()
    return ["resume", str(output)] if known else [*words, "--output", str(output)]


def unequal(one: Path, other: Path) -> list[str]:
    """Files of which two directories have not the same bytes, of `one`."""

    def files(folder: Path) -> set[str]:
        found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {str(path) for path in found if path.parts[0] not in UNEQUAL}

    names = files(one) ^ files(other)
    return sorted(names | {name for name in files(one) - names if not filecmp.cmp(one / name, other / name, False)})


def length(output: Path, array: str) -> int:
    """Rows of an array, or the number of pictures."""
    path = output / array
    return zarr.open_array(path, mode="r").shape[0] if ".zarr" in array else len(list(path.rglob("*.png")))


def show(name: str, rows: int | str, undisturbed: Spent, disturbed: Spent, apart: list[str], limit: int) -> bool:
    """Print a line of the table; whether all is well."""
    peak = max(undisturbed.peak, disturbed.peak)
    same = "yes" if not apart else f"NO: {len(apart)} files, such as {apart[0]}"
    print(
        f"{name:12} {rows:>10} {undisturbed.wall:9.0f} {undisturbed.seconds:7.0f} {disturbed.kills:6} {disturbed.seconds:7.0f} "
        f"{peak / 2**20:9.0f}   {same}{'' if peak <= limit else '  TOO MUCH MEMORY'}",
        flush=True,
    )
    return not apart and peak <= limit


def denoised(work: Path, run: Path, seconds: float, limit: int) -> bool:
    """Denoise the folder for so long, and then what was written by itself; print a line, and return whether all is well."""
    output, alone, disturbed, undisturbed = work / "denoise-killed", work / "denoise", Spent(), Spent()
    words = ["denoise", str(run), "--sigma", "15"]
    killed(words, output, disturbed, iter([seconds / 3, seconds / 3]), seconds / 3)
    names = sorted(path.stem for path in (output / "pictures").glob("*.png"))
    subset = work / "subset"
    subset.mkdir()
    for name in names:
        (subset / f"{name}.bmp").symlink_to(work / "pictures" / f"{name}.bmp")
    killed([*words, "--set", f"data.path={subset}"], alone, undisturbed, iter(()))
    apart = unequal(output / "pictures", alone / "pictures") if names else ["none was written"]
    stopped = [] if disturbed.code == 75 else [f"exit code {disturbed.code} after SIGTERM"]
    return show("denoise", len(names), undisturbed, disturbed, [*stopped, *apart], limit)


def arguments() -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path, help="folder of photographs of at least 464 x 304 pixels, or upright")
    parser.add_argument("--bytes", type=float, default=4e9, help="of the folder that is made")
    parser.add_argument("--memory", default="1GiB", help="engine.memory of every job")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=[*COMMANDS, "denoise"], default=[*COMMANDS, "denoise"])
    parser.add_argument("--denoise", type=float, default=300, help="seconds")
    parser.add_argument("--work", type=Path, default=Path("runs/uses_at_scale"))
    return parser.parse_args()


def main() -> int:
    """Make pictures, run each command twice, and print a table."""
    options = arguments()
    work, rng = options.work.resolve(), random.Random(SEED)
    if not (work / "pictures").exists():
        photographs = sorted(path for path in options.pictures.iterdir() if path.suffix.lower() in (".jpg", ".png"))
        make(photographs, work / "pictures", options.bytes)
    files = list((work / "pictures").iterdir())
    print(f"{len(files)} pictures, {sum(path.stat().st_size for path in files)} bytes", flush=True)
    for family in ("kmeans", "gaussian"):
        given = {"family": family, "memory": options.memory, "workers": options.workers}
        (work / f"{family}.yaml").write_text(FIT.format(pictures=work / "pictures", **given))
    from pipeline.config.engine import EngineSection

    limit, well = int(EngineSection(memory=options.memory).memory), True
    print(f"{'':12} {'rows':>10} {'seconds':>9} {'CPU s':>7} {'kills':>6} {'CPU s':>7} {'peak MiB':>9}   equal")
    places = {"work": work, **{name: work / name for name in COMMANDS}}
    needed = {
        name
        for name in COMMANDS
        if any(f"{{{name}}}" in word for one in options.only if one in COMMANDS for word in COMMANDS[one][0])
    }
    for name, (words, array) in COMMANDS.items():
        if name not in options.only and (name not in needed or (work / name).exists()):
            continue
        words = [word.format(**places) for word in words]
        undisturbed, other = Spent(), work / f"{name}-killed"
        shutil.rmtree(work / name, ignore_errors=True)
        killed(words, work / name, undisturbed, iter(()))
        expected, disturbed = undisturbed.wall, Spent()
        while not (disturbed.kills or disturbed.code):  # the machine may be faster now
            shutil.rmtree(other, ignore_errors=True)
            disturbed = Spent()
            killed(words, other, disturbed, (expected * rng.uniform(0.2, 0.8) for _ in range(2)))
            expected /= 2
        failed = [f"exit codes {undisturbed.code}, {disturbed.code}"] * bool(undisturbed.code or disturbed.code)
        apart = [*failed, *unequal(work / name, other)]
        rows = "" if failed else length(work / name, array)
        well &= show(name, rows, undisturbed, disturbed, apart, limit)
        if not apart:
            shutil.rmtree(other)
    if "denoise" in options.only:
        well &= denoised(work, work / "gaussian", options.denoise, limit)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
