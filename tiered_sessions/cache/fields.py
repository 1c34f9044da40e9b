"""The fields of an entry's hash: how a content is written, how a lookup reads a reply.

consistency.md section 4 lists them. All numbers are decimal text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ..records import Content, EventRecord, Tag
from . import chunks
from .base import CacheLimits, Hit, Lookup, Masked, Miss

HEADER = ("p", "i", "r", "g", "ut", "va", "sv", "c", "mt", "ex")
"""What a lookup of the header asks for."""
_NAMES = tuple(name.encode() for name in HEADER)

_SMALL: Final = 1024
"""Bytes of a state."""


def tag(value: Tag | None) -> tuple[bytes, ...]:
    """Returns the four arguments that name a tag; empty for None."""
    return (b"",) * 4 if value is None else tuple(b"%d" % number for number in value)


def entry(
    content: Content, stamp: str, limits: CacheLimits, expires_at: int | None
) -> list[bytes]:
    """Returns names and values of the fields of a new entry, but for those the script sets."""
    content = chunks.trim(content, limits.window_events, limits.window_bytes)
    parts = [b"".join(map(chunks.line, chunk)) for chunk in chunks.split(content.events)]
    incarnation, revision, nonce, update_time = tag(content.tag)
    fields = {
        b"i": incarnation,
        b"r": revision,
        b"g": nonce,
        b"ut": update_time,
        b"sv": stamp.encode(),
        b"ex": b"" if expires_at is None else b"%d" % expires_at,
        b"n": b"%d" % len(content.events),
        b"c": b"1" if content.complete else b"0",
        b"mt": b"" if content.before is None else b"%d" % content.before,
        b"st": content.state,
        b"k0": b"0",
        b"k1": b"%d" % (len(parts) - 1),
        b"b": b"%d" % (len(content.state) + sum(map(len, parts))),
        **{b"c%d" % number: part for number, part in enumerate(parts)},
    }
    return [item for field in fields.items() for item in field]


class Entry(NamedTuple):
    """What a reply says, whenever it came. `masks`: until when each lives."""

    content: Content | None
    validated_at: int = 0
    stamp: str = ""
    expires_at: int | None = None
    masks: tuple[int, ...] = ()

    @property
    def small(self) -> bool:
        """Whether it is worth its room in memory to be recognised by its bytes."""
        return self.content is not None and not self.content.events and len(self.content.state) <= _SMALL

    def shown(self, now: int, stamp: str, header_only: bool) -> Lookup:
        """Returns what a lookup answers."""
        content, validated_at, filled_by, expires_at, masks = self
        if masks:
            # Only expired masks: their writer died and may have committed (R4).
            return Masked(now, stamp) if max(masks) > now else Miss(now, stamp)
        if content is None or (expires_at is not None and expires_at <= now):
            return Miss(now, stamp)
        return Hit(content, validated_at, filled_by, now, stamp, header_only)


NOTHING: Final = Entry(None)


def words(name: str, kind: str, header_only: bool) -> tuple[str, ...]:
    """Returns the command that reads an entry: of a session all of it, or its header."""
    if kind != "session":
        return ("HMGET", name, *HEADER, "st")  # there are no events
    return ("HMGET", name, *HEADER) if header_only else ("HGETALL", name)


def read(reply: Any, whole: bool) -> Entry:
    """Returns what the reply to `words` says; `whole`: to HGETALL. Nonsense is no entry."""
    try:
        parts: Mapping[bytes, Any] = {}
        if whole:  # a map in RESP3
            parts = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
            reply = [*map(parts.get, _NAMES), parts.get(b"st")]
        masks, incarnation, revision, nonce, update, validated, stamp, complete, before, expires, *st = reply
        if masks:
            return Entry(None, masks=tuple([int(mask.split(b" ", 1)[0]) for mask in masks.splitlines()]))
        if revision is None or None in st:
            return NOTHING
        tag = Tag(int(incarnation), int(revision), int(nonce), int(update))
        events = _events(parts) if whole else ()
        oldest = int(before) if before else None
        content = Content(tag, st[0] if st else b"", events, complete == b"1", oldest)
        return Entry(content, int(validated), stamp.decode(), int(expires) if expires else None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return NOTHING


def _events(parts: Mapping[bytes, bytes]) -> tuple[EventRecord, ...]:
    numbers = range(int(parts[b"k0"]), int(parts[b"k1"]) + 1)
    events = chunks.parse(b"".join([parts[b"c%d" % number] for number in numbers]))
    if len(events) != int(parts[b"n"]):
        raise ValueError("the window is torn")
    return events
