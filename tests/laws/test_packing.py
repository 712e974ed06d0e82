"""Values come back from their pieces as they were, to the bit and by type; and nothing else comes out of broken pieces."""

import contextlib
import json
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.arrays.packing import digest, pack, stored, unpack
from tests.laws.common import examples

DTYPES = ["<f8", "<f4", "<i8", "<u8", "|b1", "|u1"]


@stored
@dataclass(frozen=True)
class Plain:
    """A record whose fields have the names that structures use for themselves."""

    order: Any
    each: Any
    of: Any = None
    array: Any = None


@stored
class Pair(NamedTuple):
    """A named tuple."""

    first: Any
    scalar: Any


@dataclass(frozen=True)
class Unknown:
    """A record that nobody registered."""

    value: int


@dataclass(frozen=True)
class Loud:
    """A record that must never be made."""

    value: Any = None

    def __post_init__(self) -> None:
        """Fail."""
        pytest.fail("made from a structure")


def in_fortran_order(arrays):
    """The arrays, some of them stored column by column."""
    return st.builds(lambda array, turned: np.asfortranarray(array) if turned else array, arrays, st.booleans())


arrays = in_fortran_order(
    st.sampled_from(DTYPES).flatmap(lambda t: hnp.arrays(t, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
)
plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats()
    | st.sampled_from([np.int64(2**63 - 1), np.uint64(2**64 - 1), np.float64(np.nan), np.float32(0.1), np.bool_(True)])
)
names = st.sampled_from(["a", "b", "of", "array", "each", "order", "dict", "stack", "at", "n", "tuple", "text", "0"])


@st.composite
def sparse(draw):
    """A CSR matrix."""
    return sp.csr_array(draw(hnp.arrays(np.float64, (2, 3), elements=st.sampled_from([0.0, 1.0, -2.5]))))


def _composed(parts):
    alike = st.integers(2, 3).flatmap(lambda n: st.lists(st.builds(Pair, parts, plain), min_size=n, max_size=n))
    return (
        st.lists(parts, max_size=3)
        | st.lists(parts, max_size=3).map(tuple)
        | st.dictionaries(names, parts, max_size=3)
        | st.builds(Plain, parts, parts, parts, parts)
        | st.builds(Pair, parts, parts)
        | alike.map(tuple)
        | st.lists(st.builds(Plain, st.integers(), st.floats(), st.just("x"), parts), max_size=3)
    )


values = st.recursive(plain | arrays | sparse(), _composed, max_leaves=12)


def same(a: Any, b: Any) -> None:
    """Equal by type, dtype, shape, layout and bits."""
    assert type(a) is type(b), f"{type(a)} is not {type(b)}"
    if isinstance(b, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        if b.size > 1 and b.ndim > 1:
            assert a.flags.f_contiguous == b.flags.f_contiguous
    elif isinstance(b, (np.generic, float)):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    elif sp.issparse(b):
        assert a.shape == b.shape
        same([a.data, a.indices, a.indptr], [b.data, b.indices, b.indptr])
    elif isinstance(b, dict):
        assert set(a) == set(b)
        for name in b:
            same(a[name], b[name])
    elif isinstance(b, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    elif isinstance(b, Plain):
        same(vars(a), vars(b))
    else:
        assert a == b


def through_json(value: Any, **options: Any) -> Any:
    """Packed, its structure written and read as strict JSON, and unpacked."""
    packed = pack(value, **options)
    return unpack(json.loads(json.dumps(packed.structure, allow_nan=False)), packed.arrays)


@examples(400)
@given(value=values)
def test_values_come_back_as_they_were(value):
    """Whatever is nested in whatever, NaN, 64-bit integers, Fortran order and sparse rows included."""
    same(through_json(value), value)
    same(through_json(value, prefix="model", separator="."), value)
    same(through_json({"a": value, "b": [value, value]}), {"a": value, "b": [value, value]})


@examples(100)
@given(value=values, other=values)
def test_digests_are_of_values(value, other):
    """Equal for a value and what its pieces give; different for values that differ."""
    assert digest(through_json(value)) == digest(value)
    if repr(value) != repr(other) and not _holds_arrays([value, other]):
        assert digest(value) != digest(other)


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, (np.ndarray, np.generic)) or sp.issparse(value):
        return True
    if isinstance(value, dict):
        return _holds_arrays(list(value.values()))
    if isinstance(value, Plain):
        return _holds_arrays(list(vars(value).values()))
    return isinstance(value, (list, tuple)) and any(_holds_arrays(part) for part in value)


def test_numbers_may_stand_in_the_structure():
    """With `inline`, finite floats do, also in sequences of records; what JSON cannot hold is an array as ever."""
    value = {"one": 0.1, "many": (Pair(0.25, 1), Pair(np.inf, 2)), "alike": (Pair(1.5, 1), Pair(2.5, 2))}
    packed = pack(value, separator=".", inline=True)
    assert set(packed.arrays) == {"many.1.first"} and packed.structure["dict"]["alike"]["n"] == 2
    same(unpack(packed.structure, packed.arrays), value)


def test_records_that_are_alike_take_one_array_for_each_field():
    """A history of 1,000 entries has as many arrays as one of two."""
    long, short = (tuple(Pair({"x": np.arange(3.0) + i}, float(i)) for i in range(n)) for n in (1000, 2))
    assert len(pack(long).arrays) == len(pack(short).arrays) == 2
    same(through_json(long), long)


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, 1j, lambda: None, {1: 2}, {None: 2}, Plain])
def test_what_is_no_value_is_refused(value):
    """With a TypeError, wherever it stands; a key that is no text would come back as another one."""
    for whole in (value, [value], {"a": value}, Pair(value, 1)):
        with pytest.raises(TypeError):
            pack(whole)


