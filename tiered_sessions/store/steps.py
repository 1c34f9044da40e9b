"""What units of work are made of: statements yielded, replies received, no I/O.

A unit is written once for all databases. A dialect performs it in its shortest way: SQLite in one
hop to its thread, others statement by statement in a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from sqlalchemy.sql.base import Executable

from ..records import Content, EventRecord, Listing, SessionKey, Tag
from .values import to_micros, to_tag, to_time

T = TypeVar("T")
Row = Sequence[Any]
Params = Mapping[str, Any]


class Step(NamedTuple):
    """A statement to execute, once or for each of several parameter sets."""

    statement: Executable
    params: Params | list[Params]


class Reply(NamedTuple):
    """What a statement answered."""

    rows: Sequence[Row]
    rowcount: int


Unit = Generator[Step, Reply, T]


class Duplicate(Exception):
    """A unique index refused a row. Thrown into the unit."""


class Contended(Exception):
    """Another transaction came between; the whole unit is to be run again."""


class Rollback(Exception):
    """Ends a unit whose transaction must not be committed."""

    def __init__(self, outcome: Any) -> None:
        super().__init__()
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Flavour:
    """Where databases differ within a unit.

    Attributes:
        snapshot: A transaction reads one moment, so a load needs no second look.
        rewrites: The database changes documents (JSONB), so they are read back.
        text: Makes the text that is sent of a document.
    """

    snapshot: bool = False
    rewrites: bool = False
    text: Callable[[bytes], str] = bytes.decode


def key_params(key: SessionKey) -> dict[str, Any]:
    """The parameters that name a session."""
    return {"a": key.app_name, "u": key.user_id, "s": key.session_id}


def tag_values(tag: Tag) -> dict[str, Any]:
    """The parameters that set a row's tag."""
    return {
        "v_incarnation": tag.incarnation,
        "v_revision": tag.revision,
        "v_nonce": tag.nonce,
        "v_update_time": to_time(tag.update_time),
    }


def event_record(row: Row) -> EventRecord:
    """Makes a record of (seq, id, timestamp, event_data)."""
    seq, event_id, time, payload = row
    return EventRecord(seq or 0, event_id, to_micros(time), b"null" if payload is None else payload.encode())


def scope_content(row: Row) -> Content:
    """Makes the content of (incarnation, revision, nonce, update_time, state)."""
    return Content(to_tag(*row[:4]), row[4].encode())


def listing(
    app_name: str, rows: Sequence[tuple[str, str, Tag, str]], users: dict[str, Content], app: Content | None
) -> Listing:
    """Makes a list of (user_id, id, tag, state)."""
    user_ids, session_ids, tags, states = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Listing(app_name, user_ids, session_ids, tags, states, users, app)


def session_tag(row: Row, foreign: bool) -> Tag:
    """Makes a session's tag; one that holds events without a number is not adopted."""
    return Tag(0, 0, 0, to_micros(row[3])) if foreign else to_tag(*row[:4])


def first(reply: Reply) -> Row | None:
    """The first row, if there is one."""
    return reply.rows[0] if reply.rows else None
