"""R34: tables of others may find "ABC" for "abc"; what is found then is not what was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from tests.conformance.store_backends import (
    START,
    append,
    create,
    created,
    delete,
    event,
    new_key,
    open_store,
)
from tests.servers import mariadb_database
from tiered_sessions.errors import InvalidValueError
from tiered_sessions.records import (
    Append,
    Committed,
    Conflict,
    Exists,
    Failed,
    Missing,
    Query,
    Snapshot,
    Tags,
)
from tiered_sessions.store.store import SqlSessionStore


@pytest.fixture(params=["mariadb", "portable-mariadb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[SqlSessionStore]:
    with mariadb_database() as url:
        async with open_store(url, request.param) as opened:
            async with opened.engine.connect() as connection:
                await connection.execute(text("ALTER TABLE events DROP FOREIGN KEY events_ibfk_1"))
                for table in ("sessions", "events", "app_states", "user_states"):
                    await connection.execute(
                        text(
                            f"ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci"
                        )
                    )
            yield opened


async def test_a_look_alike_is_not_found(store: SqlSessionStore) -> None:
    key = new_key("abc")
    made = await created(store, key, user_delta=b'{"u":1}')
    for other in (
        key._replace(session_id="ABC"),
        key._replace(session_id="abc "),
        key._replace(user_id="USER"),
    ):
        assert await store.load(other, Query()) is None
        assert await store.older(other, 5, Query()) is None
        assert await store.tags(other) == (None, *(await store.tags(other))[1:])
        for expected in (None, made.session.tag):
            assert await append(store, Append(other, expected, START, (event("e"),))) == Missing()
        assert await delete(store, other) is False
        assert await create(store, other) == Exists()
    assert await store.tags(key._replace(user_id="USER")) == Tags(None, None, made.app and made.app.tag)
    assert not await store.sessions(key.app_name, "USER")
    assert await store.user_state(key.app_name, "USER") == b"{}"
    assert await store.load(key, Query()) == made


async def test_a_look_alike_event_id_is_a_conflict(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key)
    done = await append(store, Append(key, made.session.tag, START, (event("e"),)))
    assert isinstance(done, Committed)
    assert await append(store, Append(key, done.tag, START, (event("E"),))) == Conflict("E")


async def test_a_scope_row_of_a_look_alike_is_not_merged_into(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key, user_delta=b'{"u":1}')
    outcome = await create(store, key._replace(user_id="USER", session_id="t"), user_delta=b'{"v":1}')
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, InvalidValueError)
    assert await store.load(key, Query()) == made
    assert isinstance(await create(store, key._replace(session_id="t")), Snapshot)
