"""The fields of an entry's hash: how a content is written, how a lookup reads a reply.

consistency.md section 4 lists them. All numbers are decimal text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ..records import Content, Tag
from . import chunks
from .base import CacheLimits, Hit, Lookup, Masked, Miss
from .resp import Command
from .scripts import script

HEADER = ("p", "i", "r", "g", "ut", "va", "sv", "c", "mt", "ex", "n")
"""What a lookup of the header asks for."""
_WITH_STATE = (*HEADER, "st")
_NAMES = tuple(name.encode() for name in _WITH_STATE)

_SMALL: Final = 1024
"""Bytes of a state."""


def tag(value: Tag | None) -> tuple[bytes, ...]:
    """Returns the four arguments that name a tag; empty for None."""
    return (b"",) * 4 if value is None else tuple(b"%d" % number for number in value)


def entry(
    content: Content, stamp: str, limits: CacheLimits, expires_at: int | None
) -> list[bytes]:
    """Returns names and values of the fields of a new entry, but for those the script sets."""
    content, lines = chunks.trim(content, limits.window_events, limits.window_bytes)
    parts = [b"".join(chunk) for chunk in chunks.split(lines)]
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
    held: int = 0
    validated_at: int = 0
    stamp: str = ""
    expires_at: int | None = None
    masks: tuple[int, ...] = ()

    @property
    def small(self) -> Content | None:
        """The content, if that is worth its room in memory to be recognised by its bytes."""
        content = self.content
        if content is None or content.events or len(content.state) > _SMALL:
            return None
        return content

    def shown(self, now: int, stamp: str) -> Lookup:
        """Returns what a lookup answers."""
        content, held, validated_at, filled_by, expires_at, masks = self
        if masks:
            # Only expired masks: their writer died and may have committed (R4).
            return Masked(now, stamp) if max(masks) > now else Miss(now, stamp)
        if content is None or (expires_at is not None and expires_at <= now):
            return Miss(now, stamp)
        return Hit(content, validated_at, filled_by, now, stamp, held)


NOTHING: Final = Entry(None)


def words(name: str, kind: str, newest: int | None, whole: bool) -> Command:
    """Returns the command that reads an entry: of a session all of it, its end, or its header."""
    if kind != "session":
        return ("HMGET", name, *_WITH_STATE)  # there are no events
    if whole or newest is None:
        return ("HGETALL", name)
    if newest == 0:
        return ("HMGET", name, *HEADER)
    return ("EVALSHA", script("tail").sha, 1, name, newest, *_WITH_STATE)


def read(reply: Any, newest: int | None, whole: bool) -> Entry:
    """Returns what the reply to `words` says, of the `newest` events. Nonsense is no entry."""
    try:
        if whole:
            reply = _like_a_tail(reply)
        masks, incarnation, revision, nonce, update, at, stamp, all_, before, expires, n, *rest = reply
        if masks:
            return Entry(None, masks=tuple([int(mask.split(b" ", 1)[0]) for mask in masks.splitlines()]))
        if revision is None or None in rest:
            return NOTHING
        tag = Tag(int(incarnation), int(revision), int(nonce), int(update))
        held, complete, oldest = int(n), all_ == b"1", int(before) if before else None
        content = Content(tag, b"", (), complete, oldest)
        if rest:
            state, *parts = rest
            shown = held if newest is None else min(newest, held)
            events = chunks.parse(b"".join(parts), held, shown)
            if shown < held:
                # Nobody has looked up the newest time among those that were not asked for.
                complete, oldest = False, None
            content = Content(tag, state, events, complete, oldest)
        return Entry(content, held, int(at), stamp.decode(), int(expires) if expires else None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return NOTHING


def _like_a_tail(reply: Any) -> list[Any]:
    """Returns the reply to HGETALL, a map in RESP3, in the order of that to lua/tail.lua."""
    parts: Mapping[bytes, Any]
    parts = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
    found = [parts.get(name) for name in _NAMES]
    if b"k0" in parts:
        numbers = range(int(parts[b"k0"]), int(parts[b"k1"]) + 1)
        found += [parts[b"c%d" % number] for number in numbers]
    return found
