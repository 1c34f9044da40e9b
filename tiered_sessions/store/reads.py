"""The units that read."""

from __future__ import annotations

from ..records import Content, EventRecord, Listing, Older, Query, SessionKey, Snapshot, Tag, Tags
from . import statements as sql
from .clock import remaining
from .steps import (
    Contended,
    Flavour,
    Params,
    Step,
    Unit,
    event_record,
    first,
    key_params,
    listing,
    scope_content,
    session_tag,
)
from .values import to_micros, to_tag, to_time


def load(key: SessionKey, query: Query, flavour: Flavour) -> Unit[Snapshot | None]:
    """Reads a session at one moment (R32)."""
    for attempt in range(4):
        if attempt == 3:
            # Changed under every look: hold it still for one.
            yield Step(sql.LOCK_SESSION, key_params(key))
        row = first((yield Step(sql.HEADER, key_params(key))))
        if row is None or tuple(row[:3]) != key:
            return None
        foreign = bool(row[8])
        events, cut = yield from _newest(key, query, foreign, None)
        before = None
        if cut and events and not foreign and query.after is None:
            latest = first((yield Step(sql.LATEST_BEFORE, {**key_params(key), "before": events[0].seq})))
            before = None if latest is None else to_micros(latest[0])
        if not flavour.snapshot:
            again = first((yield Step(sql.SESSION_TAG, key_params(key))))
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
            remaining(*row[22:24]),
        )
    raise Contended


def older(key: SessionKey, before_seq: int, query: Query, flavour: Flavour) -> Unit[Older | None]:
    """Reads the events before a window, with the tag of the same moment."""
    for _ in range(4):
        row = first((yield Step(sql.SESSION_TAG, key_params(key))))
        if row is None or tuple(row[:3]) != key:
            return None
        events, cut = yield from _newest(key, query, False, before_seq)
        if not flavour.snapshot:
            again = first((yield Step(sql.SESSION_TAG, key_params(key))))
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
    params = key_params(key)
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
    for row in (yield Step(sql.TAGS, key_params(key))).rows:
        if wanted[row[0]] == tuple(row[1:4]):
            found[row[0]] = to_tag(*row[4:8])
    return Tags(found.get("session"), found.get("user"), found.get("app"))


def sessions(app_name: str, user_id: str | None) -> Unit[Listing]:
    """Reads sessions without events, and their shared scopes, by one statement."""
    params: Params = {"a": app_name} if user_id is None else {"a": app_name, "u": user_id}
    statement = sql.list_sessions(user_id is not None)
    listed: list[tuple[str, str, Tag, str]] = []
    users: dict[str, Content] = {}
    app: Content | None = None
    rows = (yield Step(statement, params)).rows
    for kind, app_of, user, session, incarnation, revision, nonce, time, state, foreign in rows:
        # Look-alikes are not what was asked for (R34).
        if app_of != app_name or (user_id is not None and user != user_id and kind != "app"):
            continue
        found = Tag(0, 0, 0, to_micros(time)) if foreign else to_tag(incarnation, revision, nonce, time)
        if kind == "session":
            listed.append((user, session, found, state))
        elif kind == "user":
            users[user] = Content(found, state.encode())
        else:
            app = Content(found, state.encode())
    return listing(app_name, listed, users, app)


def count(app_name: str, user_id: str | None) -> Unit[int]:
    """Counts sessions."""
    params: Params = {"a": app_name} if user_id is None else {"a": app_name, "u": user_id}
    return int((yield Step(sql.count_sessions(user_id is not None), params)).rows[0][0])


def is_expired(key: SessionKey) -> Unit[bool]:
    """Says whether the row of a session is there and has expired."""
    row = first((yield Step(sql.EXPIRED_SESSION, key_params(key))))
    return row is not None and tuple(row) == key


def expired(limit: int) -> Unit[list[SessionKey]]:
    """Reads which sessions have expired, the longest expired first."""
    rows = (yield Step(sql.EXPIRED_SESSIONS, {"n": limit})).rows
    return [SessionKey(*row) for row in rows]


def user_state(app_name: str, user_id: str) -> Unit[bytes]:
    """Reads one user's state."""
    row = first((yield Step(sql.USER, {"a": app_name, "u": user_id})))
    return row[6].encode() if row is not None and tuple(row[:2]) == (app_name, user_id) else b"{}"


def namespace() -> Unit[str | None]:
    """Reads the cache namespace."""
    row = first((yield Step(sql.NAMESPACE, {})))
    return None if row is None else str(row[0])
