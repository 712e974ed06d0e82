"""Missing entries of rows, and some features given the others, by the mixture of a run: `em-pipeline impute`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from pipeline import keyed
from pipeline.applying.rows import OpenRows, asked_of, output_of, write_rows
from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.data.preprocess import Affine
from pipeline.errors import InputError
from pipeline.jobconfig import Config
from pipeline.models.base import RowArray
from pipeline.models.mixture import Mixture
from pipeline.models.words import Words
from pipeline.outputs.events import Listener
from pipeline.outputs.labels import LabelBlock
from pipeline.outputs.run_directory import RunDirectory


def impute(
    path: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    features: Sequence[str] = (),
    draws: bool = False,
    seed: int = 0,
    listeners: Sequence[Listener] = (),
    began: float | None = None,
) -> Path:
    """Write rows with numbers in place of missing entries; return the store, `impute.zarr` in the output.

    Each becomes its conditional mean given the other entries of the row, or a draw from the conditional distribution. With `features`,
    these are computed from the others in every row: the regression by a mixture of Gaussians (GMR).

    Parameters
    ----------
    path : str or Path
        Of a run of a mixture of Gaussians, Student-t distributions or factor analysers, fitted to whole rows or to rows with missing entries.
    overrides : sequence of str
        ``data.path=…`` of the rows, NaN where an entry is missing; engine may change too.
    output : str or Path
        The directory. `imputed` in its store has the dimensions row and feature, in the units of the data; a row without any entry is NaN.
    features : sequence of str
        Names, or numbers from 0, of features to compute, whatever is stored for them.
    draws : bool
        Whether to draw. A draw depends on the seed and the row's number alone.
    seed : int
    listeners : sequence of callable
        Called with each event.
    began : float, optional
        time.perf_counter() when the user began to wait. Now by default.

    References
    ----------
    Ghahramani and Jordan (1994); Little and Rubin (2002), sec. 10.2.
    """
    config = asked_of(path, [*overrides, "data.bad_rows=missing"], "impute")
    options = {"command": "impute", "features": list(features), "draws": draws, "seed": seed}
    return finish_imputing(RunDirectory(path), config, output_of("impute", output), options, listeners, began)


def finish_imputing(
    run: RunDirectory,
    config: Config,
    target: RunDirectory,
    options: dict[str, Any],
    listeners: Sequence[Listener],
    began: float | None,
) -> Path:
    """Compute the rows that a directory lacks. options : of the command, by name."""

    def made(opened: OpenRows) -> LabelBlock:
        names = opened.chunks.source.describe().get("features")
        chosen = tuple(_number(each, names, opened.chunks.n_features) for each in options["features"])
        if len(set(chosen)) == opened.chunks.n_features:
            raise InputError("impute: got all features to compute, expected some to compute them from. Leave one out.")
        by_unit = config.model.by_unit  # there the mean depends on other rows
        if by_unit or not (isinstance(opened.model, Mixture) and hasattr(opened.model.component, "imputed")):
            raise InputError(
                f"impute: got a run of a {opened.model.words.name}, which has no conditional means. Fit another family."
            )
        seed = options["seed"] if options["draws"] else None
        return opened.block(Imputed(opened.model, opened.affine, chosen, seed), opened.chunks)

    return write_rows(run, config, target, options, made, listeners, began)


def _number(feature: str, names: Sequence[str] | None, n: int) -> int:
    """The number of a feature. names : of all, None without."""
    if names is not None and feature in names:
        return list(names).index(feature)
    if feature.isdecimal() and int(feature) < n:
        return int(feature)
    valid = f"one of {', '.join(names)}, or " if names is not None else ""
    raise InputError(f"impute: got feature {feature!r}, expected {valid}a number from 0 to {n - 1}. Correct it.")


@dataclass(frozen=True)
class Imputed:
    """Rows with numbers in place of missing entries, as arrays of a store (see `LabelBlock`). seed : of draws, None for means."""

    model: Mixture
    affine: Affine | None
    features: tuple[int, ...]
    seed: int | None

    @property
    def family(self) -> str:
        """That of the model."""
        return self.model.family

    @property
    def words(self) -> Words:
        """Those of the model."""
        return self.model.words

    def row_arrays(self, top_k: int) -> dict[str, RowArray]:
        """The rows, in the data's own units."""
        columns = self.model.sizes["feature"] if self.affine is None else len(self.affine.offset)
        return {"imputed": RowArray("float64", np.nan, columns=columns)}

    def predict(self, params: Any, rows: Rows, top_k: int, kernels: Any) -> dict[str, Array]:
        """Return the rows of a chunk, (n, d)."""
        x = rows.x.astype(np.float64)
        x[:, self.features] = np.nan
        mapped = x if self.affine is None else (x - self.affine.offset) * self.affine.matrix
        draw = None if self.seed is None else self._random(self.seed, rows.start, len(x))
        weights = self.model._log_weights(params)
        found = self.model.component.imputed(params.theta, weights, mapped, draw)
        if self.affine is not None:
            found = found / self.affine.matrix + self.affine.offset
        return {"imputed": np.where(np.isnan(x), found, x)}

    def _random(self, seed: int, start: int, n: int) -> tuple[Array, Array]:
        """One uniform and `n_normal` standard normal numbers of each row."""
        at = np.arange(start, start + n)
        columns = range(self.model.component.n_normal)
        normal = np.stack([ndtri(keyed.uniform(seed, 1 + j, at)) for j in columns], axis=1)
        return keyed.uniform(seed, 0, at), normal
