"""Columns whose values are categories: names become the codes 0, 1, 2, … of a list, which is stored with the config of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field

from pipeline.errors import InputError, did_you_mean

MOST = 2**16  # of a column: more are no categories, but numbers or text
SHOWN = 20

CategoriesOption = list[str] | dict[str, list[str]] | None
categories_field = Field(
    None,
    description="columns whose values are names of categories, as text or numbers: their names, or each with its categories in "
    "order; those that are found are sorted, and written to the run's config, by which `predict` reads other rows",
)
S = TypeVar("S", bound=Any)


class Distinct:
    """The distinct values of some columns, collected value by value. what : names the columns in messages."""

    def __init__(self, names: Sequence[str]) -> None:
        self._found: dict[str, set[str]] = {name: set() for name in names}

    def add(self, name: str, values: Iterable[str]) -> None:
        """Add values of a column. Raises InputError for more than MOST."""
        found = self._found[name]
        found.update(values)
        if len(found) > MOST:
            raise InputError(
                f"data.categories: column {name!r} has more than {MOST} different values, expected names of categories. Leave it out."
            )

    def sorted(self) -> dict[str, list[str]]:
        """Return the values of each column in order: of numbers, where all are numbers, else of text."""
        return {name: _in_order(values) for name, values in self._found.items()}


def _in_order(values: set[str]) -> list[str]:
    try:
        return sorted(values, key=lambda value: (float(value), value))
    except ValueError:
        return sorted(values)


def with_columns(section: S, used: Mapping[str, bool]) -> S:
    """Return a section of a table that reads these columns. used : by name, whether its values are categories.

    Raises
    ------
    InputError
        If the section names other columns.
    """
    names = list(used)
    if section.columns is not None and sorted(map(str, section.columns)) != sorted(names):
        raise InputError(
            f"data.columns: got {', '.join(map(str, section.columns))}, expected the columns of model.columns, "
            f"{', '.join(names)}. Leave data.columns out."
        )
    categories = section.categories
    if categories is None:
        categories = [name for name, is_category in used.items() if is_category] or None
    return section.model_copy(update={"columns": names, "categories": categories})


def refuse_others(categories: Any, names: Sequence[str]) -> None:
    """Raise InputError for categories of a column that is not used, and for a list that names one twice."""
    for name in categories or ():
        if name not in names:
            near = did_you_mean(name, names) or "."
            raise InputError(f"data.categories: got {name!r}, expected a column that is a feature{near} Correct it.")
        if isinstance(categories, dict) and len(set(categories[name])) < len(categories[name]):
            raise InputError(f"data.categories: got {name}: {categories[name]}, expected different names. Correct it.")


def unknown_category(value: str, where: str, column: str, names: Sequence[str]) -> InputError:
    """Return the error of a value that is no category."""
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    return InputError(
        f"{where}, column {column!r}: got the category {value!r}, expected one of {shown} (data.categories). Correct the value, "
        "leave it empty (a bad row), or fit a model to rows that have it."
    )
