"""Bringing a database to the newest schema: at start-up, or by `tiered-sessions migrate`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ...errors import SchemaMismatchError, StoreUnavailableError
from ..schema import SCHEMA_VERSION_KEY, adk_internal_metadata, schema_version
from .adopt import Adopted, Progress, adopt_rows
from .catalog import Shape, is_current, narrow_columns, read_shape, refuse_unknown
from .lock import exclusive
from .numbered import all_steps, latest_version
from .script import render
from .steps import Step
from .triggers import install_triggers

_LOOKS = 10
_TRIES = 5


@dataclass(frozen=True)
class Report:
    """What `migrate` did."""

    steps: Sequence[str]
    adopted: Adopted


async def prepare_schema(engine: AsyncEngine, *, create_tables: bool) -> None:
    """Makes the tables, or adopts those of stock ADK, unless that was done before.

    Adds tables, columns, indexes and rows of its own; never rewrites a table. Safe to repeat, and
    in many processes at once.

    Args:
        engine: The database.
        create_tables: If false, only checks.

    Raises:
        SchemaMismatchError: The layout is unknown, or something is missing and may not be made.
    """
    async with engine.connect() as connection:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        if await _is_current(connection):
            return
        shape = await _known_shape(connection)
    steps = [step for step in all_steps() if step.needed(shape)]
    if not create_tables:
        _refuse_missing(steps)
    _refuse_rewriting(shape)
    await run_steps(engine, all_steps())


async def plan(engine: AsyncEngine) -> list[Step]:
    """Lists what `migrate` would do; changes nothing.

    Raises:
        SchemaMismatchError: The layout is unknown.
    """
    async with engine.connect() as connection:
        shape = await _known_shape(connection)
    return [step for step in all_steps() if step.needed(shape)]


async def script(engine: AsyncEngine) -> str:
    """Renders as SQL what this database lacks; changes nothing."""
    async with engine.connect() as connection:
        shape = await _known_shape(connection)
    return render(shape, engine.dialect)


async def migrate(engine: AsyncEngine, progress: Progress | None = None, *, triggers: bool = False) -> Report:
    """Brings the schema to the newest version, also where a table must be rewritten, and adopts every row.

    Args:
        engine: The database.
        progress: Is told of the rows.
        triggers: Installs the triggers that tell of other programs' writes.
    """
    steps = await run_steps(engine, all_steps()) if await plan(engine) else []
    if triggers:
        # Before anything is numbered, so that nothing numbered is ever out of step.
        steps += [f"create trigger {name}" for name in await install_triggers(engine)]
    return Report(steps, await adopt_rows(engine, progress))


async def run_steps(engine: AsyncEngine, steps: Sequence[Step]) -> list[str]:
    """Does those of `steps` that are needed, one migrator at a time; returns their names."""
    done: list[str] = []
    async with exclusive(engine) as connection:
        for attempt in range(_TRIES):
            try:
                shape = await connection.run_sync(read_shape)
                refuse_unknown(shape, latest_version())
                for step in steps:
                    if step.needed(shape):
                        await connection.run_sync(_upgrade, step, shape)
                        done.append(step.name)
                return done
            except DBAPIError as error:
                _raise_if_forbidden(error)
                # A table was busy, or stock ADK made the same thing at the same time: look again.
                # In SQLite one failure has ended the whole transaction.
                last = attempt == _TRIES - 1 or connection.dialect.name == "sqlite"
                if error.connection_invalidated or last:
                    raise StoreUnavailableError(f"Preparing the tables failed: {error.orig}") from error
                await asyncio.sleep(0.05 * (attempt + 1))
    return done


def _upgrade(connection: Connection, step: Step, shape: Shape) -> None:
    # Here, because start-up on a prepared database has no use for it (90 ms).
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    step.upgrade(Operations(MigrationContext.configure(connection)), shape)


async def _is_current(connection: AsyncConnection) -> bool:
    try:
        return await connection.run_sync(is_current, latest_version())
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return False


async def _known_shape(connection: AsyncConnection) -> Shape:
    for attempt in range(_LOOKS):
        try:
            shape = await connection.run_sync(read_shape)
        except DBAPIError as error:
            # MySQL refuses to describe a table that another process is making.
            if error.connection_invalidated or attempt == _LOOKS - 1:
                raise
        else:
            # Stock ADK makes this table first and writes its row in a second transaction.
            half_made = (
                adk_internal_metadata.name in shape.tables
                and SCHEMA_VERSION_KEY not in shape.names
                and schema_version.name not in shape.tables
            )
            if not half_made:
                break
        await asyncio.sleep(0.1)
    refuse_unknown(shape, latest_version())
    return shape


def _refuse_missing(steps: Sequence[Step]) -> None:
    if steps:
        raise SchemaMismatchError(
            f"The database lacks: {'; '.join(step.name for step in steps)}. create_tables is "
            "false, so nothing was changed: run `tiered-sessions migrate`, or give the output of "
            "`tiered-sessions migrate --print-sql` to someone who may."
        )


def _refuse_rewriting(shape: Shape) -> None:
    narrow = narrow_columns(shape)
    if narrow:
        columns = ", ".join(f"{table.name}.{column}" for table, column in narrow)
        raise SchemaMismatchError(
            f"These columns, made by google-adk with a mariadb+ URL, lose fractions of a second or long "
            f"texts: {columns}. Start-up rewrites no table, so nothing was changed: stop the writers and run "
            "`tiered-sessions migrate`."
        )


def _raise_if_forbidden(error: DBAPIError) -> None:
    text = str(error.orig).lower()
    if any(
        words in text
        for words in ("permission denied", "command denied", "access denied", "readonly", "read-only")
    ):
        raise SchemaMismatchError(
            f"This database user may not prepare the tables ({error.orig}). Give the output of "
            "`tiered-sessions migrate --print-sql` to someone who may; then set create_tables=False."
        ) from error
