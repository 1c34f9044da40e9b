"""PostgreSQL's one statement each for a session's beginning and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event as events
from sqlalchemy import text

from tests.conformance.store_backends import (
    CONFIG,
    START,
    append,
    as_stranger,
    backend_url,
    committed,
    create,
    create_with,
    created,
    delete,
    equal,
    event,
    loaded,
    new_key,
    open_store,
    outbox,
)
from tiered_sessions.errors import InvalidValueError, SchemaMismatchError, StoreUnavailableError
from tiered_sessions.records import Append, Create, Exists, Failed, SessionKey, Snapshot
from tiered_sessions.store.store import SqlSessionStore

HASTY = replace(CONFIG, lock_timeout=0.2)


@pytest.fixture(params=["postgresql", "postgresql-psycopg"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store(request: pytest.FixtureRequest, backend: str) -> AsyncIterator[SqlSessionStore]:
    async with open_store(backend_url(request, backend), backend) as store:
        yield store


async def waiting(store: SqlSessionStore, work: asyncio.Future[Any]) -> None:
    """Returns when the statement of `work` waits for a lock."""
    query = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with asyncio.timeout(10), store.engine.connect() as connection:
        while not (await connection.execute(query)).scalar_one():
            assert not work.done()
            await connection.rollback()


async def behind(store: SqlSessionStore, statement: str, key: SessionKey, work: Awaitable[Any]) -> Any:
    """Performs `work` so that it waits until a stranger's statement on the session is committed."""
    async with store.engine.begin() as stranger:
        await stranger.execute(text(statement), {"a": key.app_name, "u": key.user_id, "s": key.session_id})
        sent = asyncio.ensure_future(work)
        await waiting(store, sent)
    return await sent


INSERT = (
    "INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time) "
    "VALUES (:a, :u, :s, '{}', '2026-01-01', '2026-01-01')"
)
DELETE = "DELETE FROM sessions WHERE app_name = :a AND user_id = :u AND id = :s"


async def test_a_create_waits_for_another_and_writes_nothing_if_that_wins(store: SqlSessionStore) -> None:
    key = new_key()
    outcome = await behind(
        store, INSERT, key, create_with(store, Create(key, START, b"{}", b"{}", b"{}"), (key.user, key.app))
    )
    assert outcome == Exists()
    assert await outbox(store, key) == {}
    assert await store.user_state(key.app_name, key.user_id) == b"{}"
    assert (await store.tags(key)).user is None


async def test_a_create_waits_for_a_delete(store: SqlSessionStore) -> None:
    key = new_key()
    old = await created(store, key)
    made = await behind(store, DELETE, key, create(store, key))
    assert isinstance(made, Snapshot)
    assert made.session.tag.incarnation != old.session.tag.incarnation
    assert (await loaded(store, key)).session == made.session


async def test_of_creates_and_deletes_at_once_each_has_its_own_outcome(store: SqlSessionStore) -> None:
    key = new_key()
    for _ in range(5):
        outcomes = await asyncio.gather(
            *(create(store, key) if n % 2 else delete(store, key) for n in range(8))
        )
        made = [isinstance(outcome, Snapshot) for outcome in outcomes].count(True)
        gone = outcomes.count(True)
        left = await store.tags(key)
        assert made - gone == (left.session is not None)
        await delete(store, key)


async def test_a_delete_takes_the_event_with_it_that_it_waited_for(store: SqlSessionStore) -> None:
    key = new_key()
    await created(store, key)
    appended = (
        "WITH up AS (UPDATE sessions SET update_time = '2026-01-01' WHERE app_name = :a AND user_id = :u "
        "AND id = :s RETURNING id) INSERT INTO events (id, app_name, user_id, session_id, invocation_id, "
        "timestamp, event_data) SELECT 'e', :a, :u, id, 'i', '2026-01-01', '{}' FROM up"
    )
    assert await behind(store, appended, key, delete(store, key)) is True
    assert await count_events(store, key) == 0


async def count_events(store: SqlSessionStore, key: SessionKey) -> int:
    async with store.engine.connect() as connection:
        found = await connection.execute(
            text("SELECT count(*) FROM events WHERE app_name = :a"), {"a": key.app_name}
        )
        return int(found.scalar_one())


