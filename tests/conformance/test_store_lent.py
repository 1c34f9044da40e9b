"""Reads on the driver's own connection, and the plans of PostgreSQL's statements that read."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asyncpg.exceptions import InternalClientError
from sqlalchemy import Engine, text
from sqlalchemy import event as events
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util import await_only, greenlet_spawn

from tests.conformance.store_backends import (
    START,
    append,
    as_stranger,
    backend_url,
    created,
    event,
    loaded,
    new_key,
    open_store,
)
from tests.servers import postgresql_database
from tiered_sessions.errors import SchemaMismatchError
from tiered_sessions.records import Append, Committed, Query, SessionKey
from tiered_sessions.store.dialects import postgresql_reads as sql
from tiered_sessions.store.lent import _ready, _wrapped, checkout
from tiered_sessions.store.store import SqlSessionStore

LENDING = ("sqlite", "memory", "postgresql", "mariadb", "mariadb-asyncmy")
LONG = 3000


@pytest.fixture(params=LENDING)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[SqlSessionStore]:
    backend = request.param
    options = {} if "mem" in backend else {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5}
    async with open_store(backend_url(request, backend), backend, **options) as store:
        yield store


async def filled(store: SqlSessionStore, count: int) -> SessionKey:
    """Makes a session of `count` events."""
    key = new_key()
    tag = (await created(store, key)).session.tag
    for first in range(0, count, 500):
        numbers = range(first, min(first + 500, count))
        done = await append(store, Append(key, tag, START, tuple(event(f"e{n:04}") for n in numbers)))
        assert isinstance(done, Committed), done
        tag = done.tag
    return key


@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
async def test_reads_go_by_the_drivers_own_connection(store: SqlSessionStore) -> None:
    assert store._dialect.lends


@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
async def test_whoever_listens_to_statements_hears_every_read(store: SqlSessionStore) -> None:
    key = await filled(store, 3)
    quiet = await loaded(store, key)
    heard: list[str] = []

    def hear(_c: object, _k: object, statement: str, *_: object) -> None:
        heard.append(statement)

    events.listen(store._engine.sync_engine, "before_cursor_execute", hear)
    assert not store._dialect.lends
    assert await loaded(store, key) == quiet
    assert len(heard) == 1
    events.remove(store._engine.sync_engine, "before_cursor_execute", hear)
    assert store._dialect.lends


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize(
    "name", ["before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute"]
)
@pytest.mark.parametrize("listened_to", ["engine", "all engines", "autocommit"])
@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
async def test_a_listener_is_heard_wherever_it_listens(
    store: SqlSessionStore, listened_to: str, name: str, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLAlchemy would leave it set, for every engine of this process.
    monkeypatch.setattr(Engine, "_has_events", Engine._has_events)
    target = {
        "engine": store._engine.sync_engine,
        "all engines": Engine,
        "autocommit": store._dialect.engine.sync_engine,
    }[listened_to]
    if used:
        await filled(store, 3)
    assert store._dialect.lends
    heard: list[object] = []

    def hear(*arguments: object) -> None:
        heard.append(arguments)

    events.listen(target, name, hear)
    try:
        assert not store._dialect.lends
        await filled(store, 1)
        assert heard
    finally:
        events.remove(target, name, hear)
    assert store._dialect.lends


@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
async def test_a_listener_that_hears_no_statements_keeps_nobody_from_lending(store: SqlSessionStore) -> None:
    key = await filled(store, 3)
    # Nor does SQLAlchemy's own, which on PostgreSQL sets the level: `watched` need not look further.
    assert store._dialect.engine.sync_engine._has_events is not True
    events.listen(store._engine.sync_engine, "begin", lambda _connection: None)
    assert store._dialect.lends
    assert await loaded(store, key)


class AskingPool(AsyncAdaptedQueuePool):
    """A pool of the user's, which awaits something before it lends, and when it is given back."""

    def connect(self) -> PoolProxiedConnection:
        await_only(asyncio.sleep(0))
        return super().connect()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        await_only(asyncio.sleep(0))
        super()._do_return_conn(record)


AWAITING: dict[str, dict[str, Any]] = {
    "lost": {},
    "lost, last in": {"pool_use_lifo": True},
    "lost with its pool": {},
    "too old": {"pool_recycle": 0},
    "asked": {"pool_pre_ping": True},
    "heard of": {},
    "of another pool": {"poolclass": AskingPool},
}


