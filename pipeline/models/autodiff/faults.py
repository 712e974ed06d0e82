"""Errors of a user's model: they name the user's line, or the row and the parameter."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.arrays.dtypes import Array
from pipeline.arrays.rows import Rows
from pipeline.errors import InputError


@contextmanager
def named(model: Any, method: str) -> Iterator[None]:
    """Context of a call of the user's method: what it raises becomes an InputError with the line of the user's file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # anything that a user's function may raise
        text = str(error).strip().split("\n")[0]
        raise InputError(
            f"{_line(model, method, error)}in {type(model).__name__}.{method}: {type(error).__name__}: {text} Correct it."
        ) from error


def wrong(model: Any, method: str, expected: str, found: Any) -> InputError:
    """Return the error of a method that returns something else than expected."""
    got = f"shape {tuple(found.shape)}" if hasattr(found, "shape") else type(found).__name__
    return InputError(f"{_line(model, method)}{type(model).__name__}.{method}: got {got}, expected {expected}.")


def _line(model: Any, method: str, error: Exception | None = None) -> str:
    """Return `file:line: ` of the user's file: where the error comes from, or where the method begins."""
    code = getattr(inspect.unwrap(getattr(type(model), method)), "__code__", None)
    if code is None:
        return ""
    frames = [] if error is None else traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == code.co_filename]
    return f"{code.co_filename}:{lines[-1] if lines else code.co_firstlineno}: "


def refuse(of: Any, params: Any, rows: Any, part: slice, w: Array, found: dict[str, Array]) -> None:
    """Raise InputError if a row of a tile is impossible, or has no gradient.

    Parameters
    ----------
    of : AutodiffModel
    params : JaxParams
    rows : Rows
    part : slice
        The rows of the tile.
    w, found : weights, shape (t,), and what was computed of the tile
    """
    score = found["score"]
    fine = np.isfinite(score) | ~(w > 0)
    name, first = type(of.user).__name__, rows.start + part.start
    if not fine.all():
        i = int((~fine).argmax())
        raise InputError(
            f"row {first + i}: {name} gives it log-density {score[i]:g} at {shown(params.arrays)}; x = {_row(rows, part, i)}. "
            "Correct log_joint, leave the row out, or start elsewhere (fit.init: explicit, or a method start)."
        )
    derivatives = [found[name] for name in ("gradient", "observed", "complete") if name in found]
    if all(np.isfinite(each).all() for each in derivatives) or not (w > 0).any():
        return
    here = Rows(rows.x[part], None if rows.weight is None else rows.weight[part], first, label=_part(rows.label, part))
    gradients = np.concatenate([each["gradients"] for _, _, each in of.on_rows(params, here, "gradients")])
    wrong = np.argwhere(~np.isfinite(gradients) & (w > 0)[:, None])
    advice = (
        "Its value is finite: look for a square root, a power or a logarithm of 0 in the branch of a jnp.where that is not taken, "
        "and keep its argument away from 0."
    )
    if len(wrong):
        i, j = map(int, wrong[0])
        raise InputError(
            f"row {first + i}: the gradient of {name} with respect to {of.layout.place(j)} is {gradients[i, j]:g} at "
            f"{shown(params.arrays)}; x = {_row(rows, part, i)}. {advice}"
        )
    j = int(np.argwhere(~np.isfinite(derivatives[-1]))[0, -1])
    raise InputError(
        f"rows {first} to {first + len(w) - 1}: a second derivative of {name} with respect to {of.layout.place(j)} is not finite at "
        f"{shown(params.arrays)}. {advice}"
    )


def shown(arrays: Any) -> str:
    """Parameters in a few words."""
    return ", ".join(
        f"{name} = {np.array2string(np.asarray(v), precision=4, threshold=6)}" for name, v in arrays.items()
    )


def _row(rows: Any, part: slice, i: int) -> str:
    return np.array2string(np.asarray(rows.x[part.start + i]), precision=6, threshold=8)


def _part(column: Any, part: slice) -> Any:
    return None if column is None else column[part]
