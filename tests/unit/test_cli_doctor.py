"""`tiered-sessions doctor`: what it says, what status it ends with, and that it only looks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from tests import servers
from tiered_sessions.cli.app import app
from tiered_sessions.config import TieredConfig
from tiered_sessions.errors import ConfigurationError
from tiered_sessions.models import Event
from tiered_sessions.service import TieredSessionService
from tiered_sessions.store import health
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.migrations.triggers import install_triggers
from tiered_sessions.urls import normalise_database_url


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIERED_SESSIONS_DB_URL", "DATABASE_URL", "TIERED_SESSIONS_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(health, "OUTBOX_PATIENCE", 0)


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    with servers.start_valkey() as server:
        yield server.url


@pytest.fixture
def client(valkey: str) -> Iterator[redis.Redis]:
    """A client of a server whose settings are put back afterwards."""
    with contextlib.closing(redis.Redis.from_url(valkey, decode_responses=True)) as made:
        yield made
        made.config_set("maxmemory", 0)
        made.config_set("maxmemory-policy", "noeviction")


@pytest.fixture
async def prepared(sqlite_url: str) -> str:
    """A database with one session of one event."""
    async with TieredSessionService(sqlite_url, cache=None) as service:
        session = await service.create_session(app_name="app", user_id="user", session_id="s")
        await service.append_event(session, Event(author="user"))
    return sqlite_url


async def run(*arguments: str) -> Any:
    return await asyncio.to_thread(CliRunner().invoke, app, ["doctor", *arguments])


async def report(*arguments: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Runs it; returns status, levels by subject, and the whole report."""
    done = await run(*arguments, "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == found["status"]
    return done.exit_code, {each["subject"]: each["level"] for each in found["findings"]}, found


def text_of(found: dict[str, Any], subject: str) -> str:
    return next(str(each["text"]) for each in found["findings"] if each["subject"] == subject)


def file_of(url: str) -> Path:
    return Path(url.partition(":///")[2])


def execute(url: str, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(file_of(url))) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def dump(url: str) -> list[str]:
    with contextlib.closing(sqlite3.connect(file_of(url))) as connection:
        return list(connection.iterdump())


async def install(url: str) -> None:
    engine = build_engine(url, TieredConfig())
    await install_triggers(engine)
    await engine.dispose()


async def test_in_order(prepared: str, valkey: str, client: redis.Redis) -> None:
    before = dump(prepared), client.dbsize()
    status, levels, found = await report("--db", prepared, "--cache", valkey)
    assert status == 0
    assert levels == {
        "schema": "ok",
        "adoption": "ok",
        "triggers": "note",
        "outbox": "ok",
        "cache": "ok",
        "memory": "note",
        "server stamp": "ok",
        "bound": "ok",
    }
    assert found["store"]["adoption"]["sessions"] == 1
    assert "max_staleness, 30 s" in text_of(found, "bound")
    assert (dump(prepared), client.dbsize()) == before
    shown = await run("--db", prepared, "--cache", valkey)
    assert shown.exit_code == 0
    assert "version 1, known" in shown.stdout


@pytest.mark.parametrize("cache", ["memory", "none"])
async def test_without_a_shared_cache_every_read_is_checked(prepared: str, cache: str) -> None:
    status, _, found = await report("--db", prepared, "--cache", cache)
    assert status == 0
    assert "0 s" in text_of(found, "bound")


async def test_with_triggers_the_bound_is_the_poll(prepared: str, valkey: str) -> None:
    await install(prepared)
    status, levels, found = await report("--db", prepared, "--cache", valkey)
    assert (status, levels["triggers"]) == (0, "ok")
    assert "outbox poll (0.5 s" in text_of(found, "bound")
    # What they record is drained by services with a shared cache only.
    status, levels, _ = await report("--db", prepared)
    assert (status, levels["triggers"]) == (1, "warning")
    execute(prepared, "DROP TRIGGER tiered_sessions_app_update")
    status, levels, found = await report("--db", prepared, "--cache", valkey)
    assert (status, levels["triggers"]) == (1, "warning")
    assert "tiered_sessions_app_update" in text_of(found, "triggers")
    assert "max_staleness" in text_of(found, "bound")


async def test_rows_of_another_program(prepared: str) -> None:
    now = "'2026-01-01 00:00:00.000000'"
    execute(
        prepared,
        "INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time) VALUES "
        f"('other', 'user', 's', '{{}}', {now}, {now})",
        f"INSERT INTO app_states (app_name, state, update_time) VALUES ('other', '{{}}', {now})",
        "INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, event_data) VALUES "
        f"('f', 'other', 'user', 's', 'i', {now}, '{{}}')",
    )
    status, levels, found = await report("--db", prepared)
    assert (status, levels["adoption"]) == (0, "note")
    assert found["store"]["adoption"] == {
        "sessions": 2,
        "foreign_sessions": 1,
        "waiting_events": 0,
        "foreign_states": 1,
    }
    execute(
        prepared,
        "INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, event_data) VALUES "
        f"('f', 'app', 'user', 's', 'i', {now}, '{{}}')",
    )
    status, levels, found = await report("--db", prepared)
    assert (status, levels["foreign events"]) == (1, "warning")
    assert found["store"]["adoption"]["waiting_events"] == 1


async def test_an_outbox_that_nobody_drains(prepared: str, valkey: str) -> None:
    execute(
        prepared,
        "INSERT INTO cache_outbox (kind, app_name, user_id, session_id, update_time, stamp) VALUES "
        "('session', 'app', 'user', 's', 1000000, 7), ('session', 'app', 'user', 't', NULL, 8)",
    )
    status, levels, found = await report("--db", prepared, "--cache", valkey)
    assert (status, levels["outbox"]) == (1, "warning")
    assert (found["store"]["outbox"]["rows"], found["store"]["outbox"]["stuck"]) == (2, 2)
    assert found["store"]["outbox"]["age"] > 1e9


async def test_a_database_that_is_not_there_is_not_made(sqlite_url: str) -> None:
    status, levels, _ = await report("--db", sqlite_url)
    assert (status, levels["database"]) == (2, "error")
    assert not file_of(sqlite_url).exists()


async def test_an_empty_database_stays_empty(sqlite_url: str) -> None:
    file_of(sqlite_url).touch()
    status, levels, found = await report("--db", sqlite_url)
    assert (status, levels["schema"]) == (1, "warning")
    assert found["store"]["adoption"] is None
    assert dump(sqlite_url) == ["BEGIN TRANSACTION;", "COMMIT;"]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("CREATE TABLE sessions (token TEXT)", "no column"),
        ("CREATE TABLE events (id TEXT, actions BLOB)", "V0"),
        ("UPDATE tiered_sessions_schema SET version = 999", "newer"),
    ],
)
async def test_a_database_the_service_refuses(
    sqlite_url: str, request: pytest.FixtureRequest, statement: str, words: str
) -> None:
    if statement.startswith("UPDATE"):
        async with TieredSessionService(sqlite_url, cache=None) as service:
            await service.prepare_tables()
    execute(sqlite_url, statement)
    status, levels, found = await report("--db", sqlite_url)
    assert (status, levels["schema"]) == (2, "error")
    assert words in text_of(found, "schema")
    assert "bound" not in levels


