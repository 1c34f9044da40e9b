"""What a value must look like before it is sent to a database."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from .. import codec
from ..errors import InvalidValueError
from ..records import Append, Create, NewEvent, SessionKey, Tag
from .schema import ID_LENGTH, INVOCATION_ID_LENGTH

_EPOCH: Final = datetime(1970, 1, 1)
_MICROSECOND: Final = timedelta(microseconds=1)
# Short of where a database's calendar ends, however often the time slides.
_LONGEST_TTL: Final = 100 * 365 * 86_400_000
_NOT_ASCII: Final = re.compile("[^\0-\x7f]+")
# Patterns that begin with a word are found faster than words.
_SUSPECT: Final = tuple(re.compile(mark).search for mark in (rb"\\u(?:0000|[dD])", b"NaN", b"Infinity"))


def fresh() -> int:
    """Makes a random positive 64-bit number: an incarnation, a nonce or a stamp."""
    # From the system, as a generator of our own would repeat itself in a copy of this process.
    return int.from_bytes(os.urandom(8)) >> 1 or 1


@lru_cache(1024)  # A write's time is that of its event, and of the tag that the next write expects.
def to_time(micros: int) -> datetime:
    """Turns microseconds since 1970 into the naive UTC time that the columns hold."""
    try:
        return _EPOCH + timedelta(microseconds=micros)
    except OverflowError as error:
        raise InvalidValueError("The time is outside the years 1 to 9999; nothing was written") from error


def to_micros(time: datetime | str) -> int:
    """Turns a column's time into microseconds since 1970. SQLite hands out text."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    if time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    return (time - _EPOCH) // _MICROSECOND


def to_tag(incarnation: int | None, revision: int | None, nonce: int | None, time: datetime | str) -> Tag:
    """Makes the tag of a row; a row without our columns has no incarnation."""
    if incarnation is None or revision is None or nonce is None:
        return Tag(0, 0, 0, to_micros(time))
    return Tag(incarnation, revision, nonce, to_micros(time))


def readable(*ids: str) -> bool:
    """Says whether any row can have these ids: a database may refuse even to look for others."""
    try:
        _check_ids(*[("id", text, ID_LENGTH) for text in ids])
    except InvalidValueError:
        return False
    return True


def check_append(append: Append) -> None:
    """Refuses what no database can store.

    Raises:
        InvalidValueError: Names the field and the limit.
    """
    _check_key(append.key)
    to_time(append.update_time)
    for event in append.events:
        _check_ids(
            ("event id", event.id, ID_LENGTH),
            ("invocation_id", event.invocation_id, INVOCATION_ID_LENGTH),
        )
        to_time(event.timestamp)


def check_create(create: Create) -> None:
    """Refuses what no database can store, as `check_append` does."""
    _check_key(create.key)
    to_time(create.update_time)
    if create.sliding and create.ttl is None:
        raise InvalidValueError("sliding says what becomes of a ttl, and there is none")
    if create.ttl is not None and not 0 < create.ttl <= _LONGEST_TTL:
        raise InvalidValueError(f"ttl must be from 1 ms to 100 years, not {create.ttl / 1000} s")


def _check_key(key: SessionKey) -> None:
    app_name, user_id, session_id = key
    _check_ids(
        ("app_name", app_name, ID_LENGTH),
        ("user_id", user_id, ID_LENGTH),
        ("session_id", session_id, ID_LENGTH),
    )


def _check_ids(*fields: tuple[str, str, int]) -> None:
    for field, text, limit in fields:
        if len(text) > limit:
            raise InvalidValueError(f"{field} has {len(text)} characters; the column holds {limit}")
        if "\0" in text:
            raise InvalidValueError(f"{field} contains a NUL character, which PostgreSQL cannot store")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidValueError(f"{field} contains a lone surrogate, which is not Unicode text")


def check_documents(write: Append | Create) -> None:
    """Refuses what PostgreSQL's JSONB refuses in any JSON document of a write, as `check_jsonb` does."""
    if isinstance(write, Create):
        check_jsonb("state", write.state)
    else:
        for event in write.events:
            check_jsonb(f"event {event.id!r}", event.payload)
        if write.session_delta is not None:
            check_jsonb("session state", write.session_delta)
    if write.user_delta is not None:
        check_jsonb("user state", write.user_delta)
    if write.app_delta is not None:
        check_jsonb("app state", write.app_delta)


def check_jsonb(name: str, document: bytes) -> None:
    """Refuses what PostgreSQL's JSONB refuses.

    Raises:
        InvalidValueError: The document holds a NUL, a lone surrogate, NaN or an infinity.
    """
    for search in _SUSPECT:
        if search(document):
            break
    else:
        return
    try:
        value = json.loads(document, parse_constant=_refuse_constant)
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidValueError(f"The {name} holds a lone surrogate, which JSONB cannot store") from error
    except _NotANumber as error:
        raise InvalidValueError(f"The {name} holds {error}, which JSONB cannot store") from error
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(f"The {name} is not JSON that PostgreSQL can store") from error
    # json.dumps writes a NUL as an escape; "\\u0000" behind an even number of backslashes is one.
    if _holds_nul(value):
        raise InvalidValueError(f"The {name} holds a NUL character, which JSONB cannot store")


class _NotANumber(Exception):
    pass


def _refuse_constant(name: str) -> None:
    raise _NotANumber(name)


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _holds_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_holds_nul, value))


def ascii_json(document: bytes) -> str:
    """Writes a document in ASCII, so that a column of any character set can hold it."""
    if document.isascii():
        return document.decode()
    return _NOT_ASCII.sub(lambda run: json.dumps(run[0])[1:-1], document.decode())


def merged(state: str | bytes, delta: bytes) -> bytes:
    """Merges a delta into a state key by key; a stored state that is no object counts as empty."""
    try:
        value = codec.loads(state)
    except ValueError as error:
        raise InvalidValueError("The stored state is not JSON; nothing was written") from error
    if not isinstance(value, dict):
        value = {}
    value.update(codec.loads(delta))
    return codec.dumps(value)


def distinct(events: tuple[NewEvent, ...]) -> tuple[NewEvent, ...] | str:
    """Drops repetitions of an event; answers the id if two events of one id differ."""
    seen: dict[str, NewEvent] = {}
    for event in events:
        first = seen.setdefault(event.id, event)
        if first is not event and not codec.same_json(first.payload, event.payload):
            return event.id
    return tuple(seen.values())
