"""What an operator should know about a database. Looks only: writes nothing, makes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, case, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import SchemaMismatchError, StoreUnavailableError
from ..urls import normalise_database_url, redact
from .migrations.catalog import ADDED, Shape, read_shape, refuse_unknown
from .migrations.connect import database
from .migrations.numbered import all_steps, latest_version
from .migrations.triggers import missing_triggers, parts
from .schema import app_states, cache_outbox, events, sessions, user_states

OUTBOX_PATIENCE = 1.5
"""Seconds between two looks at the outbox: three polls of a drain at its default."""


@dataclass(frozen=True)
class Adoption:
    """How many rows there are, and how many still lack what the cache needs.

    Attributes:
        sessions: All of them.
        foreign_sessions: Made by another program: served from SQL until adopted.
        waiting_events: Without a number though their session is adopted: another program wrote
            them, and their sessions are served from SQL until the next append.
        foreign_states: App and user states without a tag.
    """

    sessions: int
    foreign_sessions: int
    waiting_events: int
    foreign_states: int


@dataclass(frozen=True)
class Outbox:
    """Invalidations that wait for a drain.

    Attributes:
        rows: How many.
        stuck: How many of them nobody took within `OUTBOX_PATIENCE`.
        age: Seconds since the oldest of them that names a time was written, by the writer's clock.
    """

    rows: int
    stuck: int
    age: float | None


@dataclass(frozen=True)
class StoreHealth:
    """What was found.

    Attributes:
        dialect: The kind of database.
        version: The schema number found; None before the first migration.
        latest: The one this package knows.
        refused: Why the service would refuse this database; empty if it would not.
        missing: What a start or `migrate` would still make.
        rewrites: What of that only `migrate` does, because it copies a table.
        triggers: The triggers that are not in force; None where there are none for this database.
        adoption: None where our columns are missing.
        outbox: None where the table is missing.
    """

    dialect: str
    version: int | None
    latest: int
    refused: str
    missing: Sequence[str]
    rewrites: Sequence[str]
    triggers: Sequence[str] | None
    adoption: Adoption | None
    outbox: Outbox | None


async def look_at_store(url: str) -> StoreHealth:
    """Looks at the database at `url`.

    Raises:
        ConfigurationError: The URL cannot be used, or its driver is not installed.
        StoreUnavailableError: The database does not answer, or is not there.
    """
    _refuse_missing_file(url)
    async with database(url) as engine, engine.connect() as connection:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        shape = await connection.run_sync(read_shape)
        refused = ""
        try:
            refuse_unknown(shape, latest_version())
        except SchemaMismatchError as error:
            refused = str(error)
        known = not refused
        has_tables = known and all(table in shape.tables for table in ADDED)
        has_columns = has_tables and not any(shape.lacks_column(t, c) for t in ADDED for c in ADDED[t])
        return StoreHealth(
            dialect=shape.dialect,
            version=shape.version,
            latest=latest_version(),
            refused=refused,
            missing=_missing(shape) if known else (),
            rewrites=_missing(shape, rewriting=True) if known else (),
            triggers=await connection.run_sync(missing_triggers) if parts(shape.dialect) else None,
            adoption=await connection.run_sync(_adoption) if has_columns else None,
            outbox=await _outbox(connection) if known and _has_outbox(shape) else None,
        )


def _refuse_missing_file(url: str) -> None:
    # SQLite makes the file that it is asked to open.
    address = normalise_database_url(url)
    file = make_url(address.url).database
    named = address.dialect == "sqlite" and not address.memory and file
    if named and not str(file).startswith("file:") and not Path(str(file)).exists():
        raise StoreUnavailableError(
            f"{redact(url)}: there is no such file; the first use of a service makes it"
        )


def _missing(shape: Shape, *, rewriting: bool = False) -> tuple[str, ...]:
    steps = (step for step in all_steps() if step.rewrites or not rewriting)
    return tuple(step.name for step in steps if step.needed(shape))


def _has_outbox(shape: Shape) -> bool:
    found = shape.tables.get(cache_outbox.name)
    return found is not None and set(cache_outbox.columns.keys()) <= set(found.columns)


def _adoption(connection: Connection) -> Adoption:
    total, foreign = connection.execute(
        select(func.count(), func.count(case((sessions.c.revision.is_(None), 1)))).select_from(sessions)
    ).one()
    of_session = (
        (events.c.app_name == sessions.c.app_name)
        & (events.c.user_id == sessions.c.user_id)
        & (events.c.session_id == sessions.c.id)
    )
    waiting = connection.execute(
        select(func.count())
        .select_from(events.join(sessions, of_session))
        .where(events.c.seq.is_(None), sessions.c.revision.is_not(None))
    ).scalar_one()
    states = sum(
        connection.execute(
            select(func.count()).select_from(table).where(table.c.revision.is_(None))
        ).scalar_one()
        for table in (app_states, user_states)
    )
    return Adoption(total, foreign, waiting, states)


async def _outbox(connection: AsyncConnection) -> Outbox:
    query = select(cache_outbox.c.stamp, cache_outbox.c.update_time)
    first = {row.stamp: row.update_time for row in await connection.execute(query)}
    if not first:
        return Outbox(0, 0, None)
    # A row tells nothing of when it was written but by its stamp still being there.
    await asyncio.sleep(OUTBOX_PATIENCE)
    second = {row.stamp: row.update_time for row in await connection.execute(query)}
    times = [moment for moment in second.values() if moment is not None]
    age = max(0.0, time.time() - min(times) / 1e6) if times else None
    return Outbox(len(second), len(first.keys() & second.keys()), age)
