"""PostgreSQL: an append, and a load, is one statement and one round trip."""

from __future__ import annotations

import select
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql.base import Executable

from ...config import TieredConfig
from ...records import (
    Append,
    AppendOutcome,
    Committed,
    Create,
    CreateOutcome,
    DeleteOutcome,
    Exists,
    Expired,
    Listing,
    Missing,
    Older,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Stale,
    Tags,
)
from .. import steps, writes
from ..failures import DRIVER_ERRORS, is_duplicate, is_retryable, is_timeout
from ..groups import Grouped
from ..lent import Lent, Texts, autocommitting, perform, watched
from ..statements import EXPIRED_SESSION
from ..steps import Duplicate, Flavour, Params, Reply, Row, Unit, first, key_params, scope_content
from ..values import check_documents, fresh, to_tag, to_time
from . import postgresql_life as life
from . import postgresql_life_group as life_group
from . import postgresql_reads
from . import postgresql_text as sql
from .explicit import ExplicitDialect
from .portable import TRIES, Make, drive
from .postgresql_group import Execute, append_group, rewritten

T = TypeVar("T")


class PostgresqlDialect(ExplicitDialect):
    """Performs units on PostgreSQL, the frequent ones by one statement in AUTOCOMMIT."""

    begin = "BEGIN ISOLATION LEVEL READ COMMITTED"
    group_connections = 2

    def __init__(self, engine: AsyncEngine, config: TieredConfig) -> None:
        super().__init__(engine, config)
        self.flavour = Flavour(rewrites=True)
        # Shares the pool; setting the level is free with asyncpg and psycopg.
        self.engine = autocommitting(engine)
        self._asyncpg = self.quiet = engine.dialect.driver == "asyncpg"
        self._texts = Texts(engine.dialect)
        self._lock = f"{round(config.lock_timeout * 1000)}ms"

    check = staticmethod(check_documents)

    async def read(self, lent: Lent, make: Make[T]) -> T:
        """Performs a unit statement by statement; one that is too long is given more time once."""
        timer = self.cut_later(lent.driver)
        try:
            if self.lends:
                return await perform(make(), self._texts, lent.fetch)
            return await drive(await lent.whole(), make())
        except DRIVER_ERRORS as error:
            if not is_timeout(error):
                raise
        finally:
            timer.cancel()
        # statement_timeout is for writes, which hold masks; a long list may take longer.
        timer = self.cut_later(lent.driver, patience=10)
        try:
            return await self.explicit(await lent.whole(), make(), patience=10)
        finally:
            timer.cancel()

    async def limits(self, connection: AsyncConnection, patience: int) -> None:
        statement = f"{round(self.config.statement_timeout * 1000 * patience)}ms"
        await connection.execute(sql.LIMITS, {"lock": self._lock, "statement": statement})

    def alive(self, driver: Any) -> bool:
        if hasattr(driver, "fileno"):
            return not _readable(driver.fileno())
        # asyncpg hears of the end from the event loop, which may not have had its turn yet.
        transport = getattr(driver, "_transport", None)
        return not driver.is_closed() and (
            transport is None or not _readable(transport.get_extra_info("socket").fileno())
        )

    @property
    def lends(self) -> bool:
        return self._asyncpg and not watched(self.engine)

    # --- writes ---------------------------------------------------------------------------

    def _execute(self, lent: Lent) -> Execute:
        """Chooses how statements that commit by themselves go: the driver's way, if nobody listens."""

        async def by_sqlalchemy(statement: Executable, params: Params) -> Sequence[Row]:
            result: Sequence[Row] = (await (await lent.whole()).execute(statement, params)).all()
            return result

        def by_driver(statement: Executable, params: Params) -> Awaitable[Sequence[Row]]:
            return lent.fetch(*self._texts.of(statement, params))

        return by_driver if self.lends else by_sqlalchemy

    async def append(self, lent: Lent, write: Append, outbox: Sequence[ScopeKey]) -> AppendOutcome:
        for _ in range(TRIES):
            if write.expected is None or write.expected.adopted:
                try:
                    committed = await _append(self._execute(lent), write, outbox, self._lock)
                except DRIVER_ERRORS as error:
                    if is_retryable(error):
                        continue
                    if not is_duplicate(error):
                        raise
                    committed = None
                if committed is not None:
                    return committed
                settled = await self.settle(lent, write)
                if settled is not None and not (isinstance(settled, Stale) and _adoptable(write, settled)):
                    return settled
            # Events of other programs have to be numbered first, under the lock.
            try:
                return await self.perform(lent, lambda: writes.append(write, outbox, self.flavour))
            except Duplicate:
                settled = await self.settle(lent, write)
                if settled is not None:
                    return settled
        return await super().append(lent, write, outbox)

    async def append_group(
        self, lent: Lent, writes: Sequence[Grouped[Append]]
    ) -> Sequence[AppendOutcome | None]:
        return await append_group(self._execute(lent), writes)

    async def settle(self, lent: Lent, write: Append) -> AppendOutcome | None:
        params = {**key_params(write.key), "ids": [event.id for event in write.events]}
        row = first(Reply(await self._execute(lent)(sql.SETTLE, params), 0))
        if row is None:
            return Missing()
        *tag, foreign, ids, seqs, payloads = row
        current = steps.session_tag(tag, foreign)
        stored = {
            event_id: (seq or 0, (payload or "null").encode())
            for event_id, seq, payload in zip(ids or (), seqs or (), payloads or (), strict=True)
        }
        return writes.settled(write, stored, current)

    async def create(self, lent: Lent, write: Create, outbox: Sequence[ScopeKey]) -> CreateOutcome:
        if write.replace_expired or not set(outbox) <= set(write.scopes):
            # To make way takes several looks under the lock.
            return await super().create(lent, write, outbox)
        execute = self._execute(lent)
        for last in (False, True):
            try:
                made = await life.create(execute, write, outbox, self._lock)
            except DRIVER_ERRORS as error:
                if last or not is_retryable(error):
                    raise
            else:
                break
        if made is not None:
            return made
        found = first(Reply(await execute(EXPIRED_SESSION, key_params(write.key)), 0))
        return Exists() if found is None else Expired()

    async def delete(
        self, lent: Lent, key: SessionKey, outbox: Sequence[ScopeKey], only_expired: bool
    ) -> DeleteOutcome:
        execute = self._execute(lent)
        for _ in range(TRIES - 1):
            try:
                found = await life.delete(execute, key, outbox, only_expired, self._lock)
            except DRIVER_ERRORS as error:
                if not is_retryable(error):
                    raise
            else:
                if found is None:
                    break
                return found
        return await super().delete(lent, key, outbox, only_expired)

    async def create_group(
        self, lent: Lent, writes: Sequence[Grouped[Create]]
    ) -> Sequence[CreateOutcome | None]:
        return await life_group.create_group(self._execute(lent), writes, self._lock)

    async def delete_group(
        self, lent: Lent, writes: Sequence[Grouped[SessionKey]]
    ) -> Sequence[DeleteOutcome | None]:
        return await life_group.delete_group(self._execute(lent), writes)

    # --- reads ----------------------------------------------------------------------------

    def load(self, key: SessionKey, query: Query) -> Unit[Snapshot | None]:
        return postgresql_reads.load(key, query, self._asyncpg)

    def older(self, key: SessionKey, before_seq: int, query: Query) -> Unit[Older | None]:
        return postgresql_reads.older(key, before_seq, query, self._asyncpg)

    def tags(self, key: SessionKey) -> Unit[Tags]:
        return postgresql_reads.tags(key)

    def sessions(self, app_name: str, user_id: str | None) -> Unit[Listing]:
        return postgresql_reads.sessions(app_name, user_id)


