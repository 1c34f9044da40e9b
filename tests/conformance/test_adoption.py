"""Databases made by stock google-adk are adopted in place, and stock goes on working on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests import servers
from tests.conformance import stock_adk
from tests.conformance.stock_adk import StockAdk
from tiered_sessions.errors import SchemaMismatchError
from tiered_sessions.store.migrations.runner import migrate, plan, prepare_schema

WHO = {"app": "app", "user": "user"}


@pytest.fixture(scope="module")
def stock() -> Iterator[StockAdk]:
    with stock_adk.start(servers.python_for_adk()) as running:
        yield running


@pytest.fixture(params=servers.STORES)
def fresh_url(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[str]:
    """An empty database of the test's own."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'sessions.db'}"
    else:
        make = servers.postgresql_database if request.param == "postgresql" else servers.mariadb_database
        with make() as url:
            yield url


@pytest.fixture
async def engine(fresh_url: str) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(fresh_url)
    yield made
    await made.dispose()


async def rows(engine: AsyncEngine, query: str) -> list[Any]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(query))]


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def test_stock_works_on_a_database_it_made_and_we_adopted(
    stock: StockAdk, fresh_url: str, engine: AsyncEngine
) -> None:
    stock.call("create", fresh_url, session="old", state={"k": 1, "user:u": 2, "app:a": 3}, **WHO)
    stock.call("append", fresh_url, session="old", id="e1", **WHO)
    # A turn is under way: its session object was loaded before the columns came.
    await prepare_schema(engine, create_tables=True)
    assert stock.call("append", fresh_url, session="old", id="e2", reuse=True, **WHO)["events"] == [
        "e1",
        "e2",
    ]
    stock.call("create", fresh_url, session="new", **WHO)
    assert stock.call("list", fresh_url, **WHO) == ["old", "new"]
    # A stock process that starts now finds a schema it knows.
    stock.call("close", fresh_url)
    got = stock.call("get", fresh_url, session="old", **WHO)
    assert got["events"] == ["e1", "e2"]
    assert got["state"] == {"k": 1, "user:u": 2, "app:a": 3}
    stock.call("delete", fresh_url, session="old", **WHO)
    assert stock.call("get", fresh_url, session="old", **WHO) is None
    assert await rows(engine, "SELECT id FROM events") == []
    assert await plan(engine) == []
    await prepare_schema(engine, create_tables=False)


async def test_stock_works_on_a_database_that_we_made(
    stock: StockAdk, fresh_url: str, engine: AsyncEngine
) -> None:
    await prepare_schema(engine, create_tables=True)
    stock.call("create", fresh_url, session="s", state={"ü": "日本"}, **WHO)
    stock.call("create", fresh_url, session="S", **WHO)
    stock.call("create", fresh_url, session="s ", **WHO)
    stock.call("append", fresh_url, session="s", id="e1", text="\U0001f600" * 40_000, **WHO)
    stock.call("append", fresh_url, session="s", id="e2", delta={"k": None, "app:a": 1}, **WHO)
    got = stock.call("get", fresh_url, session="s", **WHO)
    assert got["events"] == ["e1", "e2"]
    assert got["texts"][0] == "\U0001f600" * 40_000
    assert got["state"] == {"ü": "日本", "k": None, "app:a": 1}
    assert sorted(stock.call("list", fresh_url, **WHO)) == ["S", "s", "s "]
    stock.call("delete", fresh_url, session="s", **WHO)
    assert await rows(engine, "SELECT id FROM events") == []
    stock.call("close", fresh_url)


async def test_columns_of_ours_are_null_in_rows_of_stock(
    stock: StockAdk, fresh_url: str, engine: AsyncEngine
) -> None:
    await prepare_schema(engine, create_tables=True)
    stock.call("create", fresh_url, session="s", **WHO)
    stock.call("append", fresh_url, session="s", id="e1", **WHO)
    stock.call("append", fresh_url, session="s", id="e2", **WHO)
    ours = "incarnation, revision, nonce, expires_at, sliding_ttl"
    assert await rows(engine, f"SELECT {ours} FROM sessions") == [(None,) * 5]
    assert await rows(engine, "SELECT seq FROM events") == [(None,), (None,)]
    assert await rows(engine, "SELECT revision FROM app_states") == [(None,)]
    stock.call("close", fresh_url)


