"""Decoded events are found again by their records, and never wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.mutations import edit
from tiered_sessions.errors import SharedEventChangedError
from tiered_sessions.models import Event
from tiered_sessions.records import Content, EventRecord, Query, SessionKey, Snapshot, Tag
from tiered_sessions.shared_events import KeptRecord, SharedEvents

KEY = SessionKey("app", "u", "s")
TAG = Tag(1, 1, 1, 1)


def record(seq: int, text: str = "") -> EventRecord:
    """Returns a record that is equal to every other of this number and text, and the same as none."""
    return EventRecord(seq, f"e{seq}", seq, f'{{"author":"{text}"}}'.encode())


def decoded(found: EventRecord) -> Event:
    return Event(id=found.id, timestamp=found.timestamp, author=found.payload.decode())


def all_decoded(found: Sequence[EventRecord]) -> list[Event]:
    return list(map(decoded, found))


def history(*numbers: int) -> tuple[EventRecord, ...]:
    return tuple(record(number) for number in numbers)


class Decoding:
    """Decodes, and says what it had to decode."""

    def __init__(self, max_bytes: int = 10_000_000, *, checked: bool = False) -> None:
        self.decoded: list[int] = []
        self.shared = SharedEvents(self._decode, max_bytes, checked=checked)

    def _decode(self, found: Sequence[EventRecord]) -> list[Event]:
        self.decoded += [one.seq for one in found]
        return all_decoded(found)

    def of(self, records: tuple[EventRecord, ...], key: SessionKey = KEY) -> list[int]:
        """Reads, compares with a decoding of its own, and returns the numbers of what was decoded."""
        self.decoded.clear()
        events = self.shared.of(key, records)
        decoded = list(self.decoded)
        assert [event.id for event in events] == [one.id for one in records]
        for event, one in zip(events, records, strict=True):
            assert isinstance(one, KeptRecord) or [event] == self._decode([one])
        events.clear()
        return decoded


def test_only_what_is_new_is_decoded() -> None:
    here = Decoding()
    whole = history(*range(1, 51))
    assert here.of(whole) == list(range(1, 51))
    assert here.of(whole) == []
    assert here.of(history(*range(1, 51))) == []
    assert here.of(history(*range(41, 51))) == []
    assert here.of(history(*range(1, 53))) == [51, 52]
    assert here.of(history(*range(45, 55))) == [53, 54]
    assert here.of(history(*range(1, 55))) == []


def test_a_history_that_was_replaced_is_decoded() -> None:
    """R35: equal numbers and ids are not enough."""
    here = Decoding()
    here.of((record(1), record(2, "a"), record(3)))
    assert here.of((record(1), record(2, "b"), record(3))) == [2]
    assert here.of((record(1), record(2, "b"), record(3))) == []
    assert here.of((record(2, "b"), record(3), record(4))) == [4]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.seq == record.seq", "True or self.seq == record.seq"),
        ("and self._stamp == _stamp(record)", ""),
    ],
    ids=["uncompared", "by number and id"],
)
def test_it_is_red_without_the_comparison(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """R35 has teeth: a part of the record is not enough."""
    edit(KeptRecord, "stands_for", old, new)(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_history_that_was_replaced_is_decoded()


def test_each_reader_has_a_list_of_its_own() -> None:
    here = Decoding()
    one, other = here.shared.of(KEY, history(1, 2)), here.shared.of(KEY, history(1, 2))
    one.append(one[0])
    assert len(other) == 2
    assert one[0] is other[0]
    assert len(here.shared.of(KEY, history(1, 2))) == 2


def test_the_room_is_bounded_and_no_session_takes_all_of_it() -> None:
    here = Decoding(max_bytes=50_000)
    large = history(*range(1, 21))
    assert here.of(large) == here.of(large) == list(range(1, 21))
    keys = [SessionKey("app", "u", str(number)) for number in range(30)]
    for key in keys:
        here.of(history(1, 2), key)
    assert here.of(history(1, 2), keys[-1]) == []
    assert here.of(history(1, 2), keys[0]) == [1, 2]
    nothing = Decoding(max_bytes=0)
    assert nothing.of(history(1)) == nothing.of(history(1)) == [1]


def test_a_content_is_found_with_its_events_decoded() -> None:
    """What the tier keeps by tag and what callers get are the same objects, and the JSON is let go."""
    here = Decoding()
    content = Content(TAG, b"{}", history(*range(1, 51)))
    here.shared.keep(KEY, content)
    assert here.shared.find(KEY) is content
    assert here.of(content.events[-20:]) == list(range(31, 51))
    part = here.shared.find(KEY)
    assert part is not None
    assert [isinstance(one, KeptRecord) for one in part.events] == [False] * 30 + [True] * 20
    assert [one[:3] for one in content.events] == [(one.seq, one.id, one.timestamp) for one in part.events]
    assert here.of(part.events[-5:]) == []
    assert here.of(part.events) == list(range(1, 31))
    whole = here.shared.find(KEY)
    assert whole is not None
    assert all(isinstance(one, KeptRecord) for one in whole.events)
    assert here.of(whole.events) == here.of(whole.events[7:20]) == []
    longer = replace(whole, tag=TAG._replace(revision=2), events=whole.events + history(51, 52))
    here.shared.keep(KEY, longer, longer.events[50:])
    assert here.of(longer.events) == [51, 52]
    # Read anew from elsewhere, the same bytes are the same events.
    assert here.of(history(*range(40, 54))) == [53]


@pytest.mark.parametrize("timestamp", [0, 1, -1, 1_780_000_000_123_456, -(10**17), 10**18])
def test_a_kept_record_tells_its_time(timestamp: int) -> None:
    found = EventRecord(1, "e1", timestamp, b"{}")
    kept = KeptRecord(found, decoded(found._replace(timestamp=1)))
    assert kept.timestamp == timestamp
    assert kept.stands_for(found)
    assert not kept.stands_for(found._replace(timestamp=timestamp + 1))
    assert not kept.stands_for(found._replace(payload=b"{} "))


def test_a_part_does_not_replace_more_of_the_same() -> None:
    here = Decoding()
    whole = Content(TAG, b"{}", history(*range(1, 9)))
    part = Content(TAG, b"{}", history(7, 8), complete=False)
    here.shared.keep(KEY, part)
    assert here.shared.find(KEY) is part
    for content in (whole, part):
        here.shared.keep(KEY, content)
        assert here.shared.find(KEY) is whole
    later = replace(part, tag=TAG._replace(nonce=2))
    here.shared.keep(KEY, later)
    assert here.shared.find(KEY) is later


def test_who_reads_the_json_finds_it() -> None:
    shared = SharedEvents(all_decoded, 10_000_000, keeps_json=True)
    content = Content(TAG, b"{}", history(1, 2, 3))
    shared.keep(KEY, content)
    first = shared.of(KEY, content.events)
    assert shared.find(KEY) == content
    again = shared.of(KEY, content.events)
    assert all(one is other for one, other in zip(first, again, strict=True))


def test_what_is_not_shared_is_kept_as_it_came() -> None:
    shared = SharedEvents(all_decoded, 10_000_000, shared=False)
    content = Content(TAG, b"{}", history(1, 2))
    shared.keep(KEY, content)
    assert shared.of(KEY, content.events)[0] is not shared.of(KEY, content.events)[0]
    assert shared.find(KEY) is content
    shared.clear()
    assert shared.find(KEY) is None


def test_kept_sessions_are_measured_by_what_was_added() -> None:
    """An append costs the same however long the history; the sum stays right."""
    events = tuple(EventRecord(n, str(n), n, b"x" * 100) for n in range(10))
    whole, grown = SharedEvents(all_decoded, 100_000), SharedEvents(all_decoded, 100_000)
    grown.keep(KEY, Content(TAG, b"{}", events[:6]))
    longer = Content(TAG, b'{"a": 1}', events)
    grown.keep(KEY, longer, events[6:])
    whole.keep(KEY, longer)
    assert grown._bytes == whole._bytes
    assert grown.find(KEY) == whole.find(KEY)


def test_what_is_held_for_the_next_reader_is_measured() -> None:
    shared = SharedEvents(all_decoded, 40_000)
    content = Content(TAG, b"{}", history(1, 2))
    small, large = Content(TAG, b"x" * 1000), Content(TAG, b"x" * 2000)
    for number in range(20):
        key = KEY._replace(session_id=str(number))
        shared.answered(Snapshot(key, content, small, small))
        assert key not in shared._sessions, "of what is not kept nothing is held"
        shared.keep(key, content)
        assert shared.expected(key, Query()) is None
        shared.answered(Snapshot(key, content, None, small))
        assert shared.expected(key, Query()) is not None
        shared.answered(Snapshot(key, content, large, small))
        assert shared.expected(key, Query()) is None, "what it was before would be in vain each time"
        shared.answered(Snapshot(key, content, small, small))
        shared.of(key, content.events)
        shared.keep(key, replace(content, tag=TAG._replace(revision=2)))
        found = shared.expected(key, Query(1))
        assert found is not None
        assert (found.session.tag.revision, found.user, found.app) == (2, small, small)
        assert [event.seq for event in found.session.events] == [2]
        assert shared._bytes == sum(kept.size for kept in shared._sessions.values()) <= 40_000
    assert 1 < len(shared._sessions) < 10


def test_what_is_kept_already_is_not_kept_again() -> None:
    """Reads that come from SQL keep what they read each time; of equal content the decoded one stays."""
    events = history(1, 2, 3)
    shared = SharedEvents(all_decoded, 100_000)
    part = Content(TAG, b"{}", events, complete=False)
    shared.keep(KEY, part)
    shared.of(KEY, events)
    kept = shared.find(KEY)
    assert kept is not None
    shared.keep(KEY, replace(part, events=history(1, 2, 3)))
    assert shared.find(KEY) is kept
    # More is known of what comes before.
    whole = replace(part, complete=True)
    shared.keep(KEY, whole)
    assert shared.find(KEY) is whole
    shared.keep(KEY, replace(part, tag=Tag(1, 2, 1, 1)))
    assert shared.find(KEY) != whole


def test_a_changed_event_is_found() -> None:
    here = Decoding(checked=True)
    (first, second) = here.shared.of(KEY, history(1, 2))
    assert here.shared.of(KEY, history(2, 3))[0] is second
    second.actions.state_delta["k"] = 1
    assert here.shared.of(KEY, history(1)) == [first]
    with pytest.raises(SharedEventChangedError, match=r"Event e2 of session s .*model_copy"):
        here.shared.of(KEY, history(1, 2, 3))


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.sampled_from(["", "x"])), max_size=12))
def test_any_reads(reads: list[tuple[int, int, str]]) -> None:
    """Whatever was read before, an answer is what decoding gives: `Decoding.of` compares."""
    here = Decoding(max_bytes=200_000)
    for start, end, text in reads:
        here.of(tuple(record(number, text if number % 3 == 0 else "") for number in range(start, end)))
