"""MariaDB's statement for a session's end: alone on a connection that commits by itself, else compound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.conformance.store_backends import (
    CONFIG,
    START,
    as_stranger,
    committed,
    create_with,
    created,
    delete,
    event,
    new_key,
    open_store,
)
from tests.servers import mariadb_database
from tiered_sessions.records import Append, Create, SessionKey, Snapshot
from tiered_sessions.store.store import SqlSessionStore


@pytest.fixture(params=[True, False], ids=["owned", "injected"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[SqlSessionStore]:
    with mariadb_database() as url:
        if request.param:
            async with open_store(url, "mariadb") as opened:
                yield opened
            return
        engine = create_async_engine(url)
        given = SqlSessionStore(engine, owns_engine=False, config=CONFIG)
        await given.prepare()
        yield given
        await given.close()
        await engine.dispose()


async def count(store: SqlSessionStore, table: str, key: SessionKey) -> int:
    async with store.engine.connect() as connection:
        found = await connection.execute(
            text(f"SELECT count(*) FROM {table} WHERE app_name = :a"), {"a": key.app_name}
        )
        return int(found.scalar_one())


@pytest.mark.parametrize("cascades", [True, False])
async def test_a_delete_takes_every_event_with_it(store: SqlSessionStore, cascades: bool) -> None:
    """Also that of an append that it waited for."""
    assert store._dialect.quiet is store._owned
    key, other = new_key(), new_key()
    if not cascades:
        await as_stranger(store, "ALTER TABLE events DROP FOREIGN KEY events_ibfk_1")
    for one in (key, other):
        tag = (await created(store, one)).session.tag
        await committed(store, Append(one, tag, START, (event("e"), event("f"))))
    names = {"a": key.app_name, "u": key.user_id, "s": key.session_id}
    async with store.engine.begin() as stranger:
        await stranger.execute(
            text(
                "UPDATE sessions SET update_time = '2026-01-01' "
                "WHERE app_name = :a AND user_id = :u AND id = :s"
            ),
            names,
        )
        await stranger.execute(
            text(
                "INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, "
                "event_data) VALUES ('late', :a, :u, :s, 'i', '2026-01-01', '{}')"
            ),
            names,
        )
        deleting = asyncio.create_task(delete(store, key))
        async with asyncio.timeout(10), store.engine.connect() as watching:
            waits = text("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'")
            while (await watching.execute(waits)).one()[1] == "0":
                assert not deleting.done()
    assert await deleting is True
    assert await count(store, "sessions", key) == await count(store, "events", key) == 0
    assert await delete(store, key) is False
    assert (await count(store, "sessions", other), await count(store, "events", other)) == (1, 2)


async def test_only_what_has_expired_is_deleted(store: SqlSessionStore) -> None:
    key = new_key()
    made = await create_with(store, Create(key, START, b"{}", ttl=3_600_000))
    assert isinstance(made, Snapshot)
    assert await delete(store, key, only_expired=True) is False
    await as_stranger(store, "UPDATE sessions SET expires_at = '2026-01-01' WHERE id = :s", s=key.session_id)
    assert await delete(store, key, only_expired=True) is True
    assert await count(store, "sessions", key) == 0