@pytest.mark.parametrize("reason", AWAITING)
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_a_connection_that_is_not_ready_for_use_is_made_so(
    backend: str, reason: str, request: pytest.FixtureRequest
) -> None:
    """What awaits while the pool lends needs a greenlet, which all others do without."""
    options = {"pool_size": 2, "max_overflow": 1, **AWAITING[reason]}
    async with open_store(backend_url(request, backend), backend, **options) as store:
        key = await filled(store, 3)
        whole = await loaded(store, key)
        engine = store._engine
        pool = engine.sync_engine.pool
        one, two = await checkout(engine), await checkout(engine)
        for pooled in (one, two):
            if (reason == "lost" and pooled is one) or (reason == "lost, last in" and pooled is two):
                await greenlet_spawn(pooled.invalidate)
            await greenlet_spawn(pooled.close)
        if reason == "lost with its pool":
            assert _ready(engine)
            pool._invalidate(one, None, _checkin=False)
        if reason == "heard of":
            assert _ready(engine)
            events.listen(pool, "checkout", lambda adapted, *_: adapted.run_async(lambda _: asyncio.sleep(0)))
        assert not _ready(engine)
        assert await loaded(store, key) == whole


async def test_a_cancelled_read_gives_its_connection_back(store: SqlSessionStore) -> None:
    key = await filled(store, 3)
    whole = await loaded(store, key)
    for turns in range(8):
        reading = asyncio.create_task(store.load(key, Query()))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait((reading,))
    assert await loaded(store, key) == whole


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
async def test_a_read_cancelled_while_it_opens_a_connection_loses_none(store: SqlSessionStore) -> None:
    """Nobody would end the thread of one that is lost."""
    key = await filled(store, 3)
    whole = await loaded(store, key)
    await store._engine.dispose()
    before = threading.enumerate()
    for turns in range(12):
        reading = asyncio.create_task(store.load(key, Query()))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait((reading,))
        await asyncio.gather(*store._given_up)
        await store._engine.dispose()
        for thread in set(threading.enumerate()).difference(before):
            thread.join(5)
            assert not thread.is_alive()
    assert await loaded(store, key) == whole


@pytest.mark.parametrize("store", ["postgresql", "mariadb"], indirect=True)
async def test_an_error_on_a_lent_connection_has_its_name_and_costs_no_connection(
    store: SqlSessionStore,
) -> None:
    key = await filled(store, 3)
    whole = await loaded(store, key)
    await as_stranger(store, "ALTER TABLE user_states RENAME TO user_states_away")
    try:
        with pytest.raises(SchemaMismatchError, match="user_states"):
            await store.load(key, Query())
    finally:
        await as_stranger(store, "ALTER TABLE user_states_away RENAME TO user_states")
    assert await loaded(store, key) == whole


@pytest.mark.parametrize("store", ["postgresql"], indirect=True)
async def test_what_not_every_sqlalchemy_knows_has_a_name_too(store: SqlSessionStore) -> None:
    error = InternalClientError("cannot switch to state 12; another operation (2) is in progress")
    assert isinstance(_wrapped(store._engine.dialect, error, None), DBAPIError)


@pytest.fixture
async def new_store(postgresql_url: str) -> AsyncIterator[SqlSessionStore]:
    # A database of its own: where the table is large and nothing is known of it, the depth of an index
    # decides, and that is a matter of what other tests have left.
    with postgresql_database() as url:
        async with open_store(url, "postgresql", pool_size=1) as store:
            yield store


@pytest.mark.parametrize("statistics", [False, True])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize(
    "window",
    [
        sql.Window(True, True, False, False, True),
        sql.Window(True, True, True, False, True),
        sql.Window(True, True, False, True, True),
        sql.Window(False, False, False, False, False),
    ],
)
async def test_a_window_reads_no_more_of_a_long_log_than_it_shows(
    new_store: SqlSessionStore, statistics: bool, mode: str, window: sql.Window
) -> None:
    """Also while the server knows nothing of the table, as in the first minutes of a database."""
    store = new_store
    key = await filled(store, LONG)
    statement = sql.older_statement(window) if window.older else sql.load_statement(window)
    values = {
        "a": f"'{key.app_name}'",
        "u": f"'{key.user_id}'",
        "s": f"'{key.session_id}'",
        "limit": "21",
        "after": "'2000-01-01'",
        "before": "2000",
    }
    async with store.engine.connect() as connection:
        await connection.execute(text("ANALYZE events"))
        if not statistics:
            await connection.execute(text("DELETE FROM pg_statistic WHERE starelid = 'events'::regclass"))
        await connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
        compiled = statement.compile(dialect=store._engine.dialect)
        await connection.execute(text(f"PREPARE windowed AS {compiled}"))
        given = ", ".join(values[name] for name in compiled.positiontup or ())
        plan = await connection.execute(
            text(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE windowed ({given})")
        )
        found = plan.scalar_one()
        await connection.execute(text("DEALLOCATE windowed"))
        await connection.rollback()
    nodes = [(found if isinstance(found, list) else json.loads(found))[0]["Plan"]]
    read = 0
    for node in nodes:
        nodes += node.get("Plans", ())
        if node.get("Relation Name") == "events":
            read += (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    assert read < 100, found
