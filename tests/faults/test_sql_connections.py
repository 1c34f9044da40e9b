"""How many connections and round trips the store takes, and what it makes of lost ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial

import pytest
from asyncpg.exceptions import InternalClientError, InvalidPasswordError
from sqlalchemy import event as events
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.conformance.store_backends import (
    CONFIG,
    START,
    append,
    as_stranger,
    create,
    created,
    delete,
    event,
    loaded,
    new_key,
    open_store,
)
from tests.relay import Relay
from tiered_sessions.errors import (
    CommitOutcomeUnknownError,
    PoolTimeoutError,
    SchemaMismatchError,
    StoreError,
    StoreUnavailableError,
)
from tiered_sessions.records import (
    Already,
    Append,
    Committed,
    Exists,
    Failed,
    Query,
    SessionKey,
    Snapshot,
    Unknown,
)
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.migrations.connect import database
from tiered_sessions.store.store import SqlSessionStore

DRIVERS = ("asyncpg", "psycopg")
HASTY = replace(CONFIG, lock_timeout=0.2)


@pytest.fixture(params=DRIVERS)
def postgresql(request: pytest.FixtureRequest, postgresql_url: str) -> str:
    return postgresql_url.replace("asyncpg", request.param)


@pytest.fixture
async def admin(postgresql_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    yield engine
    await engine.dispose()


async def backends(admin: AsyncEngine) -> list[int]:
    """Process ids of all other connections to the test database."""
    async with admin.connect() as connection:
        rows = await connection.execute(
            text(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
                "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        )
        return [row[0] for row in rows]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            pass


async def kill(admin: AsyncEngine) -> None:
    """Ends all other connections to the test database, and waits until they are gone."""
    for pid in await backends(admin):
        async with admin.connect() as connection:
            await connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    async def gone() -> bool:
        return not await backends(admin)

    await until(gone)


# --- bounds ----------------------------------------------------------------------------------


async def test_pool_options_bound_all_connections(postgresql: str, admin: AsyncEngine) -> None:
    async with open_store(postgresql, "postgresql", pool_size=2, max_overflow=1) as store:
        key = new_key()
        await created(store, key)
        writes = (append(store, Append(key, None, START, (event(f"e{n}"),))) for n in range(20))
        reads = (store.load(key, Query()) for _ in range(20))
        lists = (store.sessions(key.app_name, None) for _ in range(10))
        slow = asyncio.gather(*writes, *reads, *lists, delete(store, key._replace(session_id="none")))
        most = 0
        while not slow.done():
            most = max(most, len(await backends(admin)))
        await slow
        assert 1 <= most <= 3


async def test_an_exhausted_pool_is_a_typed_error(postgresql: str) -> None:
    async with open_store(postgresql, "postgresql", pool_size=1, max_overflow=0, pool_timeout=0.05) as store:
        writer = await store.writer()
        with pytest.raises(PoolTimeoutError, match="pool_size"):
            await store.writer()
        with pytest.raises(PoolTimeoutError):
            await store.tags(new_key())
        await writer.release()
        await store.tags(new_key())


async def test_an_injected_engine_is_used_and_left_open(postgresql: str, admin: AsyncEngine) -> None:
    engine = create_async_engine(postgresql, pool_size=1, max_overflow=0, isolation_level="SERIALIZABLE")
    store = SqlSessionStore(engine, owns_engine=False, config=CONFIG)
    await store.prepare()
    key = new_key()
    made = await created(store, key)
    outcomes = [await append(store, Append(key, None, START, (event(f"e{n}"),))) for n in range(5)]
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    assert len(await backends(admin)) == 1
    await store.close()
    async with engine.connect() as connection:
        level = (await connection.execute(text("SHOW transaction_isolation"))).scalar_one()
    assert level == "serializable"
    assert not store.exclusive
    assert made.session.tag.adopted
    await engine.dispose()


# --- round trips -----------------------------------------------------------------------------


def reads_of(store: SqlSessionStore, key: SessionKey) -> tuple[Callable[[], Awaitable[object]], ...]:
    return (
        lambda: store.load(key, Query()),
        lambda: store.load(key, Query(5)),
        lambda: store.load(key, Query(0)),
        lambda: store.older(key, 3, Query(5)),
        lambda: store.tags(key),
        lambda: store.sessions(key.app_name, key.user_id),
        lambda: store.sessions(key.app_name, None),
    )


async def test_frequent_operations_are_one_statement_and_one_round_trip(postgresql: str) -> None:
    async with Relay(postgresql) as relay, open_store(relay.url, "postgresql", pool_size=1) as store:
        key = new_key()
        tag = (await created(store, key)).session.tag
        for n in range(8):  # Until statements are prepared (psycopg: at the sixth time).
            done = await append(store, Append(key, tag, START, (event(f"w{n}"),)))
            assert isinstance(done, Committed)
            tag = done.tag
            for read in reads_of(store, key):
                await read()
            await created(store, key._replace(session_id=f"w{n}"))
            await delete(store, key._replace(session_id=f"w{n}"))
        write = Append(key, tag, START, (event("e"),))
        other = key._replace(session_id="other")
        writes = (
            lambda: append(store, write),
            lambda: created(store, other),
            lambda: delete(store, other),
        )
        for work in (*writes, *reads_of(store, key)):
            with relay.recording() as flights:
                await work()
            assert len(flights) == 1, flights
            assert len(relay.commands()) == 1, relay.commands()
            assert relay.upkeep() == []


async def test_a_write_on_mariadb_is_one_statement(mysql_url: str) -> None:
    async with Relay(mysql_url) as relay, open_store(relay.url, "mariadb", pool_size=1) as store:
        key = new_key()
        tag = (await created(store, key)).session.tag
        with relay.recording() as flights:
            done = await append(store, Append(key, tag, START, (event("e"),)))
        assert isinstance(done, Committed)
        assert len(flights) == 1, flights
        for other in (key._replace(session_id="other"), new_key()):
            # The second makes the rows of its app and user, too.
            with relay.recording() as flights:
                made = await created(store, other)
            assert len(flights) == 1, flights
            assert await loaded(store, other) == made
            with relay.recording() as flights:
                assert await delete(store, other) is True
            assert len(flights) == 1, flights
            assert await delete(store, other) is False
        # An event of another program takes no second look.
        strange = (
            "INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, event_data) "
            "VALUES ('strange', :a, :u, :s, 'i', '2026-01-01', '{}')"
        )
        await as_stranger(store, strange, a=key.app_name, u=key.user_id, s=key.session_id)
        for read in reads_of(store, key):
            with relay.recording() as flights:
                assert await read()
            assert len(flights) == 1, flights


# --- lost connections ------------------------------------------------------------------------


async def test_connections_that_died_in_the_pool_cost_nothing(postgresql: str, admin: AsyncEngine) -> None:
    async with open_store(postgresql, "postgresql", pool_size=2) as store:
        key = new_key()
        made = await created(store, key)
        for work in (
            lambda: store.load(key, Query()),
            lambda: store.sessions(key.app_name, None),
            lambda: store.namespace(),
        ):
            await kill(admin)
            assert await work()
        await kill(admin)

        async def noticed() -> bool:
            # The farewell may still be on its way to us.
            async with store._dialect.engine.connect() as connection:
                return not store._dialect.alive((await connection.get_raw_connection()).driver_connection)

        await until(noticed)
        done = await append(store, Append(key, made.session.tag, START, (event("e"),)))
        assert isinstance(done, Committed), done


async def test_a_connection_lost_in_mid_append_leaves_the_outcome_unknown(
    postgresql: str, admin: AsyncEngine
) -> None:
    async with open_store(postgresql, "postgresql") as store:
        key = new_key()
        made = await created(store, key)
        write = Append(key, made.session.tag, START, (event("e"),))
        async with store.engine.connect() as other:
            await other.execute(
                text("SELECT 1 FROM sessions WHERE app_name = :a FOR UPDATE"), {"a": key.app_name}
            )
            sent = asyncio.ensure_future(append(store, write))

            async def waiting() -> bool:
                async with admin.connect() as connection:
                    found = await connection.execute(
                        text(
                            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
                        )
                    )
                    return found.first() is not None

            await until(waiting)
            outcome = await sent
            await other.rollback()
        assert isinstance(outcome, Unknown), outcome
        assert isinstance(outcome.error, CommitOutcomeUnknownError)
        assert isinstance(await append(store, write), Committed | Already)


@pytest.mark.parametrize("kind", ["postgresql", "psycopg", "mariadb"])
async def test_a_lost_reply_is_unknown_and_the_repetition_finds_the_event(
    kind: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("mysql_url" if kind == "mariadb" else "postgresql_url")
    url = url.replace("asyncpg", "psycopg") if kind == "psycopg" else url
    async with Relay(url) as relay, open_store(relay.url, kind, pool_size=1) as store:
        key = new_key()
        tag = (await created(store, key)).session.tag
        for n in range(8):
            done = await append(store, Append(key, tag, START, (event(f"w{n}"),)))
            assert isinstance(done, Committed)
            tag = done.tag
        write = Append(key, tag, START, (event("e"),))
        writer = await store.writer()
        relay.swallow_next_reply()
        outcome = await writer.append(write)
        await writer.release()
        assert isinstance(outcome, Unknown), outcome
        again = await append(store, write)
        assert isinstance(again, Already), again
        assert again.latest


async def test_a_black_hole_is_left_in_bounded_time(postgresql: str) -> None:
    short = replace(CONFIG, statement_timeout=2.0)
    async with Relay(postgresql) as relay, open_store(relay.url, "postgresql", short, pool_size=1) as store:
        key = new_key()
        made = await created(store, key)
        writer = await store.writer()
        relay.black_hole()
        async with asyncio.timeout(10):
            outcome = await writer.append(Append(key, made.session.tag, START, (event("e"),)))
            assert isinstance(outcome, Unknown), outcome
            await writer.release()
        relay.heal()
        assert isinstance(await append(store, Append(key, None, START, (event("f"),))), Committed)


@pytest.mark.parametrize("kind", ["asyncpg", "psycopg", "mariadb"])
async def test_a_server_that_accepts_and_says_nothing_is_left_in_bounded_time(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers bound how long they connect, but not all of them how long they wait for a greeting."""
    backend = "mariadb" if kind == "mariadb" else "postgresql"
    url = request.getfixturevalue("mysql_url" if kind == "mariadb" else "postgresql_url")
    async with (
        Relay(url.replace("asyncpg", kind)) as relay,
        open_store(relay.url, backend, pool_size=1, max_overflow=1) as store,
    ):
        key = new_key()
        await created(store, key)
        writer = await store.writer()
        relay.black_hole()
        with monkeypatch.context() as impatience:
            impatience.setattr(store, "_longest", 0.3)
            for wanted in (store.load(key, Query()), store.writer()):
                with pytest.raises(StoreUnavailableError):
                    async with asyncio.timeout(5):
                        await wanted
        relay.heal()
        await writer.release()
        assert await store.load(key, Query()) is not None


