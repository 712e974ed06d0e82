"""Values as named arrays and a structure for JSON, and back: for checkpoints, unfinished passes and models.

A value is a number, text, None, an array, a CSR matrix, a tuple, list or dict of values, or a dataclass or named tuple of
values. A sequence of records with one layout is stored as one array for each field, with the records along the first
axis: a history of 1,000 iterations has as many arrays as one of 1. Reading makes instances of registered classes only;
nothing is imported or executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import scipy.sparse as sp

from pipeline.arrays.dtypes import Array

C = TypeVar("C", bound=type)
_CLASSES: dict[str, type] = {}


class Packed(NamedTuple):
    """A packed value. structure : for JSON.  arrays : by the names in the structure."""

    structure: Any
    arrays: dict[str, Array]


def stored(cls: C) -> C:
    """Decorator: register a dataclass or named tuple, so that stored instances can be read."""
    _CLASSES[_name(cls)] = cls
    return cls


def _name(cls: type) -> str:
    return f"{cls.__module__.removeprefix('pipeline.')}.{cls.__qualname__}"


def pack(value: Any, prefix: str = "", separator: str = "/", inline: bool = False) -> Packed:
    """Pack a value.

    Parameters
    ----------
    value : object
    prefix, separator : str
        Names of arrays begin with `prefix`, and have `separator` between field names.
    inline : bool
        Whether finite numbers are part of the structure; otherwise they are arrays.

    Raises
    ------
    TypeError
        If the object is not a value as the module defines it.
    ValueError
        If two arrays would have one name.
    """
    packing = _Packing({}, separator, inline)
    return Packed(packing.of(value, prefix), packing.arrays)


def unpack(structure: Any, arrays: Mapping[str, Array]) -> Any:
    """Return the value that was packed.

    Raises
    ------
    ValueError
        If `pack` cannot have made the structure, or a class is not registered.
    """
    try:
        return _unpacked(structure, arrays)
    except (KeyError, TypeError, IndexError, AttributeError, StopIteration) as error:
        raise ValueError(f"the structure does not fit its arrays ({type(error).__name__}: {error})") from error


def digest(value: Any) -> str:
    """Return the SHA-256 of a value, in hexadecimal; equal values have equal digests in every process."""
    packed, content = pack(value), hashlib.sha256()
    content.update(json.dumps(packed.structure, sort_keys=True).encode())
    for name, array in packed.arrays.items():
        content.update(f"{name} {array.dtype.str} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


class _Packing(NamedTuple):
    """The arrays so far, and the options."""

    arrays: dict[str, Array]
    separator: str
    inline: bool

    def of(self, value: Any, path: str) -> Any:
        """Return the structure of a value whose arrays have names that begin with `path`."""
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if self.inline and isinstance(value, float) and np.isfinite(value):
            return float(value)
        if isinstance(value, (float, np.generic, np.ndarray)):
            return self._array(value, path)
        if isinstance(value, (PurePath, np.dtype)):
            return {"text": str(value)}
        if sp.issparse(value):
            parts = {"data": value.data, "indices": value.indices, "indptr": value.indptr}
            return {"csr": self._parts(parts, path), "shape": [int(size) for size in value.shape]}
        if (record := _record(value)) is not None:
            return {"of": _name(type(value)), "fields": self._parts(record, path)}
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return {"dict": self._parts(value, path)}
        if isinstance(value, (tuple, list, range)):
            return self._sequence(value, path)
        raise TypeError(
            f"got {type(value).__name__}, expected numbers, text, arrays, and records, sequences or dicts by text of these"
        )

    def _below(self, path: str, name: object) -> str:
        return f"{path}{self.separator}{name}" if path else str(name)

    def _parts(self, parts: Mapping[str, Any], path: str) -> dict[str, Any]:
        return {name: self.of(part, self._below(path, name)) for name, part in parts.items()}

    def _put(self, array: Array, path: str) -> str:
        if path in self.arrays:
            raise ValueError(f"two arrays are called {path}; name the parts without {self.separator}")
        self.arrays[path] = array
        return path

    def _array(self, value: Any, path: str) -> dict[str, Any]:
        """Store an array, or a number: JSON has no NaN, and its numbers have fewer than 64 bits."""
        array = np.asarray(value)
        self._put(array, path)
        if isinstance(value, np.generic):
            return {"scalar": path}
        if isinstance(value, float):
            return {"float": path}
        if array.ndim > 1 and array.flags.f_contiguous and not array.flags.c_contiguous:
            return {"array": path, "order": "F"}  # sums follow the layout in memory
        return {"array": path}

    def _sequence(self, value: Sequence[Any], path: str) -> Any:
        kind = "list" if isinstance(value, list) else "tuple"
        if len(value) > 1 and _record(value[0]) is not None:
            packings = [_Packing({}, self.separator, self.inline) for _ in value]
            items = [Packed(each.of(item, ""), each.arrays) for each, item in zip(packings, value, strict=True)]
            if _alike(items):
                for name in items[0].arrays:
                    self._put(np.stack([item.arrays[name] for item in items]), self._below(path, name))
                plain = [list(_leaves(item.structure)) for item in items]
                differ = [
                    [i, list(own)] for i, own in enumerate(zip(*plain, strict=True)) if len(set(map(repr, own))) > 1
                ]
                first = {"items": items[0].structure, "differ": differ, "n": len(items)}
                return {"stack": kind, "at": self._below(path, ""), **first}
        return {kind: [self.of(item, self._below(path, i)) for i, item in enumerate(value)]}


def _record(value: Any) -> dict[str, Any] | None:
    """Return the fields of a dataclass or named tuple by name; None for other values."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    return value._asdict() if isinstance(value, tuple) and hasattr(value, "_asdict") else None