def test_two_values_of_one_name_are_refused():
    """Names that hold the separator could meet: an error, not one value in place of the other."""
    with pytest.raises(ValueError, match="a/b"):
        pack({"a": {"b": np.zeros(2)}, "a/b": np.ones(2)})


def test_classes_are_found_in_the_table_alone():
    """Known by name, never imported, never executed: not even the class of an object that is there to be imported."""
    packed = pack(Unknown(3))
    with pytest.raises(ValueError, match="Unknown"):
        unpack(packed.structure, packed.arrays)
    absent = "xml.sax.expatreader"
    sys.modules.pop(absent, None)
    loud = f"{Loud.__module__}.{Loud.__qualname__}"
    for name in (f"{absent}.ExpatParser", "os.system", "builtins.eval", loud, "", 5, None, ["os", "system"]):
        with pytest.raises(ValueError):
            unpack({"of": name, "fields": {"value": "true"}}, {})
    assert absent not in sys.modules


SAMPLE = {
    "records": (Pair(np.arange(3), 1.5), Pair(np.arange(3), 2.5)),
    "sparse": sp.csr_array(np.eye(2)),
    "plain": [1, None, "text", np.float64(1.0), float("nan")],
    "record": Plain(1, 2.0, np.eye(2, order="F"), ()),
}


@st.composite
def broken(draw):
    """The pieces of a value with one part of the structure replaced, moved or gone, or an array that is not there."""
    packed = pack(SAMPLE)
    structure = json.loads(json.dumps(packed.structure))
    arrays = dict(packed.arrays)
    places = list(_places(structure))
    parent, key = places[draw(st.integers(0, len(places) - 1))]
    kind = draw(st.sampled_from(["gone", "replaced", "array gone"]))
    if kind == "gone":
        del parent[key]
    elif kind == "replaced":
        parent[key] = draw(
            st.sampled_from([None, True, 3, -1, "x", [], {}, [1], {"x": 1}, {"array": "x"}, {"of": "x"}])
        )
    else:
        del arrays[draw(st.sampled_from(sorted(arrays)))]
    return structure, arrays


def _places(structure):
    """Every (parent, key) of a nested structure."""
    items = structure.items() if isinstance(structure, dict) else enumerate(structure)
    for key, part in list(items):
        yield structure, key
        if isinstance(part, (dict, list)):
            yield from _places(part)


@examples(400)
@given(pieces=broken())
def test_broken_pieces_are_a_value_or_a_value_error(pieces):
    """Whatever is wrong with them, no other error comes out."""
    with contextlib.suppress(ValueError):
        unpack(*pieces)


@pytest.mark.parametrize(
    "structure",
    [
        {},
        {"evil": [1]},
        {"array": "none"},
        {"array": []},
        {"tuple": 3},
        {"tuple": [], "list": []},
        {"csr": {}, "shape": [1, 1]},
        {"stack": "set", "at": "", "items": 1, "n": 2},
        {"stack": "tuple", "at": 3, "items": 1, "n": 2},
        {"stack": "tuple", "at": "", "items": {"each": [1]}, "n": 2},
        {"dict": []},
        {"of": "laws.test_packing.Pair"},
        {"of": "laws.test_packing.Pair", "fields": {}},
    ],
)
def test_structures_that_pack_cannot_have_made_are_refused(structure):
    """With a ValueError: checkpoints and models may be anybody's."""
    with pytest.raises(ValueError):
        unpack(structure, {"x": np.zeros(2)})
