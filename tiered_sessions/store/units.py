"""Units of work without I/O: each yields statements, receives their replies, returns an outcome.

Written once for all databases. A dialect performs a unit in its shortest way: SQLite in one hop
to its thread, others statement by statement in a transaction.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from sqlalchemy.sql.base import Executable

from .. import codec
from ..errors import InvalidValueError
from ..records import (
    Already,
    Append,
    AppendOutcome,
    Committed,
    Conflict,
    Content,
    Create,
    CreateOutcome,
    EventRecord,
    Exists,
    Failed,
    Missing,
    NewEvent,
    Older,
    OutboxRow,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
    Tags,
)
from . import statements as sql
from .numbering import order_foreign
from .values import fresh, merged, to_micros, to_tag, to_time

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
        ascii: Documents are sent in ASCII.
    """

    snapshot: bool = False
    rewrites: bool = False
    text: Any = bytes.decode


def _key(key: SessionKey) -> dict[str, Any]:
    return {"a": key.app_name, "u": key.user_id, "s": key.session_id}


def event_record(row: Row) -> EventRecord:
    """Makes a record of (seq, id, timestamp, event_data)."""
    seq, event_id, time, payload = row
    return EventRecord(seq or 0, event_id, to_micros(time), b"null" if payload is None else payload.encode())


def scope_content(row: Row) -> Content:
    """Makes the content of (incarnation, revision, nonce, update_time, state)."""
    return Content(to_tag(*row[:4]), row[4].encode())


def session_tag(row: Row, foreign: bool) -> Tag:
    """Makes a session's tag; one that holds events without a number is not adopted."""
    return Tag(0, 0, 0, to_micros(row[3])) if foreign else to_tag(*row[:4])


# --- reads -----------------------------------------------------------------------------------


def load(key: SessionKey, query: Query, flavour: Flavour) -> Unit[Snapshot | None]:
    """Reads a session at one moment (R32)."""
    for attempt in range(4):
        if attempt == 3:
            # Changed under every look: hold it still for one.
            yield Step(sql.LOCK_SESSION, _key(key))
        row = _first((yield Step(sql.HEADER, _key(key))))
        if row is None or tuple(row[:3]) != key:
            return None
        foreign = bool(row[8])
        events, cut = yield from _newest(key, query, foreign, None)
        before = None
        if cut and events and not foreign and query.after is None:
            latest = _first((yield Step(sql.LATEST_BEFORE, {**_key(key), "before": events[0].seq})))
            before = None if latest is None else to_micros(latest[0])
        if not flavour.snapshot:
            again = _first((yield Step(sql.SESSION_TAG, _key(key))))
            if again is None or tuple(again[3:8]) != (*row[3:7], row[8]):
                continue
        user = row[9:16]
        app = row[16:22]
        return Snapshot(
            key,
            Content(
                session_tag(row[3:], foreign),
                row[7].encode(),
                events,
                complete=not cut and query.after is None,
                before=before,
            ),
            scope_content(user[2:]) if tuple(user[:2]) == key[:2] else None,
            scope_content(app[1:]) if app[0] == key.app_name else None,
        )
    raise Contended


def older(key: SessionKey, before_seq: int, query: Query, flavour: Flavour) -> Unit[Older | None]:
    """Reads the events before a window, with the tag of the same moment."""
    for _ in range(4):
        row = _first((yield Step(sql.SESSION_TAG, _key(key))))
        if row is None or tuple(row[:3]) != key:
            return None
        events, cut = yield from _newest(key, query, False, before_seq)
        if not flavour.snapshot:
            again = _first((yield Step(sql.SESSION_TAG, _key(key))))
            if again is None or tuple(again) != tuple(row):
                continue
        return Older(session_tag(row[3:], bool(row[7])), events, not cut and query.after is None)
    raise Contended


def _newest(
    key: SessionKey, query: Query, foreign: bool, before_seq: int | None
) -> Unit[tuple[tuple[EventRecord, ...], bool]]:
    """Reads the events a query asks for, oldest first, and whether its limit cut older ones off."""
    if query.limit == 0:
        return (), True
    params = _key(key)
    if query.limit is not None:
        params["n"] = query.limit + 1
    if query.after is not None:
        params["after"] = to_time(query.after)
    if before_seq is not None:
        params["before"] = before_seq
    statement = sql.newest_events(
        limited=query.limit is not None,
        after=query.after is not None,
        before_seq=before_seq is not None,
        foreign=foreign,
    )
    rows = (yield Step(statement, params)).rows
    cut = query.limit is not None and len(rows) > query.limit
    return tuple(map(event_record, reversed(rows[:-1] if cut else rows))), cut