def _alike(items: Sequence[Packed]) -> bool:
    """Whether records have the same structure and array shapes; plain values may differ."""
    forms = [
        (_form(item.structure), {name: (array.shape, array.dtype) for name, array in item.arrays.items()})
        for item in items
    ]
    return all(form == forms[0] for form in forms)


def _form(structure: Any) -> Any:
    """Return the structure without its leaves."""
    if isinstance(structure, dict):
        return {key: _form(value) for key, value in structure.items()}
    return [_form(part) for part in structure] if isinstance(structure, list) else None


def _leaves(structure: Any) -> Iterator[Any]:
    """Return the leaves of a structure in an order that does not depend on the order of keys, which JSON may sort."""
    if isinstance(structure, dict):
        for key in sorted(structure):
            yield from _leaves(structure[key])
    elif isinstance(structure, list):
        for part in structure:
            yield from _leaves(part)
    else:
        yield structure


def _with_leaves(structure: Any, leaves: Iterator[Any]) -> Any:
    """Return the structure with other leaves."""
    if isinstance(structure, dict):
        filled = {key: _with_leaves(structure[key], leaves) for key in sorted(structure)}
        return {key: filled[key] for key in structure}
    return [_with_leaves(part, leaves) for part in structure] if isinstance(structure, list) else next(leaves)


def _unpacked(found: Any, arrays: Mapping[str, Array]) -> Any:
    if not isinstance(found, dict):
        return found
    if "array" in found:
        array = np.asarray(arrays[found["array"]])
        return np.asfortranarray(array) if found.get("order") == "F" else array
    if "float" in found:
        return float(arrays[found["float"]].item())
    if "scalar" in found:
        return arrays[found["scalar"]][()]
    if "text" in found:
        return str(found["text"])
    if "csr" in found:
        data, indices, indptr = (_unpacked(found["csr"][name], arrays) for name in ("data", "indices", "indptr"))
        return sp.csr_array((data, indices, indptr), shape=tuple(found["shape"]))
    if "of" in found:
        if found["of"] not in _CLASSES:
            raise ValueError(f"{found['of']} is not a class that is stored, or its file is not loaded")
        return _CLASSES[found["of"]](**{name: _unpacked(part, arrays) for name, part in found["fields"].items()})
    if "dict" in found:
        return {key: _unpacked(part, arrays) for key, part in found["dict"].items()}
    if "stack" in found:
        return _sequence_of(found["stack"], _unstacked(found, arrays))
    [(kind, parts)] = found.items()
    return _sequence_of(kind, [_unpacked(part, arrays) for part in parts])


def _sequence_of(kind: str, values: list[Any]) -> Any:
    if kind not in ("tuple", "list"):
        raise ValueError(f"got {kind}, expected tuple or list")
    return tuple(values) if kind == "tuple" else values


def _unstacked(found: dict[str, Any], arrays: Mapping[str, Array]) -> list[Any]:
    at, plain = found["at"], list(_leaves(found["items"]))
    own = {name.removeprefix(at): array for name, array in arrays.items() if name.startswith(at)}
    items = []
    for i in range(found["n"]):
        for place, values in found["differ"]:
            plain[place] = values[i]
        structure = _with_leaves(found["items"], iter(plain))
        items.append(_unpacked(structure, {name: array[i] for name, array in own.items()}))
    return items
