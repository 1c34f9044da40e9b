"""PostgreSQL: an append, and a load, is one statement and one round trip."""

from __future__ import annotations

import re
import select
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import TextClause
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
from .. import steps, writes
from ..clock import remaining
from ..failures import DRIVER_ERRORS, is_duplicate, is_retryable, is_timeout
from ..steps import Duplicate, Flavour, Step, Unit
from ..values import check_jsonb, documents, fresh, to_micros, to_tag, to_time
from . import postgresql_text as sql
from .explicit import ExplicitDialect
from .portable import TRIES, Make, drive

T = TypeVar("T")

# JSONB writes such numbers in another form: then the server's text is the one to hand on.
_REWRITTEN: Final = re.compile(rb"[0-9.][eE][+-]?[0-9]|-0")


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
            async with self.bounded(connection):
                return await drive(connection, make())
        except DRIVER_ERRORS as error:
            if not is_timeout(error):
                raise
        # statement_timeout is for writes, which hold masks; a long list may take longer.
        async with self.bounded(connection, patience=10):
            return await self.explicit(connection, make(), patience=10)

    async def limits(self, connection: AsyncConnection, patience: int) -> None:
        statement = f"{round(self.config.statement_timeout * 1000 * patience)}ms"
        await connection.execute(sql.LIMITS, {"lock": self._lock, "statement": statement})

    async def alive(self, connection: AsyncConnection) -> bool:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if hasattr(driver, "fileno"):
            return not _readable(driver.fileno())
        # asyncpg hears of the end from the event loop, which may not have had its turn yet.
        transport = getattr(driver, "_transport", None)
        return not driver.is_closed() and (
            transport is None or not _readable(transport.get_extra_info("socket").fileno())
        )

    # --- append ---------------------------------------------------------------------------

    async def append(
        self, connection: AsyncConnection, write: Append, outbox: Sequence[ScopeKey]
    ) -> AppendOutcome:
        for _ in range(TRIES):
            if write.expected is None or write.expected.adopted:
                try:
                    async with self.bounded(connection):
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
                return await self.perform(connection, lambda: writes.append(write, outbox, self.flavour))
            except Duplicate:
                settled = await self.settle(connection, write)
                if settled is not None:
                    return settled
        return await super().append(connection, write, outbox)

    async def settle(self, connection: AsyncConnection, write: Append) -> AppendOutcome | None:
        params = {**_params(write.key), "ids": [event.id for event in write.events]}
        async with self.bounded(connection):
            row = (await connection.execute(sql.SETTLE, params)).one_or_none()
        if row is None:
            return Missing()
        current = steps.session_tag(row[:4], row.foreign_rows)
        stored = {
            event_id: (seq or 0, (payload or "null").encode())
            for event_id, seq, payload in zip(row.ids or (), row.seqs or (), row.payloads or (), strict=True)
        }
        outcome = writes.verdict(write.events, stored, current)
        return None if isinstance(outcome, Stale) and write.expected in (None, current) else outcome

    # --- reads ----------------------------------------------------------------------------

    async def load(self, connection: AsyncConnection, key: SessionKey, query: Query) -> Snapshot | None:
        shape = sql.Window(query.limit is not None, query.after is not None, False)
        row = await self._row(
            connection, sql.load_statement(shape, query.limit == 0), _window_params(key, query)
        )
        if row is None:
            return None
        events, cut = _events(row, query)
        foreign = bool(row.foreign_rows) or (bool(events) and events[-1].seq == 0)
        return Snapshot(
            key,
            Content(
                steps.session_tag(row[:4], foreign),
                row.state.encode(),
                events,
                complete=not cut and query.after is None,
                before=None if row.before is None or foreign else to_micros(row.before),
            ),
            _scope(row.ui, row.ur, row.un, row.ut, row.us),
            _scope(row.ai, row.ar, row.an, row.at, row.ast),
            remaining(row.expires_at, row.now),
        )

    async def older(
        self, connection: AsyncConnection, key: SessionKey, before_seq: int, query: Query
    ) -> Older | None:
        shape = sql.Window(query.limit is not None, query.after is not None, True)
        params = {**_window_params(key, query), "before": before_seq}
        row = await self._row(connection, sql.older_statement(shape, query.limit == 0), params)
        if row is None:
            return None
        events, cut = _events(row, query)
        return Older(
            steps.session_tag(row[:4], row.foreign_rows), events, complete=not cut and query.after is None
        )

    async def tags(self, connection: AsyncConnection, key: SessionKey) -> Tags:
        rows = await self.read(connection, lambda: _rows(sql.TAGS, _params(key)))
        found = {row[0]: to_tag(*row[1:]) for row in rows}
        return Tags(found.get("s"), found.get("u"), found.get("a"))

    async def _row(self, connection: AsyncConnection, statement: TextClause, params: Any) -> Any:
        rows = await self.read(connection, lambda: _rows(statement, params))
        return rows[0] if rows else None


def _rows(statement: TextClause, params: Any) -> Unit[Sequence[Any]]:
    return (yield Step(statement, params)).rows


def _readable(descriptor: int) -> bool:
    # An idle connection has nothing to read; if it has, that is the server's farewell.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(0))


def _params(key: SessionKey) -> dict[str, Any]:
    return {"a": key.app_name, "u": key.user_id, "s": key.session_id}


def _adoptable(write: Append, settled: Stale) -> bool:
    return write.expected is None and not settled.current.adopted


async def _append(
    connection: AsyncConnection, write: Append, outbox: Sequence[ScopeKey], lock: str
) -> Committed | None:
    """Sends the append statement; None if it found no row to change."""
    k = max(len(write.events), 1)
    session = "" if write.session_delta is None else "replace" if write.replace_state else "merge"
    shape = sql.Shape(
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
    row = (await connection.execute(sql.append_statement(shape), params)).one_or_none()
    if row is None:
        return None
    tag = Tag(row.incarnation, row.revision, row.nonce, to_micros(row.update_time))
    records = writes.records(write, tag.revision - k)
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
        expires_in=row.sliding_ttl,
    )


def _window_params(key: SessionKey, query: Query) -> dict[str, Any]:
    params = _params(key)
    if query.limit:
        params["limit"] = query.limit + 1
    if query.after is not None and query.limit != 0:
        params["after"] = to_time(query.after)
    return params


def _events(row: Any, query: Query) -> tuple[tuple[EventRecord, ...], bool]:
    if query.limit == 0:
        return (), True
    if row.ids is None:
        return (), False
    rows = list(zip(row.seqs, row.ids, row.times, row.payloads, strict=True))
    cut = query.limit is not None and len(rows) > query.limit
    return tuple(map(steps.event_record, reversed(rows[:-1] if cut else rows))), cut


def _scope(incarnation: Any, revision: Any, nonce: Any, time: Any, state: Any) -> Content | None:
    if state is None:
        return None
    return Content(to_tag(incarnation, revision, nonce, time), state.encode())
