"""The migration machinery: order, crashes, races, unknown layouts, scripts, the command."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from typer.testing import CliRunner

from tests import servers
from tiered_sessions.errors import SchemaMismatchError, TieredSessionsError
from tiered_sessions.records import EventRecord
from tiered_sessions.store.migrations.catalog import Shape, read_shape
from tiered_sessions.store.migrations.lock import exclusive
from tiered_sessions.store.migrations.numbered import all_steps, latest_version
from tiered_sessions.store.migrations.runner import plan, prepare_schema, run_steps
from tiered_sessions.store.migrations.script import DIALECTS, render
from tiered_sessions.store.migrations.steps import Step
from tiered_sessions.store.numbering import order_foreign

GOLDEN = Path(__file__).parents[1] / "golden"
SESSION = "('a', 'u', 's', '{}', '2026-01-01 00:00:00.000000', '2026-01-01 00:00:00.000000')"


@pytest.fixture(params=servers.STORES)
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
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


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def shape_of(engine: AsyncEngine) -> Shape:
    async with engine.connect() as connection:
        return await connection.run_sync(read_shape)


async def dump(engine: AsyncEngine) -> dict[str, Any]:
    """Every table, column and row of the database, ours or not."""

    def read(connection: Any) -> dict[str, Any]:
        from sqlalchemy import inspect

        inspector = inspect(connection)
        return {
            name: (
                [(c["name"], str(c["type"])) for c in inspector.get_columns(name)],
                sorted(str(index["name"]) for index in inspector.get_indexes(name)),
                [tuple(row) for row in connection.execute(text(f"SELECT * FROM {name}"))],
            )
            for name in inspector.get_table_names()
        }

    async with engine.connect() as connection:
        return await connection.run_sync(read)


async def make_as_adk(engine: AsyncEngine) -> None:
    """Makes ADK's tables, with a session and an event in them, from the layout this package knows."""
    await prepare_schema(engine, create_tables=True)
    quote = engine.dialect.identifier_preparer.quote
    drops = {"events": "uq_events_app_user_session_seq", "sessions": "idx_sessions_expires_at"}
    mysql = engine.dialect.name == "mysql"
    await execute(
        engine,
        *(f"DROP INDEX {name}{f' ON {table}' if mysql else ''}" for table, name in drops.items()),
        "ALTER TABLE events DROP COLUMN seq",
        *(
            f"ALTER TABLE {table} DROP COLUMN {column}"
            for table in ("sessions", "app_states", "user_states")
            for column in ("incarnation", "revision", "nonce")
        ),
        "ALTER TABLE sessions DROP COLUMN expires_at",
        "ALTER TABLE sessions DROP COLUMN sliding_ttl",
        "DROP TABLE cache_outbox",
        "DROP TABLE tiered_sessions_schema",
        f"DELETE FROM adk_internal_metadata WHERE {quote('key')} <> 'schema_version'",
        f"INSERT INTO sessions VALUES {SESSION}",
        "INSERT INTO events VALUES ('e', 'a', 'u', 's', 'i', '2026-01-01 00:00:00.000000', '{}')",
    )


# -- steps and versions -----------------------------------------------------------------------------


def test_migrations_are_numbered_without_holes() -> None:
    folder = Path(sys.modules[all_steps.__module__].__file__ or "").parent
    numbers = sorted(int(path.name[1:5]) for path in folder.glob("m[0-9]*.py"))
    assert numbers == list(range(1, latest_version() + 1))
    assert len({step.name for step in all_steps() if "uq_events" not in step.name}) == len(all_steps()) - 2


async def test_an_empty_database_is_prepared(engine: AsyncEngine) -> None:
    await prepare_schema(engine, create_tables=True)
    shape = await shape_of(engine)
    assert shape.version == latest_version()
    assert shape.names["schema_version"] == "1"
    assert len(bytes.fromhex(shape.names["tiered_sessions_namespace"])) == 8
    made = {"idx_events_app_user_session_ts_id", "uq_events_app_user_session_seq"}
    assert made <= shape.tables["events"].indexes
    await execute(
        engine,
        f"INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time) VALUES {SESSION}",
    )
    insert = (
        "INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, seq) "
        "VALUES ('{}', 'a', 'u', 's', 'i', '2026-01-01 00:00:00.000000', {})"
    )
    await execute(engine, *(insert.format(id_, seq) for id_, seq in (("1", "NULL"), ("2", "NULL"), ("3", 1))))
    with pytest.raises(IntegrityError):
        await execute(engine, insert.format("4", 1))


