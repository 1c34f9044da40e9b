"""The fields of an entry's hash: how a content is written, how a lookup reads a reply.

consistency.md section 4 lists them. All numbers are decimal text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..records import Content, Tag
from . import chunks
from .base import CacheLimits, Hit, Lookup, Masked, Miss

HEADER = ("p", "i", "r", "g", "ut", "va", "sv", "c", "mt", "ex")
"""What a lookup of the header asks for."""
_NAMES = tuple(name.encode() for name in HEADER)


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


def lookup(reply: Any, header_only: bool, now: int, stamp: str) -> Lookup:
    """Returns what the reply to HGETALL, or to HMGET of `HEADER`, says. Nonsense is a miss."""
    try:
        fields = _fields(reply, header_only)
        masks = fields.get(b"p")
        if masks:
            live = any(int(mask.split(b" ", 1)[0]) > now for mask in masks.splitlines())
            # Only expired masks: their writer died and may have committed (R4).
            return Masked(now, stamp) if live else Miss(now, stamp)
        if fields.get(b"r") is None:
            return Miss(now, stamp)
        if fields[b"ex"] and int(fields[b"ex"]) <= now:
            return Miss(now, stamp)
        content = _content(fields, header_only)
        return Hit(content, int(fields[b"va"]), fields[b"sv"].decode(), now, stamp, header_only)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Miss(now, stamp)


def _fields(reply: Any, header_only: bool) -> Mapping[bytes, Any]:
    if header_only:
        return dict(zip(_NAMES, reply, strict=True))
    if isinstance(reply, dict):  # RESP3
        return reply
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _content(fields: Mapping[bytes, bytes], header_only: bool) -> Content:
    name = Tag(int(fields[b"i"]), int(fields[b"r"]), int(fields[b"g"]), int(fields[b"ut"]))
    before = int(fields[b"mt"]) if fields[b"mt"] else None
    complete = fields[b"c"] == b"1"
    if header_only:
        return Content(name, b"", (), complete, before)
    numbers = range(int(fields[b"k0"]), int(fields[b"k1"]) + 1)
    events = chunks.parse(b"".join([fields[b"c%d" % number] for number in numbers])) if numbers else ()
    if len(events) != int(fields[b"n"]):
        raise ValueError("the window is torn")
    return Content(name, fields[b"st"], events, complete, before)
