"""PostgreSQL: an append, and a load, is one statement and one round trip."""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ...config import TieredConfig
from ...records import (
    Append,
    AppendOutcome,
    Committed,
    Content,
    Create,
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
from .. import reads, steps, writes
from ..failures import DRIVER_ERRORS, is_duplicate, is_retryable, is_timeout
from ..groups import Grouped
from ..lent import Texts, lend_doubtful, perform, watched
from ..steps import Duplicate, Flavour, Unit
from ..values import check_jsonb, documents, fresh, to_micros, to_tag, to_time
from . import postgresql_reads
from . import postgresql_text as sql
from .explicit import ExplicitDialect
from .portable import TRIES, Make, drive
from .postgresql_group import REWRITTEN, append_group

T = TypeVar("T")


class PostgresqlDialect(ExplicitDialect):
    """Performs units on PostgreSQL, the frequent ones by one statement in AUTOCOMMIT."""

    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
    group_connections = 2

    def __init__(self, engine: AsyncEngine, config: TieredConfig) -> None:
        super().__init__(engine, config)
        self.flavour = Flavour(rewrites=True)
        # Shares the pool; setting the level is free with asyncpg and psycopg.
        self.engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._asyncpg = engine.dialect.driver == "asyncpg"
        self._texts = Texts(engine.dialect)
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

    async def append_group(
        self, connection: AsyncConnection, writes: Sequence[Grouped]
    ) -> Sequence[AppendOutcome | None]:
        return await append_group(connection, writes)

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
        return writes.settled(write, stored, current)

    # --- reads ----------------------------------------------------------------------------

    @property
    def lends(self) -> bool:
        return self._asyncpg and not watched(self.engine)

    async def lent(self, make: Make[T]) -> T:
        async def work(driver: Any) -> T:
            with self.cutting(driver):
                return await perform(make(), self._texts, lambda text, values: driver.fetch(text, *values))

        return await lend_doubtful(self.engine, work)

    def load(self, key: SessionKey, query: Query) -> Unit[Snapshot | None]:
        return postgresql_reads.load(key, query, self._asyncpg)

    def older(self, key: SessionKey, before_seq: int, query: Query) -> Unit[Older | None]:
        return postgresql_reads.older(key, before_seq, query, self._asyncpg)

    def tags(self, key: SessionKey) -> Unit[Tags]:
        return postgresql_reads.tags(key)

    def sessions(self, app_name: str, user_id: str | None) -> Unit[list[Snapshot]]:
        return reads.sessions(app_name, user_id, postgresql_reads.list_statement(user_id is not None))


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
        any(REWRITTEN.search(event.payload) for event in write.events),
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


def _scope(incarnation: Any, revision: Any, nonce: Any, time: Any, state: Any) -> Content | None:
    if state is None:
        return None
    return Content(to_tag(incarnation, revision, nonce, time), state.encode())
