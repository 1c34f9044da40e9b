"""PostgreSQL: an append, and a load, is one statement and one round trip."""

from __future__ import annotations

import re
import select
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ...config import TieredConfig
from ...records import (
    Append,
    AppendOutcome,
    Committed,
    Content,
    Create,
    EventRecord,
    Missing,
    Older,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
    Tags,
)
from .. import units
from ..failures import DRIVER_ERRORS, is_duplicate, is_retryable, is_timeout
from ..units import Duplicate, Flavour, Step, Unit
from ..values import check_jsonb, documents, fresh, to_micros, to_tag, to_time
from .explicit import ExplicitDialect
from .portable import TRIES, Make, bounded, drive

T = TypeVar("T")

# JSONB writes such numbers in another form: then the server's text is the one to hand on.
_REWRITTEN: Final = re.compile(rb"[0-9.][eE][+-]?[0-9]|-0")

_KEY = "app_name = :a AND user_id = :u AND session_id = :s"
_OBJECT = "(CASE WHEN jsonb_typeof({0}.state) = 'object' THEN {0}.state ELSE CAST('{{}}' AS jsonb) END)"


class PostgresqlDialect(ExplicitDialect):
    """Performs units on PostgreSQL, the frequent ones by one statement in AUTOCOMMIT."""

    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"

    def __init__(self, engine: AsyncEngine, config: TieredConfig) -> None:
        super().__init__(engine, config)
        self.flavour = Flavour(rewrites=True)
        # Shares the pool; setting the level is free with asyncpg and psycopg.
        self.engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._lock = f"{round(config.lock_timeout * 1000)}ms"

    def check(self, write: Append | Create) -> None:
        for name, document in documents(write):
            check_jsonb(name, document)

    async def read(self, connection: AsyncConnection, make: Make[T]) -> T:
        """Performs a unit statement by statement; one that is too long is given more time once."""
        try:
            return await drive(connection, make())
        except DRIVER_ERRORS as error:
            if not is_timeout(error):
                raise
        # statement_timeout is for writes, which hold masks; a long list may take longer.
        return await self.explicit(connection, make(), patience=10)

    async def limits(self, connection: AsyncConnection, patience: int) -> None:
        statement = f"{round(self.config.statement_timeout * 1000 * patience)}ms"
        await connection.execute(_LIMITS, {"lock": self._lock, "statement": statement})

    async def alive(self, connection: AsyncConnection) -> bool:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if hasattr(driver, "is_closed"):  # asyncpg hears of it from the event loop
            return not driver.is_closed()
        # An idle connection has nothing to read; if it has, that is the server's farewell.
        poll = select.poll()
        poll.register(driver.fileno(), select.POLLIN | select.POLLHUP)
        return not poll.poll(0)

    # --- append ---------------------------------------------------------------------------

    async def append(
        self, connection: AsyncConnection, write: Append, outbox: Sequence[ScopeKey]
    ) -> AppendOutcome:
        for _ in range(TRIES):
            if write.expected is None or write.expected.adopted:
                try:
                    async with bounded(self.config):
                        committed = await _append(connection, write, outbox, self._lock)
                except DRIVER_ERRORS as error:
                    if is_retryable(error):
                        continue
                    if not is_duplicate(error):
                        raise
                    committed = None
                if committed is not None:
                    return committed
                settled = await self.settle(connection, write)
                if settled is not None and not (isinstance(settled, Stale) and _adoptable(write, settled)):
                    return settled
            # Events of other programs have to be numbered first, under the lock.
            try:
                return await self.perform(connection, lambda: units.append(write, outbox, self.flavour))
            except Duplicate:
                settled = await self.settle(connection, write)
                if settled is not None:
                    return settled
        return await super().append(connection, write, outbox)

    async def settle(self, connection: AsyncConnection, write: Append) -> AppendOutcome | None:
        params = {**_params(write.key), "ids": [event.id for event in write.events]}
        async with bounded(self.config):
            row = (await connection.execute(_SETTLE, params)).one_or_none()
        if row is None:
            return Missing()
        current = units.session_tag(row[:4], row.foreign_rows)
        stored = {
            event_id: (seq or 0, (payload or "null").encode())
            for event_id, seq, payload in zip(row.ids or (), row.seqs or (), row.payloads or (), strict=True)
        }
        outcome = units.verdict(write.events, stored, current)
        return None if isinstance(outcome, Stale) and write.expected in (None, current) else outcome

    # --- reads ----------------------------------------------------------------------------

    async def load(self, connection: AsyncConnection, key: SessionKey, query: Query) -> Snapshot | None:
        shape = _Window(query.limit is not None, query.after is not None, False)
        row = await self._row(connection, _load(shape, query.limit == 0), _window_params(key, query))
        if row is None:
            return None
        events, cut = _events(row, query)
        foreign = bool(row.foreign_rows) or (bool(events) and events[-1].seq == 0)
        return Snapshot(
            key,
            Content(
                units.session_tag(row[:4], foreign),
                row.state.encode(),
                events,
                complete=not cut and query.after is None,
                before=None if row.before is None or foreign else to_micros(row.before),
            ),
            _scope(row.ui, row.ur, row.un, row.ut, row.us),
            _scope(row.ai, row.ar, row.an, row.at, row.ast),
        )

    async def older(
        self, connection: AsyncConnection, key: SessionKey, before_seq: int, query: Query
    ) -> Older | None:
        shape = _Window(query.limit is not None, query.after is not None, True)
        params = {**_window_params(key, query), "before": before_seq}
        row = await self._row(connection, _older(shape, query.limit == 0), params)
        if row is None:
            return None
        events, cut = _events(row, query)
        return Older(
            units.session_tag(row[:4], row.foreign_rows), events, complete=not cut and query.after is None
        )

    async def tags(self, connection: AsyncConnection, key: SessionKey) -> Tags:
        rows = (await connection.execute(_TAGS, _params(key))).all()
        found = {row[0]: to_tag(*row[1:]) for row in rows}
        return Tags(found.get("s"), found.get("u"), found.get("a"))

    async def _row(self, connection: AsyncConnection, statement: TextClause, params: Any) -> Any:
        rows = await self.read(connection, lambda: _one(statement, params))
        return rows[0] if rows else None