async def test_migrate_numbers_by_the_time_in_the_event_then_id(
    stock: StockAdk, fresh_url: str, engine: AsyncEngine
) -> None:
    stock.call("create", fresh_url, session="s", **WHO)
    for id_, timestamp in (("z", 1000.5), ("a", 1000.5), ("b", 2000.0), ("c", 500.25)):
        stock.call("append", fresh_url, session="s", id=id_, timestamp=timestamp, **WHO)
    stock.call("create", fresh_url, session="empty", **WHO)
    await prepare_schema(engine, create_tables=True)
    # As releases before 2.13 left it: the column in local time.
    await execute(engine, "UPDATE events SET timestamp = '2001-01-01 00:00:00.000000' WHERE id = 'b'")
    before = await rows(engine, "SELECT id, update_time FROM sessions ORDER BY id")
    told: list[tuple[int, int]] = []
    report = await migrate(engine, lambda done, total: told.append((done, total)))
    assert (report.steps, report.adopted.sessions, report.adopted.scopes, report.adopted.busy) == (
        [],
        2,
        2,
        0,
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert await rows(engine, "SELECT id, seq FROM events ORDER BY seq") == [
        ("c", 1),
        ("a", 2),
        ("z", 3),
        ("b", 4),
    ]
    assert await rows(engine, "SELECT id, update_time FROM sessions ORDER BY id") == before
    assert await rows(engine, "SELECT id, revision FROM sessions ORDER BY id") == [("empty", 0), ("s", 4)]
    tags = await rows(engine, "SELECT incarnation, nonce FROM sessions")
    assert len({value for tag in tags for value in tag}) == 4
    # What stock appends afterwards follows, whatever its time; the incarnation stays, and caches are told.
    stock.call("append", fresh_url, session="s", id="late", timestamp=1.0, reuse=True, **WHO)
    assert (await migrate(engine)).adopted.sessions == 1
    assert await rows(engine, "SELECT id, seq FROM events ORDER BY seq DESC LIMIT 1") == [("late", 5)]
    after = await rows(engine, "SELECT incarnation, revision, nonce FROM sessions WHERE id = 's'")
    assert (after[0][0] in {tag[0] for tag in tags}, after[0][1]) == (True, 5)
    assert (
        await rows(engine, "SELECT incarnation, revision, nonce FROM cache_outbox WHERE session_id = 's'")
        == after
    )
    assert (await migrate(engine)).adopted.sessions == 0
    assert stock.call("get", fresh_url, session="s", **WHO)["events"] == ["late", "c", "a", "z", "b"]
    stock.call("close", fresh_url)


@pytest.mark.parametrize("fresh_url", ["postgresql", "mariadb"], indirect=True)
async def test_numbering_leaves_a_busy_session_alone(
    stock: StockAdk, fresh_url: str, engine: AsyncEngine
) -> None:
    for session in ("a", "b", "c"):
        stock.call("create", fresh_url, session=session, **WHO)
    stock.call("close", fresh_url)
    await prepare_schema(engine, create_tables=True)
    async with engine.begin() as holder:
        await holder.execute(
            text(
                "SELECT id FROM sessions WHERE app_name = 'app' AND user_id = 'user' AND id = 'b' FOR UPDATE"
            )
        )
        adopted = (await migrate(engine)).adopted
    assert (adopted.sessions, adopted.busy) == (2, 1)
    assert (await migrate(engine)).adopted.sessions == 1


async def test_numbering_goes_on_where_it_was_stopped(
    stock: StockAdk, fresh_url: str, engine: AsyncEngine
) -> None:
    for session in ("a", "b", "c"):
        stock.call("create", fresh_url, session=session, **WHO)
        stock.call("append", fresh_url, session=session, id="e", **WHO)
    stock.call("close", fresh_url)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await migrate(engine, stop)
    query = "SELECT incarnation, revision, nonce FROM sessions WHERE revision IS NOT NULL ORDER BY id"
    first = await rows(engine, query)
    assert len(first) == 2
    assert (await migrate(engine)).adopted.sessions == 1
    assert (await rows(engine, query))[:2] == first
    assert await rows(engine, "SELECT seq FROM events") == [(1,)] * 3


async def test_schema_of_google_adk_before_2_13(stock: StockAdk, fresh_url: str, engine: AsyncEngine) -> None:
    """Those releases make no events index; the tables are the same."""
    stock.call("create", fresh_url, session="s", **WHO)
    stock.call("append", fresh_url, session="s", id="e", **WHO)
    stock.call("close", fresh_url)
    name = "idx_events_app_user_session_ts_id"
    statements = [f"DROP INDEX {name}"]
    if engine.dialect.name == "mysql":
        # The foreign key needs some index, and takes this one where it exists.
        statements = [
            "CREATE INDEX fk_only ON events (app_name, user_id, session_id)",
            f"ALTER TABLE events DROP INDEX {name}",
        ]
    await execute(engine, *statements)
    assert f"create index {name}" in [step.name for step in await plan(engine)]
    await prepare_schema(engine, create_tables=True)
    assert await plan(engine) == []
    assert stock.call("get", fresh_url, session="s", **WHO)["events"] == ["e"]
    stock.call("close", fresh_url)


@pytest.mark.parametrize("fresh_url", ["postgresql"], indirect=True)
async def test_an_index_on_a_table_in_use_is_built_beside_its_writers(
    stock: StockAdk, fresh_url: str, engine: AsyncEngine
) -> None:
    """An index left invalid by a killed build is made again."""
    stock.call("create", fresh_url, session="s", **WHO)
    stock.call("append", fresh_url, session="s", id="e", **WHO)
    stock.call("close", fresh_url)
    await prepare_schema(engine, create_tables=True)
    name = "uq_events_app_user_session_seq"
    await execute(
        engine,
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{name}'::regclass",
        "DELETE FROM tiered_sessions_schema",
    )
    assert f"create index {name}" in [step.name for step in await plan(engine)]
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(engine.connect())
        await reader.execute(text("SELECT 1 FROM events"))
        await reader.commit()
        await prepare_schema(engine, create_tables=True)
    assert await rows(engine, f"SELECT indisvalid FROM pg_index WHERE indexrelid = '{name}'::regclass") == [
        (True,)
    ]


@pytest.mark.parametrize("fresh_url", ["mariadb"], indirect=True)
async def test_columns_of_a_mariadb_url_are_widened_by_migrate_only(
    stock: StockAdk, fresh_url: str, engine: AsyncEngine
) -> None:
    narrow_url = fresh_url.replace("mysql+", "mariadb+", 1)
    stock.call("create", narrow_url, session="s", state={"k": "v"}, **WHO)
    stock.call("close", narrow_url)
    before = await rows(engine, "SHOW CREATE TABLE sessions")
    with pytest.raises(SchemaMismatchError, match=r"sessions\.update_time.*tiered-sessions migrate"):
        await prepare_schema(engine, create_tables=True)
    assert await rows(engine, "SHOW CREATE TABLE sessions") == before
    assert [step.rewrites for step in await plan(engine)].count(True) == 1
    await migrate(engine)
    assert await plan(engine) == []
    columns = await rows(
        engine,
        "SELECT DISTINCT column_type FROM information_schema.columns WHERE table_schema = DATABASE() "
        "AND (column_type LIKE 'datetime%' OR column_type LIKE '%text') ORDER BY 1",
    )
    assert columns == [("datetime(6)",), ("longtext",)]
    assert stock.call("get", fresh_url, session="s", **WHO)["state"] == {"k": "v"}
    stock.call("append", fresh_url, session="s", id="e1", **WHO)
    stock.call("append", fresh_url, session="s", id="e2", reuse=True, **WHO)
    stock.call("close", fresh_url)


async def test_more_rows_than_one_batch_are_adopted_once(
    stock: StockAdk, fresh_url: str, engine: AsyncEngine
) -> None:
    stock.call("create", fresh_url, session="first", **WHO)
    stock.call("close", fresh_url)
    statement = (
        "INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time) "
        "SELECT '{}', user_id, '{}', state, create_time, update_time FROM sessions WHERE id = 'first'"
    )
    numbers = range(510)
    await execute(engine, *(statement.format("ab"[n % 2] + "pp", f"s{n * 7919 % 1000}") for n in numbers))
    done: list[int] = []
    report = await migrate(engine, lambda count, total: done.append(count))
    assert (report.adopted.sessions, report.adopted.busy) == (511, 0)
    assert done == list(range(1, 511 + 3))
    assert (await migrate(engine)).adopted.sessions == 0
