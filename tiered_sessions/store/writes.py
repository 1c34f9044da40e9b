"""The units that write: append, create, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    ScopeKey,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
)
from . import statements as sql
from .clock import after, remaining
from .numbering import order_foreign
from .outbox import record
from .steps import (
    Contended,
    Duplicate,
    Flavour,
    Params,
    Rollback,
    Row,
    Step,
    Unit,
    event_record,
    first,
    key_params,
    scope_content,
    session_tag,
    tag_values,
)
from .values import fresh, merged, to_time


def append(write: Append, outbox: Sequence[ScopeKey], flavour: Flavour) -> Unit[AppendOutcome]:
    """Stores an append under the session's row lock, numbering foreign events first."""
    key = key_params(write.key)
    row = first((yield Step(sql.LOCK_SESSION, key)))
    if row is None or tuple(row[:3]) != write.key or _expired(row):
        raise Rollback(Missing())
    foreign = (yield Step(sql.FOREIGN_EVENTS, key)).rows
    current = session_tag(row[3:], bool(foreign))
    if write.expected is not None and write.expected != current:
        raise Rollback(verdict(write.events, (yield from _stored(write)), current))
    incarnation, revision, nonce = row[3:6]
    adopted = revision is not None
    start = yield from _number(key, foreign, revision or 0, adopted)
    tag = Tag(
        incarnation if adopted else fresh(), start + max(len(write.events), 1), fresh(), write.update_time
    )
    values = {**key, "old_revision": revision, "old_nonce": nonce, **tag_values(tag)}
    state = None
    if write.session_delta is not None:
        state = write.session_delta if write.replace_state else merged(row[7], write.session_delta)
        values["v_state"] = flavour.text(state)
    ttl = row[10]
    if ttl is not None:
        values["v_expires_at"] = after(row[9], ttl)
    statement = sql.update_session(adopted=adopted, state=state is not None, sliding=ttl is not None)
    moved = yield Step(statement, values)
    if moved.rowcount == 0:
        raise Contended
    records = yield from _insert_events(write, start, flavour)
    app = user = None
    if write.app_delta is not None:
        app = yield from _merge_scope(write.key.app, write.app_delta, write.update_time, flavour)
    elif not adopted:
        yield from _adopt_scope(write.key.app)
    if write.user_delta is None:
        if not adopted:
            yield from _adopt_scope(write.key.user)
    else:
        user = yield from _merge_scope(write.key.user, write.user_delta, write.update_time, flavour)
    made = {"session": tag, "user": user.tag if user else None, "app": app.tag if app else None}
    yield from record(outbox, made)
    if flavour.rewrites and state is not None:
        state = (yield Step(sql.LOCK_SESSION, key)).rows[0][7].encode()
    return Committed(tag, records, state, user, app, bool(foreign) or not adopted, ttl)


def settle(write: Append) -> Unit[AppendOutcome | None]:
    """Says what became of an append that wrote nothing; None: it may be tried again."""
    row = first((yield Step(sql.SESSION_TAG, key_params(write.key))))
    if row is None or tuple(row[:3]) != write.key:
        return Missing()
    current = session_tag(row[3:], bool(row[7]))
    return settled(write, (yield from _stored(write)), current)


def settled(write: Append, stored: Mapping[str, tuple[int, bytes]], current: Tag) -> AppendOutcome | None:
    """Judges an append that wrote nothing, as `verdict` does; None: it may be tried again."""
    outcome = verdict(write.events, stored, current)
    return None if isinstance(outcome, Stale) and write.expected in (None, current) else outcome


def _stored(write: Append) -> Unit[dict[str, tuple[int, bytes]]]:
    stored: dict[str, tuple[int, bytes]] = {}
    for event in write.events:
        row = first((yield Step(sql.EVENT, {**key_params(write.key), "event_id": event.id})))
        if row is not None:
            # Under a case-insensitive collation the row may be another event's: then its id differs.
            stored[event.id] = (row[0] or 0, row[3].encode() if row[1] == event.id and row[3] else b"null")
    return stored


def verdict(
    events: tuple[NewEvent, ...], stored: Mapping[str, tuple[int, bytes]], current: Tag
) -> AppendOutcome:
    """Judges an append that wrote nothing by what is stored under its event ids: id first (R22)."""
    for event in events:
        if event.id in stored and not _same(stored[event.id][1], event.payload):
            return Conflict(event.id)
    if not stored:
        return Stale(current)
    if len(stored) < len(events):
        return Conflict(next(event.id for event in events if event.id in stored))
    last = max(seq for seq, _ in stored.values())
    return Already(current, latest=current.adopted and current.revision == last)


def _same(stored: bytes, sent: bytes) -> bool:
    try:
        return codec.same_json(stored, sent)
    except ValueError:
        # Another program stored what is not JSON: certainly not this event.
        return False


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
        found = yield Step(sql.EVENT, {**key_params(write.key), "event_id": event.id})
        stored.append(event_record(found.rows[0]))
    return tuple(stored)