def _one(statement: TextClause, params: Any) -> Unit[Sequence[Any]]:
    return (yield Step(statement, params)).rows


_LIMITS: Final = text(
    "SELECT set_config('lock_timeout', :lock, true), set_config('statement_timeout', :statement, true)"
)


def _params(key: SessionKey) -> dict[str, Any]:
    return {"a": key.app_name, "u": key.user_id, "s": key.session_id}


def _adoptable(write: Append, settled: Stale) -> bool:
    return write.expected is None and not settled.current.adopted


# --- the append statement --------------------------------------------------------------------


class _Shape(NamedTuple):
    """Which parts an append statement has; each combination is one prepared statement."""

    compared: bool
    events: bool
    rewritten: bool
    session: str
    app: bool
    user: bool
    outbox: tuple[str, ...]


async def _append(
    connection: AsyncConnection, write: Append, outbox: Sequence[ScopeKey], lock: str
) -> Committed | None:
    """Sends the append statement; None if it found no row to change."""
    k = max(len(write.events), 1)
    session = "" if write.session_delta is None else "replace" if write.replace_state else "merge"
    shape = _Shape(
        write.expected is not None,
        bool(write.events),
        any(_REWRITTEN.search(event.payload) for event in write.events),
        session,
        write.app_delta is not None,
        write.user_delta is not None,
        tuple(sorted(scope.kind for scope in outbox)),
    )
    params = {
        **_params(write.key),
        "lock": lock,
        "k": k,
        "nonce": fresh(),
        "time": to_time(write.update_time),
    }
    if write.expected is not None:
        tag = write.expected
        params |= {"i": tag.incarnation, "r": tag.revision, "n": tag.nonce, "t": to_time(tag.update_time)}
    if write.events:
        params["ids"] = [event.id for event in write.events]
        params["invocations"] = [event.invocation_id for event in write.events]
        params["times"] = [to_time(event.timestamp) for event in write.events]
        params["payloads"] = [event.payload.decode() for event in write.events]
    if write.session_delta is not None:
        params["delta"] = write.session_delta.decode()
    for kind, delta in (("app", write.app_delta), ("user", write.user_delta)):
        if delta is not None:
            params |= {f"{kind}_delta": delta.decode(), f"{kind}_i": fresh(), f"{kind}_n": fresh()}
    if outbox:
        params["micros"] = write.update_time
        params |= {f"stamp_{scope.kind}": fresh() for scope in outbox}
    row = (await connection.execute(_append_statement(shape), params)).one_or_none()
    if row is None:
        return None
    tag = Tag(row.incarnation, row.revision, row.nonce, to_micros(row.update_time))
    records = units.records(write, tag.revision - k)
    if shape.rewritten:
        records = tuple(
            record._replace(payload=payload.encode())
            for record, payload in zip(records, row.payloads, strict=True)
        )
    return Committed(
        tag,
        records,
        row.state.encode() if session else None,
        _scope(row.ui, row.ur, row.un, row.ut, row.us) if shape.user else None,
        _scope(row.ai, row.ar, row.an, row.at, row.ast) if shape.app else None,
    )


