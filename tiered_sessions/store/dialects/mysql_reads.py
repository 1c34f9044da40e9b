"""MariaDB's and MySQL's statements that read: rows of several kinds under one SELECT, so of one moment.

Few columns, and times as numbers: the drivers are written in Python and pay for every value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import TextClause, text

from ...records import Content, EventRecord, Listing, Older, Query, SessionKey, Snapshot, Tag
from ..clock import MYSQL_NOW
from ..steps import Params, Row, Step, Unit, key_params, listing
from ..values import to_time

ALIVE: Final = f"(expires_at IS NULL OR expires_at > {MYSQL_NOW})"
_KEY: Final = "app_name = :a AND user_id = :u AND session_id = :s"
_EPOCH: Final = "TIMESTAMP'1970-01-01 00:00:00'"
_SESSION, _USER, _APP, _FOREIGN, _SOME_FOREIGN, _BEFORE = "s", "u", "a", "f", "g", "b"
# A part of a union loses its order without a LIMIT.
_NO_LIMIT: Final = "18446744073709551615"


def same_bytes(column: str, parameter: str) -> str:
    """In tables with a case-insensitive collation "=" alone finds look-alikes (R34)."""
    ours, theirs = (f"CAST(CONVERT({side} USING utf8mb4) AS BINARY)" for side in (column, parameter))
    return f"{ours} = {theirs}"


class Window(NamedTuple):
    """Which events a statement reads: any, only the newest, from a time on, before a number."""

    some: bool
    limited: bool
    after: bool
    older: bool


def load(key: SessionKey, query: Query) -> Unit[Snapshot | None]:
    """Reads a session, its window and its shared scopes."""
    window = _window(query, older=False)
    rows = (yield Step(_load(window), _params(key, query))).rows
    parts = {row[0]: row for row in rows if row[0] is not None}
    session = parts.get(_SESSION)
    if session is None:
        return None
    foreign = _FOREIGN in parts or _SOME_FOREIGN in parts
    events, cut = _oldest_first(rows, query)
    before = parts.get(_BEFORE)
    return Snapshot(
        key,
        Content(
            _tag(session, foreign),
            session[4].encode(),
            events,
            complete=not cut and query.after is None,
            before=None if before is None or foreign else before[3],
        ),
        _scope(parts.get(_USER)),
        _scope(parts.get(_APP)),
        session[7],
    )


def older(key: SessionKey, before_seq: int, query: Query) -> Unit[Older | None]:
    """Reads the events before a window, with the tag."""
    params = {**_params(key, query), "before": before_seq}
    rows = (yield Step(_older(_window(query, older=True)), params)).rows
    parts = {row[0]: row for row in rows if row[0] is not None}
    session = parts.get(_SESSION)
    if session is None:
        return None
    events, cut = _oldest_first(rows, query)
    return Older(_tag(session, _SOME_FOREIGN in parts), events, complete=not cut and query.after is None)


def sessions(app_name: str, user_id: str | None) -> Unit[Listing]:
    """Reads sessions without events, and their shared scopes."""
    params: Params = {"a": app_name} if user_id is None else {"a": app_name, "u": user_id}
    listed: list[tuple[str, str, Tag, str]] = []
    users: dict[str, Content] = {}
    app: Content | None = None
    for numbers, user, session, state in (yield Step(_list(user_id is not None), params)).rows:
        tag = tag_of(numbers)
        if session is not None:
            listed.append((user, session, tag, state))
        elif user is not None:
            users[user] = Content(tag, state.encode())
        else:
            app = Content(tag, state.encode())
    # Sorted here, as a union leaves no order to its parts.
    listed.sort(key=lambda row: (row[2].update_time, row[0], row[1]))
    return listing(app_name, listed, users, app)


def _window(query: Query, *, older: bool) -> Window:
    some = query.limit != 0
    return Window(some, some and query.limit is not None, some and query.after is not None, older)


def _params(key: SessionKey, query: Query) -> dict[str, Any]:
    params = key_params(key)
    if query.limit:
        # The count of rows, and where the first row beyond them is.
        params |= {"n": query.limit + 1, "skip": query.limit}
    if query.after is not None:
        params["after"] = to_time(query.after)
    return params


def _oldest_first(rows: Sequence[Row], query: Query) -> tuple[tuple[EventRecord, ...], bool]:
    """Returns the events a query asks for, and whether its limit cut older ones off."""
    if query.limit == 0:
        return (), True
    # A union delivers its parts in their order; numbers are not left to that. Last, in stock's order,
    # come events of other programs.
    numbered = sorted((_event(row) for row in rows if row[0] is None), reverse=True)
    newest = [_event(row) for row in rows if row[0] == _FOREIGN] + numbered
    cut = query.limit is not None and len(newest) > query.limit
    if cut:
        del newest[query.limit :]
    newest.reverse()
    return tuple(newest), cut


def _event(row: Row) -> EventRecord:
    _, event_id, seq, time, payload, *_ = row
    return EventRecord(seq or 0, event_id, time, b"null" if payload is None else payload.encode())


def _tag(row: Row, foreign: bool = False) -> Tag:
    _, _, incarnation, time, _, revision, nonce, _ = row
    if foreign or incarnation is None or revision is None or nonce is None:
        return Tag(0, 0, 0, time)
    return Tag(incarnation, revision, nonce, time)


def tag_of(numbers: str) -> Tag:
    """Makes the tag of what `numbers_of` selects."""
    incarnation, revision, nonce, micros = map(int, numbers.split())
    return Tag(incarnation, revision, nonce, micros) if incarnation else Tag(0, 0, 0, micros)


def _scope(row: Row | None) -> Content | None:
    return None if row is None else Content(_tag(row), row[4].encode())


# --- the statements --------------------------------------------------------------------------


def _micros(column: str) -> str:
    return f"TIMESTAMPDIFF(MICROSECOND, {_EPOCH}, {column})"


def _header(kind: str, table: str, *ids: str) -> str:
    """The row of one scope; the last column is what is left of a session's life."""
    where = " AND ".join(f"{column} = {name}" for column, name in zip(ids, (":a", ":u", ":s"), strict=False))
    same = " AND ".join(same_bytes(c, name) for c, name in zip(ids, (":a", ":u", ":s"), strict=False))
    left = f"TIMESTAMPDIFF(MICROSECOND, {MYSQL_NOW}, expires_at) DIV 1000" if kind == _SESSION else "NULL"
    alive = f" AND {ALIVE}" if kind == _SESSION else ""
    return (
        f"SELECT '{kind}' AS kind, NULL AS id, incarnation, {_micros('update_time')} AS micros, "
        f"state AS document, revision, nonce, {left} AS expires_in "
        f"FROM {table} WHERE {where} AND {same}{alive}"
    )


