"""Databases that old releases of google-adk have made are upgraded from V0 to V1, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from typer.testing import CliRunner

from tests import servers
from tests.adk import old_databases
from tests.adk.old_databases import V0, ZONE, Loaded
from tiered_sessions import TieredSessionService
from tiered_sessions.errors import SchemaMismatchError, StoreError, TieredSessionsError, UnknownPickleError
from tiered_sessions.store.migrations.runner import migrate, prepare_schema
from tiered_sessions.store.migrations.v0_events import Reading
from tiered_sessions.store.migrations.v0_tables import KEPT_EVENTS, KEPT_SESSIONS
from tiered_sessions.store.migrations.v0_upgrade import Options, survey, upgrade

READING = Reading(zone=ZoneInfo(ZONE))
HOW = Options(READING, pause=0)
FORCED = Options(READING, pause=0, force=True)
TABLES = ["adk_internal_metadata", "app_states", "cache_outbox", "events", "sessions", "user_states"]


@pytest.fixture(params=[("1.21.0", kind) for kind in servers.STORES], ids="-".join)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Loaded]:
    """A V0 database; `parametrize("old", ..., indirect=True)` names another release and kind."""
    with old_databases.load(*request.param, tmp_path) as loaded:
        yield loaded


every = pytest.mark.parametrize(
    "old", [(release, kind) for release in V0 for kind in servers.STORES], indirect=True, ids="-".join
)


def on(*kinds: str, release: str = "1.21.0") -> Any:
    return pytest.mark.parametrize("old", [(release, kind) for kind in kinds], indirect=True, ids="-".join)


@pytest.fixture
async def engine(old: Loaded) -> AsyncIterator[AsyncEngine]:
    made = create_async_engine(old.url)
    yield made
    await made.dispose()


async def quiet(engine: AsyncEngine, how: Options = HOW, **more: Any) -> Any:
    """Upgrades as an operator does: nobody else is connected, the test neither."""
    await engine.dispose()
    return await upgrade(engine, how, **more)


async def rows(engine: AsyncEngine, query: str) -> list[Any]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(query))]


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def tables(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return sorted(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


def as_stored(said: dict[str, Any]) -> dict[str, Any]:
    """What an event of the old release says, without the defaults that it prints and we leave out."""
    actions = {name: value for name, value in said["actions"].items() if value != {}}
    for name in ("requested_auth_configs", "compaction"):
        if name in actions:
            # 1.21.0 reads back the models in these as dictionaries, every field that is not set included.
            actions[name] = without_nulls(actions[name])
    return {**said, "actions": actions}


def without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: without_nulls(item) for name, item in value.items() if item is not None}


async def check(url: str, said: list[dict[str, Any]], *, utc: bool) -> None:
    """Reads every session through our service and compares it with what the old release read."""
    async with TieredSessionService(url, cache="memory") as service:
        for session in said:
            key = (session["app_name"], session["user_id"], session["id"])
            for _ in ("from SQL", "from the cache"):
                found = await service.get_session(*key)
                assert found is not None
                assert found.state == session["state"]
                events = [event.model_dump(mode="json", exclude_none=True) for event in found.events]
                assert [as_stored(event) for event in events] == [as_stored(e) for e in session["events"]]
                if not utc:
                    assert found.last_update_time == session["last_update_time"]
        kept = await service.create_session("other", "ada")
        assert kept.state == {"user:kept": True}


# -- nothing is lost --------------------------------------------------------------------------------


@every
async def test_in_place_every_conversation_is_as_the_old_release_read_it(
    old: Loaded, engine: AsyncEngine
) -> None:
    found = await survey(engine)
    assert found is not None
    assert (found.unknown, found.damaged) == ({}, 0)
    told: list[tuple[int, int]] = []
    verified = await quiet(engine, progress=lambda done, total: told.append((done, total)))
    # 1.0.0 and 1.10.0 leave the events of a deleted session in SQLite.
    orphans = found.orphans
    assert [tuple(row) for row in verified] == [
        ("sessions", 4, 4, 0),
        ("events", 11 + orphans, 11, orphans),
    ]
    assert told[-1] == (15 + orphans, 15 + orphans)
    report = await migrate(engine)
    assert (report.adopted.sessions, report.adopted.busy) == (4, 0)
    await prepare_schema(engine, create_tables=False)
    # The times of sessions are in UTC in SQLite, where those releases read them as local time.
    await check(old.url, old.said, utc=engine.dialect.name == "sqlite")
    assert await tables(engine) == sorted([*TABLES, "tiered_sessions_schema", KEPT_EVENTS, KEPT_SESSIONS])
    assert await rows(engine, f"SELECT count(*) FROM {KEPT_EVENTS}") == [(11 + orphans,)]


@pytest.mark.parametrize("to", servers.STORES)
@on("sqlite", "postgresql", "mariadb", release="1.0.0")
async def test_into_another_database(old: Loaded, engine: AsyncEngine, to: str, tmp_path: Path) -> None:
    before = await rows(engine, "SELECT count(*), min(id), max(id) FROM events")
    with old_databases.empty(to, tmp_path, "new.db") as url:
        target = create_async_engine(url)
        verified = await quiet(engine, target=target)
        assert [row.table for row in verified] == ["app_states", "user_states", "sessions", "events"]
        await migrate(target)
        await check(url, old.said, utc=engine.dialect.name == "sqlite")
        with pytest.raises(SchemaMismatchError, match="not empty"):
            await quiet(engine, target=target)
        await target.dispose()
    assert await rows(engine, "SELECT count(*), min(id), max(id) FROM events") == before
    assert "event_data" not in await columns(engine, "events")


async def columns(engine: AsyncEngine, table: str) -> set[str]:
    async with engine.connect() as connection:
        return {c["name"] for c in await connection.run_sync(lambda sync: inspect(sync).get_columns(table))}


async def test_start_up_refuses_and_names_the_command(old: Loaded, engine: AsyncEngine) -> None:
    before = await tables(engine)
    with pytest.raises(SchemaMismatchError, match=r"V0 layout.*`tiered-sessions migrate`"):
        await prepare_schema(engine, create_tables=True)
    async with TieredSessionService(old.url, cache=None) as service:
        with pytest.raises(SchemaMismatchError, match="`tiered-sessions migrate`"):
            await service.get_session("weather", "ada", "talk")
    assert await tables(engine) == before


# -- stopped, killed, changed in between ------------------------------------------------------------


KILLED = """
import asyncio, os, sys
from zoneinfo import ZoneInfo
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from tiered_sessions.store.migrations.v0_events import Reading
from tiered_sessions.store.migrations.v0_upgrade import Options, upgrade

