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
    found = _sorted((yield Step(_load(window), _params(key, query))).rows)
    session = found.parts.get(_SESSION)
    if session is None:
        return None
    numbers, state = session
    numbers, _, left = numbers.partition("/")
    events, cut = _oldest_first(found, query)
    before = found.parts.get(_BEFORE)
    return Snapshot(
        key,
        Content(
            _session_tag(numbers, found),
            state.encode(),
            events,
            complete=not cut and query.after is None,
            before=None if before is None or found.holds_foreign else int(before[0]),
        ),
        _scope(found.parts.get(_USER)),
        _scope(found.parts.get(_APP)),
        int(left) if left else None,
    )


def older(key: SessionKey, before_seq: int, query: Query) -> Unit[Older | None]:
    """Reads the events before a window, with the tag."""
    params = {**_params(key, query), "before": before_seq}
    found = _sorted((yield Step(_older(_window(query, older=True)), params)).rows)
    session = found.parts.get(_SESSION)
    if session is None:
        return None
    numbers, _, _ = session[0].partition("/")
    events, cut = _oldest_first(found, query)
    return Older(_session_tag(numbers, found), events, complete=not cut and query.after is None)


def sessions(app_name: str, user_id: str | None) -> Unit[Listing]:
    """Reads sessions without events, and their shared scopes."""
    params: Params = {"a": app_name} if user_id is None else {"a": app_name, "u": user_id}
    listed: list[tuple[str, str, Tag, str]] = []
    users: dict[str, Content] = {}
    app: Content | None = None
    for head, session, state, *users_of in (yield Step(_list(user_id is not None), params)).rows:
        tag, user = tag_of(head[1:]), users_of[0] if user_id is None else user_id
        if head[0] == _SESSION:
            listed.append((user, session, tag, state))
        elif head[0] == _USER:
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


class _Found(NamedTuple):
    """The rows of one statement: events, those of other programs apart, and by kind what there is one of."""

    numbered: list[EventRecord]
    foreign: list[EventRecord]
    parts: dict[str, tuple[str, str]]

    @property
    def holds_foreign(self) -> bool:
        return bool(self.foreign) or _SOME_FOREIGN in self.parts


def _sorted(rows: Sequence[Row]) -> _Found:
    found = _Found([], [], {})
    for head, event_id, document in rows:
        if event_id is None:
            found.parts[head[0]] = head[1:], document
            continue
        seq, _, time = head.partition(" ")
        payload = b"null" if document is None else document.encode()
        events = found.foreign if seq == _FOREIGN else found.numbered
        events.append(EventRecord(0 if seq == _FOREIGN else int(seq), event_id, int(time), payload))
    return found


def _oldest_first(found: _Found, query: Query) -> tuple[tuple[EventRecord, ...], bool]:
    """Returns the events a query asks for, and whether its limit cut older ones off."""
    if query.limit == 0:
        return (), True
    # A union delivers its parts in their order; numbers are not left to that. Last, in stock's order,
    # come events of other programs.
    newest = found.foreign + sorted(found.numbered, reverse=True)
    cut = query.limit is not None and len(newest) > query.limit
    if cut:
        del newest[query.limit :]
    newest.reverse()
    return tuple(newest), cut


def _session_tag(numbers: str, found: _Found) -> Tag:
    tag = tag_of(numbers)
    return Tag(0, 0, 0, tag.update_time) if found.holds_foreign else tag


def tag_of(numbers: str) -> Tag:
    """Makes the tag of what `numbers_of` selects."""
    incarnation, revision, nonce, micros = map(int, numbers.split())
    return Tag(incarnation, revision, nonce, micros) if incarnation else Tag(0, 0, 0, micros)


def _scope(part: tuple[str, str] | None) -> Content | None:
    return None if part is None else Content(tag_of(part[0]), part[1].encode())


# --- the statements --------------------------------------------------------------------------


def _micros(column: str) -> str:
    return f"TIMESTAMPDIFF(MICROSECOND, {_EPOCH}, {column})"