@cache
def _list(of_user: bool) -> TextClause:
    ids = [("app_name", ":a")] + [("user_id", ":u")] * of_user
    where = " AND ".join(f"{column} = {name} AND {same_bytes(column, name)}" for column, name in ids)
    foreign = (
        "EXISTS (SELECT 1 FROM events e WHERE e.app_name = x.app_name AND e.user_id = x.user_id "
        "AND e.session_id = x.id AND e.seq IS NULL)"
    )
    return text(
        f"SELECT {numbers_of(foreign)}, user_id, id, state FROM sessions x WHERE {where} AND {ALIVE} "
        f"UNION ALL SELECT {numbers_of('FALSE')}, user_id, NULL, state FROM user_states WHERE {where} "
        f"UNION ALL SELECT {numbers_of('FALSE')}, NULL, NULL, state FROM app_states "
        f"WHERE app_name = :a AND {same_bytes('app_name', ':a')}"
    )


def numbers_of(foreign: str) -> str:
    """The numbers of a tag in one text; the first is 0 where the row is not adopted."""
    adopted = f"incarnation IS NOT NULL AND revision IS NOT NULL AND nonce IS NOT NULL AND NOT {foreign}"
    return (
        f"CONCAT_WS(' ', IF({adopted}, incarnation, 0), IFNULL(revision, 0), IFNULL(nonce, 0), "
        f"{_micros('update_time')})"
    )


@cache
def _load(window: Window) -> TextClause:
    parts = [
        _header(_SESSION, "sessions", "app_name", "user_id", "id"),
        _header(_USER, "user_states", "app_name", "user_id"),
        _header(_APP, "app_states", "app_name"),
    ]
    if window.some:
        parts += [
            _events("NULL", window, "seq IS NOT NULL", "seq DESC"),
            _events(f"'{_FOREIGN}'", window, "seq IS NULL", "timestamp DESC, id DESC"),
        ]
    if window.after or not window.some:
        parts.append(_ANY_FOREIGN)
    if window.limited and not window.after:
        # seq + 0 keeps the planner from the index on seq, along which it would read the whole log.
        parts.append(
            f"(SELECT '{_BEFORE}', NULL, NULL, {_micros('timestamp')}, NULL, NULL, NULL, NULL "
            f"FROM events WHERE {_KEY} AND seq + 0 <= (SELECT o.seq FROM events o WHERE o.app_name = :a "
            "AND o.user_id = :u AND o.session_id = :s ORDER BY o.seq DESC LIMIT 1 OFFSET :skip) "
            "ORDER BY timestamp DESC LIMIT 1)"
        )
    return text(" UNION ALL ".join(parts))


@cache
def _older(window: Window) -> TextClause:
    parts = [_header(_SESSION, "sessions", "app_name", "user_id", "id"), _ANY_FOREIGN]
    if window.some:
        parts.append(_events("NULL", window, "seq < :before", "seq DESC"))
    return text(" UNION ALL ".join(parts))


def _events(kind: str, window: Window, condition: str, order: str) -> str:
    after = " AND timestamp >= :after" if window.after else ""
    limit = ":n" if window.limited else _NO_LIMIT
    return (
        f"(SELECT {kind}, id, seq, {_micros('timestamp')}, event_data, NULL, NULL, NULL FROM events "
        f"WHERE {_KEY} AND {condition}{after} ORDER BY {order} LIMIT {limit})"
    )


_ANY_FOREIGN: Final = (
    f"(SELECT '{_SOME_FOREIGN}', NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM events "
    f"WHERE {_KEY} AND seq IS NULL LIMIT 1)"
)