async def test_a_cache_without_eviction_and_a_full_one(
    prepared: str, valkey: str, client: redis.Redis
) -> None:
    client.config_set("maxmemory", 64 * 2**20)
    status, levels, found = await report("--db", prepared, "--cache", valkey)
    assert (status, levels["memory"]) == (1, "warning")
    assert found["server"]["maxmemory"] == 64 * 2**20
    client.config_set("maxmemory-policy", "allkeys-lru")
    status, levels, found = await report("--db", prepared, "--cache", valkey)
    assert (status, levels["memory"]) == (0, "ok")
    assert found["server"]["policy"] == "allkeys-lru"


async def test_a_cache_that_refuses_info_and_scripts(prepared: str, valkey: str, client: redis.Redis) -> None:
    secret = "pa55-w0rd"
    client.acl_setuser(
        "few", enabled=True, passwords=f"+{secret}", keys="*", commands=["+@all", "-info", "-config"]
    )
    url = valkey.replace("redis://", f"redis://few:{secret}@")
    try:
        status, levels, found = await report("--db", prepared, "--cache", url)
        assert (status, levels["server stamp"], levels["memory"], levels["cache"]) == (
            1,
            "warning",
            "note",
            "ok",
        )
        client.acl_setuser("few", commands=["-eval", "-evalsha"])
        status, levels, found = await report("--db", prepared, "--cache", url)
        assert (status, levels["cache"]) == (1, "warning")
        assert "0 s" in text_of(found, "bound")
        assert secret not in json.dumps(found)
        wrong = url.replace(secret, "wr0ng-pass")
        status, levels, found = await report("--db", prepared, "--cache", wrong)
        assert (status, levels["cache"]) == (1, "warning")
        assert "wr0ng-pass" not in json.dumps(found)
    finally:
        client.acl_deluser("few")


async def test_nothing_answers(prepared: str) -> None:
    port = servers.free_port()
    url = f"postgresql://user:pa55@127.0.0.1:{port}/db?sslmode=disable"
    for arguments in (("--json",), ()):
        done = await run("--db", url, "--cache", f"redis://:pa66@127.0.0.1:{port}/0", *arguments)
        assert done.exit_code == 2
        assert "pa55" not in done.output
        assert "pa66" not in done.output
    status, levels, _ = await report("--db", prepared, "--cache", f"redis://127.0.0.1:{port}/0")
    assert (status, levels["cache"], levels["bound"]) == (1, "warning", "ok")


@pytest.mark.parametrize(
    "arguments", [(), ("--db", "nonsense"), ("--db", "sqlite:///x", "--cache", "nonsense")]
)
async def test_addresses_that_cannot_be_read(arguments: tuple[str, ...]) -> None:
    done = await run(*arguments)
    assert isinstance(done.exception, ConfigurationError)


async def test_every_kind_of_database(store_url: str) -> None:
    async with TieredSessionService(store_url, cache=None) as service:
        await service.create_session(app_name="app", user_id="user")
    status, levels, found = await report("--db", store_url)
    assert (status, levels["triggers"]) == (0, "note")
    await install(store_url)
    _, levels, found = await report("--db", store_url)
    assert (levels["triggers"], levels["schema"]) == ("warning", "ok")
    assert found["store"]["dialect"] in normalise_database_url(store_url).dialect