def _readable(descriptor: int) -> bool:
    # An idle connection has nothing to read; if it has, that is the server's farewell.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(0))


def _adoptable(write: Append, settled: Stale) -> bool:
    return write.expected is None and not settled.current.adopted


async def _append(execute: Execute, write: Append, outbox: Sequence[ScopeKey], lock: str) -> Committed | None:
    """Sends the append statement; None if it found no row to change."""
    key, events = write.key, write.events
    k = len(events) or 1
    odd = False
    for event in events:
        odd = odd or rewritten(event.payload)
    shape = sql.Shape(
        write.expected is not None,
        min(len(events), 2),
        odd,
        "" if write.session_delta is None else "replace" if write.replace_state else "merge",
        write.app_delta is not None,
        write.user_delta is not None,
        tuple(sorted([scope.kind for scope in outbox])) if outbox else (),
    )
    params = {
        "a": key.app_name,
        "u": key.user_id,
        "s": key.session_id,
        "lock": lock,
        "nonce": fresh(),
        "time": to_time(write.update_time),
    }
    if write.expected is not None:
        tag = write.expected
        params |= {"i": tag.incarnation, "r": tag.revision, "n": tag.nonce, "t": to_time(tag.update_time)}
    if len(events) == 1:
        params["id"], params["invocation"] = event.id, event.invocation_id
        params["at"], params["payload"] = to_time(event.timestamp), event.payload.decode()
    elif events:
        params["k"] = k
        params["ids"] = [event.id for event in events]
        params["invocations"] = [event.invocation_id for event in events]
        params["times"] = [to_time(event.timestamp) for event in events]
        params["payloads"] = [event.payload.decode() for event in events]
    if write.session_delta is not None:
        params["delta"] = write.session_delta.decode()
    for kind, delta in (("app", write.app_delta), ("user", write.user_delta)):
        if delta is not None:
            params |= {f"{kind}_delta": delta.decode(), f"{kind}_i": fresh(), f"{kind}_n": fresh()}
    if outbox:
        params["micros"] = write.update_time
        params |= {f"stamp_{scope.kind}": fresh() for scope in outbox}
    rows = await execute(sql.append_statement(shape), params)
    if not rows:
        return None
    row = rows[0]
    tag, values = to_tag(*row[:4]), iter(row[5:])
    state = next(values).encode() if shape.session else None
    records = writes.records(write, tag.revision - k)
    if shape.rewritten:
        records = tuple(
            record._replace(payload=payload.encode())
            for record, payload in zip(records, next(values), strict=True)
        )
    app = scope_content([next(values) for _ in range(5)]) if shape.app else None
    user = scope_content([next(values) for _ in range(5)]) if shape.user else None
    return Committed(tag, records, state, user, app, expires_in=row[4])
