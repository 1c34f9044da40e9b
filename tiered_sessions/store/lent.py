"""Reads on a driver's own connection, lent by SQLAlchemy's pool.

Around one short statement SQLAlchemy's layers take more time than the driver and the server
together. They are left out of reads, which may be repeated: what goes wrong on a lent connection
is found out again, and named, by a second try that goes through them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Dialect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.util import greenlet_spawn

from .failures import number, sqlstate
from .steps import Reply, Row, Step, Unit

T = TypeVar("T")
Fetch = Callable[[str, list[Any]], Awaitable[list[Row]]]


class Nameless(Exception):
    """A driver's bare error, in `__cause__`: SQLAlchemy's way, tried next, knows its name."""


def watched(engine: AsyncEngine) -> bool:
    """Says whether somebody hears of SQLAlchemy's statements: its log, or a listener (tracing)."""
    sync = engine.sync_engine
    heard = sync.dispatch
    return bool(
        heard.before_cursor_execute
        or heard.after_cursor_execute
        or heard.before_execute
        or heard.after_execute
        or sync.dialect._has_events
        or sync.logger.isEnabledFor(logging.INFO)
    )


async def lend(engine: AsyncEngine, work: Callable[[Any], Awaitable[T]]) -> T:
    """Runs `work` on a pooled connection of the driver, which stays what it was if it fails."""
    lent = await engine.raw_connection()
    try:
        return await work(lent.driver_connection)
    finally:
        await _shielded(lent.close)


async def lend_doubtful(engine: AsyncEngine, work: Callable[[Any], Awaitable[T]]) -> T:
    """As `lend`, but a connection is closed on which something failed without the server's saying so.

    Raises:
        Nameless: For whatever the driver raised.
    """
    try:
        lent = await engine.raw_connection()
    except SQLAlchemyError:
        raise
    except Exception as error:
        raise Nameless from error
    try:
        result = await work(lent.driver_connection)
    except Exception as error:
        await _shielded(partial(_judge, engine, lent, error))
        raise Nameless from error
    except BaseException:
        # Cancelled: an answer may still be on its way.
        await _shielded(lent.invalidate)
        raise
    await greenlet_spawn(lent.close)
    return result


async def _shielded(work: Callable[[], None]) -> None:
    # A pool loses a connection whose return is cancelled.
    await asyncio.shield(asyncio.create_task(greenlet_spawn(work)))


def _judge(engine: AsyncEngine, lent: PoolProxiedConnection, error: Exception) -> None:
    dialect, connection = engine.dialect, lent.dbapi_connection
    if dialect.is_disconnect(error, connection, None):  # type: ignore[arg-type]
        # As SQLAlchemy does: what took this one has taken its neighbours.
        engine.sync_engine.pool._invalidate(lent, error)
    elif sqlstate(error) or number(error):
        lent.close()
    else:
        lent.invalidate(error)


class Texts:
    """Compiles statements for a driver, each once: they are module constants or cached."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known: dict[Executable, tuple[str, tuple[str, ...], dict[str, Any]]] = {}

    def of(self, step: Step) -> tuple[str, list[Any]]:
        """The text of a statement, and its parameters in their order."""
        known = self._known.get(step.statement)
        if known is None:
            compiled = step.statement.compile(dialect=self._dialect)  # type: ignore[attr-defined]
            assert isinstance(compiled, SQLCompiler)
            names = tuple(compiled.positiontup or ())
            known = self._known[step.statement] = (str(compiled), names, dict(compiled.params))
        text, names, constants = known
        assert not isinstance(step.params, list)
        params = {**constants, **step.params}
        return text, [params[name] for name in names]


async def perform(unit: Unit[T], texts: Texts, fetch: Fetch) -> T:
    """Performs a unit that reads, statement by statement."""
    try:
        step = next(unit)
        while True:
            rows = await fetch(*texts.of(step))
            step = unit.send(Reply(rows, len(rows)))
    except StopIteration as stop:
        result: T = stop.value
        return result
