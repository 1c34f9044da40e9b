"""Batches of appends on PostgreSQL: locks, lost connections, and two processes at once."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.conformance.grouping import gathering, groups, sessions, share, together, until
from tests.conformance.store_backends import append, created, new_key, open_store
from tests.relay import Relay
from tiered_sessions.errors import CommitOutcomeUnknownError
from tiered_sessions.records import Already, Append, Committed, Query, SessionKey, Unknown

DRIVERS = ("asyncpg", "psycopg")
ALL = Query()


@pytest.fixture(params=DRIVERS)
def postgresql(request: pytest.FixtureRequest, postgresql_url: str) -> str:
    return postgresql_url.replace("asyncpg", request.param)


@pytest.fixture
async def admin(postgresql_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    yield engine
    await engine.dispose()


async def value(admin: AsyncEngine, statement: str, **params: Any) -> Any:
    """The one value that a statement answers."""
    async with admin.connect() as connection:
        return (await connection.execute(text(statement), params)).scalar()


async def moved_on(write: Append, outcome: Any) -> Append:
    """The append that follows a committed one."""
    assert isinstance(outcome, Committed), outcome
    event = write.events[0]._replace(id=f"{write.events[0].id}+")
    return Append(write.key, outcome.tag, write.update_time, (event,))


async def test_an_append_without_company_is_one_round_trip_and_a_batch_is_one_too(postgresql: str) -> None:
    async with Relay(postgresql) as relay, open_store(relay.url, "postgresql", pool_size=5) as store:
        (lone,) = await sessions(store, 1)
        for _ in range(40):  # Until every connection knows the statement.
            lone = await moved_on(lone, await share(store, lone))
        with relay.recording() as flights:
            assert isinstance(await share(store, lone), Committed)
        assert len(flights) == 1, flights
        assert relay.upkeep() == []

        writes = await sessions(store, 20)
        for _ in range(40):
            writes = [
                await moved_on(write, outcome)
                for write, outcome in zip(
                    writes, await together(store, [(write, ()) for write in writes]), strict=True
                )
            ]
        with relay.recording() as flights:
            outcomes = await together(store, [(write, ()) for write in writes])
        assert all(isinstance(outcome, Committed) for outcome in outcomes)
        assert len(flights) == 1, flights
        assert relay.upkeep() == []


async def test_a_locked_session_delays_only_its_own_append(postgresql: str, admin: AsyncEngine) -> None:
    async with open_store(postgresql, "postgresql") as store:
        writes = await sessions(store, 8)
        async with store.engine.connect() as other:
            await other.execute(
                text("SELECT 1 FROM sessions WHERE app_name = :a AND id = 's3' FOR UPDATE"),
                {"a": writes[0].key.app_name},
            )
            async with gathering(store):
                tasks = [asyncio.create_task(share(store, write)) for write in writes]
                await until(lambda: len(groups(store)._waiting) == 8)
            held = tasks.pop(3)
            outcomes = await asyncio.gather(*tasks)
            assert not held.done()
            await other.rollback()
        assert all(isinstance(outcome, Committed) for outcome in [*outcomes, await held])


async def test_a_connection_lost_in_mid_batch_leaves_every_outcome_unknown(
    postgresql: str, admin: AsyncEngine
) -> None:
    async with open_store(postgresql, "postgresql") as store:
        writes = await sessions(store, 5)
        async with store.engine.connect() as other:
            await other.execute(text("LOCK TABLE events IN ACCESS EXCLUSIVE MODE"))
            batch = asyncio.create_task(together(store, [(write, ()) for write in writes]))
            async with asyncio.timeout(10):
                # Cut off by the administrator while it waits for the table.
                while not await value(
                    admin,
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND wait_event_type = 'Lock'",
                ):
                    pass
            outcomes = await batch
            await other.rollback()
        for outcome in outcomes:
            assert isinstance(outcome, Unknown), outcome
            assert isinstance(outcome.error, CommitOutcomeUnknownError)
        assert len({id(outcome.error) for outcome in outcomes if isinstance(outcome, Unknown)}) == 5
        for write in writes:
            assert isinstance(await append(store, write), Committed), "nothing had been written"


async def test_a_lost_reply_is_unknown_to_all_and_each_repetition_finds_its_event(postgresql: str) -> None:
    async with Relay(postgresql) as relay, open_store(relay.url, "postgresql") as store:
        writes = await sessions(store, 5)
        for _ in range(40):
            writes = [
                await moved_on(write, outcome)
                for write, outcome in zip(
                    writes, await together(store, [(write, ()) for write in writes]), strict=True
                )
            ]
        relay.swallow_next_reply()
        outcomes = await together(store, [(write, ()) for write in writes])
        assert all(isinstance(outcome, Unknown) for outcome in outcomes), outcomes
        relay.heal()
        for outcome in await together(store, [(write, ()) for write in writes]):
            assert isinstance(outcome, Already), outcome
            assert outcome.latest


async def test_batches_of_two_processes_overlap_without_deadlock_or_loss(
    postgresql_url: str, admin: AsyncEngine
) -> None:
    """Thousands of appends to few sessions: each is there once, and the revision counts them."""
    app, count, callers, appends = new_key().app_name, 24, 32, 1_000
    async with open_store(postgresql_url, "postgresql") as store:
        for number in range(count):
            await created(store, SessionKey(app, "user", f"s{number}"))
        before = await value(
            admin, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        arguments = [postgresql_url, app, str(count), str(callers), str(appends)]
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.faults.group_writer",
                *arguments,
                name,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            for name in ("one", "two")
        ]
        stored: Counter[str] = Counter()
        for process in processes:
            out, err = await process.communicate()
            assert process.returncode == 0, err.decode()[-4_000:]
            stored.update(json.loads(out))
        assert sum(stored.values()) == 2 * appends
        seen: set[str] = set()
        for number in range(count):
            found = await store.load(SessionKey(app, "user", f"s{number}"), ALL)
            assert found is not None
            events = found.session.events
            assert found.session.tag.revision == len(events) == stored[f"s{number}"]
            assert [e.seq for e in events] == list(range(1, len(events) + 1))
            seen |= {e.id for e in events}
        assert seen == {f"{name}-{number}" for name in ("one", "two") for number in range(appends)}
        async with admin.connect() as connection:
            await connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        after = await value(
            admin, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        assert after == before
