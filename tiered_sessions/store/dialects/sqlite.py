"""SQLite through aiosqlite: a whole unit of work is one hop to the connection's thread."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.base import Executable
from sqlalchemy.sql.compiler import SQLCompiler

from ...config import TieredConfig
from ...errors import StoreUnavailableError
from ...records import (
    Append,
    AppendOutcome,
    Create,
    CreateOutcome,
    DeleteOutcome,
    Exists,
    Failed,
    Listing,
    SessionKey,
    Unknown,
)
from ..failures import is_duplicate, mapped
from ..groups import Grouped
from ..lent import Lent
from ..steps import Contended, Duplicate, Flavour, Reply, Rollback, Step, Unit
from ..writes import append, create, delete
from . import sqlite_reads
from .portable import Make, PortableDialect

T = TypeVar("T")


class SqliteDialect(PortableDialect):
    """Performs units on SQLite. Writes of one process wait for each other here, not in the file."""

    flavour = Flavour(snapshot=True)
    group_connections = 1

    def __init__(self, engine: AsyncEngine, config: TieredConfig, *, owned: bool) -> None:
        super().__init__(engine, config)
        # An engine of our own resets nothing when a connection is returned.
        self._owned = self.quiet = owned
        self._turn = asyncio.Lock()
        self._busy = round(config.lock_timeout * 1000)

    async def read(self, lent: Lent, make: Make[T]) -> T:
        unit = make()
        return await _hop(lent.driver, lambda raw: _transaction(raw, "BEGIN", lambda raw: _drive(raw, unit)))

    def sessions(self, app_name: str, user_id: str | None) -> Unit[Listing]:
        return sqlite_reads.sessions(app_name, user_id)

    async def transaction(self, lent: Lent, unit: Unit[T]) -> T:
        return await self._write(lent.driver, lambda raw: _drive(raw, unit))

    async def append_group(
        self, lent: Lent, writes: Sequence[Grouped[Append]]
    ) -> Sequence[AppendOutcome | None]:
        return await self._together(lent, [append(*write, self.flavour) for write in writes])

    async def create_group(
        self, lent: Lent, writes: Sequence[Grouped[Create]]
    ) -> Sequence[CreateOutcome | None]:
        made = await self._together(lent, [create(*write, self.flavour) for write in writes])
        # Whether one that is in the way has expired is another question.
        return [None if isinstance(outcome, Exists) else outcome for outcome in made]

    async def delete_group(
        self, lent: Lent, writes: Sequence[Grouped[SessionKey]]
    ) -> Sequence[DeleteOutcome | None]:
        return await self._together(lent, [delete(*write, only_expired=False) for write in writes])

    async def _together(self, lent: Lent, units: Sequence[Unit[T]]) -> Sequence[T | None]:
        return await self._write(lent.driver, lambda raw: [self._apart(raw, unit) for unit in units])

    def _apart(self, raw: sqlite3.Connection, unit: Unit[T]) -> T | None:
        raw.execute("SAVEPOINT one")
        outcome: T | None = None
        try:
            outcome = _drive(raw, unit)
        except (Rollback, Duplicate, Contended) as ended:
            if isinstance(ended, Rollback):
                outcome = ended.outcome
            raw.execute("ROLLBACK TO one")
        raw.execute("RELEASE one")
        return outcome

    async def _write(self, driver: Any, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` as a transaction, one at a time."""
        try:
            async with asyncio.timeout(self.config.lock_timeout):
                await self._turn.acquire()
        except TimeoutError as error:
            message = "Other writes of this process hold the database; nothing was written"
            raise StoreUnavailableError(message) from error
        try:
            return await _hop(driver, lambda raw: self._commit(raw, work))
        finally:
            self._turn.release()

    def _commit(self, raw: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._owned:
            return _transaction(raw, "BEGIN IMMEDIATE", work)
        (theirs,) = raw.execute("PRAGMA busy_timeout").fetchone()
        raw.execute(f"PRAGMA busy_timeout = {self._busy}")
        try:
            return _transaction(raw, "BEGIN IMMEDIATE", work)
        finally:
            raw.execute(f"PRAGMA busy_timeout = {theirs}")

    def failed(self, error: Exception) -> Failed | Unknown:
        # A COMMIT that SQLite refuses was rolled back in the same hop.
        return Failed(mapped(error))


async def _hop(driver: Any, work: Callable[[sqlite3.Connection], T]) -> T:
    """Runs `work` on the thread of an aiosqlite connection.

    aiosqlite's public methods are one hop each; only its private `_execute` takes a function
    (tests/conformance/test_store_sqlite.py notices when that changes).
    """
    result: T = await driver._execute(lambda: work(driver._conn))
    return result


def _transaction(raw: sqlite3.Connection, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
    raw.execute(begin)
    try:
        result = work(raw)
        raw.execute("COMMIT")
    except BaseException:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise
    return result


def _drive(raw: sqlite3.Connection, unit: Unit[T]) -> T:
    cursor = raw.cursor()
    cursor.row_factory = None
    try:
        step = next(unit)
        while True:
            try:
                reply = _execute(cursor, step)
            except sqlite3.IntegrityError as error:
                if not is_duplicate(error):
                    raise
                step = unit.throw(Duplicate(str(error)))
            else:
                step = unit.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        cursor.close()


def _execute(cursor: sqlite3.Cursor, step: Step) -> Reply:
    sql, constants = _compiled(step.statement)
    if isinstance(step.params, list):
        cursor.executemany(sql, [{**constants, **_bound(params)} for params in step.params])
    else:
        cursor.execute(sql, {**constants, **_bound(step.params)})
    return Reply(cursor.fetchall() if cursor.description else (), cursor.rowcount)


def _bound(params: Any) -> dict[str, Any]:
    return {
        name: value.isoformat(" ", "microseconds") if isinstance(value, datetime) else value
        for name, value in params.items()
    }


_DIALECT = SQLiteDialect(paramstyle="named")
_COMPILED: dict[Executable, tuple[str, dict[str, Any]]] = {}


def _compiled(statement: Executable) -> tuple[str, dict[str, Any]]:
    """Compiles a statement once: they are module constants or cached (statements.py)."""
    known = _COMPILED.get(statement)
    if known is None:
        compiled = statement.compile(dialect=_DIALECT)  # type: ignore[attr-defined]
        assert isinstance(compiled, SQLCompiler)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        known = _COMPILED[statement] = (str(compiled), constants)
    return known
