"""Lines and windows lose nothing but what does not fit."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiered_sessions.cache import chunks
from tiered_sessions.records import Content, EventRecord, Tag

TAG = Tag(1, 1, 1, 1)
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
payloads = st.builds(
    lambda value, indent: json.dumps(value, indent=indent).encode(), documents, st.sampled_from([None, 1])
)
ids = st.text(st.characters(codec=None), max_size=8)
events = st.lists(
    st.builds(EventRecord, st.integers(0, 2**63), ids, st.integers(-(2**63), 2**63), payloads), max_size=20
)


@given(events)
def test_events_survive_as_lines(events: list[EventRecord]) -> None:
    parsed = chunks.parse(b"".join(map(chunks.line, events)), len(events), len(events))
    assert [event[:3] for event in parsed] == [event[:3] for event in events]
    for before, after in zip(events, parsed, strict=True):
        assert json.loads(after.payload) == json.loads(before.payload)
        assert b"\n" in before.payload or after.payload == before.payload


@given(events, st.integers(0, 25), st.integers(0, 800))
def test_trim_keeps_the_newest_that_fit(events: list[EventRecord], count: int, size: int) -> None:
    state = b'{"a":1}'
    kept, lines = chunks.trim(Content(TAG, state, tuple(events)), count, size)
    assert lines == list(map(chunks.line, kept.events))
    number = len(kept.events)
    assert kept.events == tuple(chunks.flat(event) for event in events[len(events) - number :])
    left = events[: len(events) - number]
    assert kept.complete == (not left)
    assert kept.before == max((event.timestamp for event in left), default=None)
    lines = [len(chunks.line(event)) for event in events]
    assert number <= count
    assert not number or len(state) + sum(lines[len(events) - number :]) <= size
    if left and number < count:
        assert len(state) + sum(lines[len(events) - number - 1 :]) > size


@pytest.mark.parametrize(
    ("complete", "before", "known"), [(True, None, 7), (False, 3, 7), (False, 9, 9), (False, None, None)]
)
def test_what_is_left_out_is_never_underrated(complete: bool, before: int | None, known: int | None) -> None:
    events = (EventRecord(1, "a", 7, b"{}"), EventRecord(2, "b", -1, b"{}"))
    assert chunks.left_out(complete, before, events) == known


@pytest.mark.parametrize(
    ("text", "why"), [(b'1\t2\t"a"\t{}', "newline"), (b"1\t2\n", "unpack"), (b'x\t2\t"a"\t{}\n', "invalid")]
)
def test_other_text_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        chunks.parse(text, 1, 1)


def test_the_end_of_a_window_is_told_from_a_torn_one() -> None:
    """All chunks that were left out are full."""
    lines = [chunks.line(EventRecord(seq, "e", 1, b"{}")) for seq in range(1, 5)]
    for held in (4, 4 + chunks.CHUNK, 4 + 2 * chunks.CHUNK):
        assert [event.seq for event in chunks.parse(b"".join(lines), held, 3)] == [2, 3, 4]
    for held, newest in ((3, 3), (5, 3), (4 + chunks.CHUNK, 5)):
        with pytest.raises(ValueError, match="torn"):
            chunks.parse(b"".join(lines), held, newest)


@pytest.mark.parametrize("name", ["apply", "tail"])
def test_lua_and_python_agree_on_the_chunk(name: str) -> None:
    lua = (files("tiered_sessions.cache") / "lua" / f"{name}.lua").read_text()
    assert f"local CHUNK = {chunks.CHUNK}\n" in lua