def _header(kind: str, table: str, *ids: str) -> str:
    """The row of one scope; behind a session's numbers is what is left of its life."""
    where = " AND ".join(f"{column} = {name}" for column, name in zip(ids, (":a", ":u", ":s"), strict=False))
    same = " AND ".join(same_bytes(c, name) for c, name in zip(ids, (":a", ":u", ":s"), strict=False))
    left = f", '/', IFNULL(TIMESTAMPDIFF(MICROSECOND, {MYSQL_NOW}, expires_at) DIV 1000, '')"
    alive = f" AND {ALIVE}"
    if kind != _SESSION:
        left = alive = ""
    return (
        f"SELECT CONCAT('{kind}', {numbers_of('FALSE')}{left}) AS head, NULL AS id, state AS document "
        f"FROM {table} WHERE {where} AND {same}{alive}"
    )


@cache
def _list(of_user: bool) -> TextClause:
    ids = [("app_name", ":a")] + [("user_id", ":u")] * of_user
    where = " AND ".join(f"{column} = {name} AND {same_bytes(column, name)}" for column, name in ids)
    # By the index on seq, in which NULL comes first: a planner that is free takes the one on time for
    # seq IS NULL and reads the whole log of each session.
    foreign = (
        "IFNULL((SELECT e.seq IS NULL FROM events e WHERE e.app_name = x.app_name "
        "AND e.user_id = x.user_id AND e.session_id = x.id ORDER BY e.seq LIMIT 1), FALSE)"
    )
    user, no_user = ("", "") if of_user else (", user_id", ", NULL")
    return text(
        f"SELECT CONCAT('{_SESSION}', {numbers_of(foreign)}), id, state{user} FROM sessions x "
        f"WHERE {where} AND {ALIVE} "
        f"UNION ALL SELECT CONCAT('{_USER}', {numbers_of('FALSE')}), NULL, state{user} FROM user_states "
        f"WHERE {where} "
        f"UNION ALL SELECT CONCAT('{_APP}', {numbers_of('FALSE')}), NULL, state{no_user} FROM app_states "
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
            _events("seq", window, "seq IS NOT NULL", "seq DESC"),
            _events(f"'{_FOREIGN}'", window, "seq IS NULL", "timestamp DESC, id DESC"),
        ]
    if window.after or not window.some:
        parts.append(_ANY_FOREIGN)
    if window.limited and not window.after:
        # seq + 0 keeps the planner from the index on seq, along which it would read the whole log.
        parts.append(
            f"(SELECT CONCAT('{_BEFORE}', {_micros('timestamp')}), NULL, NULL "
            f"FROM events WHERE {_KEY} AND seq + 0 <= (SELECT o.seq FROM events o WHERE o.app_name = :a "
            "AND o.user_id = :u AND o.session_id = :s ORDER BY o.seq DESC LIMIT 1 OFFSET :skip) "
            "ORDER BY timestamp DESC LIMIT 1)"
        )
    return text(" UNION ALL ".join(parts))


@cache
def _older(window: Window) -> TextClause:
    parts = [_header(_SESSION, "sessions", "app_name", "user_id", "id"), _ANY_FOREIGN]
    if window.some:
        parts.append(_events("seq", window, "seq < :before", "seq DESC"))
    return text(" UNION ALL ".join(parts))


def _events(kind: str, window: Window, condition: str, order: str) -> str:
    after = " AND timestamp >= :after" if window.after else ""
    limit = ":n" if window.limited else _NO_LIMIT
    return (
        f"(SELECT CONCAT_WS(' ', {kind}, {_micros('timestamp')}), id, event_data FROM events "
        f"WHERE {_KEY} AND {condition}{after} ORDER BY {order} LIMIT {limit})"
    )


_ANY_FOREIGN: Final = (
    f"(SELECT '{_SOME_FOREIGN}', NULL, NULL FROM events "
    f"WHERE {_KEY} AND seq IS NULL LIMIT 1)"
)
