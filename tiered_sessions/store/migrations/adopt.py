"""Giving tags and numbers to the rows that stock ADK has written."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ...records import EventRecord
from ..numbering import order_foreign
from ..schema import app_states, cache_outbox, events, sessions, user_states
from .catalog import read_shape

Progress = Callable[[int, int], None]
"""Is told how many rows are done, and how many there are."""

_BATCH = 500
_LOCK_WAIT = {
    "postgresql": "SET lock_timeout = '3s'",
    "mysql": "SET SESSION innodb_lock_wait_timeout = 3",
    "mariadb": "SET SESSION innodb_lock_wait_timeout = 3",
}
# Lock time-out, deadlock, serialization failure: SQLSTATE on PostgreSQL, error numbers on MySQL.
_BUSY = ("55P03", "40P01", "40001", 1205, 1213)


@dataclass(frozen=True)
class Adopted:
    """How many rows were given a tag. `busy` ones were locked: their next append does it."""

    sessions: int = 0
    scopes: int = 0
    busy: int = 0


_unnumbered = exists(
    select(events.c.id).where(
        events.c.app_name == sessions.c.app_name,
        events.c.user_id == sessions.c.user_id,
        events.c.session_id == sessions.c.id,
        events.c.seq.is_(None),
    )
)
_FOREIGN: dict[str, ColumnElement[bool]] = {
    "sessions": or_(sessions.c.revision.is_(None), _unnumbered),
    "user_states": user_states.c.revision.is_(None),
    "app_states": app_states.c.revision.is_(None),
}


async def count_foreign(engine: AsyncEngine) -> int:
    """Counts the rows that `adopt_rows` would change, even where our columns are missing yet."""
    async with engine.connect() as connection:
        shape = await connection.run_sync(read_shape)
        total = 0
        for table in (sessions, user_states, app_states):
            if table.name in shape.tables:
                query = select(func.count()).select_from(table)
                if not shape.lacks_column(table.name, "revision") and not shape.lacks_column("events", "seq"):
                    query = query.where(_FOREIGN[table.name])
                total += (await connection.execute(query)).scalar_one()
    return total


async def adopt_rows(engine: AsyncEngine, progress: Progress | None = None) -> Adopted:
    """Adopts every row of other writers, each under its own lock.

    Each row is a transaction: it may be stopped and started again at any time, beside writers of
    both kinds. The contents and the update times stay as they are.
    """
    total = await count_foreign(engine)
    done = {"sessions": 0, "user_states": 0, "app_states": 0}
    busy = 0
    async with open_session(engine) as connection:
        for table in (sessions, user_states, app_states):
            async for key in _foreign_keys(connection, table):
                try:
                    async with transaction(connection):
                        await (_adopt_session if table is sessions else _adopt_scope)(connection, table, key)
                except DBAPIError as error:
                    if error.connection_invalidated or not _is_busy(error):
                        raise
                    busy += 1
                    continue
                done[table.name] += 1
                if progress is not None:
                    progress(sum(done.values()), total)
    return Adopted(done["sessions"], done["user_states"] + done["app_states"], busy)


async def _foreign_keys(connection: AsyncConnection, table: Table) -> AsyncIterator[Sequence[str]]:
    columns = list(table.primary_key.columns)
    after: Sequence[str] = ()
    while True:
        query = select(*columns).where(_FOREIGN[table.name]).order_by(*columns).limit(_BATCH)
        if after:
            query = query.where(beyond(connection.dialect.name, columns, after))
        async with transaction(connection, write=False):
            batch = (await connection.execute(query)).all()
        for row in batch:
            yield tuple(row)
        if len(batch) < _BATCH:
            return
        after = tuple(batch[-1])


def beyond(dialect: str, columns: Sequence[ColumnElement[Any]], values: Sequence[str]) -> ColumnElement[bool]:
    if dialect in ("postgresql", "sqlite"):
        return tuple_(*columns) > tuple_(*values, types=[column.type for column in columns])
    # SQL Server and Oracle compare no tuples, and MySQL finds no index range for one.
    return or_(
        *(
            and_(*(c == v for c, v in zip(columns[:i], values[:i], strict=True)), columns[i] > values[i])
            for i in range(len(columns))
        )
    )


def _where(table: Table, key: Sequence[str]) -> ColumnElement[bool]:
    return and_(*(c == v for c, v in zip(table.primary_key.columns, key, strict=True)))


async def _adopt_session(connection: AsyncConnection, table: Table, key: Sequence[str]) -> None:
    locked = (
        select(sessions.c.incarnation, sessions.c.revision, sessions.c.update_time)
        .where(_where(sessions, key))
        .with_for_update()
        .with_hint(sessions, "WITH (UPDLOCK, ROWLOCK)", "mssql")
    )
    row = (await connection.execute(locked)).first()
    if row is None:
        return
    own = and_(events.c.app_name == key[0], events.c.user_id == key[1], events.c.session_id == key[2])
    found = await connection.execute(
        select(events.c.id, events.c.timestamp, events.c.event_data).where(own, events.c.seq.is_(None))
    )
    ids = order_foreign(_record(event) for event in found)
    if row.revision is not None and not ids:
        return
    highest = (await connection.execute(select(func.max(events.c.seq)).where(own))).scalar()
    base = max(row.revision or 0, highest or 0)
    if ids:
        await connection.execute(
            update(events).where(own, events.c.id == bindparam("event")).values(seq=bindparam("number")),
            [{"event": id_, "number": base + i} for i, id_ in enumerate(ids, 1)],
        )
    tag = {
        "incarnation": row.incarnation or _random(),
        "revision": base + len(ids),
        "nonce": _random(),
    }
    await connection.execute(update(sessions).where(_where(sessions, key)).values(**tag))
    if row.incarnation is not None:
        # A cache may hold this session, as it was before the foreign events.
        await _record_invalidation(connection, key, tag, _microseconds(row.update_time))


async def _adopt_scope(connection: AsyncConnection, table: Table, key: Sequence[str]) -> None:
    await connection.execute(
        update(table)
        .where(_where(table, key), table.c.revision.is_(None))
        .values(incarnation=_random(), revision=0, nonce=_random())
    )


async def _record_invalidation(
    connection: AsyncConnection, key: Sequence[str], tag: dict[str, int], update_time: int
) -> None:
    scope = {"kind": "session", "app_name": key[0], "user_id": key[1], "session_id": key[2]}
    # Every writer of this row holds the session's lock, so nobody comes between the two.
    await connection.execute(
        delete(cache_outbox).where(*(cache_outbox.c[name] == value for name, value in scope.items()))
    )
    await connection.execute(
        insert(cache_outbox).values(**scope, **tag, update_time=update_time, stamp=_random())
    )


def _record(event: Row[*tuple[Any, ...]]) -> EventRecord:
    return EventRecord(0, event.id, _microseconds(event.timestamp), (event.event_data or "").encode())


def _microseconds(moment: datetime) -> int:
    elapsed = moment.replace(tzinfo=UTC) - datetime.fromtimestamp(0, UTC)
    return (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds


def _is_busy(error: DBAPIError) -> bool:
    if getattr(error.orig, "sqlstate", None) in _BUSY or "database is locked" in str(error.orig):
        return True
    return bool(error.orig is not None and error.orig.args and error.orig.args[0] in _BUSY)


def _random() -> int:
    return secrets.randbelow(2**63 - 1) + 1


@asynccontextmanager
async def open_session(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    name = engine.dialect.name
    async with engine.connect() as connection:
        level = "AUTOCOMMIT" if name == "sqlite" else "READ COMMITTED"
        connection = await connection.execution_options(isolation_level=level)
        try:
            if name in _LOCK_WAIT:
                await connection.execute(text(_LOCK_WAIT[name]))
                await connection.commit()
            yield connection
        finally:
            if name in _LOCK_WAIT:
                await connection.invalidate()


@asynccontextmanager
async def transaction(connection: AsyncConnection, *, write: bool = True) -> AsyncIterator[None]:
    if connection.dialect.name != "sqlite":
        async with connection.begin():
            yield
    elif not write:
        yield
    else:
        # Python's driver would begin a transaction that reads first and may then not write.
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            await connection.exec_driver_sql("ROLLBACK")
            raise
        await connection.exec_driver_sql("COMMIT")
