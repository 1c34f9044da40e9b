"""Numbers that JSONB writes in another form are found in an event's JSON, wherever they stand."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiered_sessions.store.dialects.postgresql_group import rewritten

PLACES = ['{"a":%s}', '{"a":[%s,1]}', '{"a":[1,%s]}', '{"a": %s }', '{"a":%s,"b":1}', '{"a":[\n%s\n]}']


@pytest.mark.parametrize("number", ["1e5", "1E5", "1.5e-7", "-2e+3", "-0", "-0.0", "-0e1", "-0E-1"])
def test_what_jsonb_rewrites_is_found(number: str) -> None:
    assert [place for place in PLACES if not rewritten((place % number).encode())] == []


@pytest.mark.parametrize("value", ["10", "-1.25", "0", '"4e12-0e-1e5"', '"f1e2-0a"', "true", "[1,2]"])
def test_what_it_leaves_is_not(value: str) -> None:
    """The ids of events among it: else every append would have its event sent back."""
    assert [place for place in PLACES if rewritten((place % value).encode())] == []


@given(st.text('0189eEa+-.,]} \t\n\r\f\v"', max_size=12))
def test_it_is_found_as_one_pattern_would_find_it(text: str) -> None:
    plain = rb"[0-9][eE][-+]?[0-9]+[,\]}\s]|-0(?:\.0+)?[,\]}\s]"
    assert rewritten(text.encode()) == bool(re.search(plain, text.encode()))
