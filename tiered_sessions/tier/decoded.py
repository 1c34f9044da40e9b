"""Sessions kept in the process, by tag, so that an unchanged one need not travel again.

Never an answer by itself: what is kept is used only after a shared cache showed the same tag, or
SQL did (consistency 5.4). So it adds no staleness.
"""

from __future__ import annotations

from collections.abc import Sequence

from cachetools import LRUCache

from ..records import Content, EventRecord, SessionKey

_OVERHEAD = 150


def _size(events: Sequence[EventRecord]) -> int:
    """Returns roughly how many bytes `events` take."""
    return sum(len(event.payload) + _OVERHEAD for event in events)


class DecodedSessions:
    """The most recently used sessions, at most `max_bytes` of them. 0 keeps none."""

    def __init__(self, max_bytes: int) -> None:
        self._contents: LRUCache[SessionKey, tuple[Content, int]] = LRUCache(
            max_bytes, getsizeof=lambda kept: kept[1]
        )

    def find(self, key: SessionKey) -> Content | None:
        """Returns what was kept last."""
        kept = self._contents.get(key)
        return kept[0] if kept else None

    def keep(
        self, key: SessionKey, content: Content, added: tuple[EventRecord, ...] | None = None
    ) -> None:
        """Keeps `content` unless it alone takes more than an eighth of the room.

        `added`: the events it has more than the content kept now, so that an append does not
        measure the whole history.
        """
        kept = self._contents.get(key)
        if kept is None or added is None:
            size = _size(content.events) + len(content.state) + _OVERHEAD
        else:
            size = kept[1] + _size(added) + len(content.state) - len(kept[0].state)
        if size * 8 > self._contents.maxsize:
            self._contents.pop(key, None)
        else:
            self._contents[key] = (content, size)

    def clear(self) -> None:
        """Forgets everything."""
        self._contents.clear()
