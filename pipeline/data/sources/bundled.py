"""Data that come with scikit-learn: its handwritten digits, and patches of its two photographs."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.data.patch import Patch
from pipeline.data.section import DataSection
from pipeline.data.source import Source
from pipeline.data.sources.images import open_patches
from pipeline.errors import InputError, did_you_mean

_NAMES = ("digits", "photographs")


class BundledSection(DataSection):
    """Data that come with a dependency: 1,797 handwritten digits, or the patches of two photographs."""

    source: Literal["bundled"] = Field("bundled", description="data that come with scikit-learn")
    path: str | None = Field(None, description="digits or photographs")
    patch: Patch = Field(
        default_factory=Patch, description="photographs: how they are cut into rows, when they are read"
    )

    @model_validator(mode="after")
    def _digits_are_whole(self) -> BundledSection:
        if self.path == "digits" and self.patch != Patch():
            raise ValueError("patch: digits are rows as they are, and are not cut; leave it out")
        return self

    def open(self) -> Source:
        if self.path == "photographs":
            return open_patches(None, {}, self.patch)
        if self.path == "digits":
            return DigitsSource()
        own = (
            " For a file of your own set data.source to what it is." if self.path and os.path.exists(self.path) else ""
        )
        raise InputError(
            f"data.path: got {self.path!r}, expected digits or photographs for source bundled"
            f"{did_you_mean(str(self.path), _NAMES) or '.'}{own}"
        )


class DigitsSource(Source):
    """scikit-learn's 1797 handwritten digits, 8 x 8 pixels from 0 to 16, uint8, in one chunk."""

    def __init__(self) -> None:
        self.n_features, self.dtype = 64, np.dtype(np.uint8)
        self.bounds = np.array([0, 1797], np.int64)

    def read(self, i: int) -> np.ndarray:
        from sklearn.datasets import load_digits

        return load_digits().data.astype(np.uint8)

    def describe(self) -> dict[str, Any]:
        return {"kind": "image", "size": [8, 8]}
