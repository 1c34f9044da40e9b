"""Statements on a driver's own connection, lent by SQLAlchemy's pool.

Around one short statement SQLAlchemy's layers take more time than the driver and the server
together. They are left out of reads and frequent writes; a driver's error is given the name that
SQLAlchemy would have given it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolProxiedConnection
from sqlalchemy.pool.base import _ConnectionRecord
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.util import greenlet_spawn

from .failures import number, sqlstate
from .steps import Params, Reply, Row, Unit

T = TypeVar("T")
Fetch = Callable[[str, list[Any]], Awaitable[Sequence[Row]]]


def autocommitting(engine: AsyncEngine) -> AsyncEngine:
    """Returns a copy of an engine, on the same pool, whose connections commit by themselves."""
    copied = engine.execution_options(isolation_level="AUTOCOMMIT")
    # SQLAlchemy sets the level by a listener of its own, and with that the flag that `watched` looks
    # at. This is as true, and another value than whoever listens from now on will set.
    copied.sync_engine._has_events = 1  # type: ignore[assignment]
    return copied


def watched(engine: AsyncEngine) -> bool:
    """Says whether somebody hears of SQLAlchemy's statements: its log, or a listener (tracing)."""
    sync = engine.sync_engine
    if sync.dialect._has_events or sync.logger.isEnabledFor(logging.INFO):
        return True
    # SQLAlchemy's own short cut, of the engine, its class and the one it is a copy of: set by whoever
    # listens to any event of connections, for good.
    if sync._has_events is not True:
        return False
    heard = sync.dispatch
    return bool(
        heard.before_cursor_execute
        or heard.after_cursor_execute
        or heard.before_execute
        or heard.after_execute
    )


class Lent:
    """A pooled connection for one unit of work: the driver's own, or SQLAlchemy's around it.

    Args:
        engine: What lent it.
        pooled: The connection.
        quiet: Whether its return asks nothing of the server.
    """

    def __init__(self, engine: AsyncEngine, pooled: PoolProxiedConnection, *, quiet: bool) -> None:
        # As `pooled.driver_connection`, by fewer steps.
        self.driver: Any = pooled.dbapi_connection.driver_connection  # type: ignore[union-attr]
        self._engine = engine
        self._pooled = pooled
        self._quiet = quiet
        self._whole: AsyncConnection | None = None
        self._doubtful = False

    @property
    def info(self) -> dict[Any, Any]:
        """What is known of the driver's connection, for as long as it lives."""
        return self._pooled.info

    async def whole(self) -> AsyncConnection:
        """Returns SQLAlchemy's connection around this one."""
        if self._whole is None:
            # Beginning it may set an isolation level, which some drivers do on the server.
            made = await greenlet_spawn(Connection, self._engine.sync_engine, self._pooled)
            self._whole = AsyncConnection(self._engine, made)
        return self._whole

    def fetch(self, text: str, values: list[Any]) -> Awaitable[Sequence[Row]]:
        """Executes a statement on asyncpg's connection. Raises what SQLAlchemy would have raised."""
        return self.run(self.driver.fetch(text, *values))

    async def run(self, work: Awaitable[T]) -> T:
        """Awaits what the driver's connection does. Raises what SQLAlchemy would have raised."""
        try:
            return await work
        except Exception as error:
            raise self._named(error) from error
        except BaseException:
            # Cancelled: an answer may still be on its way.
            self._doubtful = True
            raise

    def _named(self, error: Exception) -> Exception:
        dialect, connection = self._engine.dialect, self._pooled.dbapi_connection
        try:
            # Tells by the driver's class which of the DBAPI's errors it is.
            connection._handle_exception(error)  # type: ignore[union-attr]
        except Exception as translated:
            named = _wrapped(dialect, translated, connection)
        if isinstance(named, DBAPIError) and named.connection_invalidated:
            # As SQLAlchemy does: what took this one has taken its neighbours.
            self._engine.sync_engine.pool._invalidate(self._pooled, error)
        elif not isinstance(named, DBAPIError) or not (sqlstate(error) or number(error)):
            # Not what a server says: an answer may still be on its way, or the connection is gone.
            self._doubtful = True
        return named

    def close_at_once(self) -> bool:
        """Gives the connection back if nothing has to be waited for; says whether it did."""
        pool = self._engine.sync_engine.pool
        if (
            not self._quiet
            or self._whole is not None
            or self._doubtful
            or type(pool) is not AsyncAdaptedQueuePool
        ):
            return False
        queue: Any = pool._pool
        if len(queue._queue._queue) >= queue.maxsize or pool.dispatch.reset or pool.dispatch.checkin:
            return False
        self._pooled.close()
        return True

    async def close(self) -> None:
        """Gives the connection back. To be shielded: a pool loses one whose return is cancelled."""
        if self._doubtful:
            await greenlet_spawn(self._pooled.invalidate)
        if self._whole is not None:
            await self._whole.close()
        else:
            await greenlet_spawn(self._pooled.close)

    async def discard(self) -> None:
        """Closes the connection and gives its place back."""
        await greenlet_spawn(self._pooled.invalidate)
        await greenlet_spawn(self._pooled.close)


