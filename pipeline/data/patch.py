"""Patches of pictures: how they are cut into rows, and the basis of those without a mean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.config import Section

_TOPS = {8: 255, 16: 65535}  # the highest values of containers; those of 32 bits say nothing of what they hold


remove_mean_field = Field(
    True,
    description="drop each patch's mean, of each channel: size-1 features a channel in an orthonormal basis without the constant",
)


class Patch(Section):
    """How pictures are cut into rows."""

    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        (8, 8), description="height and width of a patch, in pixels"
    )
    stride: int = Field(1, ge=1, description="pixels from one patch to the next")
    channels: Literal["grey", "rgb", "all"] = Field(
        "grey",
        description="grey: the luma of colours; rgb: three features a pixel, which of grey pictures are equal; all: the channels that "
        "are stored, of TIFF files any number and in their own values",
    )
    remove_mean: bool = remove_mean_field
    contrast: float | None = Field(
        None, gt=0, description="divide each patch by its deviation, floored at this value (pixels are 0 to 1)"
    )
    range: Literal["container"] | dict[Literal[8, 16, 32], Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="which value becomes 1; null: 255 of 8 bits and 65535 of 16, all pictures having as many; container: the same, "
        "some having 8 and some 16; or by bits, such as {8: 255, 16: 4095, 32: 1.0}",
    )

    def top(self, bits: int) -> float | None:
        """Return the value that becomes 1 in pictures of so many bits; None where that is not known."""
        own = self.range.get(bits) if isinstance(self.range, dict) else None  # type: ignore[call-overload]  # 8, 16 or 32
        return own or _TOPS.get(bits)


def patch_basis(size: Sequence[int], channels: int = 1) -> np.ndarray:
    """Return an orthonormal basis of p x q patches, or of p x q x r patches of volumes, without the mean of each channel, float64.

    The DCT-II of two or three dimensions without its constant vector, lowest frequency of the first dimension first, so that
    `features = pixels @ basis` and `pixels - mean = features @ basis.T`. Any orthonormal basis without the
    constant gives the same mixture; this one is closed-form, hence the same everywhere, and each feature is a
    spatial frequency. Channels vary fastest, in pixels and in features. [Ahmed, Natarajan, Rao 1974]

    Returns
    -------
    array, shape (p * q * channels, (p * q - 1) * channels), of volumes with p * q * r

    >>> basis = patch_basis((4, 4))
    >>> bool(np.allclose(basis.T @ basis, np.eye(15)) and np.allclose(basis.sum(axis=0), 0))
    True
    >>> patch_basis((4, 4), channels=3).shape
    (48, 45)
    """
    return np.kron(reduce(np.kron, map(_dct, size)).T[:, 1:], np.eye(channels))


def write_features(pixels: np.ndarray, basis: np.ndarray | None, contrast: float | None, out: np.ndarray) -> None:
    """Write the features of patches of pixels.

    Parameters
    ----------
    pixels : array, shape (n, m)
    basis : array, shape (m, d), or None
        `patch_basis`; None: pixels are features, d = m.
    contrast : float or None
        As of `Patch`.
    out : array, shape (n, d)
        In the dtype of the pixels.
    """
    if basis is None:
        out[:] = pixels
    else:
        np.matmul(pixels, basis, out=out)
    if contrast is not None:
        # The basis is orthonormal: features have the length of the mean-free pixels.
        squares = pixels.var(axis=1) if basis is None else np.einsum("ij,ij->i", out, out) / pixels.shape[1]
        out /= np.maximum(np.sqrt(squares), out.dtype.type(contrast))[:, None]


def assembled(patches: np.ndarray, shape: tuple[int, int], size: tuple[int, int], stride: int) -> np.ndarray:
    """Return the picture of patches that cover it, with the average where they overlap.

    Parameters
    ----------
    patches : array, shape (n, p * q * channels)
        Row by row, as `ImageSource.covering` cuts them: those at the right and the lower edge end there.
    shape, size : (int, int)
        Height and width of the picture, and of a patch.
    stride : int
        Pixels from one patch to the next.

    Returns
    -------
    array, shape (height, width, channels)
        In the dtype of the patches.
    """
    (height, width), (p, q) = shape, size
    tops, lefts = (np.minimum(np.arange(0, n - m + stride, stride), n - m) for n, m in ((height, p), (width, q)))
    pixels = patches.reshape(len(tops), len(lefts), p, q, -1)
    total = np.zeros((height, width, pixels.shape[-1]), patches.dtype)
    count = np.zeros((height, width, 1), patches.dtype)
    for i in range(p):
        for j in range(q):
            at = np.ix_(tops + i, lefts + j)  # no pixel twice
            total[at] += pixels[:, :, i, j]
            count[at] += 1
    return total / count


def _dct(n: int) -> np.ndarray:
    """The orthonormal DCT-II, (frequency, position)."""
    cosines: np.ndarray = np.sqrt(2 / n) * np.cos(np.pi / n * np.outer(np.arange(n), np.arange(n) + 0.5))
    cosines[0] = np.sqrt(1 / n)
    return cosines
