"""Databases of real old releases: stock google-adk reads after us what they wrote, and so do we."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.sessions import DatabaseSessionService
from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from typer.testing import CliRunner

from tests import servers
from tests.adk import old_databases
from tests.adk.old_databases import V0, V1, ZONE, Loaded
from tiered_sessions.adk import TieredSessionService
from tiered_sessions.store.migrations.remove import plan_removal
from tiered_sessions.store.migrations.runner import migrate, prepare_schema
from tiered_sessions.store.migrations.v0_events import Reading
from tiered_sessions.store.migrations.v0_upgrade import Options, upgrade

# Reading an authentication request of an old release calls a method of google-adk's own that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:This method is deprecated:DeprecationWarning")


@pytest.fixture
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Loaded]:
    with old_databases.load(*request.param, tmp_path) as loaded:
        yield loaded


@pytest.fixture
async def engine(old: Loaded) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(old.url)
    yield made
    await made.dispose()


def of(*releases: str) -> Any:
    pairs = [(release, kind) for release in releases for kind in servers.STORES]
    return pytest.mark.parametrize("old", pairs, indirect=True, ids="-".join)


def expected(said: dict[str, Any]) -> list[Event]:
    return [Event.model_validate(event) for event in said["events"]]


def without_time(event: Event) -> Event:
    return event.model_copy(update={"timestamp": 0.0})


async def check(service: Any, old: Loaded) -> None:
    """Compares every session with what the old release itself read back."""
    for said in old.said:
        found = await service.get_session(
            app_name=said["app_name"], user_id=said["user_id"], session_id=said["id"]
        )
        assert found is not None
        assert found.state == said["state"]
        # Those releases rounded the time to the microseconds of a column when they read.
        assert [e.timestamp for e in found.events] == pytest.approx(
            [e["timestamp"] for e in said["events"]], rel=0, abs=1e-6
        )
        assert [without_time(event) for event in found.events] == [without_time(e) for e in expected(said)]
    listed = await service.list_sessions(app_name="weather", user_id="ada")
    assert sorted(session.id for session in listed.sessions) == ["empty", "talk"]


async def go_on(service: Any, text: str) -> None:
    """Appends to a session and makes another one."""
    session = await service.get_session(app_name="weather", user_id="ada", session_id="talk")
    event = Event(
        author="user", invocation_id=text, actions=EventActions(state_delta={"last": text, "user:last": text})
    )
    await service.append_event(session, event)
    await service.create_session(app_name="weather", user_id="cy", session_id=text, state={"app:motd": text})
    again = await service.get_session(app_name="weather", user_id="ada", session_id="talk")
    assert again.events[-1].invocation_id == text
    assert (again.state["last"], again.state["user:last"], again.state["app:motd"]) == (text, text, text)


@of(*V0)
async def test_after_the_upgrade_stock_and_we_read_what_was_said(old: Loaded, engine: AsyncEngine) -> None:
    await engine.dispose()
    await upgrade(engine, Options(Reading(zone=ZoneInfo(ZONE)), pause=0))
    await migrate(engine)
    stock = DatabaseSessionService(old.url)
    await check(stock, old)
    async with TieredSessionService(old.url, cache="memory") as service:
        await check(service, old)
        await go_on(stock, "stock")
        await go_on(service, "ours")
    await go_on(stock, "again")
    await stock.close()


@of(*V1)
async def test_v1_databases_of_old_releases_are_adopted(old: Loaded, engine: AsyncEngine) -> None:
    """Those releases wrote the events' time column in local time; the time in the event is right."""
    stock = DatabaseSessionService(old.url)
    async with TieredSessionService(old.url, cache="memory") as service:
        await check(service, old)
        assert (await migrate(engine)).adopted.sessions == 4
        await check(service, old)
        await go_on(service, "ours")
        await go_on(stock, "stock")
        await go_on(service, "again")
    await stock.close()


def layout(connection: Any) -> dict[str, Any]:
    inspector = inspect(connection)
    return {
        table: (
            sorted(column["name"] for column in inspector.get_columns(table)),
            sorted(str(index["name"]) for index in inspector.get_indexes(table)),
        )
        for table in sorted(inspector.get_table_names())
    }


async def command(engine: AsyncEngine, *arguments: str) -> Any:
    from tiered_sessions.cli.app import app

    await engine.dispose()
    done = await asyncio.to_thread(CliRunner().invoke, app, ["migrate", *arguments])
    assert done.exit_code == 0, done.output
    return done


@of("2.4.0")
async def test_remove_takes_everything_away_and_stock_goes_on(old: Loaded, engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        before = await connection.run_sync(layout)
    await command(engine, "--db", old.url, "--triggers")
    async with TieredSessionService(old.url, cache="memory") as service:
        await go_on(service, "ours")
    planned = json.loads((await command(engine, "--db", old.url, "--remove", "--dry-run", "--json")).stdout)
    assert planned["done"] is False
    assert any("tiered_sessions_" in s for s in planned["statements"] if s.startswith("DROP TRIGGER"))
    await prepare_schema(engine, create_tables=False)
    done = json.loads((await command(engine, "--db", old.url, "--remove", "--yes", "--json")).stdout)
    assert sorted(done["statements"]) == sorted(planned["statements"])
    async with engine.connect() as connection:
        after = await connection.run_sync(layout)
    # Stock google-adk 2.13 makes this index itself.
    columns, indexes = before["events"]
    assert after == before | {"events": (columns, [*indexes, "idx_events_app_user_session_ts_id"])}
    assert await plan_removal(engine) == []
    stock = DatabaseSessionService(old.url)
    await go_on(stock, "stock")
    found = await stock.get_session(app_name="weather", user_id="ada", session_id="talk")
    assert found is not None
    assert [event.id for event in found.events[:5]] == ["e0", "e1", "e2", "e3", "e4"]
    assert [event.invocation_id for event in found.events[5:]] == ["ours", "stock"]
    await stock.close()
    # And the other way again.
    async with TieredSessionService(old.url, cache="memory") as service:
        await go_on(service, "back")


@of("1.21.0")
async def test_remove_asks_and_a_no_changes_nothing(old: Loaded, engine: AsyncEngine) -> None:
    from tiered_sessions.cli.app import app

    await command(engine, "--db", old.url, "--timezone", ZONE)
    refused = await asyncio.to_thread(
        CliRunner().invoke, app, ["migrate", "--db", old.url, "--remove"], input="n\n"
    )
    assert refused.exit_code == 1
    assert "DROP TABLE tiered_sessions_schema" in refused.stdout
    await prepare_schema(engine, create_tables=False)