@cache
def _append_statement(shape: _Shape) -> TextClause:
    """Generates the statement of consistency.md 5.2.

    Everything after `up` selects from it, so that nothing is written if it changed no row; the
    counts keep the lock order session, app, user.
    """
    state = {
        "": "",
        "replace": ", state = CAST(:delta AS jsonb)",
        "merge": f", state = {_OBJECT.format('x')} || CAST(:delta AS jsonb)",
    }[shape.session]
    compared = (
        "x.incarnation = :i AND x.revision = :r AND x.nonce = :n AND x.update_time = CAST(:t AS timestamp)"
        if shape.compared
        else f"x.revision IS NOT NULL AND NOT EXISTS (SELECT 1 FROM events WHERE {_KEY} AND seq IS NULL)"
    )
    parts = [
        "cfg AS MATERIALIZED (SELECT set_config('lock_timeout', :lock, true) AS x)",
        "up AS (UPDATE sessions x SET revision = x.revision + CAST(:k AS bigint), nonce = :nonce, "
        f"update_time = CAST(:time AS timestamp){state} "
        "WHERE x.app_name = :a AND x.user_id = :u AND x.id = :s "
        f"AND (SELECT x FROM cfg) IS NOT NULL AND {compared} "
        "RETURNING x.incarnation, x.revision, x.nonce, x.update_time"
        f"{', CAST(x.state AS text) AS state' if shape.session else ''})",
    ]
    columns, joins = ["up.*"], ""
    if shape.events:
        parts.append(
            "ins AS (INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, "
            "event_data, seq) SELECT e.id, :a, :u, :s, e.invocation, e.time, CAST(e.payload AS jsonb), "
            "up.revision - CAST(:k AS bigint) + e.number FROM up, unnest(CAST(:ids AS text[]), "
            "CAST(:invocations AS text[]), CAST(:times AS timestamp[]), CAST(:payloads AS text[])) "
            "WITH ORDINALITY AS e (id, invocation, time, payload, number)"
            f"{' RETURNING seq, CAST(event_data AS text) AS payload' if shape.rewritten else ''})"
        )
        if shape.rewritten:
            columns.append("(SELECT array_agg(payload ORDER BY seq) FROM ins) AS payloads")
    if shape.app:
        parts.append(_scope_part("app", "app_states", "app_name", ":a", ""))
        columns.append(_scope_columns("app", "a"))
        joins += " LEFT JOIN app ON true"
    if shape.user:
        order = ", (SELECT count(*) FROM app) earlier" if shape.app else ""
        parts.append(_scope_part("usr", "user_states", "app_name, user_id", ":a, :u", order))
        columns.append(_scope_columns("usr", "u"))
        joins += " LEFT JOIN usr ON true"
    if shape.outbox:
        parts.append(_outbox_part(shape))
    return text(f"WITH {', '.join(parts)} SELECT {', '.join(columns)} FROM up{joins}")


