"""The sessions read last, kept in the process: what a session is at a tag, and its events decoded.

What is kept is never an answer by itself: it is used only after a shared cache showed the same tag, or
SQL did (consistency 5.4). So it adds no staleness.

An event is found again by its whole record: the same number, id, time and bytes. So it does not
matter where the record came from, nor whether its history was replaced meanwhile (R35). Of the bytes
only a hash is kept: 60 bits of the interpreter's SipHash, whose key is another one in every process.

Every reader is given the same event objects, in a list of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from sys import getsizeof
from threading import Lock
from typing import Any, Final, Generic, cast

from .errors import SharedEventChangedError
from .likes import EventT
from .records import Content, EventRecord, Query, SessionKey, Snapshot
from .untracked import untrack

# One session alone must not drive out all others.
_SHARE: Final = 4
# Bytes of a record and of a session besides their JSON.
_RECORD: Final = 150
_SESSION: Final = 500
# Bytes of a content without events besides its state; and of a state that is held for the next reader.
_CONTENT: Final = 350
_SMALL: Final = 1024
_BITS: Final = 60
_HASH: Final = (1 << _BITS) - 1


class KeptRecord(Generic[EventT]):
    """A record whose event was decoded: in place of the JSON it has the event, and the JSON's hash."""

    __slots__ = ("_stamp", "event", "id", "seq")

    def __init__(self, record: EventRecord, event: EventT) -> None:
        self.seq = record.seq
        # The event has the same text: one of the two is enough.
        self.id = event.id if event.id == record.id else record.id
        self.event = event
        self._stamp = _stamp(record)
        untrack(self)

    @property
    def timestamp(self) -> int:
        """The record's."""
        return self._stamp >> _BITS

    def stands_for(self, record: EventRecord) -> bool:
        """Says whether it was made of a record equal to this one."""
        return self.seq == record.seq and self.id == record.id and self._stamp == _stamp(record)


def _stamp(record: EventRecord) -> int:
    """Returns time and hash in one number, which takes less room than two."""
    return record.timestamp << _BITS | hash(record.payload) & _HASH


class _CheckedRecord(KeptRecord[EventT]):
    """Knows what the event was when it was decoded."""

    __slots__ = ("mark",)

    def __init__(self, record: EventRecord, event: EventT) -> None:
        super().__init__(record, event)
        self.mark = event.model_dump_json()


class _Kept(Generic[EventT]):
    """One session: its content, if a tag is known to tell it by, and the part of it that was decoded.

    `undecoded` and `decoded`: how many bytes both take. `shared`: the user's and the app's content beside
    which it was read last, None if nobody has read it so.
    """

    __slots__ = ("content", "decoded", "events", "records", "shared", "undecoded")

    def __init__(
        self,
        content: Content | None,
        undecoded: int,
        records: tuple[KeptRecord[EventT], ...] = (),
        events: list[EventT] | None = None,
        decoded: int = 0,
        shared: tuple[Content | None, Content | None] | None = None,
    ) -> None:
        self.content = content
        self.undecoded = undecoded
        self.records = records
        self.events: list[EventT] = [] if events is None else events
        self.decoded = decoded
        self.shared = shared
        for part in (self, self.events, self.records, *(() if content is None else (content,))):
            untrack(part)

    @property
    def size(self) -> int:
        """How many bytes it takes in all."""
        beside = sum([_CONTENT + len(part.state) for part in self.shared or () if part is not None])
        return self.undecoded + self.decoded + beside


