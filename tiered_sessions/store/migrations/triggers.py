"""Triggers that tell the cache of other programs' writes: their rows get a tag and an outbox row.

Optional. Without them a foreign write is found by every append, and by a read once the cached
entry is older than `max_staleness`; with them the entry is dropped within the outbox poll.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ...errors import ConfigurationError, SchemaMismatchError, StoreUnavailableError
from ..failures import is_retryable, mapped, number, sqlstate
from .catalog import is_current
from .lock import exclusive
from .numbered import latest_version

_FILES: Final = {
    "postgresql": "triggers_postgresql.sql",
    "mysql": "triggers_mysql.sql",
    "mariadb": "triggers_mysql.sql",
    "sqlite": "triggers_sqlite.sql",
}
# What is in force on the tables that a plain name reaches. PostgreSQL keeps disabled triggers too.
_PRESENT: Final = {
    "postgresql": "SELECT tgname, tgrelid::regclass::text, tgenabled <> 'D' FROM pg_trigger "
    "WHERE NOT tgisinternal AND tgrelid IN (to_regclass('events'), to_regclass('sessions'), "
    "to_regclass('user_states'), to_regclass('app_states'))",
    "mysql": "SELECT trigger_name, event_object_table, 1 FROM information_schema.triggers "
    "WHERE trigger_schema = DATABASE()",
    "sqlite": "SELECT name, tbl_name, 1 FROM sqlite_master WHERE type = 'trigger'",
}
_PRESENT["mariadb"] = _PRESENT["mysql"]
_TABLES: Final = ("events", "sessions", "user_states", "app_states")
_HEADING: Final = re.compile(r"^-- (function|trigger) (tiered_sessions_\w+)(?: on (\w+))?\n", re.MULTILINE)
_TRIES: Final = 5
_BINARY_LOG: Final = 1419


class Part(NamedTuple):
    """A trigger, or a function that triggers call, and the statement that makes it."""

    kind: str
    name: str
    table: str
    sql: str


@cache
def parts(dialect: str) -> Sequence[Part]:
    """Lists what `install_triggers` makes on that kind of database; nothing where there is no such way."""
    if dialect not in _FILES:
        return ()
    file = resources.files(__package__ or "") / "sql" / _FILES[dialect]
    _, *pieces = _HEADING.split(file.read_text(encoding="utf-8"))
    return tuple(
        Part(kind, name, table or "", sql.strip())
        for kind, name, table, sql in zip(*(pieces[i::4] for i in range(4)), strict=True)
    )


def missing_triggers(connection: Connection) -> list[str]:
    """Lists the triggers that are not in force; changes nothing."""
    present = _present(connection)
    wanted = (part for part in parts(connection.dialect.name) if part.kind == "trigger")
    return [part.name for part in wanted if not present.get(part.name, False)]


async def triggers_installed(engine: AsyncEngine) -> bool:
    """Says whether every trigger is in force."""
    if not parts(engine.dialect.name):
        return False
    async with engine.connect() as connection:
        return not await connection.run_sync(missing_triggers)


async def install_triggers(engine: AsyncEngine) -> list[str]:
    """Makes the triggers that are missing; returns their names.

    Safe to repeat and beside running writers: each statement waits three seconds at most for its
    table, so that nobody waits behind it for longer, and is tried again. To be called when the schema
    is prepared and *before* rows are adopted: what is numbered later is then never out of step.

    Raises:
        ConfigurationError: There are no triggers for this kind of database.
        SchemaMismatchError: The tables are not prepared yet.
        StoreUnavailableError: A table stayed locked; what was made stays.
        StoreError: The database user may not make triggers.
    """
    dialect = engine.dialect.name
    if not parts(dialect):
        raise ConfigurationError(f"There are no triggers for {dialect}; only for {', '.join(_FILES)}")
    done = []
    async with exclusive(engine) as connection:
        await _refuse_unprepared(connection)
        if dialect == "postgresql":
            await connection.exec_driver_sql(_FIX_PATH)
        present = await connection.run_sync(_present)
        for part in parts(dialect):
            if part.kind == "function":
                await _patiently(connection, [part.sql])
            elif not present.get(part.name, False):
                replaced = [_drop(dialect, part)] if part.name in present else []
                await _patiently(connection, [*replaced, part.sql])
                done.append(part.name)
    return done


async def remove_triggers(engine: AsyncEngine) -> list[str]:
    """Removes the triggers, and the functions they call; returns the triggers' names. Safe to repeat."""
    dialect = engine.dialect.name
    done = []
    async with exclusive(engine) as connection:
        present = await connection.run_sync(_present)
        for part in reversed(parts(dialect)):
            if part.name in present and part.kind == "trigger":
                await _patiently(connection, [_drop(dialect, part)])
                done.append(part.name)
        for part in reversed(parts(dialect)):
            if part.kind == "function":
                await _patiently(connection, [f"DROP FUNCTION IF EXISTS {part.name}"])
    return done


# The functions keep the path they are made under: the schema of the tables, whoever writes to them.
_FIX_PATH: Final = (
    "SELECT set_config('search_path', (SELECT relnamespace::regnamespace::text FROM pg_class "
    "WHERE oid = to_regclass('sessions')) || ', pg_temp', false)"
)


def _present(connection: Connection) -> dict[str, bool]:
    query = _PRESENT.get(connection.dialect.name)
    if query is None:
        return {}
    rows = connection.execute(text(query))
    return {str(name): bool(on) for name, table, on in rows if str(table).rpartition(".")[2] in _TABLES}


def _drop(dialect: str, part: Part) -> str:
    on = f" ON {part.table}" if dialect == "postgresql" else ""
    return f"DROP TRIGGER IF EXISTS {part.name}{on}"


async def _refuse_unprepared(connection: AsyncConnection) -> None:
    try:
        current = await connection.run_sync(is_current, latest_version())
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        current = False
    if not current:
        raise SchemaMismatchError("The tables are not prepared yet: run `tiered-sessions migrate` first")


async def _patiently(connection: AsyncConnection, statements: Sequence[str]) -> None:
    for attempt in range(1, _TRIES + 1):
        try:
            for statement in statements:
                await connection.exec_driver_sql(statement)
            return
        except DBAPIError as error:
            if number(error) == _BINARY_LOG:
                raise SchemaMismatchError(
                    "This MySQL server lets no such user make triggers while its binary log is on: set "
                    "log_bin_trust_function_creators = 1, or have an administrator install them"
                ) from error
            busy = is_retryable(error) or sqlstate(error) == "55P03" or number(error) == 1205
            if error.connection_invalidated or not busy:
                raise mapped(error) from error
            if attempt == _TRIES:
                raise StoreUnavailableError(
                    "A table stayed locked by a long transaction: run this again when it has ended"
                ) from error
        await asyncio.sleep(0.1 * attempt)
