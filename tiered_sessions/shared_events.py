"""Decoded events, kept so that none is decoded twice in a process.

An event is found again by its whole record: the same number, id, time and bytes. So it does not
matter where the record came from, nor whether its history was replaced meanwhile (R35): equal
bytes are an equal event, and what is not equal is decoded.

Every reader is given the same event objects, in a list of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Final, Generic, TypeVar

from cachetools import LRUCache

from .errors import SharedEventChangedError
from .models import EventLike
from .records import EventRecord, SessionKey

# Bytes of an event of google-adk besides its texts: measured 4,900.
_OBJECTS: Final = 5000


EventT = TypeVar("EventT", bound=EventLike)


class _Stretch(Generic[EventT]):
    """A part of one session's history, decoded.

    `marks`: what each event was when it was decoded, only kept to be compared.
    """

    __slots__ = ("events", "marks", "records", "size")

    def __init__(
        self, records: tuple[EventRecord, ...], events: list[EventT], marks: list[str], size: int
    ) -> None:
        self.records = records
        self.events = events
        self.marks = marks
        self.size = size

    def overlap(self, records: tuple[EventRecord, ...]) -> tuple[int, int]:
        """Returns where the first of `records` is in the stretch, and how many from there on are the same."""
        if self.records is records:
            return 0, len(records)
        start = 0
        if self.records[0] != records[0]:
            start = len(self.records) - 1
            while start and self.records[start] != records[0]:
                start -= 1
        common = self.records[start : start + len(records)]
        return (start, len(common)) if records[: len(common)] == common else (0, 0)


class SharedEvents(Generic[EventT]):
    """The decoded events of the sessions read last.

    Args:
        decode: Makes the event of a record.
        max_bytes: How much memory they may take, estimated from their JSON; 0 keeps none.
        checked: Compares an event with what it was, whenever it is given out again.
    """

    def __init__(self, decode: Callable[[EventRecord], EventT], max_bytes: int, *, checked: bool) -> None:
        self._decode = decode
        self._checked = checked
        self._kept: LRUCache[SessionKey, _Stretch[EventT]] = LRUCache(max_bytes, lambda kept: kept.size)
        # The loops of one service may run in several threads.
        self._lock = Lock()

    def of(self, key: SessionKey, records: tuple[EventRecord, ...]) -> list[EventT]:
        """Returns the events of `records`, in a new list.

        Raises:
            SharedEventChangedError: A caller changed one that it was given (only if `checked`).
        """
        if not records:
            return []
        with self._lock:
            kept = self._kept.get(key)
        start, known = kept.overlap(records) if kept else (0, 0)
        events: list[EventT] = []
        if kept and known:
            events = kept.events[start : start + known]
            if self._checked:
                _compare(key, records, events, kept.marks[start:])
        if known < len(records):
            added = list(map(self._decode, records[known:]))
            events += added
            self._keep(key, kept if known else None, start, records, known, added)
        return events

    def _keep(
        self,
        key: SessionKey,
        kept: _Stretch[EventT] | None,
        start: int,
        records: tuple[EventRecord, ...],
        known: int,
        added: list[EventT],
    ) -> None:
        size = sum(len(record.payload) for record in records[known:]) * 2 + _OBJECTS * len(added)
        marks = [event.model_dump_json() for event in added] if self._checked else []
        if kept is None:
            stretch = _Stretch(records, added.copy(), marks, size)
        else:
            stretch = _Stretch(
                kept.records[:start] + records,
                kept.events[: start + known] + added,
                kept.marks[: start + known] + marks,
                kept.size + size,
            )
        with self._lock:
            # One session alone must not drive out all others.
            if stretch.size * 8 > self._kept.maxsize:
                self._kept.pop(key, None)
            else:
                self._kept[key] = stretch


def _compare(
    key: SessionKey, records: tuple[EventRecord, ...], events: list[EventT], marks: list[str]
) -> None:
    for record, event, mark in zip(records, events, marks, strict=False):
        if event.model_dump_json() != mark:
            raise SharedEventChangedError(
                f"Event {record.id} of session {key.session_id} was changed by a caller who had read it. "
                'Change a copy of it (event.model_copy(deep=True)), or set shared_events="off"'
            )
