"""codec: what is written is read back, with its numeric type and every character."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiered_sessions.codec import dumps, loads, same_json

# Two halves of one character side by side are that character in JSON.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "\udfff", "\0"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_written_value_is_read_back_exactly(value: Any) -> None:
    # repr tells 1 from 1.0, 0.0 from -0.0, and makes NaN equal to itself.
    assert repr(loads(dumps(value))) == repr(value)


@given(VALUES)
def test_standard_library_reads_the_same(value: Any) -> None:
    assert repr(json.loads(dumps(value))) == repr(value)


@given(VALUES)
def test_standard_library_output_is_read(value: Any) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        assert repr(loads(text)) == repr(value)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"a": [1, 1.0, None]}, b'{"a":[1,1.0,null]}'),
        (2**70, b"1180591620717411303424"),
        ([None, math.nan, math.inf, -math.inf], b"[null,NaN,Infinity,-Infinity]"),
        ("\ud800", b'"\\ud800"'),
        ("é😀", '"é😀"'.encode()),
    ],
)
def test_form(value: Any, wanted: bytes) -> None:
    assert dumps(value) == wanted


def test_nesting_far_beyond_the_fast_writer() -> None:
    value: Any = [None]
    for _ in range(400):
        value = [value]
    assert loads(dumps(value)) == value


@pytest.mark.parametrize("value", [{1, 2}, b"x", datetime.now(UTC), object(), [print]])
def test_what_is_not_json_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        dumps(value)


def test_cycles_depth_and_endless_integers_are_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: Any = []
    for _ in range(50_000):
        deep = [deep]
    for value in (cycle, deep, 10**5000):
        with pytest.raises(ValueError, match=r"Circular|deeply|digits"):
            dumps(value)


@pytest.mark.parametrize("document", [b"", b"{", b"[1,]", b"\xff", b"'a'", b"[" * 100_000])
def test_what_is_not_a_document_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (json, pydantic and codecs each have their own text)
        loads(document)


@given(VALUES)
def test_every_value_is_the_same_as_itself_in_other_clothes(value: Any) -> None:
    document = dumps(value)
    assert same_json(document, json.dumps(loads(document), indent=1).encode())


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (b'{"a":1,"b":2}', b'{ "b": 2, "a": 1 }', True),
        (b"1", b"1.0", False),
        (b"1", b"true", False),
        (b"0", b"false", False),
        (b"null", b"0", False),
        (b"[1,2]", b"[2,1]", False),
        (b'{"a":null}', b"{}", False),
        (b"[NaN]", b"[NaN]", True),
        (b"NaN", b"Infinity", False),
        (b"-0.0", b"0.0", True),
        (b"1e16", b"10000000000000000", True),
        (b"1.152921504606847e18", b"1152921504606847000", True),
        (b"1e15", b"1000000000000000", False),
        (b"1e16", b"10000000000000000.5", True),
        (b"1e16", b"10000000000000002", False),
        (b"Infinity", b"1" * 400, False),
        (b'"\\u00e9"', '"é"'.encode(), True),
    ],
)
def test_same_json(a: bytes, b: bytes, same: bool) -> None:
    assert same_json(a, b) is same
    assert same_json(b, a) is same