class SharedEvents(Generic[EventT]):
    """The sessions read last, with their events as callers get them.

    Args:
        decode: Makes the events of records.
        max_bytes: How much memory all of it may take, estimated; 0 keeps nothing.
        shared: Whether decoded events are kept, for every reader.
        checked: Compares an event with what it was, whenever it is given out again.
        keeps_json: Whether contents keep the JSON of events that were decoded: somebody reads it.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[EventRecord]], list[EventT]],
        max_bytes: int,
        *,
        shared: bool = True,
        checked: bool = False,
        keeps_json: bool = False,
    ) -> None:
        self._decode = decode
        self._shared = shared and max_bytes > 0
        self._record: type[KeptRecord[EventT]] = _CheckedRecord if checked else KeptRecord
        self._checked = checked
        self._keeps_json = keeps_json
        # The one that was asked for last comes last. A library's takes five calls for each look.
        self._sessions: OrderedDict[SessionKey, _Kept[EventT]] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes
        # The loops of one service may run in several threads.
        self._lock = Lock()

    # --- contents, by tag ------------------------------------------------------------------------

    def find(self, key: SessionKey) -> Content | None:
        """Returns the content that was kept last; of decoded events it has the `KeptRecord`."""
        kept = self._latest(key)
        return None if kept is None else kept.content

    def keep(self, key: SessionKey, content: Content, added: tuple[EventRecord, ...] | None = None) -> None:
        """Keeps `content`, unless it takes too much of the room, or is kept already, or more of it.

        `added`: the events it has more than the content kept now, so that an append does not
        measure the whole history.
        """
        with self._lock:
            kept = self._sessions.get(key)
            if kept is not None and kept.content is not None and content.part_of(kept.content):
                return
            if kept is None or kept.content is None or added is None:
                size = _SESSION + len(content.state) + _undecoded(content.events)
            else:
                size = kept.undecoded + _undecoded(added) + len(content.state) - len(kept.content.state)
            for record in content.events if added is None else added:
                untrack(record)
            untrack(content.tag)
            untrack(content.events)
            if kept is None:
                self._put(key, _Kept(content, size))
            else:
                self._put(key, _Kept(content, size, kept.records, kept.events, kept.decoded, kept.shared))

    def expected(self, key: SessionKey, query: Query) -> Snapshot | None:
        """Returns what a reader will be answered if nothing has changed anywhere; None: nobody can say."""
        kept = self._sessions.get(key)
        if kept is None:
            return None
        # Each is read once: another thread may change what is held.
        content, shared = kept.content, kept.shared
        if content is None or shared is None or not query.answered_by(content):
            return None
        events = query.select(content.events)
        if events is not content.events:
            content = Content(content.tag, content.state, events, content.complete, content.before)
        return Snapshot(key, content, *shared)

    def answered(self, snapshot: Snapshot) -> None:
        """Notes what a reader was answered, for the next. A large shared state is not held for that."""
        shared = snapshot.user, snapshot.app
        untrack(shared)
        large = any([part is not None and len(part.state) > _SMALL for part in shared])
        with self._lock:
            kept = self._sessions.get(snapshot.key)
            if kept is not None and kept.content is not None:
                self._bytes -= kept.size
                kept.shared = None if large else shared
                self._bytes += kept.size
                self._make_room()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._sessions.clear()
            self._bytes = 0

    def _latest(self, key: SessionKey) -> _Kept[EventT] | None:
        with self._lock:
            kept = self._sessions.get(key)
            if kept is not None:
                self._sessions.move_to_end(key)
        return kept

    # --- events ----------------------------------------------------------------------------------

    def of(self, key: SessionKey, records: tuple[EventRecord, ...]) -> list[EventT]:
        """Returns the events of `records`, in a new list.

        Raises:
            SharedEventChangedError: A caller changed one that it was given (only if `checked`).
        """
        if not self._shared:
            return self._decode(records)
        if not records:
            return []
        kept = self._latest(key)
        decoded_before: Any = kept and kept.records
        if decoded_before is records and kept is not None and not self._checked:
            return kept.events.copy()
        old: tuple[KeptRecord[EventT], ...] = kept.records if kept else ()
        start = _position(old, records[0])
        # What an append leaves as it was is told by identity, without a look at each.
        same = 0 if self._checked else min(len(old) - start, len(records))
        if cast("Any", records[:same]) != old[start : start + same]:
            same = 0
        found: list[KeptRecord[EventT] | None] = []
        lacking: list[EventRecord] = []
        for number, record in enumerate(records[same:], start + same):
            one: KeptRecord[EventT] | None = None
            if isinstance(record, KeptRecord):
                one = record
            elif number < len(old) and old[number].stands_for(record):
                one = old[number]
            else:
                lacking.append(record)
            if one is not None and self._checked:
                _compare(key, one)
            found.append(one)
        decoded_now = self._decode(lacking) if lacking else []
        made = iter([self._record(*pair) for pair in zip(lacking, decoded_now, strict=True)])
        new = [next(made) if one is None else one for one in found]
        events = [one.event for one in new]
        if kept is not None and same:
            events = kept.events[start : start + same] + events
        if lacking:
            # What is kept and comes before them stays.
            earlier = _Kept[EventT](None, 0) if kept is None else kept
            whole = old[: start + same] + tuple(new), earlier.events[:start] + events
            decoded = sum([_decoded(record.payload) for record in lacking])
            self._extend(key, records, *whole, decoded, _undecoded(records[same:]))
        return events

    def _extend(
        self,
        key: SessionKey,
        records: tuple[EventRecord, ...],
        whole: tuple[KeptRecord[EventT], ...],
        events: list[EventT],
        decoded: int,
        let_go: int,
    ) -> None:
        """Keeps the `whole` of what is decoded, of which `records` are the end, and its events.

        `decoded`: how many bytes of it were decoded just now; `let_go`: how many their JSON took.
        """
        with self._lock:
            kept = self._sessions.get(key) or _Kept[EventT](None, _SESSION)
            content, undecoded = kept.content, kept.undecoded
            if content is not None and not self._keeps_json:
                at = len(content.events) - len(records)
                if at >= 0 and content.events[at] is records[0] and content.events[-1] is records[-1]:
                    undecoded -= let_go
                    # In all but their JSON these are records.
                    part = cast("tuple[EventRecord, ...]", whole[-len(records) :])
                    if at:
                        part = content.events[:at] + part
                    else:
                        # One tuple for both, so that the next reader's is recognised at once.
                        whole, events = whole[-len(records) :], events[-len(records) :]
                    content = Content(content.tag, content.state, part, content.complete, content.before)
            if kept.records:
                # Of what is not new no more is known than what all of it took.
                old = min(len(whole) - 1, len(kept.records))
                decoded += kept.decoded * old // len(kept.records)
            self._put(key, _Kept(content, undecoded, whole, events, decoded, kept.shared))

    def _put(self, key: SessionKey, kept: _Kept[EventT]) -> None:
        old = self._sessions.pop(key, None)
        self._bytes -= 0 if old is None else old.size
        size = kept.size
        if size * _SHARE > self._max_bytes:
            return
        self._sessions[key] = kept
        untrack(key)
        self._bytes += size
        self._make_room()

    def _make_room(self) -> None:
        while self._bytes > self._max_bytes:
            _, least = self._sessions.popitem(last=False)
            self._bytes -= least.size


def _position(kept: Sequence[KeptRecord[Any]], record: EventRecord) -> int:
    """Returns where a record is among those kept, 0 if it is not."""
    if not kept or kept[0].id == record.id:
        return 0
    start = len(kept) - 1
    while start and (kept[start].seq != record.seq or kept[start].id != record.id):
        start -= 1
    return start


def _compare(key: SessionKey, kept: KeptRecord[Any]) -> None:
    if isinstance(kept, _CheckedRecord) and kept.event.model_dump_json() != kept.mark:
        raise SharedEventChangedError(
            f"Event {kept.id} of session {key.session_id} was changed by a caller who had read it. "
            'Change a copy of it (event.model_copy(deep=True)), or set shared_events="off"'
        )


# --- how much memory it is ---------------------------------------------------------------------


def _undecoded(records: Sequence[EventRecord]) -> int:
    """Returns roughly how many bytes those take that were not decoded."""
    return sum([len(one.payload) + _RECORD for one in records if type(one) is EventRecord])


def _decoded(payload: bytes) -> int:
    """Returns roughly how many bytes the event of this JSON takes, with its record.

    Measured on events of google-adk, to a tenth; prose with many commas and few keys takes less. Keys
    and short texts are shared; in a text, one character beyond Latin-1, or beyond the basic plane,
    makes every character two bytes long, or four.
    """
    length, width = len(payload), 1
    if not payload.isascii():
        text = payload.decode(errors="replace")
        length = len(text)
        width = round(getsizeof(text) / length)
    return 1280 + 70 * payload.count(b"{") + 16 * payload.count(b",") + width * max(length - 200, 0)
