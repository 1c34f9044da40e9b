"""PostgreSQL's statements that read, and what is made of their rows: one statement, one moment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import TextClause, text

from ...records import Content, EventRecord, Listing, Older, Query, SessionKey, Snapshot, Tag, Tags
from ..clock import POSTGRESQL_NOW, remaining
from ..steps import Params, Step, Unit, first, key_params, scope_content, session_tag
from ..values import to_micros, to_tag, to_time
from .postgresql_text import ALIVE

_KEY: Final = "app_name = :a AND user_id = :u AND session_id = :s"
_SESSION: Final = f"x.app_name = :a AND x.user_id = :u AND x.id = :s AND {ALIVE}"
_TAG: Final = "x.incarnation, x.revision, x.nonce, x.update_time"
# In descending order NULL comes first, so the index on seq knows it from its first row. Asked for
# seq IS NULL, a planner without statistics takes the index on time and reads the whole log.
_HOLDS_FOREIGN: Final = (
    f"coalesce((SELECT seq IS NULL FROM events WHERE {_KEY} ORDER BY seq DESC LIMIT 1), false)"
)


def _micros(column: str) -> str:
    # Exact from PostgreSQL 14 on; before, up to the year 2106.
    return f"CAST(extract(epoch FROM {column}) * 1000000 AS bigint)"


TAGS: Final = text(
    f"SELECT 's' AS kind, {_TAG} FROM sessions x WHERE {_SESSION} "
    "UNION ALL SELECT 'u', incarnation, revision, nonce, update_time FROM user_states "
    "WHERE app_name = :a AND user_id = :u "
    "UNION ALL SELECT 'a', incarnation, revision, nonce, update_time FROM app_states WHERE app_name = :a"
)


@cache
def list_statement(of_user: bool) -> TextClause:
    """As `statements.list_sessions`, by arrays in one row; the last is of those that are not adopted.

    A row for each session costs a driver more than what is in it.
    """
    user = " AND user_id = :u" if of_user else ""
    # Sure of the index on seq, in which NULL comes first.
    foreign = (
        "coalesce((SELECT e.seq IS NULL FROM events e WHERE e.app_name = x.app_name "
        "AND e.user_id = x.user_id AND e.session_id = x.id ORDER BY e.seq DESC LIMIT 1), false)"
    )
    tag = f"incarnation, revision, nonce, {_micros('update_time')} AS micros, CAST(state AS text) AS state"
    alien = "incarnation IS NULL OR revision IS NULL OR nonce IS NULL"
    tags = (
        "array_agg(incarnation), array_agg(revision), array_agg(nonce), array_agg(micros), array_agg(state)"
    )
    return text(
        "SELECT s.*, u.*, a.* FROM (SELECT array_agg(user_id), array_agg(id), "
        f"{tags}, array_agg(alien) FROM (SELECT user_id, id, {tag}, {alien} OR {foreign} AS alien "
        f"FROM sessions x WHERE app_name = :a{user} AND {ALIVE} ORDER BY update_time, user_id, id) w) s "
        f"CROSS JOIN (SELECT array_agg(user_id), {tags} FROM (SELECT user_id, {tag} FROM user_states "
        f"WHERE app_name = :a{user}) w) u "
        f"LEFT JOIN (SELECT {tag} FROM app_states WHERE app_name = :a) a ON true"
    )


def sessions(app_name: str, user_id: str | None) -> Unit[Listing]:
    """Reads sessions without events, and their shared scopes."""
    params: Params = {"a": app_name} if user_id is None else {"a": app_name, "u": user_id}
    row = (yield Step(list_statement(user_id is not None), params)).rows[0]
    if row[0] is None:
        return Listing(app_name, (), (), (), (), {}, None)
    app = None if row[17] is None else Content(_tag(*row[14:18]), row[18].encode())
    users: dict[str, Content] = {}
    if row[8] is not None:
        for name, *tag, state in zip(*row[8:14], strict=True):
            users[name] = Content(_tag(*tag), state.encode())
    tags = list(map(Tag._make, zip(*row[2:6], strict=True)))
    if True in row[7]:
        for at, alien in enumerate(row[7]):
            if alien:
                tags[at] = Tag(0, 0, 0, row[5][at])
    return Listing(app_name, row[0], row[1], tags, row[6], users, app)


def _tag(incarnation: int | None, revision: int | None, nonce: int | None, micros: int) -> Tag:
    """Makes the tag of a row; a row without our columns has no incarnation."""
    if incarnation is None or revision is None or nonce is None:
        return Tag(0, 0, 0, micros)
    return Tag(incarnation, revision, nonce, micros)


def _bytes(document: str, binary: bool) -> str:
    return f"convert_to({document}, 'UTF8')" if binary else document


class Window(NamedTuple):
    """Which events a statement reads.

    Attributes:
        some: Any at all.
        limited: Only the newest.
        after: Only from a time on.
        older: Only those before a number.
        binary: Payloads as bytes, which asyncpg hands on as they are; psycopg is faster at text.
    """

    some: bool
    limited: bool
    after: bool
    older: bool
    binary: bool


def load(key: SessionKey, query: Query, binary: bool) -> Unit[Snapshot | None]:
    """Reads a session, its window and its shared scopes."""
    window = _window(query, older=False, binary=binary)
    row = first((yield Step(load_statement(window), _params(key, query))))
    if row is None:
        return None
    foreign, before = bool(row[17]), None
    events: Sequence[EventRecord] = ()
    cut = True
    if window.some:
        newest = _records(*row[19:23])
        if row[23] is not None:
            numbered = [event for event in newest if event.seq]
            newest = _records((0,) * len(row[23]), *row[23:26]) + numbered
        events, cut = _oldest_first(newest, query)
        before = None if row[18] is None or foreign else to_micros(row[18])
    return Snapshot(
        key,
        Content(
            session_tag(row[:4], foreign),
            row[4].encode(),
            tuple(events),
            complete=not cut and query.after is None,
            before=before,
        ),
        None if row[9] is None else scope_content(row[5:10]),
        None if row[14] is None else scope_content(row[10:15]),
        remaining(row[15], row[16]),
    )


def older(key: SessionKey, before_seq: int, query: Query, binary: bool) -> Unit[Older | None]:
    """Reads the events before a window, with the tag."""
    window = _window(query, older=True, binary=binary)
    params = {**_params(key, query), "before": before_seq} if window.some else _params(key, query)
    row = first((yield Step(older_statement(window), params)))
    if row is None:
        return None
    tag = session_tag(row[:4], bool(row[4]))
    if not window.some:
        return Older(tag, (), complete=False)
    events, cut = _oldest_first(_records(*row[5:9]), query)
    return Older(tag, tuple(events), complete=not cut and query.after is None)


def tags(key: SessionKey) -> Unit[Tags]:
    """Reads the tags of the three scopes."""
    found = {row[0]: to_tag(*row[1:5]) for row in (yield Step(TAGS, key_params(key))).rows}
    return Tags(found.get("s"), found.get("u"), found.get("a"))


def _window(query: Query, *, older: bool, binary: bool) -> Window:
    if query.limit == 0:
        return Window(False, False, False, False, False)
    return Window(True, query.limit is not None, query.after is not None, older, binary)


def _params(key: SessionKey, query: Query) -> dict[str, Any]:
    params = key_params(key)
    if query.limit:
        params["limit"] = query.limit + 1
    if query.after is not None and query.limit != 0:
        params["after"] = to_time(query.after)
    return params


def _records(seqs: Any, ids: Any, times: Any, payloads: Any) -> list[EventRecord]:
    """Makes records of arrays."""
    if ids is None:
        return []
    if payloads and isinstance(payloads[0], str):
        payloads = map(str.encode, payloads)
    return list(map(EventRecord._make, zip(seqs, ids, times, payloads, strict=True)))


def _oldest_first(newest: list[EventRecord], query: Query) -> tuple[list[EventRecord], bool]:
    """Returns what a query asks for, and whether its limit cut older ones off."""
    cut = query.limit is not None and len(newest) > query.limit
    if cut:
        del newest[query.limit :]
    newest.reverse()
    return newest, cut


@cache
def load_statement(window: Window) -> TextClause:
    """A session, its window and its shared scopes.

    `e` reads along the index on seq, which delivers events of other programs first and in no order;
    `f` reads these in stock's order if there are any. A single order would have to name the times, and
    a planner without statistics then sorts the whole log for its newest events.
    """
    columns = [
        f"{_TAG}, CAST(x.state AS text) AS state",
        "u.incarnation AS ui, u.revision AS ur, u.nonce AS un, u.update_time AS ut",
        "CAST(u.state AS text) AS us",
        "a.incarnation AS ai, a.revision AS ar, a.nonce AS an, a.update_time AS at",
        "CAST(a.state AS text) AS ast",
        f"x.expires_at, {POSTGRESQL_NOW} AS now",
    ]
    joins = [
        "LEFT JOIN user_states u ON u.app_name = x.app_name AND u.user_id = x.user_id",
        "LEFT JOIN app_states a ON a.app_name = x.app_name",
    ]
    if window.some:
        before = "CAST(NULL AS timestamp)"
        if window.limited and not window.after:
            # seq + 0 keeps the planner from the index on seq, along which it would read the whole log.
            before = (
                "CASE WHEN cardinality(e.seqs) = :limit THEN (SELECT o.timestamp FROM events o "
                "WHERE o.app_name = :a AND o.user_id = :u AND o.session_id = :s "
                "AND o.seq + 0 <= e.seqs[cardinality(e.seqs)] ORDER BY o.timestamp DESC LIMIT 1) END"
            )
        columns += [
            f"{_HOLDS_FOREIGN if window.after else 'f.ids IS NOT NULL'} AS foreign_rows",
            f"{before} AS before, e.seqs, e.ids, e.times, e.payloads",
            "f.ids AS foreign_ids, f.times AS foreign_times, f.payloads AS foreign_payloads",
        ]
        joins += [
            _events("e", window, "", "seq DESC"),
            _events(
                "f",
                window,
                "AND seq IS NULL AND e.ids IS NOT NULL AND e.seqs[1] IS NULL",
                "timestamp DESC, id DESC",
            ),
        ]
    else:
        columns.append(f"{_HOLDS_FOREIGN} AS foreign_rows")
    return text(f"SELECT {', '.join(columns)} FROM sessions x {' '.join(joins)} WHERE {_SESSION}")


@cache
def older_statement(window: Window) -> TextClause:
    """Events before a window, and the tag."""
    columns, join = f"{_TAG}, {_HOLDS_FOREIGN} AS foreign_rows", ""
    if window.some:
        columns += ", e.seqs, e.ids, e.times, e.payloads"
        join = _events("e", window, "AND seq < CAST(:before AS bigint)", "seq DESC")
    return text(f"SELECT {columns} FROM sessions x {join} WHERE {_SESSION}")


def _events(name: str, window: Window, condition: str, order: str) -> str:
    after = " AND timestamp >= CAST(:after AS timestamp)" if window.after else ""
    limit = " LIMIT CAST(:limit AS integer)" if window.limited else ""
    payload = _bytes("coalesce(CAST(event_data AS text), 'null')", window.binary)
    return (
        "LEFT JOIN LATERAL (SELECT array_agg(seq) AS seqs, array_agg(id) AS ids, "
        f"array_agg({_micros('timestamp')}) AS times, array_agg({payload}) AS payloads FROM (SELECT seq, "
        f"id, timestamp, event_data FROM events WHERE {_KEY} {condition}{after} "
        f"ORDER BY {order}{limit}) w) {name} ON true"
    )