def _scope_part(name: str, table: str, key: str, values: str, order: str) -> str:
    kind = "app" if name == "app" else "user"
    return (
        f"{name} AS (INSERT INTO {table} AS x ({key}, state, update_time, incarnation, revision, nonce) "
        f"SELECT {values}, CAST(:{kind}_delta AS jsonb), CAST(:time AS timestamp), "
        f"CAST(:{kind}_i AS bigint), 0, CAST(:{kind}_n AS bigint) FROM up{order} "
        f"ON CONFLICT ({key}) DO UPDATE SET state = {_OBJECT.format('x')} || EXCLUDED.state, "
        "update_time = EXCLUDED.update_time, incarnation = COALESCE(x.incarnation, EXCLUDED.incarnation), "
        "revision = COALESCE(x.revision + 1, 0), nonce = EXCLUDED.nonce "
        "RETURNING incarnation, revision, nonce, update_time, CAST(state AS text) AS state)"
    )


def _scope_columns(name: str, mark: str) -> str:
    state = "ast" if mark == "a" else "us"
    return (
        f"{name}.incarnation AS {mark}i, {name}.revision AS {mark}r, {name}.nonce AS {mark}n, "
        f"{name}.update_time AS {mark}t, {name}.state AS {state}"
    )


def _outbox_part(shape: _Shape) -> str:
    sources = {"session": ("up", ":a, :u, :s"), "app": ("app", ":a, '', ''"), "user": ("usr", ":a, :u, ''")}
    rows = []
    for kind in shape.outbox:
        name, key = sources[kind]
        known = kind == "session" or (shape.app if kind == "app" else shape.user)
        source = "up" if name == "up" or not known else f"up, {name}"
        tag = f"{name}.incarnation, {name}.revision, {name}.nonce, CAST(:micros AS bigint)"
        if not known:
            tag = "CAST(NULL AS bigint), CAST(NULL AS bigint), CAST(NULL AS bigint), CAST(NULL AS bigint)"
        rows.append(f"SELECT '{kind}', {key}, {tag}, CAST(:stamp_{kind} AS bigint) FROM {source}")
    return (
        "box AS (INSERT INTO cache_outbox (kind, app_name, user_id, session_id, incarnation, revision, nonce, "
        f"update_time, stamp) {' UNION ALL '.join(rows)} ON CONFLICT (kind, app_name, user_id, session_id) "
        "DO UPDATE SET incarnation = EXCLUDED.incarnation, revision = EXCLUDED.revision, "
        "nonce = EXCLUDED.nonce, update_time = EXCLUDED.update_time, stamp = EXCLUDED.stamp)"
    )


# --- statements that read --------------------------------------------------------------------

_EXISTS_FOREIGN = f"EXISTS (SELECT 1 FROM events WHERE {_KEY} AND seq IS NULL)"
_SESSION = "x.app_name = :a AND x.user_id = :u AND x.id = :s"

_SETTLE: Final = text(
    f"SELECT x.incarnation, x.revision, x.nonce, x.update_time, {_EXISTS_FOREIGN} AS foreign_rows, "
    "e.ids, e.seqs, e.payloads FROM sessions x LEFT JOIN LATERAL (SELECT array_agg(id) AS ids, "
    "array_agg(seq) AS seqs, array_agg(CAST(event_data AS text)) AS payloads FROM events "
    f"WHERE {_KEY} AND id = ANY(CAST(:ids AS text[]))) e ON true WHERE {_SESSION}"
)

_TAGS: Final = text(
    f"SELECT 's' AS kind, x.incarnation, x.revision, x.nonce, x.update_time FROM sessions x WHERE {_SESSION} "
    "UNION ALL SELECT 'u', incarnation, revision, nonce, update_time FROM user_states "
    "WHERE app_name = :a AND user_id = :u "
    "UNION ALL SELECT 'a', incarnation, revision, nonce, update_time FROM app_states WHERE app_name = :a"
)