left = int(sys.argv[3])

def kill(*_):
    global left
    left -= 1
    if left == 0:
        os._exit(9)

engine = create_async_engine(sys.argv[1], poolclass=NullPool)
event.listen(engine.sync_engine, "before_cursor_execute", kill)
asyncio.run(upgrade(engine, Options(Reading(zone=ZoneInfo(sys.argv[2])), pause=0)))
"""


@pytest.mark.parametrize("after", [45, 55, 60, 63, 84, 86])
@on("sqlite", "postgresql", "mariadb")
async def test_killed_at_any_statement_it_goes_on_where_it_was(
    old: Loaded, engine: AsyncEngine, after: int
) -> None:
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED, old.url, ZONE, str(after)],
        capture_output=True,
        text=True,
    )
    assert killed.returncode in (0, 9), killed.stderr
    if "event_data" not in await columns(engine, "events"):
        with pytest.raises(SchemaMismatchError, match="V0"):
            await prepare_schema(engine, create_tables=True)
        # A server may not have noticed yet that the other one is gone.
        await quiet(engine, FORCED)
    await migrate(engine)
    await check(old.url, old.said, utc=engine.dialect.name == "sqlite")


async def test_what_changed_since_it_was_stopped_is_copied_again(old: Loaded, engine: AsyncEngine) -> None:
    def stop(done: int, total: int) -> None:
        if done == total:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await quiet(engine, progress=stop)
    other = "app_name, user_id, session_id, invocation_id, author, timestamp, actions"
    await execute(
        engine,
        f"INSERT INTO events (id, {other}) SELECT 'a-new', {other} FROM events WHERE id = 'f9'",
        "UPDATE sessions SET state = '{\"changed\": 1}' WHERE id = 'empty'",
        "DELETE FROM events WHERE session_id = 'talk2'",
        "DELETE FROM sessions WHERE id = 'talk2'",
    )
    verified = await quiet(engine)
    assert [(row.old, row.new) for row in verified] == [(3, 3), (11, 11)]
    await migrate(engine)
    async with TieredSessionService(old.url, cache=None) as service:
        fast = await service.get_session("other", "ada", "fast")
        assert fast is not None
        assert "a-new" in [event.id for event in fast.events]
        empty = await service.get_session("weather", "ada", "empty")
        assert empty is not None
        assert empty.state["changed"] == 1
        assert await service.get_session("weather", "bea", "talk2") is None


async def test_a_change_while_copying_is_refused_and_nothing_was_exchanged(
    old: Loaded, engine: AsyncEngine
) -> None:
    writer = create_async_engine(old.url)
    loop = asyncio.get_running_loop()
    pending: list[asyncio.Task[None]] = []

    async def write() -> None:
        await execute(writer, "DELETE FROM events WHERE id = 'f9'")
        await writer.dispose()

    def interfere(done: int, total: int) -> None:
        if not pending:
            pending.append(loop.create_task(write()))

    with pytest.raises(StoreError, match="changed while"):
        await _until_changed(engine, interfere, pending)
    assert "actions" in await columns(engine, "events")
    verified = await quiet(engine)
    assert [(row.old, row.new) for row in verified] == [(4, 4), (10, 10)]


async def _until_changed(engine: AsyncEngine, interfere: Any, pending: list[asyncio.Task[None]]) -> None:
    """Holds the exchange back until the other writer has committed."""
    from tiered_sessions.store.migrations import v0_upgrade

    exchange = v0_upgrade.swap

    async def later(*arguments: Any) -> Any:
        await asyncio.gather(*pending)
        return await exchange(*arguments)

    v0_upgrade.swap = later
    try:
        await quiet(engine, progress=interfere)
    finally:
        v0_upgrade.swap = exchange


# -- writers ----------------------------------------------------------------------------------------


@on("postgresql", "mariadb")
async def test_other_connections_are_seen(old: Loaded, engine: AsyncEngine) -> None:
    other = create_async_engine(old.url)
    async with other.connect() as connection:
        await connection.execute(text("SELECT 1"))
        with pytest.raises(StoreError, match=r"1 other connections.*--force"):
            await quiet(engine)
        await connection.rollback()
        assert await tables(engine) == ["app_states", "events", "sessions", "user_states"]
        await quiet(engine, FORCED)
    await other.dispose()
    await migrate(engine)
    await check(old.url, old.said, utc=False)


@on("sqlite")
async def test_a_writer_between_two_looks_is_seen(old: Loaded, engine: AsyncEngine) -> None:
    other = create_async_engine(old.url)
    task = asyncio.create_task(upgrade(other, Options(READING, pause=0.3)))
    number = 0
    while not task.done():
        # Seen although no count and no newest time differs.
        number += 1
        await execute(engine, f"UPDATE sessions SET state = '{{\"n\": {number}}}' WHERE id = 'empty'")
    with pytest.raises(StoreError, match="being written"):
        await task
    await other.dispose()


# -- what cannot be read ----------------------------------------------------------------------------


@on("sqlite", "postgresql", "mariadb")
async def test_an_unknown_class_stops_the_upgrade_and_is_named(old: Loaded, engine: AsyncEngine) -> None:
    value = {"state_delta": OrderedDict(temp=Fraction(1, 2))}
    written = pickle.dumps(value).hex()
    literal = f"'\\x{written}'" if engine.dialect.name == "postgresql" else f"x'{written}'"
    await execute(engine, f"UPDATE events SET actions = {literal} WHERE id = 'e2'")
    found = await survey(engine)
    assert found is not None
    assert found.unknown == {"fractions.Fraction": 1}
    with pytest.raises(UnknownPickleError, match=r"'e2'.*fractions\.Fraction.*--unknown-as-text"):
        await quiet(engine)
    with pytest.raises(SchemaMismatchError, match="V0"):
        await prepare_schema(engine, create_tables=True)
    await quiet(engine, Options(Reading(ZoneInfo(ZONE), unknown_as_text=True), pause=0))
    stored = await rows(engine, "SELECT event_data FROM events WHERE id = 'e2'")
    document = stored[0][0] if isinstance(stored[0][0], dict) else json.loads(stored[0][0])
    assert document["actions"]["state_delta"] == {"temp": "<fractions.Fraction>"}


@on("sqlite")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE events SET actions = x'80' WHERE id = 'e2'", "'e2'.*damaged"),
        ("UPDATE events SET content = '{' WHERE id = 'e2'", "'e2'.*cannot be read"),
        ("UPDATE sessions SET state = '{' WHERE id = 'talk'", "weather / ada / talk is not JSON"),
    ],
)
async def test_a_damaged_row_is_named(old: Loaded, engine: AsyncEngine, change: str, message: str) -> None:
    await execute(engine, change)
    with pytest.raises(StoreError, match=message):
        await quiet(engine)
    assert "actions" in await columns(engine, "events")


@on("sqlite")
async def test_a_column_of_others_is_not_lost_in_silence(old: Loaded, engine: AsyncEngine) -> None:
    await execute(engine, "ALTER TABLE events ADD COLUMN rating INTEGER")
    with pytest.raises(SchemaMismatchError, match="rating"):
        await quiet(engine)


@on("sqlite")
async def test_a_database_of_v1_has_nothing_to_upgrade(old: Loaded, engine: AsyncEngine) -> None:
    await quiet(engine)
    with pytest.raises(SchemaMismatchError, match="nothing to upgrade"):
        await quiet(engine)


@on("postgresql")
async def test_owner_and_rights_are_those_of_the_old_tables(old: Loaded, engine: AsyncEngine) -> None:
    role = f"ts_role_{os.urandom(4).hex()}"
    await execute(
        engine,
        f"CREATE ROLE {role}",
        f"ALTER TABLE sessions OWNER TO {role}",
        f"GRANT SELECT, INSERT ON events TO {role} WITH GRANT OPTION",
        "GRANT SELECT ON sessions TO PUBLIC",
    )
    query = (
        "SELECT relname, pg_get_userbyid(relowner), relacl::text FROM pg_class "
        "WHERE relname IN ('sessions', 'events') ORDER BY 1"
    )
    try:
        before = await rows(engine, query)
        await quiet(engine)
        assert await rows(engine, query) == before
    finally:
        await execute(engine, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


# -- the command ------------------------------------------------------------------------------------


async def command(engine: AsyncEngine, *arguments: str) -> Any:
    from tiered_sessions.cli.app import app

    await engine.dispose()
    return await asyncio.to_thread(CliRunner().invoke, app, ["migrate", *arguments])


async def test_the_command_plans_upgrades_and_clears_up(old: Loaded, engine: AsyncEngine) -> None:
    where = ("--db", old.url, "--timezone", ZONE)
    before = await tables(engine)
    planned = await command(engine, *where, "--dry-run")
    assert f"4 sessions, 11 events\ntheir local times are read as {ZONE}" in planned.stdout
    script = await command(engine, *where, "--print-sql")
    assert script.stdout.index("CREATE TABLE tiered_sessions_v1_events") < script.stdout.index("RENAME")
    assert "cache_outbox" in script.stdout
    assert await tables(engine) == before
    done = await command(engine, *where)
    assert done.exit_code == 0, done.output
    assert "events: 11 before, 11 after" in done.stdout
    assert "adopted 4 sessions" in done.stdout
    await check(old.url, old.said, utc=engine.dialect.name == "sqlite")
    left = await command(engine, "--db", old.url, "--drop-v0", "--yes", "--json")
    assert json.loads(left.stdout)["statements"] == [
        f"DROP TABLE {KEPT_EVENTS}",
        f"DROP TABLE {KEPT_SESSIONS}",
    ]
    again = await command(engine, "--db", old.url, "--json")
    assert json.loads(again.stdout) == {"steps": [], "sessions": 0, "scopes": 0, "busy": 0}
    assert await tables(engine) == sorted([*TABLES, "tiered_sessions_schema"])


@on("sqlite")
async def test_the_command_into_another_database(old: Loaded, engine: AsyncEngine, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    done = await command(engine, "--db", old.url, "--timezone", ZONE, "--to", url, "--json")
    report = json.loads(done.stdout)
    assert [row["new"] for row in report["upgraded"]] == [2, 3, 4, 11]
    assert report["sessions"] == 4
    await check(url, old.said, utc=True)


@on("sqlite")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timezone", "Nowhere/Land"], "Nowhere/Land"),
        (["--remove", "--to", "sqlite:///x.db"], "exclude"),
        (["--remove", "--drop-v0"], "exclude"),
    ],
)
async def test_bad_arguments(old: Loaded, engine: AsyncEngine, arguments: list[str], message: str) -> None:
    run = await command(engine, "--db", old.url, *arguments)
    assert isinstance(run.exception, TieredSessionsError)
    assert message in str(run.exception)
