"""The default window: pairs stay together, the newest compaction is shown, no read is for nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tiered_sessions.config import TieredConfig
from tiered_sessions.errors import ConfigurationError
from tiered_sessions.records import Content, EventRecord, SessionKey, Tag
from tiered_sessions.windows import Choice, Windows

KEY = SessionKey("a", "u", "s")


def made(*kinds: str) -> tuple[EventRecord, ...]:
    """Makes events one second apart: `c1` calls, `r1` responds, `s3` sums up until second 3, else text."""
    return tuple(record(n, kind) for n, kind in enumerate(kinds, start=1))


def record(number: int, kind: str) -> EventRecord:
    event: dict[str, Any] = {"content": {"parts": [{"text": kind}]}, "actions": {"state_delta": {}}}
    if kind[0] in "cr":
        what = "function_call" if kind[0] == "c" else "function_response"
        event["content"]["parts"].append({what: {"id": kind[1:], "name": "f"}})
    if kind[0] == "s":
        event["actions"]["compaction"] = {"start_timestamp": 0.0, "end_timestamp": float(kind[1:])}
    return EventRecord(number, f"e{number}", number * 1_000_000, json.dumps(event).encode())


class Session:
    """A session that a window reads as the service does."""

    def __init__(self, events: tuple[EventRecord, ...], incarnation: int = 1) -> None:
        self.events = events
        self.incarnation = incarnation
        self.reads: list[int | None] = []

    def shown(self, windows: Windows) -> str:
        self.reads = []
        read: int | None = windows.read
        while True:
            self.reads.append(read)
            events = self.events if read is None else self.events[-read:]
            tag = Tag(self.incarnation, len(self.events), 7, 0)
            choice = windows.choose(KEY, Content(tag, b"{}", events), read)
            if choice.give is not None:
                return " ".join(
                    json.loads(e.payload)["content"]["parts"][0]["text"] for e in events[-choice.give :]
                )
            assert read is not None, "everything was read"
            assert choice.read is None or choice.read > read
            read = choice.read


@pytest.mark.parametrize(
    ("history", "shown"),
    [
        ("x x x", "x x"),
        ("x", "x"),
        ("x c1 r1 y", "c1 r1 y"),
        ("x c1 y r1", "c1 y r1"),
        ("c0 c1 r0 r1 y", "c0 c1 r0 r1 y"),
        ("c0 r0 c1 x y", "x y"),
        ("c1 r1 x r1", "c1 r1 x r1"),
        ("c1 r1 c1 x r1", "c1 x r1"),
        ("x y r9", "y r9"),
        ("x y z s3 a b c", "s3 a b c"),
        ("x y z s2 a b c", "z s2 a b c"),
        ("x y s2 z s4 a b c", "s4 a b c"),
        ("c1 r1 s1 a b c", "c1 r1 s1 a b c"),
        ("c1 r1 s2 a b c", "s2 a b c"),
        ("x s1 s2 a b", "s2 a b"),
    ],
)
def test_what_two_show(history: str, shown: str) -> None:
    assert Session(made(*history.split())).shown(Windows(2)) == shown


def test_an_empty_session() -> None:
    assert Windows(2).choose(KEY, Content(Tag(1, 0, 0, 0), b"{}"), 18) == Choice(0)


def test_only_the_first_look_reads_everything() -> None:
    windows = Windows(2)
    history = ["x"] * 5 + ["s5"] + ["x"] * 30
    session = Session(made(*history))
    assert session.shown(windows).startswith("s5 x")
    assert session.reads == [18, None]
    session.events = made(*history, "x")
    assert session.shown(windows).startswith("s5 x")
    assert session.reads == [18, 36]
    plain = Session(made(*"x" * 1000), incarnation=2)
    assert plain.shown(windows) == "x x"
    assert plain.reads == [18, None]
    for length in (1001, 1010, 1019):
        plain.events = made(*"x" * length)
        assert plain.shown(windows) == "x x"
        assert plain.reads == [18]


def test_what_came_unseen_is_looked_for() -> None:
    windows = Windows(2)
    session = Session(made(*"x" * 30))
    session.shown(windows)
    session.events = made(*"x" * 30, "s30", *"x" * 50)
    assert session.shown(windows).startswith("s30")
    assert session.reads == [18, None]


def test_a_distant_call_is_found_by_doubling() -> None:
    windows = Windows(2)
    history = [*"x" * 60, "c1", *"x" * 60, "r1"]
    session = Session(made(*history))
    session.shown(windows)
    session.events = made(*history, "y")
    assert session.shown(windows).split() == ["c1", *"x" * 60, "r1", "y"]
    assert session.reads == [18, 36, 72]


def test_rows_that_are_not_numbered_are_never_remembered() -> None:
    windows = Windows(2)
    session = Session(made(*"x" * 40), incarnation=0)
    for _ in range(2):
        assert session.shown(windows) == "x x"
        assert session.reads == [18, None]


def test_camel_case_and_calls_without_an_id() -> None:
    def payload(what: str) -> bytes:
        return json.dumps({"content": {"parts": [{"text": what}, {what: {"name": "f"}}]}}).encode()

    whats = ("functionCall", "function_call", "functionResponse", "x")
    events = tuple(EventRecord(n, str(n), n, payload(what)) for n, what in enumerate(whats, start=1))
    assert Session(events).shown(Windows(2)) == "function_call functionResponse x"


@pytest.mark.parametrize(
    "payload", [b"[]", b'{"content": "function"}', b'{"actions": {"compaction": 1}}', b'"function"']
)
def test_odd_documents_are_shown_as_they_are(payload: bytes) -> None:
    content = Content(Tag(1, 1, 0, 0), b"{}", (EventRecord(1, "e", 1, payload),))
    assert Windows(1).choose(KEY, content, 17) == Choice(1)


@given(st.lists(st.sampled_from(["x", "c1", "r1", "c2", "r2", "s"]), max_size=60), st.integers(1, 8))
@example(["r2", "c2", "r1", "r2"], 1)
def test_any_history(kinds: list[str], size: int) -> None:
    history = [f"s{n}" if kind == "s" else kind for n, kind in enumerate(kinds)]
    session = Session(made(*history))
    windows = Windows(size)
    shown = session.shown(windows).split()
    assert session.shown(windows).split() == shown
    assert shown == history[len(history) - len(shown) :]
    assert len(shown) >= min(size, len(history))
    start = len(history) - len(shown)
    assert not any(kind[0] == "s" for kind in history[:start]) or any(kind[0] == "s" for kind in shown)
    for position, kind in enumerate(history):
        if position >= start and kind[0] == "r" and f"c{kind[1]}" in history[:position]:
            assert f"c{kind[1]}" in history[start:position]


def test_a_window_of_nothing_is_refused() -> None:
    for wrong in (0, -1):
        with pytest.raises(ConfigurationError, match="default_window"):
            TieredConfig(default_window=wrong)