def records(write: Append, start: int) -> tuple[EventRecord, ...]:
    """Makes the records of an append's events, numbered from `start` + 1."""
    made = []
    for event in write.events:
        start += 1
        made.append(EventRecord(start, event.id, event.timestamp, event.payload))
    return tuple(made)


# --- shared scopes ------------------------------------------------------------


def _merge_scope(scope: ScopeKey, delta: bytes | None, update_time: int, flavour: Flavour) -> Unit[Content]:
    """Merges a delta into a shared scope's row, or makes the row. None only makes it."""
    of_user = scope.kind == "user"
    key = {"a": scope.app_name, "u": scope.user_id}
    plain, locked = (sql.USER, sql.LOCK_USER) if of_user else (sql.APP, sql.LOCK_APP)
    read = plain if delta is None else locked
    row = first((yield Step(read, key)))
    ids = (scope.app_name, scope.user_id) if of_user else (scope.app_name,)
    if row is None:
        state = delta or b"{}"
        tag = Tag(fresh(), 0, fresh(), update_time)
        values = {"v_app_name": scope.app_name, "v_user_id": scope.user_id}
        values |= {**tag_values(tag), "v_state": flavour.text(state)}
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
        if row[len(ids)] is None:
            yield from _adopt_scope(scope)
            row = (yield Step(read, key)).rows[0]
        return scope_content(row[len(ids) :])
    else:
        incarnation, revision = row[len(ids) : len(ids) + 2]
        state = merged(row[-1], delta)
        tag = Tag(incarnation or fresh(), 0 if revision is None else revision + 1, fresh(), update_time)
        values = {**key, **tag_values(tag), "v_state": flavour.text(state)}
        yield Step(sql.UPDATE_USER if of_user else sql.UPDATE_APP, values)
    if flavour.rewrites:
        state = (yield Step(read, key)).rows[0][-1].encode()
    return Content(tag, state)


def _adopt_scope(scope: ScopeKey) -> Unit[None]:
    """Gives stock ADK's row of a shared scope a tag. It has no entry yet, so no mask is needed."""
    tag = {"v_incarnation": fresh(), "v_revision": 0, "v_nonce": fresh()}
    if scope.kind == "user":
        yield Step(sql.ADOPT_USER, {"a": scope.app_name, "u": scope.user_id, **tag})
    else:
        yield Step(sql.ADOPT_APP, {"a": scope.app_name, **tag})


# --- create and delete ------------------------------------------------------------------


def create(write: Create, outbox: Sequence[ScopeKey], flavour: Flavour) -> Unit[CreateOutcome]:
    """Inserts a session, then the rows of its shared scopes where they are missing."""
    key = write.key
    if write.replace_expired:
        yield from _remove(key, only_expired=True)
    expires_at = None
    if write.ttl is not None:
        expires_at = after((yield Step(sql.NOW, {})).rows[0][0], write.ttl)
    tag = Tag(fresh(), 0, fresh(), write.update_time)
    values = {
        **tag_values(tag),
        "v_app_name": key.app_name,
        "v_user_id": key.user_id,
        "v_id": key.session_id,
        "v_state": flavour.text(write.state),
        "v_create_time": to_time(write.update_time),
        "v_expires_at": expires_at,
        "v_sliding_ttl": write.ttl if write.sliding else None,
    }
    try:
        yield Step(sql.INSERT_SESSION, values)
    except Duplicate as error:
        raise Rollback(Exists()) from error
    app = yield from _merge_scope(key.app, write.app_delta, write.update_time, flavour)
    user = yield from _merge_scope(key.user, write.user_delta, write.update_time, flavour)
    yield from record(outbox, {"session": tag, "user": user.tag, "app": app.tag})
    state = write.state
    if flavour.rewrites:
        state = (yield Step(sql.LOCK_SESSION, key_params(key))).rows[0][7].encode()
    return Snapshot(key, Content(tag, state), user, app, write.ttl)


def delete(key: SessionKey, outbox: Sequence[ScopeKey], *, only_expired: bool) -> Unit[bool]:
    """Deletes a session and its events, whether or not the database cascades."""
    found = yield from _remove(key, only_expired)
    yield from record(outbox, {})
    return found


def _remove(key: SessionKey, only_expired: bool) -> Unit[bool]:
    row = first((yield Step(sql.LOCK_SESSION, key_params(key))))
    if row is None or tuple(row[:3]) != key or (only_expired and not _expired(row)):
        return False
    yield Step(sql.DELETE_EVENTS, key_params(key))
    statement = sql.DELETE_EXPIRED_SESSION if only_expired else sql.DELETE_SESSION
    if (yield Step(statement, key_params(key))).rowcount == 0:
        raise Contended
    return True


def _expired(locked: Row) -> bool:
    left = remaining(*locked[8:10])
    return left is not None and left <= 0