async def test_without_a_cascade_a_delete_removes_the_events_itself(store: SqlSessionStore) -> None:
    key = new_key()
    tag = (await created(store, key)).session.tag
    async with store.engine.begin() as connection:
        found = await connection.execute(
            text("SELECT conname FROM pg_constraint WHERE conrelid = 'events'::regclass AND contype = 'f'")
        )
        (name,) = found.scalars()
        await connection.execute(text(f"ALTER TABLE events DROP CONSTRAINT {name}"))
    try:
        await committed(store, Append(key, tag, START, (event("e"),)))
        assert await delete(store, key._replace(session_id="none"), (key.session,)) is False
        assert await delete(store, key, (key.session,)) is True
        assert await count_events(store, key) == 0
        assert (await outbox(store, key))["session"].tag is None
    finally:
        await as_stranger(
            store,
            "DELETE FROM events",
            f"ALTER TABLE events ADD CONSTRAINT {name} FOREIGN KEY (app_name, user_id, session_id) "
            "REFERENCES sessions (app_name, user_id, id) ON DELETE CASCADE",
        )


async def test_a_create_gives_stock_rows_a_tag_and_nothing_else(store: SqlSessionStore) -> None:
    key = new_key()
    await as_stranger(
        store,
        "INSERT INTO app_states (app_name, state, update_time) VALUES (:a, '{\"k\": 1}', '2020-01-01')",
        "INSERT INTO user_states (app_name, user_id, state, update_time) "
        "VALUES (:a, :u, '{\"k\": 2}', '2020-01-02')",
        a=key.app_name,
        u=key.user_id,
    )
    before = await created(store, key)
    for part, value in ((before.app, 1), (before.user, 2)):
        assert part is not None
        assert part.tag.adopted
        assert part.tag.revision == 0
        assert part.tag.update_time < START
        assert equal(part.state, {"k": value})
    again = await created(store, key._replace(session_id="t"))
    assert (again.app, again.user) == (before.app, before.user)


async def test_creates_at_once_agree_on_the_rows_they_make(store: SqlSessionStore) -> None:
    key = new_key()
    made = await asyncio.gather(*(created(store, key._replace(session_id=f"s{n}")) for n in range(8)))
    tags = await store.tags(made[0].key)
    assert {snapshot.app and snapshot.app.tag for snapshot in made} == {tags.app}
    assert {snapshot.user and snapshot.user.tag for snapshot in made} == {tags.user}


async def test_invalidations_are_of_what_was_written(store: SqlSessionStore) -> None:
    key = new_key()
    made = await create_with(store, Create(key, START, b"{}", b'{"k":1}', b'{"k":2}'), (key.app, key.user))
    assert isinstance(made, Snapshot)
    assert made.app is not None
    assert made.user is not None
    rows = await outbox(store, key)
    assert {kind: row.tag for kind, row in rows.items()} == {"app": made.app.tag, "user": made.user.tag}


async def test_whoever_listens_to_statements_hears_every_write(store: SqlSessionStore) -> None:
    key = new_key()
    heard: list[str] = []

    def hear(_c: object, _k: object, statement: str, *_: object) -> None:
        heard.append(statement)

    await created(store, key._replace(session_id="before"))
    events.listen(store._engine.sync_engine, "before_cursor_execute", hear)
    tag = (await created(store, key)).session.tag
    await committed(store, Append(key, tag, START, (event("e"),)))
    assert await delete(store, key) is True
    assert len(heard) == 3


# --- what a driver's own error is called -----------------------------------------------------


async def test_a_lock_that_does_not_come_is_a_failure(request: pytest.FixtureRequest, backend: str) -> None:
    async with open_store(backend_url(request, backend), backend, HASTY, pool_size=2) as store:
        key = new_key()
        await created(store, key)
        other = key._replace(session_id="other")
        async with store.engine.connect() as stranger:
            for statement, held in ((DELETE, key), (INSERT, other)):
                params = dict(zip("aus", held, strict=True))
                await stranger.execute(text(statement), params)
            for work in (delete(store, key), create(store, other)):
                outcome = await work
                assert isinstance(outcome, Failed)
                assert isinstance(outcome.error, StoreUnavailableError)
                assert "nothing was written" in str(outcome.error)
        assert await delete(store, key) is True
        assert isinstance(await create(store, other), Snapshot)


async def test_a_refused_statement_costs_no_connection(request: pytest.FixtureRequest, backend: str) -> None:
    async with open_store(
        backend_url(request, backend), backend, CONFIG, pool_size=1, max_overflow=0
    ) as store:
        key = new_key()
        tag = (await created(store, key)).session.tag
        await as_stranger(store, "ALTER TABLE events RENAME TO events_away")
        try:
            for outcome in (
                await append(store, Append(key, tag, START, (event("e"),))),
                await delete(store, key),
            ):
                assert isinstance(outcome, Failed)
                assert isinstance(outcome.error, SchemaMismatchError)
        finally:
            await as_stranger(store, "ALTER TABLE events_away RENAME TO events")
        refused = await create(store, key._replace(session_id="t"), b"{not json")
        assert isinstance(refused, Failed)
        assert isinstance(refused.error, InvalidValueError)
        await committed(store, Append(key, tag, START, (event("e"),)))
