"""What is particular to SQLite: one hop to its thread, one writer, files and memory."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from tests.conformance.store_backends import (
    CONFIG,
    START,
    append,
    create,
    created,
    delete,
    event,
    new_key,
    open_store,
)
from tiered_sessions.config import TieredConfig
from tiered_sessions.errors import StoreUnavailableError
from tiered_sessions.records import Already, Append, Committed, Failed, Query, Snapshot, Stale
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.store import SqlSessionStore


async def test_a_unit_of_work_is_one_hop(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rests on aiosqlite's private `_execute`; fails when that changes."""
    async with open_store(sqlite_url, "sqlite", pool_size=1) as store:
        key = new_key()
        made = await created(store, key)
        hops: list[Any] = []
        execute = aiosqlite.Connection._execute

        async def counted(self: aiosqlite.Connection, fn: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(fn, "__name__", "") != "rollback":  # The pool's, when a connection comes back.
                hops.append(fn)
            return await execute(self, fn, *args, **kwargs)

        monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
        write = Append(
            key, made.session.tag, START, (event("e"),), session_delta=b'{"x":1}', user_delta=b"{}"
        )
        for work in (
            lambda: append(store, write, write.scopes),
            lambda: store.load(key, Query()),
            lambda: store.tags(key),
            lambda: store.sessions(key.app_name, None),
            lambda: delete(store, key),
        ):
            hops.clear()
            await work()
            assert len(hops) == 1


async def test_a_file_is_in_wal_mode_and_the_table_order_holds(sqlite_url: str) -> None:
    default = TieredConfig()
    async with open_store(sqlite_url, "sqlite", default) as store, store.engine.connect() as connection:
        found = {}
        for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout"):
            found[name] = (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar()
    assert found == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 1000}


async def test_two_stores_on_one_file_lose_no_update(sqlite_url: str) -> None:
    """Each has a lock of its own, as two processes have; only BEGIN IMMEDIATE is between them."""
    async with open_store(sqlite_url, "sqlite") as one, open_store(sqlite_url, "sqlite") as two:
        key = new_key()
        await created(one, key)
        outcomes = await asyncio.gather(
            *(
                append(
                    store,
                    Append(
                        key, None, START, (event(f"{name}{n}"),), app_delta=b'{"%s%d":1}' % (name.encode(), n)
                    ),
                )
                for name, store in (("a", one), ("b", two))
                for n in range(10)
            )
        )
        assert all(isinstance(outcome, Committed) for outcome in outcomes), outcomes
        loaded = await one.load(key, Query())
        assert loaded is not None
        assert [record.seq for record in loaded.session.events] == list(range(1, 21))
        assert loaded.app is not None
        assert loaded.app.state.count(b":1") == 20


async def test_memory_is_exclusive_only_to_its_owner(sqlite_url: str) -> None:
    async with open_store("sqlite://", "memory") as memory, open_store(sqlite_url, "sqlite") as file:
        assert memory.exclusive
        assert not file.exclusive
        outcomes = await asyncio.gather(*(create(memory, new_key()) for _ in range(20)))
        assert all(isinstance(outcome, Snapshot) for outcome in outcomes)
    # By its name another engine of the process reaches the same data.
    named = "sqlite+aiosqlite:///file:named?mode=memory&cache=shared&uri=true"
    async with open_store(named, "memory") as shared:
        assert not shared.exclusive
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    assert not SqlSessionStore(engine, owns_engine=False, config=CONFIG).exclusive
    await engine.dispose()


async def test_an_injected_engine_keeps_its_settings(sqlite_url: str) -> None:
    engine = create_async_engine(sqlite_url)
    told: list[str] = []

    @sqlalchemy_event.listens_for(engine.sync_engine, "connect")
    def tell(connection: Any, _record: Any) -> None:
        told.append("connect")
        connection.execute("PRAGMA busy_timeout = 4321")

    store = SqlSessionStore(engine, owns_engine=False, config=CONFIG)
    await store.prepare()
    key = new_key()
    made = await created(store, key)
    assert isinstance(await append(store, Append(key, made.session.tag, START, (event("e"),))), Committed)
    await store.close()
    async with engine.connect() as connection:
        assert (await connection.exec_driver_sql("PRAGMA busy_timeout")).scalar() == 4321
        assert (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar() == "delete"
    assert told
    await engine.dispose()


async def test_a_write_waits_for_its_turn_in_bounds(sqlite_url: str) -> None:
    config = TieredConfig(lock_timeout=0.3)
    async with open_store(sqlite_url, "sqlite", config) as store:
        key = new_key()
        await created(store, key)
        await store._dialect._turn.acquire()
        outcome = await append(store, Append(key, None, START, (event("e"),)))
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, StoreUnavailableError)
        store._dialect._turn.release()
        assert isinstance(await append(store, Append(key, None, START, (event("e"),))), Committed)


async def test_cancelled_writes_leave_the_store_usable(sqlite_url: str) -> None:
    async with open_store(sqlite_url, "sqlite", pool_size=1, max_overflow=0) as store:
        key = new_key()
        made = await created(store, key)
        for steps in range(30):
            task = asyncio.ensure_future(append(store, Append(key, made.session.tag, START, (event("e"),))))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        outcome = await append(store, Append(key, made.session.tag, START, (event("e"),)))
        assert isinstance(outcome, Committed | Already)
        assert isinstance(await append(store, Append(key, made.session.tag, START, (event("f"),))), Stale)


async def test_a_path_that_cannot_be_opened_is_a_typed_error(sqlite_url: str) -> None:
    engine = build_engine(sqlite_url.replace("sessions.db", "none/sessions.db"), CONFIG)
    store = SqlSessionStore(engine, owns_engine=True, config=CONFIG)
    with pytest.raises(StoreUnavailableError, match="unable to open"):
        await store.load(new_key(), Query())
    await store.close()


async def test_a_file_that_is_no_database_is_a_typed_error(sqlite_url: str) -> None:
    path = sqlite_url.partition("///")[2]
    with open(path, "wb") as file:  # noqa: ASYNC230
        file.write(b"not a database, but long enough to look like one" * 100)
    with contextlib.closing(sqlite3.connect(path)) as raw, pytest.raises(sqlite3.DatabaseError):
        raw.execute("SELECT * FROM sqlite_master")
    store = SqlSessionStore(build_engine(sqlite_url, CONFIG), owns_engine=True, config=CONFIG)
    with pytest.raises(StoreUnavailableError):
        await store.load(new_key(), Query())
    with pytest.raises(StoreUnavailableError):
        await store.prepare()
    await store.close()
