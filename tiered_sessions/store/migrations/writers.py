"""Whether somebody else is using the database, as far as it tells."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from sqlalchemy import Table, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ...errors import StoreError
from ..schema import app_states, events, sessions, user_states

PAUSE: Final = 1.0
"""Between the two looks, in seconds."""

_CONNECTIONS: Final = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
    "mysql": "SELECT count(*) FROM information_schema.processlist "
    "WHERE db = DATABASE() AND id <> CONNECTION_ID()",
}
_CONNECTIONS["mariadb"] = _CONNECTIONS["mysql"]


async def look(connection: AsyncConnection) -> tuple[Any, ...]:
    """Returns what changes with nearly every write: counts and newest times of the four tables."""
    found: list[Any] = []
    for table in (sessions, events, app_states, user_states):
        found += (await connection.execute(_newest(table))).one()
    if connection.dialect.name == "sqlite":
        # Changes with every commit of another connection, whatever it wrote.
        found.append((await connection.execute(text("PRAGMA data_version"))).scalar_one())
    return tuple(found)


def _newest(table: Table) -> Any:
    time = table.c.timestamp if table is events else table.c.update_time
    return select(func.count(), func.max(time)).select_from(table)


async def refuse_writers(engine: AsyncEngine, pause: float = PAUSE) -> None:
    """Refuses to go on where the tables change, or other connections to the database are open.

    PostgreSQL lists every connection; MySQL and MariaDB those of the same user, or all to a user who
    has PROCESS; SQLite none, there only a change between the two looks is seen.

    Raises:
        StoreError: Somebody was seen.
    """
    async with engine.connect() as connection:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        query = _CONNECTIONS.get(connection.dialect.name)
        others = (await connection.execute(text(query))).scalar_one() if query else 0
        if others:
            raise StoreError(
                f"{others} other connections to this database are open. Stop the programs that use it, then "
                "run again; --force goes on beside them. Nothing was changed."
            )
        before = await look(connection)
        await asyncio.sleep(pause)
        if await look(connection) != before:
            raise StoreError(
                "The tables are being written: they changed within a second. Stop the writers, then run "
                "again. Nothing was changed."
            )
