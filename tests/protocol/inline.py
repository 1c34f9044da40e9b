"""The real SQL store on SQLite, on a loop of virtual time: its hop to a thread is made in place.

Everything else of the store is the product's: statements, units, dialect, writer. Its clock is the
loop's, so a session expires when a test lets time pass.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from tiered_sessions.config import TieredConfig
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.schema import NAMESPACE_KEY
from tiered_sessions.store.store import SqlSessionStore

T = TypeVar("T")
_START = datetime(2026, 1, 1, tzinfo=UTC)


@functools.cache
def empty_database() -> bytes:
    """Returns the file that `prepare()` makes. Not to be called first within a loop."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sessions.db"

        async def prepare() -> None:
            config = TieredConfig()
            engine = build_engine(f"sqlite+aiosqlite:///{path}", config)
            store = SqlSessionStore(engine, owns_engine=True, config=config)
            await store.prepare()
            await store.close()

        with asyncio.Runner() as runner:
            runner.run(prepare())
        made = sqlite3.connect(path)
        # A database in memory cannot have a log beside it.
        made.execute("PRAGMA journal_mode = DELETE")
        content = made.serialize()
        made.close()
    return content


def database(milliseconds: Callable[[], int]) -> sqlite3.Connection:
    """Returns a new database whose clock shows `milliseconds`."""
    raw = sqlite3.connect(":memory:", isolation_level=None)
    raw.deserialize(empty_database())
    raw.execute("PRAGMA foreign_keys = ON")

    def strftime(form: str, when: str) -> str:
        assert when == "now", "the store asks for nothing else"
        now = _START + timedelta(milliseconds=milliseconds())
        # SQLite's %f is seconds and milliseconds.
        return now.strftime(form.replace("%f", f"%S.{now.microsecond // 1000:03d}"))

    raw.create_function("strftime", 2, strftime)
    return raw


def rename_namespace(raw: sqlite3.Connection, name: str) -> None:
    """Does what `tiered-sessions cache reset` does to the database."""
    raw.execute("UPDATE adk_internal_metadata SET value = ? WHERE key = ?", (name, NAMESPACE_KEY))


class _Driver:
    """A driver's connection, without its thread."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._conn = raw

    async def _execute(self, work: Callable[[], T]) -> T:
        return work()


class _Pooled:
    """A connection as the pool lends it."""

    def __init__(self, engine: InlineEngine) -> None:
        self.dbapi_connection = SimpleNamespace(driver_connection=_Driver(engine.raw))
        self._engine = engine
        self._open = True
        engine.checked_out += 1

    def close(self, *_: object) -> None:
        self._engine.checked_out -= self._open
        self._open = False

    invalidate = close


class InlineEngine:
    """As much of an AsyncEngine as the store uses of one, over one raw connection."""

    dialect = SimpleNamespace(name="sqlite", driver="aiosqlite")
    url = SimpleNamespace(database="file")

    def __init__(self, raw: sqlite3.Connection) -> None:
        self.raw = raw
        self.checked_out = 0
        self.sync_engine = SimpleNamespace(pool=SimpleNamespace(connect=lambda: _Pooled(self)))

    async def dispose(self) -> None: ...


def store_over(engine: InlineEngine, config: TieredConfig) -> SqlSessionStore:
    """Returns the product's store on `engine`."""
    return SqlSessionStore(cast("Any", engine), owns_engine=True, config=config)