@pytest.mark.parametrize("fresh_url", ["sqlite"], indirect=True)
async def test_a_database_in_memory_is_prepared(fresh_url: str) -> None:
    engine = create_async_engine("sqlite+aiosqlite:///:memory:")
    await prepare_schema(engine, create_tables=True)
    await prepare_schema(engine, create_tables=False)
    await engine.dispose()


@pytest.mark.parametrize("made_by", ["nobody", "adk"])
async def test_a_run_killed_between_any_two_steps_ends_right(
    fresh_url: str, engine: AsyncEngine, made_by: str
) -> None:
    if made_by == "adk":
        await make_as_adk(engine)
    whole = [step for step in all_steps() if step in await plan(engine)]
    for kept in range(len(whole)):
        # One step a run, each run killed after it: the next run starts from every prefix in turn.
        bomb = Step("killed", lambda shape: True, _explode)
        try:
            await run_steps(engine, [*whole[: kept + 1], bomb])
        except InterruptedError:
            pass
        else:
            pytest.fail("the bomb did not go off")
        if engine.dialect.name != "sqlite":
            shape = await shape_of(engine)
            assert not any(step.needed(shape) for step in whole[: kept + 1])
    await prepare_schema(engine, create_tables=True)
    assert await plan(engine) == []
    shape = await shape_of(engine)
    assert (shape.version, shape.names["schema_version"]) == (latest_version(), "1")
    assert shape.tables["events"].empty == (made_by == "nobody")


def _explode(*_: object) -> None:
    raise InterruptedError


KILLED = """
import asyncio, os, sys
from sqlalchemy.ext.asyncio import create_async_engine
from tiered_sessions.store.migrations.numbered import all_steps
from tiered_sessions.store.migrations.runner import run_steps
from tiered_sessions.store.migrations.steps import Step
steps = list(all_steps())
steps.insert(6, Step("kill", lambda shape: True, lambda *_: os.kill(os.getpid(), 9)))
asyncio.run(run_steps(create_async_engine(sys.argv[1]), steps))
"""


async def test_a_killed_process_leaves_no_lock(fresh_url: str, engine: AsyncEngine) -> None:
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLED, fresh_url], env=_environment(), check=False
    )
    assert killed.returncode == -9
    await prepare_schema(engine, create_tables=True)
    assert await plan(engine) == []


RACER = """
import asyncio, sys
from tiered_sessions.config import TieredConfig
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.migrations.runner import prepare_schema
async def main():
    engine = build_engine(sys.argv[1], TieredConfig())
    print("ready", flush=True)
    sys.stdin.readline()
    await prepare_schema(engine, create_tables=True)
    await engine.dispose()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("fresh_url", "made_by"),
    [*((store, "nobody") for store in servers.STORES), ("postgresql", "adk")],
    indirect=["fresh_url"],
)
async def test_eight_processes_prepare_one_database_at_once(
    fresh_url: str, engine: AsyncEngine, made_by: str
) -> None:
    if made_by == "adk":
        await make_as_adk(engine)
        await engine.dispose()
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            RACER,
            fresh_url,
            env=_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    ends = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    assert [process.returncode for process in processes] == [0] * 8, b"\n".join(
        err for _, err in ends
    ).decode()
    assert await plan(engine) == []


async def test_engines_of_one_process_prepare_at_once(fresh_url: str) -> None:
    engines = [create_async_engine(fresh_url) for _ in range(8)]
    await asyncio.gather(*(prepare_schema(engine, create_tables=True) for engine in engines))
    assert await plan(engines[0]) == []
    await asyncio.gather(*(engine.dispose() for engine in engines))


async def test_a_second_migrator_waits(fresh_url: str, engine: AsyncEngine) -> None:
    other = create_async_engine(fresh_url)
    async with exclusive(engine):
        waiting = asyncio.create_task(run_steps(other, all_steps()))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
    assert len(await waiting) > 10
    await other.dispose()


async def test_a_database_made_anew_by_adk_is_adopted_again(engine: AsyncEngine) -> None:
    """Our version row alone is not believed: the tables may be other ones by now."""
    await prepare_schema(engine, create_tables=True)
    await execute(engine, "ALTER TABLE sessions DROP COLUMN nonce")
    await prepare_schema(engine, create_tables=True)
    assert not (await shape_of(engine)).lacks_column("sessions", "nonce")


CURRENT = """
import asyncio, sys
from sqlalchemy.ext.asyncio import create_async_engine
from tiered_sessions.store.migrations.runner import prepare_schema
async def main():
    engine = create_async_engine(sys.argv[1])
    await prepare_schema(engine, create_tables=True)
    await engine.dispose()