def tags(key: SessionKey) -> Unit[Tags]:
    """Reads the tags of the three scopes by one statement."""
    found: dict[str, Tag] = {}
    wanted: dict[str, tuple[str, ...]] = {
        "session": tuple(key),
        "user": (key.app_name, key.user_id, ""),
        "app": (key.app_name, "", ""),
    }
    for row in (yield Step(sql.TAGS, _key(key))).rows:
        if wanted[row[0]] == tuple(row[1:4]):
            found[row[0]] = to_tag(*row[4:8])
    return Tags(found.get("session"), found.get("user"), found.get("app"))


def sessions(app_name: str, user_id: str | None) -> Unit[list[Snapshot]]:
    """Reads sessions without events."""
    params: Params = {"a": app_name} if user_id is None else {"a": app_name, "u": user_id}
    rows = (yield Step(sql.list_sessions(user_id is not None), params)).rows
    if not rows:
        return []
    users = (yield Step(sql.USERS_OF_APP if user_id is None else sql.USER, params)).rows
    app_row = _first((yield Step(sql.APP, {"a": app_name})))
    app = scope_content(app_row[1:]) if app_row is not None and app_row[0] == app_name else None
    contents = {row[1]: scope_content(row[2:]) for row in users if row[0] == app_name}
    return [
        Snapshot(
            SessionKey(*row[:3]),
            Content(session_tag(row[3:], bool(row[8])), row[7].encode(), complete=False),
            contents.get(row[1]),
            app,
        )
        for row in rows
        if row[0] == app_name and user_id in (None, row[1])
    ]


def count(app_name: str, user_id: str | None) -> Unit[int]:
    """Counts sessions."""
    params: Params = {"a": app_name} if user_id is None else {"a": app_name, "u": user_id}
    return int((yield Step(sql.count_sessions(user_id is not None), params)).rows[0][0])


def user_state(app_name: str, user_id: str) -> Unit[bytes]:
    """Reads one user's state."""
    row = _first((yield Step(sql.USER, {"a": app_name, "u": user_id})))
    return row[6].encode() if row is not None and tuple(row[:2]) == (app_name, user_id) else b"{}"


def namespace() -> Unit[str | None]:
    """Reads the cache namespace."""
    row = _first((yield Step(sql.NAMESPACE, {})))
    return None if row is None else str(row[0])


# --- append ----------------------------------------------------------------------------------


def append(write: Append, outbox: Sequence[ScopeKey], flavour: Flavour) -> Unit[AppendOutcome]:
    """Stores an append under the session's row lock, numbering foreign events first."""
    key = _key(write.key)
    row = _first((yield Step(sql.LOCK_SESSION, key)))
    if row is None or tuple(row[:3]) != write.key:
        raise Rollback(Missing())
    foreign = (yield Step(sql.FOREIGN_EVENTS, key)).rows
    current = session_tag(row[3:], bool(foreign))
    if write.expected is not None and write.expected != current:
        raise Rollback((yield from _settled(write, current)))
    incarnation, revision, nonce = row[3:6]
    adopted = revision is not None
    start = yield from _number(key, foreign, revision or 0, adopted)
    tag = Tag(
        incarnation if adopted else fresh(), start + max(len(write.events), 1), fresh(), write.update_time
    )
    values = {**key, "old_revision": revision, "old_nonce": nonce, **_tag_values(tag)}
    state = None
    if write.session_delta is not None:
        state = write.session_delta if write.replace_state else merged(row[7], write.session_delta)
        values["v_state"] = flavour.text(state)
    moved = yield Step(sql.update_session(adopted=adopted, state=state is not None), values)
    if moved.rowcount == 0:
        raise Contended
    records = yield from _insert_events(write, start, flavour)
    app = user = None
    if write.app_delta is not None:
        app = yield from _merge_scope(write.key.app, write.app_delta, write.update_time, flavour)
    if write.user_delta is not None:
        user = yield from _merge_scope(write.key.user, write.user_delta, write.update_time, flavour)
    contents = {"session": tag, "user": user and user.tag, "app": app and app.tag}
    yield from _record(outbox, contents)
    if flavour.rewrites and state is not None:
        state = (yield Step(sql.LOCK_SESSION, key)).rows[0][7].encode()
    return Committed(tag, records, state, user, app, numbered=bool(foreign) or not adopted)


