"""The database dies and returns, drops idle connections, runs out of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from tests import servers
from tests.faults.load import Load
from tests.patience import UNREFUSED
from tests.relay import Relay
from tests.servers import OwnServer, sql_on_postgresql, with_path
from tiered_sessions import (
    CommitOutcomeUnknownError,
    Event,
    PoolTimeoutError,
    Session,
    TieredConfig,
    TieredSessionService,
)

# Returns when they are gone, not when they have been told.
OTHERS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """A PostgreSQL of this module's own, run by an unprivileged user."""
    with servers.start_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def thread() -> Iterator[Executor]:
    """A thread that outlives the tests: a server ends with the thread that started it."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def database(server: OwnServer) -> str:
    name = f"ts_test_{uuid4().hex[:16]}"
    sql_on_postgresql(server.url, f"CREATE DATABASE {name}")
    return with_path(server.url, name)


@pytest.mark.parametrize("cache", [None, "valkey"])
async def test_restarted_under_load(
    server: OwnServer, thread: Executor, database: str, request: pytest.FixtureRequest, cache: str | None
) -> None:
    """What was acknowledged is there once, what failed is not there, what is unknown can be repeated."""
    loop = asyncio.get_running_loop()
    address = request.getfixturevalue("valkey_url") if cache else None
    async with contextlib.AsyncExitStack() as stack:

        async def service(cache: str | None) -> TieredSessionService:
            made = TieredSessionService(database, cache=cache, config=TieredConfig(**UNREFUSED), pool_size=4)
            return await stack.enter_async_context(made)

        services = [await service(address), await service(address)]
        truth = await service(None)
        async with Load(services, store_fails=True) as load:
            for _ in range(3):
                await load.turns(10)
                await loop.run_in_executor(thread, server.kill)
                outages = load.outages
                await load.until(lambda outages=outages: load.outages > outages)
                await loop.run_in_executor(thread, server.restart)
            await load.turns(10)
        ages = await load.check(truth)
        await load.settled(truth)
    print(f"\n{load.appends} appends, {load.outages} calls refused, {load.unknown} of unknown outcome")
    assert ages == []


@pytest.mark.parametrize("stored", [True, False], ids=["reply lost", "statement lost"])
async def test_an_unknown_outcome_is_called_so_and_may_be_repeated(database: str, stored: bool) -> None:
    async with (
        Relay(database) as relay,
        TieredSessionService(relay.url, cache=None) as service,
        TieredSessionService(database, cache=None) as truth,
    ):
        session = await service.create_session("app", "u", session_id="s")
        if stored:
            relay.hold_replies(to="INSERT INTO events")
        else:
            relay.hold_requests(to="INSERT INTO events")
        event = Event(id="e", author="a")
        append = asyncio.create_task(service.append_event(session, event))
        await relay.wait_for(lambda _: bool(relay.held))
        relay.reset_all()
        relay.heal()
        with pytest.raises(CommitOutcomeUnknownError):
            await append
        assert session.events == []
        for _ in range(2):
            await service.append_event(session, event)
            found = await truth.get_session("app", "u", "s")
            assert found is not None
            assert [event.id for event in found.events] == ["e"]


async def test_idle_connections_are_terminated(database: str) -> None:
    """A pool of dead connections: reads do not fail, and neither do writes that nobody has sent yet."""
    async with TieredSessionService(database, cache=None, pool_size=4) as service:
        sessions = [await service.create_session("app", "u", session_id=f"s{n}") for n in range(8)]

        async def read(session: Session) -> Any:
            return await service.get_session("app", "u", session.id)

        await asyncio.gather(*map(read, sessions))
        await asyncio.to_thread(sql_on_postgresql, database, OTHERS)
        assert await asyncio.gather(*map(read, sessions)) == sessions
        await asyncio.to_thread(sql_on_postgresql, database, OTHERS)
        for session in sessions:
            await service.append_event(session, Event(author="a"))
        assert await asyncio.gather(*map(read, sessions)) == sessions


async def test_no_connection_is_free(database: str) -> None:
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}
    async with TieredSessionService(database, cache=None, **options) as service:
        session = await service.create_session("app", "u")
        named = "pool_size, max_overflow or pool_timeout"
        async with service.db_engine.connect():
            with pytest.raises(PoolTimeoutError, match=named):
                await service.get_session("app", "u", session.id)
            with pytest.raises(PoolTimeoutError, match=named):
                await service.append_event(session, Event(author="a"))
            with pytest.raises(PoolTimeoutError, match=named):
                await service.create_session("app", "u")
            with pytest.raises(PoolTimeoutError, match=named):
                await service.delete_session("app", "u", session.id)
        await service.append_event(session, Event(author="a"))
        found = await service.get_session("app", "u", session.id)
        assert found == session
