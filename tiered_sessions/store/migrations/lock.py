"""One migrator at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ...errors import StoreUnavailableError

WAIT = 120.0
"""How long a process waits for another one's migration, in seconds."""

# Per database, though GET_LOCK is one name space per server.
_TRY = {
    "postgresql": "SELECT pg_try_advisory_lock(hashtext('tiered_sessions_schema'), 1)",
    "mysql": "SELECT GET_LOCK(CONCAT('tiered_sessions_', MD5(DATABASE())), 0)",
    "sqlite": "BEGIN IMMEDIATE",
}
_TRY["mariadb"] = _TRY["mysql"]

# A migration waits for a table's lock only shortly, because everyone else then waits behind it;
# building an index takes as long as it takes.
_SETTINGS = {
    "postgresql": ("SET lock_timeout = '3s'", "SET statement_timeout = 0"),
    "mysql": ("SET SESSION lock_wait_timeout = 3", "SET SESSION innodb_lock_wait_timeout = 3"),
}
_SETTINGS["mariadb"] = _SETTINGS["mysql"]


@asynccontextmanager
async def exclusive(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Holds the only connection that may migrate, in AUTOCOMMIT (SQLite: in one transaction).

    Raises:
        StoreUnavailableError: Another process held the lock for `WAIT` seconds.
    """
    name = engine.dialect.name
    async with engine.connect() as connection:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            await _acquire(connection, name)
            for setting in _SETTINGS.get(name, ()):
                await connection.execute(text(setting))
            yield connection
            if name == "sqlite":
                await connection.exec_driver_sql("COMMIT")
        except BaseException:
            if name == "sqlite":
                await _rollback(connection)
            raise
        finally:
            # Lock and settings end with the database's session, whatever state it is in.
            if name in _SETTINGS:
                await connection.invalidate()


async def _acquire(connection: AsyncConnection, name: str) -> None:
    statement = _TRY.get(name)
    if statement is None:
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WAIT
    # Polled, never awaited inside the server: CREATE INDEX CONCURRENTLY waits for every running
    # statement, so one that waits for the lock would deadlock with the migrator holding it.
    while not await _try(connection, statement):
        if loop.time() > deadline:
            raise StoreUnavailableError(f"Another process has been migrating this database for {WAIT:.0f} s.")
        await asyncio.sleep(random.uniform(0.02, 0.1))


async def _try(connection: AsyncConnection, statement: str) -> bool:
    if connection.dialect.name != "sqlite":
        return bool((await connection.execute(text(statement))).scalar())
    try:
        await connection.exec_driver_sql(statement)
    except OperationalError as error:
        if "locked" in str(error.orig) or "busy" in str(error.orig):
            return False
        raise
    return True


async def _rollback(connection: AsyncConnection) -> None:
    try:
        await connection.exec_driver_sql("ROLLBACK")
    except OperationalError:
        # Nothing had begun, or SQLite has rolled it back by itself.
        return
