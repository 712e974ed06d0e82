"""Pictures without their noise, by the mixture of patches of a run: `em-pipeline denoise`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline import provenance
from pipeline.applying import epll
from pipeline.applying.beside import beside
from pipeline.applying.epll import PatchPrior
from pipeline.applying.rows import asked_of, begin, output_of
from pipeline.arrays.dtypes import Array
from pipeline.config.variants import OUTSIDE
from pipeline.data.chunks import Chunks
from pipeline.data.patch import patch_basis
from pipeline.data.sources.images import ImageSource, ImagesSection
from pipeline.engine.blas import single_thread
from pipeline.engine.cluster import open_engine, uses_processes
from pipeline.engine.memory import MIB, PeakMemory, Plan, plan
from pipeline.engine.passes import Engine, unused_address
from pipeline.errors import InputError
from pipeline.jobconfig import Config
from pipeline.models.families import FAMILIES
from pipeline.models.mixture import Mixture
from pipeline.outputs import model_store
from pipeline.outputs.denoised import Denoised
from pipeline.outputs.events import EventLog, Listener
from pipeline.outputs.run_directory import RunDirectory

SIDE = 512  # pixels, of the pieces that pictures are denoised in
WORK = 160 * MIB  # of a piece, measured for 8 x 8 patches and 200 components


def denoise(
    path: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    sigma: float | None = None,
    clean: str | Path | None = None,
    listeners: Sequence[Listener] = (),
    began: float | None = None,
    mask: str | Path | None = None,
    kernel: str | Path | None = None,
) -> Path:
    """Remove noise from pictures by the mixture of patches that a run has fitted; return the directory.

    Pictures in colour are denoised in red, green and blue, each for itself.

    Parameters
    ----------
    path : str or Path
        Of a run of a Gaussian mixture on ``data.source: images``.
    overrides : sequence of str
        ``data.path=…`` of the noisy pictures; data.patch.range and engine may change too.
    output : str or Path
        The directory: `pictures/`, `pictures.csv`, `sheet.png` and `report.html`.
    sigma : float, optional
        Standard deviation of the noise in grey levels, of which white is 255; by default that of highest likelihood, for each picture.
    clean : str or Path, optional
        The folder of the same pictures without noise, to compare with.
    listeners : sequence of callable
        Called with each event.
    began : float, optional
        time.perf_counter() when the user began to wait. Now by default.
    mask : str or Path, optional
        A folder of masks by the names of the pictures, or one for all: pixels that are white in it are missing, and filled in.
    kernel : str or Path, optional
        A .npy file, (odd, odd), of what a point has become: the pictures are sharpened.

    References
    ----------
    Zoran and Weiss (2011): from learning models of natural image patches to whole image restoration.
    """
    config = asked_of(path, overrides, "denoise")
    target = output_of("denoise", output)
    if sigma is not None and not 0 < sigma < float("inf"):
        raise InputError(
            f"denoise: got sigma {sigma:g}, expected a number above 0, in grey levels of which white is 255. Correct it, or leave it "
            "out to estimate it."
        )
    if sigma is None and (mask or kernel):
        raise InputError(
            "denoise: got no --sigma, expected one beside --mask and --kernel: the noise of such pictures is not estimated. Give a small "
            "one, such as 1, where there is none."
        )
    if mask and kernel:
        raise InputError("denoise: got --mask and --kernel, expected one of them. Fill missing pixels in first.")
    clean = None if clean is None else str(Path(clean).absolute())
    options = {"command": "denoise", "sigma": sigma, "clean": clean}
    more = {"mask": mask, "kernel": kernel}
    options |= {name: str(Path(file).absolute()) for name, file in more.items() if file is not None}
    return finish_denoising(RunDirectory(path), config, target, options, listeners, began)


def finish_denoising(
    run: RunDirectory,
    config: Config,
    target: RunDirectory,
    options: dict[str, Any],
    listeners: Sequence[Listener],
    began: float | None,
) -> Path:
    """Compute the pictures that a directory lacks. options : of the command, by name."""
    record = run.read_config()
    provenance.refuse_other_code(config, record, ("model.path",))
    began = time.perf_counter() if began is None else began
    with single_thread(), PeakMemory() as memory:
        prior = _prior(run, config)
        noisy = config.data.open()
        assert isinstance(noisy, ImageSource)
        clean, mask = (
            beside(noisy, config, name, options[name]) if options.get(name) else None for name in ("clean", "mask")
        )
        blur = _read_blur(options["kernel"], noisy) if options.get("kernel") else None
        planned = _planned(config, noisy, mask is not None or blur is not None)
        fingerprint = config.open_chunks().fingerprint()
        if mask is not None:
            fingerprint["mask"] = Chunks(mask[0][0]).fingerprint()
        if blur is not None:
            fingerprint["kernel"] = hashlib.sha256(blur.tobytes()).hexdigest()
        with open_engine(config.engine, planned.workers, planned.ahead, planned.spare) as engine, target.lock():
            begin(target, run, config, fingerprint, options)
            log = EventLog(target.events, tuple(listeners))
            log.warn(unused_address(config.engine))
            engine.report_to(log)
            written = Denoised(target, noisy, clean)
            todo = [i for i, _ in enumerate(noisy.pictures()[0]) if not written.has(i)]
            if todo:
                levels = _levels(todo, options["sigma"], noisy, prior, engine, log)
                for found in _pictures(levels, DenoisePiece(noisy, prior, mask, blur), engine):
                    log("denoised", of=len(levels), **written.add(found)._asdict())
            if todo or not target.report.exists():
                from pipeline.outputs.report import write_report

                if written.means:
                    log("compared", **written.means)
                written.draw_sheet()
                write_report(target.path)
                log("finished", seconds=time.perf_counter() - began, peak_pss=memory.bytes)
    return target.path


def _prior(run: RunDirectory, config: Config) -> PatchPrior:
    """The mixture of a run, of patches of pixels. Raises InputError if it is none that EPLL takes."""
    stored, data = run.read_config()["config"]["data"], config.data
    if not isinstance(data, ImagesSection):
        raise InputError(
            f"denoise: got data.source {data.source}, expected images. Fit a mixture to patches of pictures first."
        )
    patch = data.patch.model_dump(mode="json")
    changed = [
        name for name in ("size", "channels", "remove_mean", "contrast") if patch[name] != stored["patch"].get(name)
    ]
    if changed:
        raise InputError(
            f"denoise: got another data.patch.{changed[0]} than that of {run}, which settles it. Leave it out."
        )
    model, params, affine = model_store.load_model(model_store.read_model(run.model))
    refused = {
        f"family {config.model.family}": not (isinstance(model, Mixture) and config.model.takes_errors),
        "model.noise": config.model.needs_box,
        "preprocess": affine is not None,
        "data.patch.contrast": data.patch.contrast is not None,
        f"data.patch.channels {data.patch.channels}": data.patch.channels != "grey",
    }
    names = " or ".join(name for name in FAMILIES if name != OUTSIDE and FAMILIES[name].takes_errors)
    for what, is_so in refused.items():
        if is_so:
            raise InputError(
                f"denoise: got a run with {what}, expected family {names} on grey patches in the pixels' own scale; each channel of "
                "a picture in colour is denoised by them. Fit one without it."
            )
    assert isinstance(model, Mixture)
    basis = patch_basis(data.patch.size) if data.patch.remove_mean else None
    return PatchPrior(model.for_rows("errors"), params, data.patch.size, basis)


def _read_blur(path: str, noisy: ImageSource) -> Array:
    """The blur of a .npy file, of sum 1. Raises InputError if it is none."""
    try:
        blur = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"--kernel {path}: cannot be read ({error}). Give a .npy file with an array of two dimensions."
        ) from error
    smallest = min(min(noisy.header(i)[0][:2]) for i in range(len(noisy.pictures()[0])))
    is_array = isinstance(blur, np.ndarray) and blur.ndim == 2 and blur.dtype.kind in "iuf"
    if not (is_array and all(n % 2 == 1 and n <= smallest for n in blur.shape) and 0 < blur.sum() < np.inf):
        raise InputError(
            f"--kernel {path}: got {getattr(blur, 'shape', 'several arrays')} of {getattr(blur, 'dtype', 'any type')}, expected numbers of "
            f"a positive sum in an odd height and width of at most {smallest}, the smallest side of a picture. Correct it."
        )
    return blur / blur.sum(dtype=np.float64)


def _planned(config: Config, noisy: ImageSource, whole: bool) -> Plan:
    """The memory: each task decodes a picture and works on a piece, or the whole, and this process assembles and compares one."""
    headers = [noisy.header(i)[0] for i in range(len(noisy.pictures()[0]))]
    decoding = max(one.height * one.width * (one.decoded + 3 * one.colour) for one in headers)
    assembled = max(one.height * one.width * 12 * (3 if one.colour else 1) for one in headers)
    largest = max(one.height * one.width for one in headers)
    work = WORK if not whole else 2 * WORK * max(1, -(-largest // SIDE**2))
    engine = config.engine
    advice = "cut large pictures into smaller ones"
    return plan(
        engine.memory, engine.workers, decoding + work, 0, decoding + assembled, uses_processes(engine), advice=advice
    )


class Piece(NamedTuple):
    """A piece of a picture. core : what it stands for, rows and columns.  box : that and what it depends on."""

    picture: int
    sigma: float
    core: tuple[slice, slice]
    box: tuple[slice, slice]


class Whole(NamedTuple):
    """A picture without noise. pixels : (height, width[, 3]) float32.  sigma : in units of white.  seconds : of CPU."""

    picture: int
    pixels: Array
    sigma: float
    seconds: float


@dataclass(frozen=True)
class DenoisePiece:
    """Task: a piece without noise, and the seconds of CPU that it took.

    mask : source and number of the mask of each picture.  blur : of the pictures.  Either needs whole pictures as pieces.
    """

    source: ImageSource
    prior: PatchPrior
    mask: list[tuple[ImageSource, int]] | None = None
    blur: Array | None = None

    @property
    def side(self) -> int | None:
        """Pixels of a piece, about; None for whole pictures."""
        return SIDE if self.mask is None and self.blur is None else None

    def __call__(self, piece: Piece, kernels: Any) -> tuple[Piece, Array, float]:
        began = time.thread_time()
        pixels = self.source.pixels(piece.picture, piece.box, colour=True)
        channels = [np.ascontiguousarray(one) for one in _channels(pixels)]
        given = piece.sigma, self.prior, kernels
        if self.mask is not None:
            masks, number = self.mask[piece.picture]
            missing = masks.pixels(number, piece.box) > 0.5
            found = [epll.inpainted(one, *given, missing) for one in channels]
        elif self.blur is not None:
            found = [epll.deblurred(one, *given, self.blur) for one in channels]
        else:
            found = [epll.denoised(one, *given) for one in channels]
        inner = tuple(
            slice(core.start - box.start, core.stop - box.start)
            for core, box in zip(piece.core, piece.box, strict=True)
        )
        clean = (np.stack(found, axis=2) if len(found) > 1 else found[0])[inner]
        return piece, clean, time.thread_time() - began


@dataclass(frozen=True)
class EstimateNoise:
    """Task: the standard deviation of the noise of a picture."""

    source: ImageSource
    prior: PatchPrior

    def __call__(self, picture: int, kernels: Any) -> float:
        whole = slice(None), slice(None)
        return epll.noise_level(_channels(self.source.pixels(picture, whole, colour=True)), self.prior, kernels)


def _channels(pixels: Array) -> list[Array]:
    return [pixels] if pixels.ndim == 2 else [pixels[:, :, i] for i in range(pixels.shape[2])]


def _levels(
    todo: list[int], sigma: float | None, noisy: ImageSource, prior: PatchPrior, engine: Engine, log: EventLog
) -> list[tuple[int, float]]:
    """The pictures and their noise, in units of white."""
    if sigma is not None:
        return [(i, sigma / 255.0) for i in todo]
    levels = list(zip(todo, engine.map_in_order(EstimateNoise(noisy, prior), [(i,) for i in todo]), strict=True))
    for i, level in levels:
        log("noise_level", picture=noisy.pictures()[0][i], sigma=255.0 * level)
    return levels


def _pictures(levels: list[tuple[int, float]], task: DenoisePiece, engine: Engine) -> Iterator[Whole]:
    """Yield pictures, put together from their pieces."""
    noisy, margin = task.source, task.prior.margin
    tasks = ((piece,) for i, sigma in levels for piece in _pieces(noisy, i, sigma, margin, task.side))
    found = engine.map_in_order(task, tasks)
    for picture, parts in groupby(found, lambda part: part[0].picture):
        header, seconds = noisy.header(picture)[0], 0.0
        pixels = np.empty((header.height, header.width, 3) if header.colour else (header.height, header.width), "f4")
        for piece, clean, took in parts:
            pixels[piece.core] = clean
            seconds += took
        yield Whole(picture, pixels, piece.sigma, seconds)


def _pieces(
    noisy: ImageSource, picture: int, sigma: float, margin: tuple[int, int], side: int | None
) -> Iterator[Piece]:
    """Yield the pieces of a picture, row by row, each about as large as the others. side : of a piece; None for the whole."""
    header = noisy.header(picture)[0]
    for rows in _parts(header.height, margin[0], side):
        for columns in _parts(header.width, margin[1], side):
            yield Piece(picture, sigma, (rows[0], columns[0]), (rows[1], columns[1]))


def _parts(n: int, margin: int, side: int | None) -> Iterator[tuple[slice, slice]]:
    """Yield equal parts of n pixels, and each with its margin."""
    ends = np.linspace(0, n, -(-n // (side or n)) + 1).astype(int).tolist()
    for start, stop in pairwise(ends):
        yield slice(start, stop), slice(max(0, start - margin), min(n, stop + margin))