def settle(write: Append) -> Unit[AppendOutcome | None]:
    """Says what became of an append that wrote nothing; None: it may be tried again."""
    row = _first((yield Step(sql.SESSION_TAG, _key(write.key))))
    if row is None or tuple(row[:3]) != write.key:
        return Missing()
    current = session_tag(row[3:], bool(row[7]))
    outcome = yield from _settled(write, current)
    return None if isinstance(outcome, Stale) and write.expected in (None, current) else outcome


def _settled(write: Append, current: Tag) -> Unit[AppendOutcome]:
    stored: dict[str, tuple[int, bytes]] = {}
    for event in write.events:
        row = _first((yield Step(sql.EVENT, {**_key(write.key), "event_id": event.id})))
        if row is not None:
            # Under a case-insensitive collation the row may be another event's: then its id differs.
            stored[event.id] = (row[0] or 0, row[3].encode() if row[1] == event.id and row[3] else b"null")
    return verdict(write.events, stored, current)


def verdict(
    events: tuple[NewEvent, ...], stored: Mapping[str, tuple[int, bytes]], current: Tag
) -> AppendOutcome:
    """Judges an append that wrote nothing by what is stored under its event ids: id first (R22)."""
    for event in events:
        if event.id in stored and not codec.same_json(stored[event.id][1], event.payload):
            return Conflict(event.id)
    if not stored:
        return Stale(current)
    if len(stored) < len(events):
        return Conflict(next(event.id for event in events if event.id in stored))
    last = max(seq for seq, _ in stored.values())
    return Already(current, latest=current.adopted and current.revision == last)


def _number(key: Params, foreign: Sequence[Row], revision: int, adopted: bool) -> Unit[int]:
    """Numbers events of other programs after all numbered ones; answers the last number."""
    if adopted and not foreign:
        return revision
    greatest = (yield Step(sql.GREATEST_SEQ, key)).rows[0][0] or 0
    start = max(revision, int(greatest))
    ordered = order_foreign(map(event_record, foreign))
    if ordered:
        numbered: list[Params] = [
            {**key, "event_id": event_id, "v_seq": start + number}
            for number, event_id in enumerate(ordered, 1)
        ]
        yield Step(sql.NUMBER_EVENT, numbered)
    return start + len(ordered)


def _insert_events(write: Append, start: int, flavour: Flavour) -> Unit[tuple[EventRecord, ...]]:
    rows: list[Params] = [
        {
            "v_app_name": write.key.app_name,
            "v_user_id": write.key.user_id,
            "v_session_id": write.key.session_id,
            "v_id": event.id,
            "v_invocation_id": event.invocation_id,
            "v_timestamp": to_time(event.timestamp),
            "v_event_data": flavour.text(event.payload),
            "v_seq": start + number,
        }
        for number, event in enumerate(write.events, 1)
    ]
    if rows:
        yield Step(sql.INSERT_EVENT, rows)
    if not flavour.rewrites:
        return records(write, start)
    stored = []
    for event in write.events:
        found = yield Step(sql.EVENT, {**_key(write.key), "event_id": event.id})
        stored.append(event_record(found.rows[0]))
    return tuple(stored)


def records(write: Append, start: int) -> tuple[EventRecord, ...]:
    """Makes the records of an append's events, numbered from `start` + 1."""
    return tuple(
        EventRecord(start + number, event.id, event.timestamp, event.payload)
        for number, event in enumerate(write.events, 1)
    )


# --- shared scopes and the outbox ------------------------------------------------------------


def _merge_scope(scope: ScopeKey, delta: bytes | None, update_time: int, flavour: Flavour) -> Unit[Content]:
    """Merges a delta into a shared scope's row, or makes the row. None only makes it."""
    of_user = scope.kind == "user"
    key = {"a": scope.app_name, "u": scope.user_id}
    if delta is None:
        read = sql.USER if of_user else sql.APP
    else:
        read = sql.LOCK_USER if of_user else sql.LOCK_APP
    row = _first((yield Step(read, key)))
    ids = (scope.app_name, scope.user_id) if of_user else (scope.app_name,)
    if row is None:
        state = delta or b"{}"
        tag = Tag(fresh(), 0, fresh(), update_time)
        values = {"v_app_name": scope.app_name, "v_user_id": scope.user_id}
        values |= {**_tag_values(tag), "v_state": flavour.text(state)}
        if not of_user:
            del values["v_user_id"]
        try:
            yield Step(sql.INSERT_USER if of_user else sql.INSERT_APP, values)
        except Duplicate as error:
            raise Contended from error
    elif tuple(row[: len(ids)]) != ids:
        raise Rollback(
            Failed(InvalidValueError(f"The {scope.kind} of these ids differs from a stored one only in case"))
        )
    elif delta is None:
        return scope_content(row[len(ids) :])
    else:
        incarnation, revision = row[len(ids) : len(ids) + 2]
        state = merged(row[-1], delta)
        tag = Tag(incarnation or fresh(), 0 if revision is None else revision + 1, fresh(), update_time)
        values = {**key, **_tag_values(tag), "v_state": flavour.text(state)}
        yield Step(sql.UPDATE_USER if of_user else sql.UPDATE_APP, values)
    if flavour.rewrites:
        state = (yield Step(read, key)).rows[0][-1].encode()
    return Content(tag, state)


