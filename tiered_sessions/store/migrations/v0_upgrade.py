"""Upgrades a database from google-adk's V0 layout (pickled events) to V1, in place or into another one.

In place, everything is copied into two new tables beside the old ones, which nobody looks at. Only
then do the names change hands, at once. Until that moment the database is a V0 one: the upgrade can
be stopped, killed and run again, and goes on where it was.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateTable

from ...errors import SchemaMismatchError, StoreError, UnknownPickleError
from ..schema import adk_internal_metadata, app_states, events, metadata, sessions, user_states
from .adopt import Progress, open_session, transaction
from .catalog import Shape, TableShape, read_shape
from .lock import exclusive
from .numbered import all_steps
from .runner import run_steps
from .script import render
from .unpickle import read_actions
from .v0_copy import Copier, Pair, Verified, verify
from .v0_events import Reading
from .v0_swap import analyse, exchange_statements, swap
from .v0_tables import is_v0, new_events, new_sessions, old_events, old_state
from .writers import PAUSE, look, refuse_writers

_UNFINISHED: Final = "tiered_sessions_v0_upgrade"
_PLACED: Final = ("postgresql", "mysql", "mariadb", "sqlite")


@dataclass(frozen=True)
class Options:
    """How an upgrade is done.

    Attributes:
        reading: How rows are read.
        force: Goes on although others use the database.
        pause: Between the two looks for writers, in seconds.
    """

    reading: Reading = field(default_factory=Reading)
    force: bool = False
    pause: float = PAUSE


@dataclass(frozen=True)
class Survey:
    """What an upgrade would find."""

    rows: dict[str, int]
    orphans: int
    unknown: dict[str, int]
    damaged: int


async def survey(engine: AsyncEngine) -> Survey | None:
    """Reads every pickle of a V0 database and says what would be in the way; None where there is no V0."""
    shape = await _shape(engine)
    if not is_v0(shape):
        return None
    unknown: Counter[str] = Counter()
    damaged = 0
    async with engine.connect() as connection:
        pairs = _pairs(shape, Reading(), in_place=True)
        copier = Copier(connection, connection, locked=True)
        rows = {pair.old.name: await copier.count_old(pair) for pair in pairs}
        orphans = await copier.count_orphans(pairs[-1], pairs[-2])
        async with connection.stream(select(pairs[-1].old.c.actions)) as result:
            async for (pickled,) in result:
                try:
                    read_actions(pickled or b"\x80\x04}.")
                except UnknownPickleError as error:
                    unknown[str(error)] += 1
                except ValueError:
                    damaged += 1
    return Survey(rows, orphans, dict(unknown), damaged)


async def upgrade(
    engine: AsyncEngine,
    options: Options,
    *,
    target: AsyncEngine | None = None,
    progress: Progress | None = None,
) -> list[Verified]:
    """Upgrades a V0 database; afterwards it, or `target`, is one that `migrate` adopts.

    Raises:
        SchemaMismatchError: It is not a V0 database, or `target` holds something else.
        StoreError: Somebody else is writing.
        UnknownPickleError: A pickle names a class that it cannot hold.
    """
    shape = await _shape(engine)
    if not is_v0(shape):
        raise SchemaMismatchError(
            "The database does not hold google-adk's V0 layout; there is nothing to upgrade. "
            "Nothing was changed."
        )
    if target is None and shape.dialect not in _PLACED:
        raise SchemaMismatchError(f"There is no upgrade in place on {shape.dialect}; name another database.")
    old_events(shape.tables["events"].columns)
    if not options.force:
        await refuse_writers(engine, options.pause)
    if target is None:
        return await _in_place(engine, shape, options, progress)
    return await _elsewhere(engine, target, shape, options, progress)


async def v0_script(engine: AsyncEngine) -> str | None:
    """Renders the statements, other than those of rows, of an upgrade in place; None where there is no V0."""
    shape = await _shape(engine)
    if not is_v0(shape):
        return None
    made = [
        str(CreateTable(table).compile(dialect=engine.dialect)).strip()
        for table in (new_sessions, new_events)
    ]
    async with engine.connect() as connection:
        exchange = await exchange_statements(connection)
    after = Shape(
        shape.dialect,
        {
            name: TableShape({c.name: c.type for c in metadata.tables[name].columns})
            for name in ("sessions", "events")
        }
        | {name: shape.tables[name] for name in ("app_states", "user_states") if name in shape.tables},
    )
    note = "-- here `tiered-sessions migrate` copies the rows, which no SQL can: their actions are pickled"
    parts = [*(f"{statement};" for statement in made), note, *(f"{statement};" for statement in exchange)]
    return "\n".join([*(re.sub(r"\s*\n", "\n", part) for part in parts), render(after, engine.dialect)])


async def _in_place(
    engine: AsyncEngine, shape: Shape, options: Options, progress: Progress | None
) -> list[Verified]:
    pairs = _pairs(shape, _reading(options, engine, engine), in_place=True)
    async with AsyncExitStack() as stack:
        if engine.dialect.name != "sqlite":
            # SQLite's lock is a transaction, which would hold every batch.
            await stack.enter_async_context(exclusive(engine))
        connection = await stack.enter_async_context(_writer(engine))
        async with transaction(connection):
            before = await look(connection)
            for table in (new_sessions, new_events):
                await connection.execute(CreateTable(table, if_not_exists=True))
        copier = Copier(connection, connection)
        for pair, tell in _told(pairs, await _sizes(copier, pairs), progress):
            await copier.copy(pair, tell)
        try:
            return await swap(connection, pairs, None if options.force else before)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            raise StoreError(
                f"The tables could not be exchanged ({error.orig}); the database is as it was. Run again: "
                "what was copied is kept."
            ) from error


async def _elsewhere(
    engine: AsyncEngine, target: AsyncEngine, shape: Shape, options: Options, progress: Progress | None
) -> list[Verified]:
    await _claim(engine, target)
    pairs = _pairs(shape, _reading(options, engine, target), in_place=False)
    async with _reader(engine) as read, _writer(target) as write:
        before = await look(read)
        copier = Copier(read, write)
        for pair, tell in _told(pairs, await _sizes(copier, pairs), progress):
            await copier.copy(pair, tell)
        # What another run has left may be of rows that are gone, or older than they are now.
        for pair in reversed(pairs):
            await copier.prune(pair)
        if await look(read) != before and not options.force:
            raise StoreError(
                "The database changed while it was copied. Stop the writers, then run again: what was copied "
                "is kept."
            )
        verified = await verify(copier, pairs)
        async with transaction(write):
            await write.execute(
                delete(adk_internal_metadata).where(adk_internal_metadata.c.key == _UNFINISHED)
            )
        await analyse(write)
    return verified


async def _claim(engine: AsyncEngine, target: AsyncEngine) -> None:
    """Marks an empty database as the target of this source; refuses one that holds something else."""
    url = engine.url
    source = hashlib.sha256(f"{url.host}:{url.port}/{url.database}".encode()).hexdigest()[:32]
    shape = await _shape(target)
    mark = shape.names.get(_UNFINISHED)
    filled = [
        t.name for t in (sessions, app_states) if t.name in shape.tables and not shape.tables[t.name].empty
    ]
    if mark != source and (mark is not None or filled):
        raise SchemaMismatchError("The other database is not empty. Nothing was changed.")
    await run_steps(target, all_steps())
    if mark is None:
        async with open_session(target) as connection, transaction(connection):
            await connection.execute(insert(adk_internal_metadata).values(key=_UNFINISHED, value=source))


def _pairs(shape: Shape, reading: Reading, *, in_place: bool) -> list[Pair]:
    """Lists what is copied, parents first; sessions and events are the last two."""
    old = old_events(shape.tables["events"].columns)
    if in_place:
        # The state tables are the same in both layouts.
        return [
            Pair(old_state(sessions), new_sessions, reading.session),
            Pair(old, new_events, reading.event, new_sessions),
        ]
    return [
        Pair(old_state(app_states), app_states, reading.state),
        Pair(old_state(user_states), user_states, reading.state),
        Pair(old_state(sessions), sessions, reading.session),
        Pair(old, events, reading.event, sessions),
    ]


def _reading(options: Options, source: AsyncEngine, target: AsyncEngine) -> Reading:
    return Reading(
        options.reading.zone,
        options.reading.unknown_as_text,
        utc_sessions=source.dialect.name == "sqlite",
        jsonb=target.dialect.name == "postgresql",
    )


async def _sizes(copier: Copier, pairs: list[Pair]) -> int:
    return sum([await copier.count_old(pair) for pair in pairs])


def _told(
    pairs: list[Pair], total: int, progress: Progress | None
) -> list[tuple[Pair, Callable[[int], None] | None]]:
    done = 0

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, total)

    return [(pair, tell) for pair in pairs]


async def _shape(engine: AsyncEngine) -> Shape:
    async with engine.connect() as connection:
        return await connection.run_sync(read_shape)


@asynccontextmanager
async def _reader(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


@asynccontextmanager
async def _writer(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with open_session(engine) as connection:
        if engine.dialect.name == "postgresql":
            # Plans are made while the new tables are empty, and would read them from end to end ever after.
            async with transaction(connection):
                await connection.execute(text("SET enable_seqscan = off"))
        yield connection
