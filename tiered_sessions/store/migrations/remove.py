"""Takes away again what the migrations have added, so that only google-adk's own tables are left."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, delete, inspect, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from ...errors import StoreUnavailableError
from ..schema import adk_internal_metadata
from .catalog import ADDED, OWN_TABLES
from .lock import exclusive
from .triggers import missing_triggers, parts, remove_triggers
from .v0_tables import KEPT_EVENTS, KEPT_SESSIONS, new_events, new_sessions
from .writers import PAUSE, refuse_writers

_PREFIX: Final = "tiered_sessions_"
# What an upgrade from V0 has left that was not finished goes too.
_TABLES: Final = (*OWN_TABLES, new_events.name, new_sessions.name)


async def plan_removal(engine: AsyncEngine) -> list[str]:
    """Lists the statements of `remove`; changes nothing."""
    async with engine.connect() as connection:
        missing = await connection.run_sync(missing_triggers)
        made = [part.name for part in parts(engine.dialect.name) if part.kind == "trigger"]
        triggers = [f"DROP TRIGGER {name}" for name in made if name not in missing]
        return triggers + await connection.run_sync(_statements)


async def remove(engine: AsyncEngine, *, force: bool = False, pause: float = PAUSE) -> list[str]:
    """Removes triggers, tables, indexes, columns and rows of ours; returns what was done.

    Sessions, events and states stay. Safe to stop and to run again.

    Raises:
        StoreError: Somebody else uses the database.
        StoreUnavailableError: A table stayed locked.
    """
    if not force:
        await refuse_writers(engine, pause)
    done = [f"DROP TRIGGER {name}" for name in await remove_triggers(engine)]
    async with exclusive(engine) as connection:
        for statement in await connection.run_sync(_statements):
            try:
                await connection.execute(text(statement))
            except DBAPIError as error:
                raise StoreUnavailableError(f"{statement} failed ({error.orig}); run again") from error
            done.append(statement)
    return done


async def plan_drop_v0(engine: AsyncEngine) -> list[str]:
    """Lists the statements that drop the old tables which an upgrade in place has kept."""
    async with engine.connect() as connection:
        present = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    return [f"DROP TABLE {name}" for name in (KEPT_EVENTS, KEPT_SESSIONS) if name in present]


async def drop_v0(engine: AsyncEngine) -> list[str]:
    """Drops the old tables which an upgrade in place has kept; returns what was done."""
    statements = await plan_drop_v0(engine)
    async with exclusive(engine) as connection:
        for statement in statements:
            await connection.execute(text(statement))
    return statements


def _statements(connection: Connection) -> list[str]:
    inspector = inspect(connection)
    present = set(inspector.get_table_names())
    # Ours first: from then on no start-up takes the schema for complete.
    found = [f"DROP TABLE {name}" for name in _TABLES if name in present]
    for table, columns in ADDED.items():
        if table not in present:
            continue
        ours = {column["name"] for column in inspector.get_columns(table)} & set(columns)
        for index in inspector.get_indexes(table):
            if ours & set(index["column_names"]):
                on = "" if connection.dialect.name in ("postgresql", "sqlite") else f" ON {table}"
                found.append(f"DROP INDEX {index['name']}{on}")
        found += [f"ALTER TABLE {table} DROP COLUMN {name}" for name in columns if name in ours]
    if adk_internal_metadata.name in present:
        key = adk_internal_metadata.c.key
        rows = connection.execute(select(key).where(key.startswith(_PREFIX, autoescape=True)))
        found += [
            str(
                delete(adk_internal_metadata)
                .where(key == name)
                .compile(connection, compile_kwargs={"literal_binds": True})
            )
            for name in rows.scalars()
        ]
    return found