def _wrapped(dialect: Dialect, error: Exception, connection: Any) -> Exception:
    dbapi: Any = dialect.loaded_dbapi
    base = dbapi.Error
    # asyncpg says it of a connection that has just died. SQLAlchemy 2.0 does not know it.
    if type(error).__name__ == "InternalClientError":
        error = dbapi.InterfaceError(str(error))
    if not isinstance(error, base):
        return error
    gone = dialect.is_disconnect(error, connection, None)
    made: Exception = DBAPIError.instance(
        None, None, error, base, connection_invalidated=gone, dialect=dialect
    )
    return made


async def checkout(engine: AsyncEngine) -> PoolProxiedConnection:
    """Takes a connection from the pool. Raises what SQLAlchemy raises for one of its own."""
    if _ready(engine):
        return _checkout(engine)
    return await greenlet_spawn(_checkout, engine)


def _ready(engine: AsyncEngine) -> bool:
    """Says whether the pool lends a connection without a word to a server: a greenlet costs 8 us."""
    found = at_hand(engine)
    if found is None or found._is_hard_or_soft_invalidated():
        return False
    pool = engine.sync_engine.pool
    return pool._recycle < 0 and not pool._pre_ping and not pool.dispatch.checkout


def _checkout(engine: AsyncEngine) -> PoolProxiedConnection:
    try:
        return engine.sync_engine.pool.connect()
    except engine.dialect.loaded_dbapi.Error as error:
        raise _wrapped(engine.dialect, error, None) from error


def at_hand(engine: AsyncEngine) -> _ConnectionRecord | None:
    """Returns the connection that the pool would lend, if it would not wait for one."""
    pool = engine.sync_engine.pool
    # What another one does before it lends is not known: it may await.
    if type(pool) is not AsyncAdaptedQueuePool:
        return None
    queue: Any = pool._pool
    waiting = queue._queue._queue
    # One that may open no more waits even for what is there, and loses it if that is cancelled.
    if not waiting or 0 <= pool._max_overflow <= pool._overflow:
        return None
    found: _ConnectionRecord = waiting[-1 if queue.use_lifo else 0]
    return found


class Texts:
    """Compiles statements for a driver, each once: they are module constants or cached."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known: dict[Executable, tuple[str, tuple[str, ...], dict[str, Any]]] = {}

    def of(self, statement: Executable, params: Params) -> tuple[str, list[Any]]:
        """The text of a statement, and its parameters in their order."""
        known = self._known.get(statement)
        if known is None:
            compiled = statement.compile(dialect=self._dialect)  # type: ignore[attr-defined]
            assert isinstance(compiled, SQLCompiler)
            names = tuple(compiled.positiontup or ())
            constants = {name: value for name, value in compiled.params.items() if value is not None}
            known = self._known[statement] = (str(compiled), names, constants)
        text, names, constants = known
        if constants:
            params = {**constants, **params}
        return text, list(map(params.__getitem__, names))


async def perform(unit: Unit[T], texts: Texts, fetch: Fetch) -> T:
    """Performs a unit that reads, statement by statement."""
    try:
        step = next(unit)
        while True:
            assert not isinstance(step.params, list)
            rows = await fetch(*texts.of(step.statement, step.params))
            step = unit.send(Reply(rows, len(rows)))
    except StopIteration as stop:
        result: T = stop.value
        return result
