"""A curve of a few characters: each is two columns of four braille dots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LEFT, _RIGHT = (0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08)  # bits of a character's dots, from the bottom up


def curve(values: Sequence[float], width: int, height: int) -> list[str]:
    """The values over their index as an area, stretched to `width` x `height` characters: lines, the top one first.

    >>> curve([0, 1, 2, 3], width=2, height=1)
    ['⣠⣾']
    """
    low, high = min(values), max(values)
    at = np.interp(np.linspace(0, len(values) - 1, 2 * width), np.arange(len(values)), values)
    share = (at - low) / (high - low) if high > low else np.ones(2 * width)
    dots = 1 + np.rint(share * (4 * height - 1)).astype(int)  # the lowest is a dot too: it is there
    lines = []
    for row in reversed(range(height)):
        filled = np.clip(dots - 4 * row, 0, 4)
        pairs = zip(filled[::2], filled[1::2], strict=True)
        lines.append("".join(chr(0x2800 + sum(_LEFT[:left]) + sum(_RIGHT[:right])) for left, right in pairs))
    return lines
