"""Creates, and deletes, that share a statement, each with an outcome of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from tests.conformance.grouping import all_free, gathering, groups, until
from tests.conformance.store_backends import (
    START,
    as_stranger,
    backend_url,
    committed,
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
from tiered_sessions.records import (
    Append,
    Create,
    CreateOutcome,
    DeleteOutcome,
    Exists,
    Expired,
    Failed,
    Kind,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
)
from tiered_sessions.store.store import SqlSessionStore

ALL = Query()


@pytest.fixture(params=("sqlite", "postgresql", "postgresql-psycopg"))
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store(request: pytest.FixtureRequest, backend: str) -> AsyncIterator[SqlSessionStore]:
    async with open_store(backend_url(request, backend), backend) as opened:
        yield opened
        await all_free(opened, "create", "delete")


class Statements:
    """The size of every batch, and how many writes went alone."""

    def __init__(self, store: SqlSessionStore, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[int] = []
        self.alone = 0
        dialect: Any = store._dialect
        group, single = getattr(dialect, f"{kind}_group"), getattr(dialect, kind)

        async def together(lent: Any, writes: Any) -> Any:
            self.batches.append(len(writes))
            return await group(lent, writes)

        async def alone(*arguments: Any) -> Any:
            self.alone += 1
            return await single(*arguments)

        monkeypatch.setattr(dialect, f"{kind}_group", together)
        monkeypatch.setattr(dialect, kind, alone)


async def creating(store: SqlSessionStore, write: Create) -> CreateOutcome:
    writer = await store.writer(grouped="create")
    try:
        return await writer.create(write)
    finally:
        await writer.release()


async def deleting(store: SqlSessionStore, key: SessionKey, outbox: Sequence[ScopeKey] = ()) -> DeleteOutcome:
    writer = await store.writer(grouped="delete")
    try:
        return await writer.delete(key, outbox)
    finally:
        await writer.release()


async def created_together(store: SqlSessionStore, writes: Sequence[Create]) -> list[CreateOutcome]:
    async with gathering(store, "create"):
        tasks = [asyncio.create_task(creating(store, write)) for write in writes]
        await until(lambda: len(groups(store, "create")._waiting) == len(writes))
    return await asyncio.gather(*tasks)


async def deleted_together(
    store: SqlSessionStore, keys: Sequence[SessionKey], recorded: Sequence[SessionKey] = ()
) -> list[DeleteOutcome]:
    async with gathering(store, "delete"):
        tasks = [
            asyncio.create_task(deleting(store, key, (key.session,) if key in recorded else ()))
            for key in keys
        ]
        await until(lambda: len(groups(store, "delete")._waiting) == len(keys))
    return await asyncio.gather(*tasks)


async def _as_stock(store: SqlSessionStore, key: SessionKey) -> None:
    """Makes the rows of shared scopes as another program does."""
    await as_stranger(
        store,
        "INSERT INTO app_states (app_name, state, update_time) "
        "VALUES (:a, '{\"x\": 1}', '2026-01-01 00:00:00.000000')",
        "INSERT INTO user_states (app_name, user_id, state, update_time) "
        "VALUES (:a, :u, '{\"y\": 2}', '2026-01-01 00:00:00.000000')",
        a=key.app_name,
        u=key.user_id,
    )


# --- creates ---------------------------------------------------------------------------------


async def test_creates_that_meet_share_a_statement(
    store: SqlSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gets what it would have got alone, whatever is there already."""
    key, stock, old = new_key(), new_key(), new_key()
    await created(store, key)
    await create_with(store, Create(old, START, b"{}", ttl=60_000))
    await as_stranger(
        store,
        "UPDATE sessions SET expires_at = '2001-01-01 00:00:00.000000' WHERE app_name = :a",
        a=old.app_name,
    )
    await _as_stock(store, stock)
    fresh = new_key()
    writes = [
        Create(key._replace(session_id="one"), START, b'{"n":1}'),
        Create(key._replace(session_id="two"), START + 1, b'{"f":1e16,"z":-0.0}'),
        Create(fresh, START + 2, b"{}", ttl=3_600_000),
        Create(fresh._replace(session_id="two"), START + 3, b"{}", ttl=3_600_000, sliding=True),
        Create(fresh._replace(user_id="other"), START + 4, b"{}"),
        Create(stock, START + 5, b"{}"),
        Create(key, START, b"{}"),
        Create(old, START, b"{}"),
        Create(key._replace(session_id="y" * 200), START, b"{}"),
    ]
    counted = Statements(store, "create", monkeypatch)
    outcomes = await created_together(store, writes)
    assert counted.batches == [8], "all but the one that no database can store"
    assert counted.alone == 2, "what is in the way is looked at by each alone"
    assert outcomes[6:8] == [Exists(), Expired()]
    assert isinstance(outcomes[8], Failed)
    users = set()
    for write, outcome in zip(writes[:6], outcomes, strict=False):
        assert isinstance(outcome, Snapshot), outcome
        assert outcome.key == write.key
        assert (outcome.session.tag.revision, outcome.session.tag.update_time) == (0, write.update_time)
        found = await loaded(store, write.key)
        assert (found.expires_in is None) == (outcome.expires_in is None)
        assert replace(found, expires_in=None) == replace(outcome, expires_in=None)
        assert outcome.user is not None
        users.add((write.key.user, outcome.user.tag))
    assert len({scope for scope, _ in users}) == len(users), "who share a user agree on its tag"
    shared = outcomes[5]
    assert isinstance(shared, Snapshot)
    assert shared.app is not None
    assert equal(shared.app.state, {"x": 1})
    assert shared.user is not None
    assert equal(shared.user.state, {"y": 2})
    slides = writes[3].key
    appended = Append(slides, (await store.tags(slides)).session, START, (event("e"),))
    assert (await committed(store, appended)).expires_in == 3_600_000


