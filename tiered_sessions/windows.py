"""How far a default window reaches back, so that what it shows makes sense. No I/O, no framework."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from cachetools import LRUCache

from .codec import loads
from .records import Content, EventRecord, SessionKey

_REMEMBERED: Final = 10_000
# Read along in the first place: a call is rarely far from its response.
_SLACK: Final = 16


class Choice(NamedTuple):
    """Give the newest `give` events; if None, read the newest `read` (None: all) and choose again."""

    give: int | None
    read: int | None = None


class _Seen(NamedTuple):
    """Up to `revision`, what the newest compaction leaves begins at event `begin`; None: no compaction."""

    incarnation: int
    revision: int
    begin: int | None


class Windows:
    """Decides, session by session, how many events a default window of `size` shows.

    The newest `size`, and before them whatever it takes to show the call of every response that is
    shown, the newest compaction summary, and every event that this summary does not cover. Where a
    session's newest compaction lies is remembered: only the first look reads the whole history.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen: LRUCache[SessionKey, _Seen] = LRUCache(_REMEMBERED)

    @property
    def read(self) -> int:
        """How many of the newest events to read first."""
        return self._size + _SLACK

    def choose(self, key: SessionKey, content: Content, read: int | None) -> Choice:
        """Decides about a session of which the newest `read` events were asked for (None: all)."""
        events = content.events
        whole = read is None or len(events) < read
        wider = Choice(None, None if read is None else 2 * read)
        summary = _newest_summary(events)
        if summary is not None:
            begin = _uncovered(events, *summary)
            if begin == 0 and not whole:
                return wider
        elif whole:
            begin = len(events)
        else:
            seen = self._known(key, content)
            if seen is None:
                return Choice(None)
            begin = _position(events, seen.begin)
            if begin == 0 and events[0].seq != seen.begin:
                return wider
        self._remember(key, content, begin)
        start = _with_calls(events, min(begin, max(0, len(events) - self._size)), whole)
        return wider if start is None else Choice(len(events) - start)

    def _known(self, key: SessionKey, content: Content) -> _Seen | None:
        """Returns what is remembered, if `content` holds every event that came since."""
        seen, tag = self._seen.get(key), content.tag
        if seen is None or not tag.adopted or seen.incarnation != tag.incarnation:
            return None
        return seen if content.events[0].seq <= seen.revision + 1 else None

    def _remember(self, key: SessionKey, content: Content, begin: int) -> None:
        seen, tag = self._seen.get(key), content.tag
        # Another reader may have looked at a later revision meanwhile.
        older = seen is not None and seen.incarnation == tag.incarnation and seen.revision > tag.revision
        if tag.adopted and not older:
            first = content.events[begin].seq if begin < len(content.events) else None
            self._seen[key] = _Seen(tag.incarnation, tag.revision, first)


def _newest_summary(events: Sequence[EventRecord]) -> tuple[int, float] | None:
    """Returns the position of the newest compaction event, and the last second it covers."""
    for position in range(len(events) - 1, -1, -1):
        payload = events[position].payload
        # Reading a document takes a hundred times longer than finding out that there is no need to.
        if b'"compaction"' in payload:
            compaction = _part(loads(payload), "actions", "compaction")
            covered = _named(compaction, "end_timestamp", "endTimestamp")
            if isinstance(covered, int | float):
                return position, covered
    return None


def _uncovered(events: Sequence[EventRecord], summary: int, covered: float) -> int:
    """Returns the first of the events before `summary` that it leaves as they are, else its position."""
    begin = summary
    while begin and events[begin - 1].timestamp > covered * 1_000_000:
        begin -= 1
    return begin


def _position(events: Sequence[EventRecord], seq: int | None) -> int:
    if seq is None:
        return len(events)
    return next((n for n, event in enumerate(events) if event.seq >= seq), len(events))


def _with_calls(events: Sequence[EventRecord], start: int, whole: bool) -> int | None:
    """Moves `start` back until each response after it has its call; None if that is not among `events`."""
    orphans: set[tuple[int, str]] = set()
    while True:
        wanted: set[tuple[int, str]] = set()
        position = len(events)
        while position > start or (wanted and position):
            position -= 1
            calls, responses = _tools(events[position].payload)
            wanted = {response for response in wanted if response[1] not in calls}
            wanted |= {(position, response) for response in responses} - orphans
        if not wanted:
            return position
        if not whole:
            return None
        # Nobody has these calls; they must not drag the whole history along.
        orphans |= wanted


def _tools(payload: bytes) -> tuple[set[str], set[str]]:
    """Returns the ids of an event's function calls and of its function responses."""
    calls: set[str] = set()
    responses: set[str] = set()
    if b'"function' not in payload:
        return calls, responses
    parts = _part(loads(payload), "content", "parts")
    for part in parts if isinstance(parts, list) else ():
        calls |= set(_identity(_named(part, "function_call", "functionCall")))
        responses |= set(_identity(_named(part, "function_response", "functionResponse")))
    return calls, responses


def _identity(tool: Any) -> Iterator[str]:
    if isinstance(tool, dict):
        # Some models give no ids: then the nearest call of that name is the one.
        yield f"id {tool['id']}" if tool.get("id") else f"name {tool.get('name')}"


def _part(value: Any, *names: str) -> Any:
    for name in names:
        value = _named(value, name)
    return value


def _named(value: Any, *names: str) -> Any:
    """Returns the member of an object that has one of these names."""
    if not isinstance(value, dict):
        return None
    return next((value[name] for name in names if name in value), None)
