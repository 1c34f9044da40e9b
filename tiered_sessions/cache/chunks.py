"""The window of an entry: how events become the lines of chunks, and which are left out.

A chunk is up to four lines, one an event; all chunks but the last are full, until trimming has
left one alone. One field an event would cost whoever reads all of them, and an append writes the last
chunk anew: for Redis' Lua texts of more than some kilobytes are dear (docs/performance.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from json.encoder import encode_basestring_ascii
from typing import TypeVar

from ..records import Content, EventRecord

T = TypeVar("T")

CHUNK = 4
"""Events in a full chunk. lua/apply.lua and lua/tail.lua say the same."""


def flat(event: EventRecord) -> EventRecord:
    """Returns `event` with a payload of one line, equal as JSON.

    A raw newline in valid JSON is white space between tokens: inside a string it is escaped.
    """
    if b"\n" in event.payload:
        return event._replace(payload=event.payload.replace(b"\n", b" "))
    return event


def line(event: EventRecord) -> bytes:
    """Returns the line that holds `event`, its newline included."""
    seq, event_id, timestamp, payload = flat(event)
    # What json.dumps ends in, and five times as fast as through it.
    return b"%d\t%d\t%s\t%s\n" % (seq, timestamp, encode_basestring_ascii(event_id).encode(), payload)


def parse(text: bytes, held: int, newest: int) -> tuple[EventRecord, ...]:
    """Returns the `newest` events of a window that has `held`, of which `text` is the last chunks.

    Raises:
        ValueError: `text` was not written by `line`, or has not all of these events.
    """
    lines = text.split(b"\n")
    if lines.pop():
        raise ValueError("a chunk does not end with a newline")
    if len(lines) < newest or (held - len(lines)) % CHUNK:
        raise ValueError("the window is torn")
    events = []
    for each in lines[len(lines) - newest :]:
        seq, timestamp, event_id, payload = each.split(b"\t", 3)
        # Nearly every id is a plain string, and a slice is five times as fast as the parser.
        name = json.loads(event_id) if b"\\" in event_id else event_id[1:-1].decode()
        events.append(EventRecord(int(seq), name, int(timestamp), payload))
    return tuple(events)


def split(events: Sequence[T]) -> tuple[tuple[T, ...], ...]:
    """Returns `events`, or their lines, in full chunks and a last one."""
    return tuple(tuple(events[at : at + CHUNK]) for at in range(0, len(events), CHUNK))


def left_out(complete: bool, before: int | None, events: Iterable[EventRecord]) -> int | None:
    """Returns the greatest timestamp before a window that `events` have just left.

    Unknown stays unknown: what was left out earlier may be younger.
    """
    newest = max(event.timestamp for event in events)
    if complete:
        return newest
    return None if before is None else max(before, newest)


def trim(content: Content, window_events: int, window_bytes: int) -> tuple[Content, list[bytes]]:
    """Returns `content` with only the newest events that fit, payloads of one line; and their lines.

    State and lines together have at most `window_bytes`, unless the state alone has more.
    """
    size, first = len(content.state), len(content.events)
    lines: list[bytes] = []
    while first and len(lines) < window_events:
        newest = line(content.events[first - 1])
        size += len(newest)
        if size > window_bytes:
            break
        lines.append(newest)
        first -= 1
    lines.reverse()
    kept = tuple(map(flat, content.events[first:]))
    if not first:
        return replace(content, events=kept), lines
    before = left_out(content.complete, content.before, content.events[:first])
    return replace(content, events=kept, complete=False, before=before), lines