async def test_closing_does_not_wait_for_a_connection_that_never_opens(
    mysql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        Relay(mysql_url) as relay,
        open_store(relay.url, "mariadb", pool_size=1, max_overflow=1) as store,
    ):
        writer = await store.writer()
        monkeypatch.setattr(store, "_longest", 0.1)
        monkeypatch.setattr(store, "_close_timeout", 0.1)
        relay.black_hole()
        with pytest.raises(StoreUnavailableError):
            await store.load(new_key(), Query())
        assert store._given_up
        await writer.release()
        async with asyncio.timeout(5):
            await store.close()
        assert not store._given_up


# --- locks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["postgresql", "psycopg", "mariadb", "sqlite"])
async def test_a_lock_held_elsewhere_is_waited_for_in_bounds(
    kind: str, request: pytest.FixtureRequest
) -> None:
    fixture = {"mariadb": "mysql_url", "sqlite": "sqlite_url"}.get(kind, "postgresql_url")
    url = request.getfixturevalue(fixture)
    url = url.replace("asyncpg", "psycopg") if kind == "psycopg" else url
    async with open_store(url, kind, HASTY) as store:
        key = new_key()
        made = await created(store, key)
        writes = (
            Append(key, made.session.tag, START, (event("e"),)),
            Append(key, made.session.tag, START, (event("e"),), session_delta=b'{"x":1}'),
        )
        other = create_async_engine(url)
        async with other.connect() as holder:
            await holder.execute(
                text("UPDATE sessions SET state = state WHERE app_name = :a"), {"a": key.app_name}
            )
            async with asyncio.timeout(10):
                for write in writes:
                    outcome = await append(store, write)
                    assert isinstance(outcome, Failed), outcome
                    assert isinstance(outcome.error, StoreUnavailableError)
                    assert "lock" in str(outcome.error)
                outcome_of_delete = await delete(store, key)
                assert isinstance(outcome_of_delete, Failed), outcome_of_delete
            assert await store.load(key, Query()) == made
            await holder.rollback()
        await other.dispose()
        assert isinstance(await append(store, writes[0]), Committed)


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixture", "change"),
    [
        ("postgresql_url", ("postgres@", "nobody:s3cret@")),
        ("postgresql_url", ("/ts_test_", "/no_such_")),
        ("mysql_url", ("root@", "nobody:s3cret@")),
        ("mysql_url", ("/ts_test_", "/no_such_")),
        ("postgresql_url", (":5432", ":1")),
        ("mysql_url", (":3306", ":1")),
    ],
)
async def test_a_refused_connection_is_a_typed_error_without_the_password(
    fixture: str, change: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    url = str(request.getfixturevalue(fixture))
    if change[0] not in url:
        pytest.skip(f"the test server's URL has no {change[0]!r}")
    wrong = url.replace(*change, 1)
    urls = [wrong, wrong.replace("asyncpg", "psycopg")] if "asyncpg" in wrong else [wrong]
    for address in urls:
        store = SqlSessionStore(build_engine(address, CONFIG), owns_engine=True, config=CONFIG)
        for call in (store.prepare, store.writer, store.namespace, partial(store.load, new_key(), Query())):
            with pytest.raises(StoreUnavailableError) as raised:
                await call()
            assert "s3cret" not in str(raised.value)
        await store.close()


@pytest.mark.parametrize("error", [InvalidPasswordError, InternalClientError])
async def test_what_asyncpg_raises_while_it_connects_is_a_typed_error(error: type[Exception]) -> None:
    """SQLAlchemy 2.0 passes it on as it is."""
    url = "postgresql+asyncpg://nobody@127.0.0.1:1/none"
    store = SqlSessionStore(build_engine(url, CONFIG), owns_engine=True, config=CONFIG)

    @events.listens_for(store.engine.sync_engine, "do_connect")
    def connect(*_: object) -> None:
        raise error("no")

    for call in (store.prepare, store.writer, store.namespace, partial(store.load, new_key(), Query())):
        with pytest.raises(StoreUnavailableError, match="no"):
            await call()
    await store.close()
    with pytest.raises(StoreUnavailableError, match="no"):
        async with database(url):
            raise error("no")


@pytest.mark.parametrize("kind", ["postgresql", "mariadb", "sqlite"])
async def test_missing_tables_name_the_remedy(kind: str, request: pytest.FixtureRequest) -> None:
    fixture = {"mariadb": "mysql_url", "sqlite": "sqlite_url"}.get(kind, "postgresql_url")
    async with open_store(request.getfixturevalue(fixture), kind) as store:
        async with store.engine.begin() as connection:
            await connection.execute(text("ALTER TABLE sessions RENAME TO sessions_hidden"))
        try:
            with pytest.raises(SchemaMismatchError, match="create_tables"):
                await store.load(new_key(), Query())
            outcome = await append(store, Append(new_key(), None, START, (event("e"),)))
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, SchemaMismatchError)
        finally:
            async with store.engine.begin() as connection:
                await connection.execute(text("ALTER TABLE sessions_hidden RENAME TO sessions"))