asyncio.run(main())
print(sorted(name for name in sys.modules if name.split(".")[0] == "alembic"))
"""


@pytest.mark.parametrize("fresh_url", ["sqlite"], indirect=True)
async def test_start_up_on_a_current_database_does_not_import_alembic(
    fresh_url: str, engine: AsyncEngine
) -> None:
    await prepare_schema(engine, create_tables=True)
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CURRENT, fresh_url],
        env=_environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout == "[]\n"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


# -- what is refused --------------------------------------------------------------------------------

ADK_ROW = "INSERT INTO adk_internal_metadata VALUES ('schema_version', '{}')"
METADATA = "CREATE TABLE adk_internal_metadata ({key} VARCHAR(128) PRIMARY KEY, value VARCHAR(256) NOT NULL)"
UNKNOWN = {
    "V0": (
        ["CREATE TABLE events (id VARCHAR(128) PRIMARY KEY, actions VARCHAR(10))"],
        "`tiered-sessions migrate`",
    ),
    "no version row": ([METADATA], "no row 'schema_version'"),
    "version 2": ([METADATA, ADK_ROW.format("2")], "schema_version '2'"),
    "version 0": ([METADATA, ADK_ROW.format("0")], "schema_version '0'"),
    "sessions of a web framework": (
        ["CREATE TABLE sessions (session_key VARCHAR(40) PRIMARY KEY, session_data VARCHAR(100))"],
        "table sessions is not the one",
    ),
    "events of a calendar": (
        ["CREATE TABLE events (id INTEGER PRIMARY KEY, title VARCHAR(10))"],
        "table events",
    ),
    "someone's outbox": (["CREATE TABLE cache_outbox (id INTEGER PRIMARY KEY)"], "table cache_outbox"),
    "someone's revision": (
        [
            "CREATE TABLE app_states (app_name VARCHAR(128) PRIMARY KEY, state VARCHAR(10), "
            "update_time TIMESTAMP, revision VARCHAR(10))"
        ],
        "column app_states.revision exists",
    ),
    "a newer version": (
        [
            "CREATE TABLE tiered_sessions_schema (version INTEGER PRIMARY KEY)",
            "INSERT INTO tiered_sessions_schema VALUES (999)",
        ],
        "newer tiered_sessions",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
async def test_an_unknown_layout_is_left_alone(engine: AsyncEngine, name: str) -> None:
    statements, message = UNKNOWN[name]
    quote = engine.dialect.identifier_preparer.quote
    await execute(engine, *(statement.replace("{key}", quote("key")) for statement in statements))
    before = await dump(engine)
    for create_tables in (True, False):
        with pytest.raises(SchemaMismatchError, match=message):
            await prepare_schema(engine, create_tables=create_tables)
        assert await dump(engine) == before


async def test_without_create_tables_nothing_is_made(engine: AsyncEngine) -> None:
    with pytest.raises(SchemaMismatchError, match=r"create table sessions.*migrate --print-sql"):
        await prepare_schema(engine, create_tables=False)
    assert await dump(engine) == {}


@pytest.mark.parametrize("fresh_url", ["postgresql", "mariadb"], indirect=True)
async def test_a_user_who_may_not_create_is_told_what_to_do(fresh_url: str, engine: AsyncEngine) -> None:
    user = f"ts_user_{os.urandom(4).hex()}"
    database = engine.url.database
    if engine.dialect.name == "postgresql":
        make = ["REVOKE CREATE ON SCHEMA public FROM PUBLIC", f"CREATE ROLE {user} LOGIN"]
        drop = [f"DROP ROLE {user}"]
    else:
        make = [
            f"CREATE USER {user}@'%'",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {database}.* TO {user}@'%'",
        ]
        drop = [f"DROP USER {user}@'%'"]
    await execute(engine, *make)
    poor = create_async_engine(engine.url.set(username=user, password=None))
    try:
        with pytest.raises(SchemaMismatchError, match=r"may not prepare.*migrate --print-sql"):
            await prepare_schema(poor, create_tables=True)
    finally:
        await poor.dispose()
        await execute(engine, *drop)
    assert await dump(engine) == {}


@pytest.mark.parametrize("fresh_url", ["sqlite"], indirect=True)
async def test_a_file_that_may_not_be_written(fresh_url: str, engine: AsyncEngine, tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "sessions.db").close()
    poor = create_async_engine(f"sqlite+aiosqlite:///file:{tmp_path / 'sessions.db'}?mode=ro&uri=true")
    with pytest.raises(SchemaMismatchError, match="may not prepare"):
        await prepare_schema(poor, create_tables=True)
    await poor.dispose()


# -- scripts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("made_by", ["empty", "adk"])
def test_scripts_are_the_golden_ones(dialect: str, made_by: str) -> None:
    shape = Shape(dialect) if made_by == "empty" else Shape.made_by_adk(dialect)
    assert render(shape) == (GOLDEN / f"{dialect}_{made_by}.sql").read_text()


@pytest.mark.parametrize("made_by", ["empty", "adk"])
async def test_a_printed_script_run_by_hand_is_enough(
    fresh_url: str, engine: AsyncEngine, made_by: str, tmp_path: Path
) -> None:
    if made_by == "adk":
        await make_as_adk(engine)
    run = await _cli(["migrate", "--print-sql", "--db", fresh_url])
    assert run.exit_code == 0, run.output
    await _run_script(engine, run.stdout)
    assert await plan(engine) == []
    await prepare_schema(engine, create_tables=False)
    again = await _cli(["migrate", "--print-sql", "--db", fresh_url])
    assert (again.exit_code, again.stdout) == (0, "")


async def test_an_offline_script_fits_an_empty_database(engine: AsyncEngine) -> None:
    kind = "mariadb" if engine.dialect.name == "mysql" else engine.dialect.name
    run = await _cli(["migrate", "--print-sql", "--dialect", kind])
    await _run_script(engine, run.stdout)
    await prepare_schema(engine, create_tables=False)


async def _run_script(engine: AsyncEngine, script: str) -> None:
    lines = "\n".join(line for line in script.splitlines() if not line.startswith("--"))
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in lines.split(";\n"):
            if statement.strip():
                await connection.exec_driver_sql(statement)


# -- the command ------------------------------------------------------------------------------------


async def _cli(arguments: list[str]) -> Any:
    from tiered_sessions.cli.app import app

    # The command starts an event loop of its own.
    return await asyncio.to_thread(CliRunner().invoke, app, arguments)


async def test_the_command_plans_then_migrates(fresh_url: str, engine: AsyncEngine) -> None:
    await make_as_adk(engine)
    before = await dump(engine)
    planned = await _cli(["migrate", "--dry-run", "--json", "--db", fresh_url])
    report = json.loads(planned.stdout)
    assert "add column events.seq" in [step["step"] for step in report["steps"]]
    assert report["rows"] == 1
    assert await dump(engine) == before
    done = await _cli(["migrate", "--db", fresh_url])
    assert done.exit_code == 0, done.output
    assert "adopted 1 sessions" in done.stdout
    again = json.loads((await _cli(["migrate", "--json", "--db", fresh_url])).stdout)
    assert again == {"steps": [], "sessions": 0, "scopes": 0, "busy": 0}
    nothing = await _cli(["migrate", "--dry-run", "--db", fresh_url])
    assert "0 steps, 0 rows" in nothing.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--db"),
        (["--db", "sqlite:///:memory:"], "memory"),
        (["--db", "postgresql://u:secret@127.0.0.1:1/x"], "127.0.0.1:1"),
        (["--dry-run", "--print-sql"], "exclude"),
        (["--dialect", "oracle"], "--print-sql"),
        (["--print-sql", "--from-adk"], "--dialect"),
        (["--print-sql", "--dialect", "oracle", "--db", "sqlite:///x.db"], "--db"),
    ],
)
async def test_bad_arguments(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TIERED_SESSIONS_DB_URL", "DATABASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    run = await _cli(["migrate", *arguments])
    assert isinstance(run.exception, TieredSessionsError)
    assert message in str(run.exception)
    assert "secret" not in str(run.exception)


# -- numbering --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'{"timestamp": "x"}',
        b'{"timestamp": null}',
        b'{"timestamp": NaN}',
        b"[" * 100_000,
    ],
)
def test_an_event_without_a_time_of_its_own_is_ordered_by_its_column(payload: bytes) -> None:
    rows = [
        EventRecord(0, "late", 0, b'{"timestamp": 3}'),
        EventRecord(0, "middle", 2_000_000, payload),
        EventRecord(0, "early", 9_000_000, b'{"timestamp": 1.5, "n": 1' + b"0" * 5000 + b"}"),
    ]
    assert order_foreign(rows) == ["early", "middle", "late"]


@given(st.lists(st.tuples(st.floats(0, 1e10), st.text(max_size=3)), unique_by=lambda row: row[1]))
def test_order_is_by_time_then_id_whatever_the_order_found(rows: list[tuple[float, str]]) -> None:
    records = [EventRecord(0, id_, 0, json.dumps({"timestamp": time}).encode()) for time, id_ in rows]
    assert order_foreign(reversed(records)) == [id_ for _, id_ in sorted(rows)]
