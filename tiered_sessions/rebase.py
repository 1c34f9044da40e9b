"""What others appended to a session since a caller's object was loaded. No I/O, no framework."""

from __future__ import annotations

from collections.abc import Collection

from .errors import StaleSessionError
from .records import Content, EventRecord, Tag


def missed(
    tag: Tag | None, last: str | None, held: Collection[str], now: Content, *, whole: bool
) -> list[EventRecord] | None:
    """Returns the events an object lacks at its end, or None if more must be read to know them.

    Args:
        tag: What the object carries, None if it was made by hand.
        last: The id of its last event, None if it has none.
        held: The ids of all its events.
        now: The session, with some of its newest events.
        whole: Whether those are all.

    Raises:
        StaleSessionError: The object is of another history: its session was deleted and made again, or
            commits that it saw were lost.
    """
    events = now.events
    if tag is not None and tag.adopted and tag.revision >= 0 and now.tag.adopted:
        if now.tag.incarnation != tag.incarnation or now.tag.revision < tag.revision:
            raise StaleSessionError
        if not whole and events[0].seq > tag.revision + 1:
            return None
        # A window of none tells nothing by its ids; the numbers do.
        return [event for event in events if event.seq > tag.revision and event.id not in held]
    if last is None:
        return list(events) if whole else None
    for position in range(len(events) - 1, -1, -1):
        if events[position].id == last:
            return [event for event in events[position + 1 :] if event.id not in held]
    if whole:
        raise StaleSessionError
    return None
