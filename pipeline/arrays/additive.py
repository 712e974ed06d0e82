"""Values that add.

Partial statistics of chunks add to those of the whole, so one loop works for any chunking and any number of workers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Self

import numpy as np


class Additive:
    """A frozen dataclass whose fields all add: arrays, numbers, other additive values, or None (not known)."""

    def __add__(self, other: Self) -> Self:
        return self._with(other, operator.add)

    def __iadd__(self, other: Self) -> Self:
        """Add in place, so that sums of large statistics allocate nothing."""
        return self._with(other, operator.iadd)

    def __mul__(self, factor: float) -> Self:
        return type(self)(*(None if a is None else a * factor for a in self._values()))

    __rmul__ = __mul__

    def __sub__(self, other: Self) -> Self:
        return self + other * -1.0

    def about_the_shift(self) -> Self:
        """Return sums about the model's reference point, as all are unless a class says otherwise."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(
            value.nbytes if isinstance(value, Additive) else np.asarray(value).nbytes for value in self._values()
        )

    def _with(self, other: Self, add: Callable[[Any, Any], Any]) -> Self:
        pairs = zip(self._values(), other._values(), strict=True)
        return type(self)(*(None if a is None or b is None else add(a, b) for a, b in pairs))

    def _values(self) -> list[Any]:
        return list(vars(self).values())  # in the order of the fields: they are set once, when it is made