def _tag_values(tag: Tag) -> dict[str, Any]:
    return {
        "v_incarnation": tag.incarnation,
        "v_revision": tag.revision,
        "v_nonce": tag.nonce,
        "v_update_time": to_time(tag.update_time),
    }


def _record(outbox: Sequence[ScopeKey], tags: Mapping[str, Tag | None]) -> Unit[None]:
    """Records invalidations, each under a fresh stamp."""
    for scope in outbox:
        tag = tags.get(scope.kind)
        values: dict[str, Any] = dict.fromkeys(("v_incarnation", "v_revision", "v_nonce", "v_update_time"))
        if tag is not None:
            values = {**_tag_values(tag), "v_update_time": tag.update_time}
        values["v_stamp"] = fresh()
        key = {"scope": scope.kind, "a": scope.app_name, "u": scope.user_id, "s": scope.session_id}
        if (yield Step(sql.UPDATE_OUTBOX, {**key, **values})).rowcount == 0:
            values |= {"v_kind": scope.kind, "v_app_name": scope.app_name}
            values |= {"v_user_id": scope.user_id, "v_session_id": scope.session_id}
            try:
                yield Step(sql.INSERT_OUTBOX, values)
            except Duplicate as error:
                raise Contended from error


# --- create, delete, outbox ------------------------------------------------------------------


def create(write: Create, outbox: Sequence[ScopeKey], flavour: Flavour) -> Unit[CreateOutcome]:
    """Inserts a session, then the rows of its shared scopes where they are missing."""
    key = write.key
    tag = Tag(fresh(), 0, fresh(), write.update_time)
    values = {
        **_tag_values(tag),
        "v_app_name": key.app_name,
        "v_user_id": key.user_id,
        "v_id": key.session_id,
        "v_state": flavour.text(write.state),
        "v_create_time": to_time(write.update_time),
        "v_expires_at": None,
    }
    try:
        yield Step(sql.INSERT_SESSION, values)
    except Duplicate as error:
        raise Rollback(Exists()) from error
    app = yield from _merge_scope(key.app, write.app_delta, write.update_time, flavour)
    user = yield from _merge_scope(key.user, write.user_delta, write.update_time, flavour)
    yield from _record(outbox, {"session": tag, "user": user.tag, "app": app.tag})
    state = write.state
    if flavour.rewrites:
        state = (yield Step(sql.HEADER, _key(key))).rows[0][7].encode()
    return Snapshot(key, Content(tag, state), user, app)


def delete(key: SessionKey, outbox: Sequence[ScopeKey]) -> Unit[bool]:
    """Deletes a session and its events, whether or not the database cascades."""
    row = _first((yield Step(sql.LOCK_SESSION, _key(key))))
    found = row is not None and tuple(row[:3]) == key
    if found:
        yield Step(sql.DELETE_EVENTS, _key(key))
        yield Step(sql.DELETE_SESSION, _key(key))
    yield from _record(outbox, {})
    return found


def outbox_rows(limit: int) -> Unit[list[OutboxRow]]:
    """Reads recorded invalidations."""
    rows = (yield Step(sql.OUTBOX, {"n": limit})).rows
    return [
        OutboxRow(ScopeKey(*row[:4]), None if row[7] is None else Tag(row[4], row[5], row[6], row[7]), row[8])
        for row in rows
    ]


def outbox_done(rows: Sequence[OutboxRow]) -> Unit[None]:
    """Deletes recorded invalidations that nobody renewed since."""
    done: list[Params] = [
        {
            "scope": row.scope.kind,
            "a": row.scope.app_name,
            "u": row.scope.user_id,
            "s": row.scope.session_id,
            "seen": row.stamp,
        }
        for row in rows
    ]
    if done:
        yield Step(sql.DELETE_OUTBOX, done)


def _first(reply: Reply) -> Row | None:
    return reply.rows[0] if reply.rows else None
