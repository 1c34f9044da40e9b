"""state: scopes by prefix, and values as JSON."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiered_sessions.errors import InvalidValueError
from tiered_sessions.state import json_safe, merge, split, temporary

KEYS = st.builds("".join, st.tuples(st.sampled_from(["", "app:", "user:", "temp:", "app:user:"]), st.text()))


@given(st.dictionaries(KEYS, st.integers()))
def test_split_and_merge_are_inverse_but_for_temp(state: dict[str, int]) -> None:
    kept = {key: value for key, value in state.items() if not key.startswith("temp:")}
    assert merge(*split(state)) == kept
    assert kept | temporary(state) == state


def test_only_the_first_prefix_counts() -> None:
    assert split({"app:user:a": 1, "user:temp:b": 2, "App:c": 3, "app:": 4}) == (
        {"App:c": 3},
        {"temp:b": 2},
        {"user:a": 1, "": 4},
    )


def test_values_become_json() -> None:
    state = {
        "when": datetime(2026, 1, 2, tzinfo=UTC),
        "set": {1},
        "tuple": (1, 2),
        "none": None,
        "big": 2**70,
    }
    assert json_safe(state) == {
        "when": "2026-01-02T00:00:00Z",
        "set": [1],
        "tuple": [1, 2],
        "none": None,
        "big": 2**70,
    }
    numbered: dict[Any, Any] = {1: {2: 3}}
    assert json_safe(numbered) == {"1": {"2": 3}}


def test_copy_shares_nothing() -> None:
    state: dict[str, Any] = {"list": [1]}
    safe = json_safe(state)
    state["list"].append(2)
    assert safe == {"list": [1]}


def test_functions_become_their_repr_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tiered_sessions"):
        safe = json_safe({"secret": "hidden", "f": print, "g": [len]})
    assert safe == {"secret": "hidden", "f": repr(print), "g": [repr(len)]}
    assert len(caplog.records) == 1
    assert "hidden" not in caplog.text
    assert "print" not in caplog.text


def test_what_has_no_form_is_refused() -> None:
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    for state in (cycle, {"bytes": b"\xff"}, {"key": {"\ud800": 1}}):
        with pytest.raises(InvalidValueError, match="nothing was written"):
            json_safe(state)