async def test_creates_of_one_id_have_one_winner(store: SqlSessionStore) -> None:
    keys = [new_key(), new_key()]
    outcomes = await created_together(store, [Create(key, START, b"{}") for key in keys * 3])
    for key in keys:
        of_key = [outcome for outcome, other in zip(outcomes, keys * 3, strict=True) if other == key]
        (made,) = [outcome for outcome in of_key if outcome != Exists()]
        assert isinstance(made, Snapshot)
        assert (await loaded(store, key)).session == made.session


async def test_what_changes_shared_scopes_is_created_alone(
    store: SqlSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [new_key() for _ in range(3)]
    writes = [
        Create(keys[0], START, b"{}", user_delta=b'{"k":1}'),
        Create(keys[1], START, b"{}", app_delta=b'{"k":1}'),
        Create(keys[2], START, b"{}", replace_expired=True),
    ]
    assert not any(write.shareable for write in writes)
    counted = Statements(store, "create", monkeypatch)
    outcomes = await created_together(store, writes)
    assert all(isinstance(outcome, Snapshot) for outcome in outcomes)
    assert (counted.batches, counted.alone) == ([], 3)


async def test_batches_of_creates_agree_on_the_rows_they_make(
    request: pytest.FixtureRequest, store: SqlSessionStore, backend: str
) -> None:
    """Two processes create sessions of the same new users, in orders of their own."""
    async with open_store(backend_url(request, backend), backend) as other:
        for _ in range(5):
            app = new_key().app_name
            keys = [SessionKey(app, f"u{n % 6}", f"s{n}") for n in range(24)]
            mine, theirs = keys[::2] + keys[1::4], keys[::-1][::2]
            both = await asyncio.gather(
                created_together(store, [Create(key, START, b"{}") for key in mine]),
                created_together(other, [Create(key, START, b"{}") for key in theirs]),
            )
            made = [outcome for outcome in both[0] + both[1] if outcome != Exists()]
            assert len(made) == len({*mine, *theirs})
            for outcome in made:
                assert isinstance(outcome, Snapshot), outcome
                assert await store.load(outcome.key, ALL) == outcome


# --- deletes ---------------------------------------------------------------------------------


async def test_deletes_that_meet_share_a_statement(
    store: SqlSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those who ask, and delete, the invalidation is recorded."""
    keys = [new_key() for _ in range(5)]
    for key in keys[:4]:
        tag = (await created(store, key)).session.tag
        await committed(store, Append(key, tag, START, (event("e"), event("f"))))
    counted = Statements(store, "delete", monkeypatch)
    asked = [*keys[1:], keys[1]]
    outcomes = await deleted_together(store, asked, keys[1:3])
    assert counted.batches == [4], "one key is there twice"
    assert outcomes[1:4] == [True, True, False]
    assert sorted((outcomes[0], outcomes[4])) == [False, True], "whichever comes first"
    assert [key for key in keys if await store.load(key, ALL)] == keys[:1]
    async with store.engine.connect() as connection:
        for key in keys:
            query = text("SELECT count(*) FROM events WHERE app_name = :a")
            left = (await connection.execute(query, {"a": key.app_name})).scalar_one()
            assert left == (2 if key == keys[0] else 0)
    for key in keys:
        assert set(await outbox(store, key)) == ({"session"} if key in keys[1:3] else set())


async def test_a_locked_session_delays_only_its_own_deletion(request: pytest.FixtureRequest) -> None:
    async with open_store(backend_url(request, "postgresql"), "postgresql") as store:
        keys = [new_key() for _ in range(3)]
        for key in keys:
            await created(store, key)
        async with store.engine.begin() as stranger:
            await stranger.execute(
                text("SELECT 1 FROM sessions WHERE app_name = :a FOR UPDATE"), {"a": keys[0].app_name}
            )
            async with gathering(store, "delete"):
                tasks = [asyncio.create_task(deleting(store, key)) for key in keys]
                await until(lambda: len(groups(store, "delete")._waiting) == 3)
            async with asyncio.timeout(5):
                assert await asyncio.gather(*tasks[1:]) == [True, True]
            assert not tasks[0].done()
        assert await tasks[0] is True


async def test_without_a_cascade_each_deletion_removes_its_events(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(backend_url(request, "postgresql"), "postgresql") as store:
        keys = [new_key() for _ in range(3)]
        for key in keys:
            tag = (await created(store, key)).session.tag
            await committed(store, Append(key, tag, START, (event("e"),)))
        async with store.engine.begin() as connection:
            named = await connection.execute(
                text(
                    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
                    "WHERE contype = 'f' AND conrelid = CAST('events' AS regclass)"
                )
            )
            name, definition = named.one()
            await connection.execute(text(f'ALTER TABLE events DROP CONSTRAINT "{name}"'))
        try:
            counted = Statements(store, "delete", monkeypatch)
            assert await deleted_together(store, keys) == [True, True, True]
            assert (counted.batches, counted.alone) == ([3], 3)
            async with store.engine.connect() as connection:
                for key in keys:
                    query = text("SELECT count(*) FROM events WHERE app_name = :a")
                    assert (await connection.execute(query, {"a": key.app_name})).scalar_one() == 0
        finally:
            await as_stranger(store, f'ALTER TABLE events ADD CONSTRAINT "{name}" {definition}')


async def test_deletes_and_creates_at_once(store: SqlSessionStore) -> None:
    """Many callers, each with a session of its own: made once, gone once."""
    app = new_key().app_name
    keys = [SessionKey(app, f"u{n % 5}", f"s{n}") for n in range(60)]

    async def life(key: SessionKey) -> None:
        for _ in range(3):
            assert isinstance(await creating(store, Create(key, START, b"{}")), Snapshot)
            assert await deleting(store, key) is True
        assert await deleting(store, key) is False

    await asyncio.gather(*map(life, keys))
    assert await store.count(app, None) == 0
    await asyncio.gather(*(delete(store, key) for key in keys))
