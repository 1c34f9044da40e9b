"""Triggers on foreign writes: what they record, and that our own writes never notice them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.conformance import test_store
from tests.conformance.store_backends import (
    START,
    append,
    as_stranger,
    backend_url,
    create,
    created,
    delete,
    event,
    make_store,
    new_key,
    open_store,
)
from tests.conformance.test_store import committed, foreign_append, foreign_event, loaded
from tiered_sessions.errors import ConfigurationError, SchemaMismatchError, StoreUnavailableError
from tiered_sessions.records import Append, OutboxRow, SessionKey, Stale, Tag
from tiered_sessions.store.migrations import lock, triggers
from tiered_sessions.store.migrations.triggers import (
    install_triggers,
    missing_triggers,
    parts,
    remove_triggers,
    triggers_installed,
)
from tiered_sessions.store.store import SqlSessionStore

# The whole contract of the store holds with triggers, but for what states that a foreign write
# changes nothing but update_time.
_CHANGED = {
    "test_a_foreign_event_is_numbered_by_the_next_append",
    "test_an_append_without_comparison_numbers_too",
    "test_a_stored_state_that_is_no_object_counts_as_empty",
}
globals().update(
    {
        name: test
        for name, test in vars(test_store).items()
        if name.startswith("test_") and name not in _CHANGED
    }
)

_KEY = "app_name = :a AND user_id = :u AND session_id = :s"
_SESSION = "app_name = :a AND user_id = :u AND id = :s"
_ALL = {
    "tiered_sessions_event_insert",
    "tiered_sessions_session_update",
    "tiered_sessions_session_delete",
    "tiered_sessions_user_update",
    "tiered_sessions_app_update",
}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store(request: pytest.FixtureRequest, backend: str) -> AsyncIterator[SqlSessionStore]:
    async with open_store(backend_url(request, backend), backend) as opened:
        await install_triggers(opened.engine)
        yield opened


async def outbox(store: SqlSessionStore, key: SessionKey) -> dict[str, OutboxRow]:
    """The invalidations recorded for an app, by kind of scope."""
    return {row.scope.kind: row for row in await store.outbox(10_000) if row.scope.app_name == key.app_name}


async def stranger(store: SqlSessionStore, key: SessionKey, *statements: str) -> None:
    await as_stranger(store, *statements, a=key.app_name, u=key.user_id, s=key.session_id)


async def rows(store: SqlSessionStore, query: str, **params: Any) -> list[Any]:
    async with store.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(query), params)]


# --- what a foreign write records ------------------------------------------------------------


async def test_a_foreign_append_is_numbered_and_recorded(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key)
    ours = await committed(store, Append(key, made.session.tag, START, (event("z"),)))
    await foreign_append(store, key, "b", "a")
    seen = await loaded(store, key)
    # In the order in which they were written, and as a session that may be cached.
    assert [(record.seq, record.id) for record in seen.session.events] == [(1, "z"), (2, "b"), (3, "a")]
    assert seen.session.tag.incarnation == ours.tag.incarnation
    assert seen.session.tag.revision >= 3
    assert seen.session.tag.nonce != ours.tag.nonce
    assert {kind: row.tag for kind, row in (await outbox(store, key)).items()} == {
        "session": seen.session.tag
    }
    assert await append(store, Append(key, ours.tag, START, (event("e"),))) == Stale(seen.session.tag)
    done = await committed(store, Append(key, seen.session.tag, START, (event("e"),)))
    assert not done.numbered
    assert done.events[0].seq == seen.session.tag.revision + 1


async def test_a_foreign_append_of_the_same_update_time_is_seen(store: SqlSessionStore) -> None:
    """Nothing but a trigger can see it: the row of the session does not change (R28)."""
    key = new_key()
    before = (await created(store, key)).session.tag
    await stranger(store, key, foreign_event("f", 1))
    tag = (await store.tags(key)).session
    assert tag is not None
    assert (tag.update_time, tag.revision) == (before.update_time, before.revision + 1)
    assert tag.nonce != before.nonce
    assert (await outbox(store, key))["session"].tag == tag
    assert await append(store, Append(key, before, START, (event("e"),))) == Stale(tag)


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        ("session", f"UPDATE sessions SET state = '{{\"x\": 1}}' WHERE {_SESSION}"),
        ("session", f"UPDATE sessions SET update_time = '1969-12-31 23:59:59.999999' WHERE {_SESSION}"),
        ("session", f"UPDATE sessions SET update_time = '2038-01-19 03:14:08' WHERE {_SESSION}"),
        ("user", "UPDATE user_states SET state = '{\"x\": 1}' WHERE app_name = :a AND user_id = :u"),
        ("app", "UPDATE app_states SET state = '{\"x\": 1}' WHERE app_name = :a"),
    ],
)
async def test_a_foreign_update_is_recorded(store: SqlSessionStore, kind: str, statement: str) -> None:
    key = new_key()
    await created(store, key)
    scope = next(scope for scope in key.scopes if scope.kind == kind)
    before = (await store.tags(key)).tag(scope)
    bound = [name for name in "aus" if f":{name}" in statement]
    params = dict(zip("aus", key, strict=True))
    await as_stranger(store, statement, **{name: params[name] for name in bound})
    after = (await store.tags(key)).tag(scope)
    assert before is not None
    assert after is not None
    assert (after.incarnation, after.revision) == (before.incarnation, before.revision + 1)
    assert after.nonce not in (0, before.nonce)
    assert {row.scope: row.tag for row in (await outbox(store, key)).values()} == {scope: after}
    stamp = (await outbox(store, key))[kind].stamp
    await as_stranger(store, statement, **{name: params[name] for name in bound})
    again = (await outbox(store, key))[kind]
    assert again.tag == (await store.tags(key)).tag(scope)
    assert again.stamp != stamp


async def test_a_foreign_delete_is_recorded(store: SqlSessionStore) -> None:
    key = new_key()
    await created(store, key)
    await stranger(store, key, f"DELETE FROM events WHERE {_KEY}", f"DELETE FROM sessions WHERE {_SESSION}")
    assert {row.scope: row.tag for row in (await outbox(store, key)).values()} == {key.session: None}


async def test_a_transaction_that_is_rolled_back_records_nothing(store: SqlSessionStore) -> None:
    key = new_key()
    before = (await created(store, key)).session.tag
    params = {"a": key.app_name, "u": key.user_id, "s": key.session_id}
    async with store.engine.connect() as connection:
        transaction = await connection.begin()
        await connection.execute(text(foreign_event("f", 1)), params)
        await transaction.rollback()
    assert (await store.tags(key)).session == before
    assert await outbox(store, key) == {}


async def test_what_is_not_adopted_is_left_alone(store: SqlSessionStore) -> None:
    """It was never cached, and its events are numbered in the order of their times."""
    key = new_key()
    await stranger(
        store,
        key,
        "INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time) VALUES "
        "(:a, :u, :s, '{}', '2023-11-14 22:13:20.000001', '2023-11-14 22:13:20.000001')",
        foreign_event("b", 2),
        foreign_event("a", 1),
        f"UPDATE sessions SET update_time = '2023-11-14 22:13:20.000002' WHERE {_SESSION}",
    )
    seen = await loaded(store, key)
    assert seen.session.tag == Tag(0, 0, 0, START + 2)
    assert await outbox(store, key) == {}
    await committed(store, Append(key, seen.session.tag, START, (event("e"),)))
    now = await loaded(store, key)
    assert [record.id for record in now.session.events] == ["a", "b", "e"]
    await stranger(store, key, f"DELETE FROM events WHERE {_KEY}", f"DELETE FROM sessions WHERE {_SESSION}")
    assert (await outbox(store, key))["session"].tag is None


async def test_an_event_behind_one_without_a_number_waits_too(store: SqlSessionStore) -> None:
    """Numbered at once it would come before the one that was written first."""
    key = new_key()
    await created(store, key)
    await remove_triggers(store.engine)
    await foreign_append(store, key, "first")
    await install_triggers(store.engine)
    await stranger(store, key, foreign_event("second", 200))
    seen = await loaded(store, key)
    assert not seen.session.tag.adopted
    assert [record.id for record in seen.session.events] == ["first", "second"]
    assert "session" in await outbox(store, key)
    done = await committed(store, Append(key, seen.session.tag, START, (event("e"),)))
    assert done.numbered
    now = await loaded(store, key)
    assert [record.id for record in now.session.events] == ["first", "second", "e"]
    assert now.session.tag.adopted


# --- our own writes --------------------------------------------------------------------------


async def test_our_own_writes_count_once_and_record_nothing(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key, app_delta=b'{"x":1}')
    write = Append(
        key, made.session.tag, START + 1, (event("e"), event("f")), b'{"s":1}', b'{"u":1}', b'{"a":1}'
    )
    done = await committed(store, write)
    assert done.user is not None
    assert done.app is not None
    assert (done.tag.revision, done.user.tag.revision, done.app.tag.revision) == (2, 1, 1)
    assert (await store.tags(key)) == (done.tag, done.user.tag, done.app.tag)
    plain = await committed(store, Append(key, done.tag, START + 2, (event("g"),)))
    assert (await store.tags(key)).session == plain.tag
    assert plain.tag.revision == 3
    assert await outbox(store, key) == {}
    # A trigger cannot tell whose delete it is; the row costs the drain one drop.
    await delete(store, key)
    assert {kind: row.tag for kind, row in (await outbox(store, key)).items()} == {"session": None}


async def test_writers_of_both_kinds_at_once_keep_one_order(store: SqlSessionStore) -> None:
    key = new_key()
    await created(store, key)
    params = {"a": key.app_name, "u": key.user_id, "s": key.session_id}

    async def foreign(number: int) -> None:
        for attempt in range(20):
            try:
                async with store.engine.begin() as connection:
                    # Stock locks the session first, and so do we.
                    await connection.execute(
                        text(f"UPDATE sessions SET state = '{{}}' WHERE {_SESSION}"), params
                    )
                    await connection.execute(text(foreign_event(f"f{number}", number)), params)
            except DBAPIError:
                assert attempt < 19
            else:
                return

    ours = [append(store, Append(key, None, START + n, (event(f"o{n}"),))) for n in range(5)]
    await asyncio.gather(*ours, *(foreign(n) for n in range(5)))
    seen = await loaded(store, key)
    numbers = [record.seq for record in seen.session.events]
    assert {record.id for record in seen.session.events} == {f"{who}{n}" for who in "of" for n in range(5)}
    assert numbers == sorted(set(numbers))
    assert seen.session.tag.adopted
    assert numbers[-1] <= seen.session.tag.revision


# --- installing and removing -----------------------------------------------------------------


async def test_install_and_remove(store: SqlSessionStore, backend: str) -> None:
    engine = store.engine
    assert await triggers_installed(engine)
    assert await install_triggers(engine) == []
    on = " ON sessions" if backend == "postgresql" else ""
    await as_stranger(store, f"DROP TRIGGER tiered_sessions_session_delete{on}")
    assert not await triggers_installed(engine)
    async with engine.connect() as connection:
        assert await connection.run_sync(missing_triggers) == ["tiered_sessions_session_delete"]
    assert await install_triggers(engine) == ["tiered_sessions_session_delete"]
    assert set(await remove_triggers(engine)) == _ALL
    assert await remove_triggers(engine) == []
    assert not await triggers_installed(engine)
    key = new_key()
    await created(store, key)
    await foreign_append(store, key, "f")
    assert not (await loaded(store, key)).session.tag.adopted
    assert await outbox(store, key) == {}
    if backend == "postgresql":
        assert await rows(store, "SELECT 1 FROM pg_proc WHERE proname LIKE 'tiered_sessions%'") == []
    assert set(await install_triggers(engine)) == _ALL


async def test_installing_at_once_in_two_processes_is_fine(store: SqlSessionStore) -> None:
    await remove_triggers(store.engine)
    done = await asyncio.gather(install_triggers(store.engine), install_triggers(store.engine))
    assert {name for names in done for name in names} == _ALL
    assert await triggers_installed(store.engine)


async def test_tables_that_are_not_prepared_are_refused(sqlite_url: str) -> None:
    store = make_store(sqlite_url, "sqlite")
    try:
        with pytest.raises(SchemaMismatchError, match="tiered-sessions migrate"):
            await install_triggers(store.engine)
        assert not await triggers_installed(store.engine)
    finally:
        await store.close()


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
async def test_a_database_without_such_triggers_is_refused(
    store: SqlSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "_FILES", {"other": "x.sql"})
    parts.cache_clear()
    try:
        with pytest.raises(ConfigurationError, match="no triggers for"):
            await install_triggers(store.engine)
        assert not await triggers_installed(store.engine)
    finally:
        parts.cache_clear()


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
class TestPostgresql:
    """What only PostgreSQL has: disabled triggers, paths, roles, table locks that wait."""

    async def test_a_disabled_trigger_is_made_again(self, store: SqlSessionStore) -> None:
        await as_stranger(store, "ALTER TABLE events DISABLE TRIGGER tiered_sessions_event_insert")
        assert not await triggers_installed(store.engine)
        assert await install_triggers(store.engine) == ["tiered_sessions_event_insert"]
        assert await triggers_installed(store.engine)

    async def test_a_writer_with_another_path_and_few_rights_is_recorded(
        self, store: SqlSessionStore
    ) -> None:
        key = new_key()
        await created(store, key)
        role = f"ts_test_{uuid.uuid4().hex[:16]}"
        params = {"a": key.app_name, "u": key.user_id, "s": key.session_id}
        insert = text(foreign_event("f", 1).replace("INTO events", "INTO public.events"))
        async with store.engine.connect() as connection:
            transaction = await connection.begin()
            await connection.execute(text(f"CREATE ROLE {role}"))
            await connection.execute(text(f"GRANT INSERT ON events TO {role}"))
            await connection.execute(text(f"SET LOCAL ROLE {role}"))
            await connection.execute(text("SET LOCAL search_path = ''"))
            await connection.execute(insert, params)
            await connection.execute(text("RESET ROLE"))
            found = await connection.execute(
                text("SELECT kind FROM public.cache_outbox WHERE app_name = :a"), {"a": key.app_name}
            )
            assert found.scalars().all() == ["session"]
            await transaction.rollback()

    async def test_a_table_that_is_locked_is_waited_for(
        self, store: SqlSessionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await remove_triggers(store.engine)
        monkeypatch.setitem(lock._SETTINGS, "postgresql", ("SET lock_timeout = '20ms'",))
        key = new_key()
        await created(store, key)
        tries = 0
        pause = asyncio.sleep

        async def counted(seconds: float) -> None:
            nonlocal tries
            tries += 1
            if tries == 2:
                await transaction.commit()
            await pause(0)

        monkeypatch.setattr(asyncio, "sleep", counted)
        async with store.engine.connect() as connection:
            transaction = await connection.begin()
            params = {"a": key.app_name, "u": key.user_id, "s": key.session_id}
            await connection.execute(text(foreign_event("f", 1)), params)
            assert set(await install_triggers(store.engine)) == _ALL
        assert tries == 2
        await remove_triggers(store.engine)
        tries = 3
        async with store.engine.connect() as connection:
            transaction = await connection.begin()
            await connection.execute(text(foreign_event("g", 1)), params)
            with pytest.raises(StoreUnavailableError, match="long transaction"):
                await install_triggers(store.engine)
            await transaction.rollback()


async def test_ids_of_any_characters(store: SqlSessionStore) -> None:
    key = SessionKey(f"o'hara-{uuid.uuid4().hex}", 'ü "%s" :a', "s\\ ; --")
    assert not isinstance(await create(store, key), Exception)
    await stranger(store, key, foreign_event("f", 1))
    assert {row.scope for row in (await outbox(store, key)).values()} == {key.session}
    assert (await outbox(store, key))["session"].tag == (await store.tags(key)).session