async def test_a_user_without_rights_gets_a_typed_error(postgresql: str, admin: AsyncEngine) -> None:
    role = new_key().app_name.replace("-", "_")
    async with open_store(postgresql, "postgresql"):
        pass
    async with admin.connect() as connection:
        await connection.execute(text(f"CREATE ROLE {role} LOGIN"))
    try:
        url = postgresql.replace("postgres@", f"{role}@")
        store = SqlSessionStore(build_engine(url, CONFIG), owns_engine=True, config=CONFIG)
        with pytest.raises(StoreError, match="may not"):
            await store.load(new_key(), Query())
        await store.close()
    finally:
        async with admin.connect() as connection:
            await connection.execute(text(f"DROP ROLE {role}"))


async def test_a_cancelled_write_leaves_the_store_usable(postgresql: str, admin: AsyncEngine) -> None:
    async with open_store(postgresql, "postgresql", pool_size=1, max_overflow=0) as store:
        key = new_key()
        made = await created(store, key)
        for write in (
            lambda: append(store, Append(key, made.session.tag, START, (event("e"),))),
            lambda: create(store, key),
            lambda: delete(store, key._replace(session_id="none")),
        ):
            for steps in range(0, 40, 3):
                task = asyncio.ensure_future(write())
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        assert isinstance(await create(store, key), Exists)
        settled = await append(store, Append(key, made.session.tag, START, (event("e"),)))
        assert isinstance(settled, Committed | Already)
        assert isinstance(await store.load(key, Query()), Snapshot)
