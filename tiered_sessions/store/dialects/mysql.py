"""MariaDB and MySQL: a load is one statement; on MariaDB so is an append that merges no state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ...config import TieredConfig
from ...records import (
    Append,
    AppendOutcome,
    Committed,
    Content,
    EventRecord,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Tag,
)
from .. import steps, writes
from ..clock import MYSQL_NOW
from ..failures import DRIVER_ERRORS, is_duplicate, is_retryable
from ..steps import Flavour
from ..values import ascii_json, fresh, to_micros, to_tag, to_time
from .explicit import ExplicitDialect


class MysqlDialect(ExplicitDialect):
    """Performs units on MariaDB and MySQL."""

    begin = "START TRANSACTION"

    def __init__(self, engine: AsyncEngine, config: TieredConfig) -> None:
        super().__init__(engine, config)
        # In ASCII a document survives whatever character set its column and connection have.
        self.flavour = Flavour(text=ascii_json)

    async def alive(self, connection: AsyncConnection) -> bool:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        reader = getattr(driver, "_reader", None)
        if reader is None:
            return True
        # As aiomysql's own pool looks. An idle connection has nothing to read; if it has, that is
        # the server's farewell.
        return not (reader.at_eof() or reader.exception() or reader._buffer)

    async def append(
        self, connection: AsyncConnection, write: Append, outbox: Sequence[ScopeKey]
    ) -> AppendOutcome:
        if getattr(connection.dialect, "is_mariadb", False) and _plain(write):
            try:
                async with self.bounded(connection):
                    committed = await self._append(connection, write, outbox)
            except DRIVER_ERRORS as error:
                if not (is_duplicate(error) or is_retryable(error)):
                    raise
            else:
                if committed is not None:
                    return committed
        # Merges what SQL cannot (JSON_MERGE_PATCH drops nulls), and settles what found no row.
        return await super().append(connection, write, outbox)

    async def _append(
        self, connection: AsyncConnection, write: Append, outbox: Sequence[ScopeKey]
    ) -> Committed | None:
        tag, k = write.expected, max(len(write.events), 1)
        assert tag is not None
        nonce = fresh()
        params: dict[str, Any] = {
            **_params(write.key),
            "i": tag.incarnation,
            "r": tag.revision,
            "n": tag.nonce,
            "t": to_time(tag.update_time),
            "revision": tag.revision + k,
            "nonce": nonce,
            "time": to_time(write.update_time),
        }
        for number, event in enumerate(write.events, 1):
            params |= {
                f"id{number}": event.id,
                f"invocation{number}": event.invocation_id,
                f"time{number}": to_time(event.timestamp),
                f"payload{number}": ascii_json(event.payload),
                f"seq{number}": tag.revision + number,
            }
        if outbox:
            params |= {"micros": write.update_time, "stamp": fresh()}
        statement = _append_statement(len(write.events), bool(outbox))
        row = (await connection.execute(statement, params)).one_or_none()
        if row is None or row[0] is None:
            return None
        new = Tag(tag.incarnation, tag.revision + k, nonce, to_micros(row[0]))
        records = writes.records(write, tag.revision)
        return Committed(new, records, None, None, None, expires_in=row[1])

    async def load(self, connection: AsyncConnection, key: SessionKey, query: Query) -> Snapshot | None:
        limited = bool(query.limit)
        params = _params(key)
        if limited:
            # The count of rows, and where the first row beyond them is.
            params |= {"n": (query.limit or 0) + 1, "skip": query.limit}
        if query.after is not None:
            params["after"] = to_time(query.after)
        statement = _load(query.limit != 0, limited, query.after is not None)
        async with self.bounded(connection, patience=10):
            rows = (await connection.execute(statement, params)).all()
        parts: dict[str, Any] = {row[0]: row for row in rows if row[0] != "e"}
        session = parts.get("s")
        if session is None or tuple(session[1:4]) != key:
            return None
        if session.foreign_rows:
            return await super().load(connection, key, query)
        events = sorted(_event(row) for row in rows if row[0] == "e")
        cut = query.limit == 0 or (limited and len(events) > (query.limit or 0))
        if cut and limited:
            del events[0]
        before = parts.get("b")
        user, app = parts.get("u"), parts.get("a")
        return Snapshot(
            key,
            Content(
                to_tag(*session[4:8]),
                session[8].encode(),
                tuple(events),
                complete=not cut and query.after is None,
                before=None if before is None else to_micros(before[7]),
            ),
            _scope(user, (key.app_name, key.user_id)),
            _scope(app, (key.app_name, "")),
            session.expires_in,
        )


def _params(key: SessionKey) -> dict[str, Any]:
    return {"a": key.app_name, "u": key.user_id, "s": key.session_id}


def _plain(write: Append) -> bool:
    return (
        write.expected is not None
        and write.expected.adopted
        and write.session_delta is None
        and write.user_delta is None
        and write.app_delta is None
    )


def _event(row: Any) -> EventRecord:
    return steps.event_record((row[4], row[1], row[7], row[8]))


def _scope(row: Any, ids: tuple[str, str]) -> Content | None:
    if row is None or tuple(row[1:3]) != ids:
        return None
    return Content(to_tag(*row[4:8]), row[8].encode())


_ALIVE: Final = f"(expires_at IS NULL OR expires_at > {MYSQL_NOW})"
_KEY: Final = "app_name = :a AND user_id = :u AND session_id = :s"


def _same_bytes(column: str, parameter: str) -> str:
    # In tables with a case-insensitive collation "=" alone finds look-alikes (R34).
    ours, theirs = (f"CAST(CONVERT({side} USING utf8mb4) AS BINARY)" for side in (column, parameter))
    return f"{ours} = {theirs}"


@cache
def _append_statement(events: int, outbox: bool) -> TextClause:
    """One compound statement that begins, compares, writes and commits; answers the stored time."""
    same = " AND ".join(
        _same_bytes(column, name) for column, name in (("app_name", ":a"), ("user_id", ":u"), ("id", ":s"))
    )
    writes = []
    if events:
        rows = ", ".join(
            f"(:id{n}, :a, :u, :s, :invocation{n}, :time{n}, :payload{n}, :seq{n})"
            for n in range(1, events + 1)
        )
        writes.append(
            "INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, event_data, "
            f"seq) VALUES {rows};"
        )
    if outbox:
        writes.append(
            "INSERT INTO cache_outbox (kind, app_name, user_id, session_id, incarnation, revision, nonce, "
            "update_time, stamp) VALUES ('session', :a, :u, :s, :i, :revision, :nonce, :micros, :stamp) "
            "ON DUPLICATE KEY UPDATE incarnation = VALUES(incarnation), revision = VALUES(revision), "
            "nonce = VALUES(nonce), update_time = VALUES(update_time), stamp = VALUES(stamp);"
        )
    return text(
        "BEGIN NOT ATOMIC DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; RESIGNAL; END; "
        "START TRANSACTION; "
        "UPDATE sessions SET revision = :revision, nonce = :nonce, update_time = :time, "
        f"expires_at = IFNULL({MYSQL_NOW} + INTERVAL sliding_ttl * 1000 MICROSECOND, expires_at) "
        f"WHERE app_name = :a AND user_id = :u AND id = :s AND {same} "
        f"AND incarnation = :i AND revision = :r AND nonce = :n AND update_time = :t AND {_ALIVE}; "
        f"IF ROW_COUNT() = 1 THEN {' '.join(writes)} COMMIT; "
        "SELECT update_time, sliding_ttl FROM sessions WHERE app_name = :a AND user_id = :u AND id = :s; "
        "ELSE ROLLBACK; SELECT CAST(NULL AS DATETIME), CAST(NULL AS SIGNED); END IF; END"
    )


_EMPTY: Final = "CAST(NULL AS SIGNED)"


@cache
def _load(some: bool, limited: bool, after: bool) -> TextClause:
    """Header, window and shared scopes as rows of one statement, which sees one moment (R32)."""
    parts = [
        "SELECT 's' AS kind, app_name AS one, user_id AS two, id AS three, incarnation, revision, nonce, "
        "update_time, state, EXISTS (SELECT 1 FROM events e WHERE e.app_name = :a AND e.user_id = :u "
        "AND e.session_id = :s AND e.seq IS NULL) AS foreign_rows, "
        f"TIMESTAMPDIFF(MICROSECOND, {MYSQL_NOW}, expires_at) DIV 1000 AS expires_in "
        f"FROM sessions WHERE app_name = :a AND user_id = :u AND id = :s AND {_ALIVE}",
        f"SELECT 'u', app_name, user_id, '', incarnation, revision, nonce, update_time, state, 0, {_EMPTY} "
        "FROM user_states WHERE app_name = :a AND user_id = :u",
        f"SELECT 'a', app_name, '', '', incarnation, revision, nonce, update_time, state, 0, {_EMPTY} "
        "FROM app_states WHERE app_name = :a",
    ]
    where = _KEY + (" AND timestamp >= :after" if after else "")
    if some:
        parts.append(
            f"(SELECT 'e', id, '', '', seq, {_EMPTY}, {_EMPTY}, timestamp, event_data, 0, {_EMPTY} "
            f"FROM events WHERE {where} ORDER BY seq DESC{' LIMIT :n' if limited else ''})"
        )
    if limited and not after:
        # seq + 0 keeps the planner from the index on seq, along which it would read the whole log.
        parts.append(
            f"(SELECT 'b', '', '', '', {_EMPTY}, {_EMPTY}, {_EMPTY}, timestamp, NULL, 0, {_EMPTY} "
            f"FROM events WHERE {_KEY} AND seq + 0 <= (SELECT o.seq FROM events o WHERE o.app_name = :a "
            "AND o.user_id = :u AND o.session_id = :s ORDER BY o.seq DESC LIMIT 1 OFFSET :skip) "
            "ORDER BY timestamp DESC LIMIT 1)"
        )
    return text(" UNION ALL ".join(parts))
