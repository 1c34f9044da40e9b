"""Decoded events are found again by their records, and never wrongly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.mutations import edit
from tiered_sessions.errors import SharedEventChangedError
from tiered_sessions.models import Event
from tiered_sessions.records import EventRecord, SessionKey
from tiered_sessions.shared_events import SharedEvents, _Stretch

KEY = SessionKey("app", "u", "s")


def record(seq: int, text: str = "") -> EventRecord:
    """Returns a record that is equal to every other of this number and text, and the same as none."""
    return EventRecord(seq, f"e{seq}", seq, f'{{"author":"{text}"}}'.encode())


def history(*numbers: int) -> tuple[EventRecord, ...]:
    return tuple(record(number) for number in numbers)


class Decoding:
    """Decodes, and says what it had to decode."""

    def __init__(self, max_bytes: int = 10_000_000, *, checked: bool = False) -> None:
        self.decoded: list[int] = []
        self.shared = SharedEvents(self._decode, max_bytes, checked=checked)

    def _decode(self, found: EventRecord) -> Event:
        self.decoded.append(found.seq)
        return Event(id=found.id, timestamp=found.timestamp, author=found.payload.decode())

    def of(self, records: tuple[EventRecord, ...], key: SessionKey = KEY) -> list[int]:
        """Reads, compares with a decoding of its own, and returns the numbers of what was decoded."""
        self.decoded.clear()
        events = self.shared.of(key, records)
        decoded = list(self.decoded)
        assert events == [self._decode(one) for one in records]
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
    assert here.of((record(1), record(2, "b"), record(3))) == [1, 2, 3]
    assert here.of((record(1), record(2, "b"), record(3))) == []
    assert here.of((record(2, "b"), record(3), record(4))) == [4]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if records[: len(common)] == common", "if True"),
        (
            "records[: len(common)] == common",
            "[one[:2] for one in records[: len(common)]] == [one[:2] for one in common]",
        ),
    ],
    ids=["uncompared", "by number and id"],
)
def test_it_is_red_without_the_comparison(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """R35 has teeth: a part of the record is not enough."""
    edit(_Stretch, "overlap", old, new)(monkeypatch)
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
    here = Decoding(max_bytes=100_000)
    assert here.of(history(1, 2, 3)) == [1, 2, 3]
    assert here.of(history(1, 2, 3)) == [1, 2, 3]
    keys = [SessionKey("app", "u", str(number)) for number in range(30)]
    for key in keys:
        here.of(history(1, 2), key)
    assert here.of(history(1, 2), keys[-1]) == []
    assert here.of(history(1, 2), keys[0]) == [1, 2]
    nothing = Decoding(max_bytes=0)
    assert nothing.of(history(1)) == nothing.of(history(1)) == [1]


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