class _Window(NamedTuple):
    limited: bool
    after: bool
    older: bool


def _window_params(key: SessionKey, query: Query) -> dict[str, Any]:
    params = _params(key)
    if query.limit:
        params["limit"] = query.limit + 1
    if query.after is not None and query.limit != 0:
        params["after"] = to_time(query.after)
    return params


@cache
def _load(window: _Window, none: bool) -> TextClause:
    """A session, its window and its shared scopes: one statement, one moment.

    In descending order NULL comes first, so the index on seq delivers events of other programs as
    the newest; only where the window may not show them is asked for them.
    """
    before, foreign = "CAST(NULL AS timestamp)", "false"
    if window.limited and not window.after and not none:
        # seq + 0 keeps the planner from the index on seq, along which it would read the whole log.
        before = (
            "CASE WHEN cardinality(e.seqs) = :limit THEN (SELECT o.timestamp FROM events o "
            "WHERE o.app_name = :a AND o.user_id = :u AND o.session_id = :s "
            "AND o.seq + 0 <= e.seqs[cardinality(e.seqs)] ORDER BY o.timestamp DESC LIMIT 1) END"
        )
    if none or window.after:
        foreign = _EXISTS_FOREIGN
    return text(
        "SELECT x.incarnation, x.revision, x.nonce, x.update_time, CAST(x.state AS text) AS state, "
        f"{foreign} AS foreign_rows, {before} AS before, {_EVENT_COLUMNS}, "
        "u.incarnation AS ui, u.revision AS ur, u.nonce AS un, u.update_time AS ut, CAST(u.state AS text) AS us, "
        "a.incarnation AS ai, a.revision AS ar, a.nonce AS an, a.update_time AS at, CAST(a.state AS text) AS ast "
        "FROM sessions x LEFT JOIN user_states u ON u.app_name = x.app_name AND u.user_id = x.user_id "
        f"LEFT JOIN app_states a ON a.app_name = x.app_name {_window(window, none)} WHERE {_SESSION}"
    )


@cache
def _older(window: _Window, none: bool) -> TextClause:
    return text(
        f"SELECT x.incarnation, x.revision, x.nonce, x.update_time, {_EXISTS_FOREIGN} AS foreign_rows, "
        f"{_EVENT_COLUMNS} FROM sessions x {_window(window, none)} WHERE {_SESSION}"
    )


_EVENT_COLUMNS = "e.seqs, e.ids, e.times, e.payloads"


def _window(window: _Window, none: bool) -> str:
    conditions = [_KEY]
    if none:
        conditions.append("false")
    else:
        if window.after:
            conditions.append("timestamp >= CAST(:after AS timestamp)")
        if window.older:
            conditions.append("seq < CAST(:before AS bigint)")
    limit = " LIMIT CAST(:limit AS integer)" if window.limited and not none else ""
    return (
        "LEFT JOIN LATERAL (SELECT array_agg(seq) AS seqs, array_agg(id) AS ids, array_agg(timestamp) AS times, "
        "array_agg(payload) AS payloads FROM (SELECT seq, id, timestamp, CAST(event_data AS text) AS payload "
        f"FROM events WHERE {' AND '.join(conditions)} ORDER BY seq DESC, timestamp DESC, id DESC{limit}) w) e "
        "ON true"
    )


def _events(row: Any, query: Query) -> tuple[tuple[EventRecord, ...], bool]:
    if query.limit == 0:
        return (), True
    if row.ids is None:
        return (), False
    rows = list(zip(row.seqs, row.ids, row.times, row.payloads, strict=True))
    cut = query.limit is not None and len(rows) > query.limit
    return tuple(map(units.event_record, reversed(rows[:-1] if cut else rows))), cut


def _scope(incarnation: Any, revision: Any, nonce: Any, time: Any, state: Any) -> Content | None:
    if state is None:
        return None
    return Content(to_tag(incarnation, revision, nonce, time), state.encode())
