"""Denoising by a mixture of patches: the expected patch log-likelihood (EPLL) of Zoran and Weiss (2011).

    minimize  |x - y|² / 2 σ²  -  sum over all overlapping patches i of  log p(P_i x) / p q

by half-quadratic splitting: for β = 1, 4, 8, 16, 32 over σ², each patch z of x becomes the row that its most probable component
expects behind errors of variance 1 / β (the Wiener filter of that component), these are averaged where patches overlap, and
x = (y + β σ² average) / (1 + β σ²). Where the model knows patches without their mean, the mean stays as it is.

A pixel depends on those at most 5 (p - 1) rows and 5 (q - 1) columns away, so pieces of a large picture with that margin have the
result of the whole picture.

The same prior restores pixels that are missing, whose noise has infinite variance, and pictures behind a blur K, of which |x - y|² is
that of K x and y: the step for x is then solved by its Fourier transform, on the picture and its mirror images. Both begin with patches that
have large errors, so that β is 50, 100, …, 3200, as in the paper's program, whatever the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.errors import InputError
from pipeline.models.mixture import Mixture, MixtureParams

BETAS = (1.0, 4.0, 8.0, 16.0, 32.0)  # times 1 / σ²
STEPS = tuple(50.0 * 2.0**i for i in range(7))  # the same of a picture with a mask or a blur, times 1
STRIP = 2**14  # patches at a time
LOOKED_AT = 2048  # patches, of which the level of noise is estimated
LEVELS = (0.5 / 255, 0.8)  # of noise, between which it is looked for


class PatchPrior(NamedTuple):
    """A mixture of patches. model : for rows with errors.  basis : (p q, d) of features, None for pixels."""

    model: Mixture
    params: MixtureParams
    size: tuple[int, int]
    basis: Array | None

    @property
    def margin(self) -> tuple[int, int]:
        """How far pixels depend on others, down and across."""
        return len(BETAS) * (self.size[0] - 1), len(BETAS) * (self.size[1] - 1)

    def features(self, pixels: Array) -> tuple[Array, Array]:
        """Rows of patches and the means that they lack. pixels : (n, p q)."""
        if self.basis is None:
            return pixels, np.zeros((len(pixels), 1), pixels.dtype)
        return pixels @ self.basis.astype(pixels.dtype), pixels.mean(axis=1, keepdims=True)


def denoised(noisy: Array, sigma: float, prior: PatchPrior, kernels: Any) -> Array:
    """Return a picture without its noise.

    Parameters
    ----------
    noisy : array, shape (height, width), float32
    sigma : float
        Standard deviation of the noise, in the unit of the pixels.
    prior : PatchPrior
    kernels : Kernels

    Returns
    -------
    array, shape (height, width), float32
    """
    return restored(noisy, sigma, prior, kernels, BETAS, lambda beta, average: (noisy + beta * average) / (1 + beta))


def inpainted(noisy: Array, sigma: float, prior: PatchPrior, kernels: Any, missing: Array) -> Array:
    """Return a picture with its missing pixels filled in, and without its noise. missing : (height, width) bool; the rest as of `denoised`."""
    if missing.all():
        raise InputError("--mask: all pixels of a picture are missing. Leave that picture out.")
    known = 1 - missing.astype(np.float32)
    steps = tuple(step * sigma**2 for step in STEPS)
    start = _filled(noisy, known)
    return restored(
        start, sigma, prior, kernels, steps, lambda beta, average: (known * start + beta * average) / (known + beta)
    )


def deblurred(noisy: Array, sigma: float, prior: PatchPrior, kernels: Any, blur: Array) -> Array:
    """Return a picture without its blur. blur : (odd, odd), of sum 1, what a point becomes; the rest as of `denoised`."""
    transfer = np.fft.rfft2(_around_zero(blur, (2 * noisy.shape[0], 2 * noisy.shape[1])))
    known, power = np.conj(transfer) * np.fft.rfft2(_mirrored(noisy)), np.abs(transfer) ** 2
    height, width = noisy.shape

    def solved(beta: np.float32, average: Array) -> Array:
        found = (known + beta * np.fft.rfft2(_mirrored(average))) / (power + beta)
        return np.fft.irfft2(found, (2 * height, 2 * width))[:height, :width].astype(np.float32)

    steps = tuple(step * sigma**2 for step in STEPS)
    return restored(noisy, sigma, prior, kernels, steps, solved)


def restored(
    start: Array,
    sigma: float,
    prior: PatchPrior,
    kernels: Any,
    steps: Sequence[float],
    solved: Callable[[np.float32, Array], Array],
) -> Array:
    """Return what half-quadratic splitting ends with. steps : β σ².  solved : returns x from β σ² and the average of patches."""
    found = start
    for beta in steps:
        found = solved(np.float32(beta), _filtered(found, sigma**2 / beta, prior, kernels))
    return found


def _filled(noisy: Array, known: Array) -> Array:
    """A picture whose missing pixels are means of the known ones in the smallest square around. known : 1, or 0 where one is missing."""
    from scipy.ndimage import uniform_filter

    found, left, size = np.where(known > 0, noisy, 0).astype(np.float64), known == 0, 3
    values, counted = found, known.astype(np.float64)
    while left.any():
        share = uniform_filter(counted, size, mode="nearest")
        enough = left & (share > 0.5 / size**2)  # one known pixel, but for rounding
        found = np.where(enough, uniform_filter(values, size, mode="nearest") / np.where(enough, share, 1), found)
        left, size = left & ~enough, 2 * size - 1
    return found.astype(np.float32)


def _mirrored(picture: Array) -> Array:
    """The picture and its mirror images, which is periodic without seams."""
    return np.pad(picture, ((0, picture.shape[0]), (0, picture.shape[1])), "symmetric")


def _around_zero(blur: Array, shape: tuple[int, int]) -> Array:
    """A kernel of odd size around the first pixel of a periodic picture."""
    found = np.zeros(shape)
    p, q = blur.shape
    found[:p, :q] = blur
    return np.roll(found, (-(p // 2), -(q // 2)), axis=(0, 1))


def _filtered(picture: Array, variance: float, prior: PatchPrior, kernels: Any) -> Array:
    """The average over overlapping patches, each without errors of a variance."""
    (p, q), (height, width) = prior.size, picture.shape
    down, across = height - p + 1, width - q + 1
    blurred = prior.model.blurred(prior.params, variance)
    windows = np.lib.stride_tricks.sliding_window_view(picture, (p, q))
    total = np.zeros((height, width), np.float32)
    step = max(1, STRIP // across)
    for top in range(0, down, step):
        rows = min(step, down - top)
        x, mean = prior.features(windows[top : top + rows].reshape(rows * across, p * q))
        labels = prior.model.most_probable(blurred, x, kernels)
        clean = prior.model.component.expected(blurred.theta, x, labels, variance)
        pixels = clean if prior.basis is None else clean @ prior.basis.T.astype(clean.dtype) + mean
        pixels = pixels.reshape(rows, across, p, q)
        for i in range(p):
            for j in range(q):
                total[top + i : top + i + rows, j : j + across] += pixels[:, :, i, j]
    return total / _covered(height, p)[:, None] / _covered(width, q)


def _covered(n: int, p: int) -> Array:
    """How many of the windows of p pixels cover each of n, (n,) float32."""
    at = np.arange(n)
    return np.minimum(np.minimum(at + 1, n - at), min(p, n - p + 1)).astype(np.float32)


def noise_level(pictures: list[Array], prior: PatchPrior, kernels: Any) -> float:
    """Return the standard deviation of noise under which the mixture gives some patches the highest likelihood.

    pictures : (height, width), the channels of one picture.
    """
    windows = [np.lib.stride_tricks.sliding_window_view(one, prior.size).reshape(-1, *prior.size) for one in pictures]
    pixels = np.concatenate([one[_spread(len(one), LOOKED_AT // len(windows))] for one in windows])
    x, _ = prior.features(pixels.reshape(len(pixels), -1))

    def loss(log_sigma: float) -> float:
        blurred = prior.model.blurred(prior.params, float(np.exp(2.0 * log_sigma)))
        return -float(prior.model.score_rows(blurred, x, kernels).mean())

    from scipy.optimize import minimize_scalar

    found = minimize_scalar(loss, bounds=np.log(LEVELS), method="bounded", options={"xatol": 0.005})
    return float(np.exp(found.x))


def _spread(n: int, count: int) -> Array:
    """Indices of at most `count` of n windows, one drawn from each of as many equal parts."""
    ends = np.linspace(0, n, min(n, count) + 1).astype(np.int64)
    return ends[:-1] + (np.random.default_rng(0).random(len(ends) - 1) * np.diff(ends)).astype(np.int64)
