"""MariaDB's short ways: statements that a connection keeps prepared, state, and one INSERT."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.conformance.store_backends import (
    START,
    append,
    as_stranger,
    create_with,
    created,
    delete,
    event,
    loaded,
    new_key,
    open_store,
)
from tests.relay import Relay
from tests.servers import sql_on_mysql, start_mariadb
from tiered_sessions.codec import loads
from tiered_sessions.records import Append, Committed, Create, Exists, Query, SessionKey, Snapshot, Stale, Tag
from tiered_sessions.store.store import SqlSessionStore

ONE = {"pool_size": 1, "max_overflow": 0}
USES = 5


@contextlib.asynccontextmanager
async def watched(url: str) -> AsyncIterator[tuple[SqlSessionStore, Relay]]:
    """Opens a store of one connection, and shows what that sends."""
    async with Relay(url) as relay, open_store(relay.url, "mariadb", **ONE) as store:
        yield store, relay


async def stored(store: SqlSessionStore, key: SessionKey, tag: Tag, **more: object) -> Committed:
    """Appends what must be stored."""
    done = await append(store, replace(Append(key, tag, START), **more))
    assert isinstance(done, Committed), done
    return done


# --- prepared statements -----------------------------------------------------------------------


async def test_what_is_used_often_is_prepared_once(mysql_url: str) -> None:
    async with watched(mysql_url) as (store, relay):
        key = new_key()
        tag = (await created(store, key)).session.tag
        for use in range(USES + 3):
            with relay.recording() as flights:
                tag = (await stored(store, key, tag, events=(event(f"e{use}"),))).tag
            assert len(flights) == (2 if use == USES - 1 else 1), flights
        assert relay.commands()[-1].startswith("EXECUTE"), relay.commands()
        found = await loaded(store, key)
        assert [one.id for one in found.session.events] == [f"e{use}" for use in range(USES + 3)]
        assert found.session.tag == tag


async def test_every_operation_is_the_same_prepared(mysql_url: str) -> None:
    async with open_store(mysql_url, "mariadb", **ONE) as store:
        for _ in range(USES + 2):
            key = new_key()
            for number in range(2):
                one = key._replace(session_id=f"{number}-ü'\\%s")
                tag = (await created(store, one)).session.tag
                write = Append(one, tag, START, (event("e-%s-?-ü"),), b'{"a":"\\"\\\\%s?"}')
                done = await append(store, write)
                assert isinstance(done, Committed)
                assert await append(store, replace(write, events=(event("f"),))) == Stale(done.tag)
                for query in (Query(), Query(limit=1), Query(after=START), Query(limit=0)):
                    found = await store.load(one, query)
                    assert found is not None
                    assert found.session.tag == done.tag
                    assert loads(found.session.state) == {"a": '"\\%s?'}
            assert len(await store.sessions(key.app_name, key.user_id)) == 2
            assert await delete(store, one) is True
            assert await delete(store, one) is False
            assert await store.load(one, Query()) is None


async def test_a_prepared_statement_that_is_gone_is_done_without(mysql_url: str) -> None:
    async with watched(mysql_url) as (store, relay):
        key = new_key()
        tag = (await created(store, key)).session.tag
        for use in range(USES + 1):
            with relay.recording():
                tag = (await stored(store, key, tag, events=(event(f"e{use}"),))).tag
        # What a proxy does that hands a connection's statements to any connection of its own.
        execute, name, *_ = relay.commands()[-1].split()
        assert execute == "EXECUTE"
        await as_stranger(store, f"DEALLOCATE PREPARE {name}")
        for use in range(2):
            tag = (await stored(store, key, tag, events=(event(f"f{use}"),))).tag
        assert (await loaded(store, key)).session.tag == tag


async def test_a_server_that_prepares_no_more_is_served_without() -> None:
    with start_mariadb(max_prepared_stmt_count=0) as server:
        sql_on_mysql(server.url, "CREATE DATABASE own CHARACTER SET utf8mb4")
        url = server.url.replace("mysql:", "mysql+aiomysql:")
        async with open_store(f"{url}own", "mariadb", **ONE) as store:
            key = new_key()
            tag = (await created(store, key)).session.tag
            for use in range(USES + 2):
                tag = (await stored(store, key, tag, events=(event(f"e{use}"),))).tag
            assert (await loaded(store, key)).session.tag == tag


# --- session state -----------------------------------------------------------------------------


async def test_state_is_merged_by_two_statements_and_replaced_by_one(mysql_url: str) -> None:
    async with watched(mysql_url) as (store, relay):
        key = new_key()
        made = await create_with(store, Create(key, START, b'{"a":{"x":1},"b":null}'))
        assert isinstance(made, Snapshot)
        with relay.recording() as flights:
            done = await stored(
                store,
                key,
                made.session.tag,
                events=(event("e"),),
                session_delta='{"a":null,"ü":[1180591620717411303424]}'.encode(),
            )
        assert len(flights) == 2, flights
        assert done.state is not None
        assert loads(done.state) == {"a": None, "b": None, "ü": [1180591620717411303424]}
        assert loads((await loaded(store, key)).session.state) == loads(done.state)
        with relay.recording() as flights:
            done = await stored(store, key, done.tag, session_delta=b'{"c":1}', replace_state=True)
        assert len(flights) == 1, flights
        assert (await loaded(store, key)).session.state == done.state == b'{"c":1}'


async def test_state_is_not_merged_into_what_the_writer_has_not_seen(mysql_url: str) -> None:
    async with open_store(mysql_url, "mariadb") as store:
        key = new_key()
        tag = (await created(store, key)).session.tag
        now = (await stored(store, key, tag, session_delta=b'{"a":1}')).tag
        late = Append(key, tag, START, (event("late"),), b'{"a":2}')
        assert await append(store, late) == Stale(now)
        found = await loaded(store, key)
        assert (found.session.state, found.session.events) == (b'{"a":1}', ())


# --- a session beside others of its user -------------------------------------------------------


async def test_a_user_that_is_known_and_gone_is_made_again(mysql_url: str) -> None:
    async with watched(mysql_url) as (store, relay):
        key = new_key()
        first = await create_with(store, Create(key, START, b"{}", b'{"u":"1 2"}', b'{"a":1}'))
        assert isinstance(first, Snapshot)
        for number in range(2):
            other = key._replace(session_id=f"other{number}")
            with relay.recording() as flights:
                made = await created(store, other)
            assert len(flights) == 1, flights
            assert relay.commands()[-1].startswith("INSERT INTO sessions"), flights
            assert (made.user, made.app) == (first.user, first.app)
            assert await loaded(store, other) == made
        await as_stranger(store, "DELETE FROM user_states WHERE app_name = :a", a=key.app_name)
        other = key._replace(session_id="after")
        made = await created(store, other)
        assert made.user is not None
        assert made.user.state == b"{}"
        assert await loaded(store, other) == made


@pytest.mark.parametrize("table", ["app_states", "user_states"])
async def test_a_shared_row_that_lost_its_tag_is_adopted(mysql_url: str, table: str) -> None:
    async with open_store(mysql_url, "mariadb") as store:
        key = new_key()
        for number in range(2):
            await created(store, key._replace(session_id=f"before{number}"))
        without = "incarnation = NULL, revision = NULL, nonce = NULL"
        await as_stranger(store, f"UPDATE {table} SET {without} WHERE app_name = :a", a=key.app_name)
        made = await created(store, key)
        assert made.user is not None
        assert made.app is not None
        assert made.user.tag.adopted
        assert made.app.tag.adopted
        assert await loaded(store, key) == made


async def test_an_id_that_is_taken_is_told_beside_others(mysql_url: str) -> None:
    async with open_store(mysql_url, "mariadb") as store:
        key = new_key()
        for number in range(2):
            await created(store, key._replace(session_id=f"before{number}"))
        assert await create_with(store, Create(key._replace(session_id="before0"), START, b"{}")) == Exists()
