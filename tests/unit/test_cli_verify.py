"""`tiered-sessions verify` and `cache reset`: what they print, change, and end with."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests import servers
from tests.conformance.planted import Planted, planted
from tiered_sessions.cli import verify
from tiered_sessions.cli.app import app
from tiered_sessions.errors import (
    CacheError,
    ConfigurationError,
    SchemaMismatchError,
    StoreError,
    StoreUnavailableError,
)
from tiered_sessions.store.store import SqlSessionStore
from tiered_sessions.tier.verifier import Verdict

SILENT = {verdict.value: 0 for verdict in Verdict}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIERED_SESSIONS_DB_URL", "DATABASE_URL", "TIERED_SESSIONS_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def fleet(sqlite_url: str, valkey_url: str) -> AsyncIterator[Planted]:
    async with planted(sqlite_url, valkey_url) as made:
        yield made


def file_of(url: str) -> Path:
    return Path(url.partition(":///")[2])


async def run(*arguments: str, stdin: str = "") -> Any:
    return await asyncio.to_thread(CliRunner().invoke, app, arguments, stdin)


async def report(fleet: Planted, *arguments: str) -> dict[str, Any]:
    """Runs `verify` and returns its report."""
    done = await run("verify", "--db", fleet.url, "--cache", fleet.cache_url, "--json", *arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.exit_code == found["status"]
    return found


async def hashes(fleet: Planted) -> list[dict[bytes, bytes]]:
    """Returns all that the cache holds of the session's scopes."""
    return [await fleet.client.hgetall(fleet.name(scope)) for scope in fleet.key.scopes]


async def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    command = [sys.executable, "-m", "tiered_sessions.cli.app", *arguments]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)


async def test_all_equal(fleet: Planted) -> None:
    before = await hashes(fleet)
    found = await report(fleet)
    assert found == {
        "database": fleet.url,
        "cache": fleet.cache_url,
        "status": 0,
        "sessions": 1,
        "counts": {**SILENT, "equal": 3},
        "differences": [],
    }
    assert await hashes(fleet) == before


async def test_differences_are_told_and_repaired(fleet: Planted) -> None:
    await fleet.plant(fleet.key.user, {"st": '{"secret":1}'})
    await fleet.write_unheard()
    looked = await report(fleet)
    assert (looked["status"], looked["counts"]) == (1, {**SILENT, "equal": 1, "stale": 1, "wrong": 1})
    stale, wrong = looked["differences"]
    assert set(stale) == {
        *("kind", "app_name", "user_id", "session_id", "verdict", "reason", "age", "allowed_for"),
        *("cached", "stored", "repaired"),
    }
    assert (stale["kind"], stale["verdict"], stale["repaired"]) == ("session", "stale", None)
    assert 0 < stale["allowed_for"] <= 30
    assert stale["age"] + stale["allowed_for"] == pytest.approx(30)
    assert stale["stored"][1] == stale["cached"][1] + 1
    assert (wrong["kind"], wrong["verdict"], wrong["reason"]) == ("user", "wrong", "its state")
    assert wrong["cached"] == wrong["stored"]
    assert "secret" not in json.dumps(looked)
    again = await report(fleet, "--max-staleness", "0", "--repair")
    assert (again["status"], [each["repaired"] for each in again["differences"]]) == (1, [True, True])
    assert again["differences"][0]["allowed_for"] == 0
    assert await fleet.entry(fleet.key.user) is None
    last = await report(fleet)
    assert (last["status"], last["counts"]) == (0, {**SILENT, "equal": 1, "absent": 2})


async def test_what_a_person_reads(fleet: Planted) -> None:
    await fleet.plant(fleet.key.app, {"st": "{}"})
    await fleet.write_unheard()
    command = ("verify", "--db", fleet.url, "--cache", fleet.cache_url)
    done = await run(*command)
    assert done.exit_code == 1
    assert f"session '{fleet.key.app_name}' / 'user' / 's': stale, last known equal" in done.stdout
    assert "allowed until" in done.stdout
    assert "WRONG CONTENT at the tag SQL has: its state\n" in done.stdout
    assert "1 sessions looked at; entries: 1 equal, 1 stale, 1 wrong" in done.stdout
    assert "cache reset" in done.stdout
    done = await run(*command, "--max-staleness", "0", "--repair")
    assert "beyond the bound, the next read checks it; dropped" in done.stdout


async def test_only_what_was_chosen(fleet: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_PAGE", 2)
    for number in range(5):
        key = (fleet.key.app_name, f"u{number}", f"t{number}")
        await fleet.service.create_session(*key[:2], session_id=key[2])
        assert await fleet.service.get_session(*key) is not None
    await fleet.service.create_session("other", "user", session_id="s")
    await fleet.service.flush()
    one = ("--app", fleet.key.app_name, "--user", "user")
    assert (await report(fleet))["sessions"] == 7
    whole = await report(fleet, *one[:2])
    assert (whole["sessions"], whole["counts"]["equal"]) == (6, 13)
    assert (await report(fleet, *one))["counts"] == {**SILENT, "equal": 3}
    assert (await report(fleet, *one, "--session", "s"))["counts"] == {**SILENT, "equal": 3}
    for limit in (1, 2, 3, 5):
        assert (await report(fleet, "--limit", str(limit)))["sessions"] == limit


async def test_a_session_that_only_the_cache_knows(fleet: Planted) -> None:
    writer = await fleet.store.writer()
    await writer.delete(fleet.key)
    await writer.release()
    assert (await report(fleet))["sessions"] == 0
    app_name, user_id, session_id = fleet.key
    found = await report(fleet, "--app", app_name, "--user", user_id, "--session", session_id, "--repair")
    assert found["status"] == 1
    assert found["differences"][0]["stored"] is None
    assert await fleet.entry(fleet.key.session) is None


async def test_differences_are_listed_up_to_a_bound(fleet: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_LISTED", 1)
    for scope in fleet.key.scopes:
        await fleet.plant(scope, {"st": '{"planted":1}'})
    found = await report(fleet)
    assert (found["counts"]["wrong"], len(found["differences"])) == (3, 1)
    done = await run("verify", "--db", fleet.url, "--cache", fleet.cache_url)
    assert "... and 2 more" in done.stdout


async def test_a_reset_meanwhile_spoils_the_answer(fleet: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SqlSessionStore.keys

    async def keys(self: SqlSessionStore, *arguments: Any) -> Any:
        await self.reset_namespace()
        return await original(self, *arguments)

    monkeypatch.setattr(SqlSessionStore, "keys", keys)
    done = await run("verify", "--db", fleet.url, "--cache", fleet.cache_url)
    assert isinstance(done.exception, StoreError)
    assert "reset" in str(done.exception)


async def test_the_database_fails_meanwhile(fleet: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(*_: Any) -> Any:
        raise StoreUnavailableError

    monkeypatch.setattr(SqlSessionStore, "load", load)
    done = await run("verify", "--db", fleet.url, "--cache", fleet.cache_url)
    assert isinstance(done.exception, StoreUnavailableError)


async def test_a_cache_that_goes_away_ends_it(fleet: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for a time-out of each of a million sessions."""
    monkeypatch.setattr(verify, "_PAGE", 1)
    for number in range(3):
        await fleet.service.create_session(fleet.key.app_name, "user", session_id=f"t{number}")
    with servers.start_valkey() as server:
        original = SqlSessionStore.keys

        async def keys(self: SqlSessionStore, *arguments: Any) -> Any:
            server.kill()
            return await original(self, *arguments)

        monkeypatch.setattr(SqlSessionStore, "keys", keys)
        done = await run("verify", "--db", fleet.url, "--cache", server.url, "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["sessions"]) == (2, 1)
    assert found["counts"]["unreachable"] == 3


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--db", "nonsense", "--cache", "redis://h"),
        ("--db", "sqlite://", "--cache", "redis://h"),
        ("--db", "sqlite:///x", "--cache", "nonsense"),
        ("--db", "sqlite:///x", "--cache", "memory"),
        ("--db", "sqlite:///x"),
        ("--db", "sqlite:///x", "--cache", "redis://h", "--session", "s"),
        ("--db", "sqlite:///x", "--cache", "redis://h", "--user", "u"),
    ],
)
async def test_what_cannot_be_verified(arguments: tuple[str, ...]) -> None:
    done = await run("verify", *arguments)
    assert isinstance(done.exception, ConfigurationError)


async def test_neither_makes_a_database(sqlite_url: str, valkey_url: str) -> None:
    for command in (("verify", "--cache", valkey_url), ("cache", "reset", "--yes")):
        done = await run(*command, "--db", sqlite_url)
        assert isinstance(done.exception, StoreUnavailableError)
        assert not file_of(sqlite_url).exists()
    file_of(sqlite_url).touch()
    for command in (("verify", "--cache", valkey_url), ("cache", "reset", "--yes")):
        done = await run(*command, "--db", sqlite_url)
        assert isinstance(done.exception, SchemaMismatchError)


async def test_nobody_listens(fleet: Planted) -> None:
    port = servers.free_port()
    done = await run("verify", "--db", fleet.url, "--cache", f"redis://:pa55@127.0.0.1:{port}/0")
    assert isinstance(done.exception, CacheError)
    assert "pa55" not in str(done.exception)


# --- reset ---------------------------------------------------------------------------------------


async def test_a_reset_makes_the_cache_start_anew(fleet: Planted) -> None:
    old = await fleet.store.namespace()
    done = await run("cache", "reset", "--db", fleet.url, "--yes", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert set(found) == {"old", "new", "in_force_within"}
    assert found["old"] == old != found["new"] == await fleet.store.namespace()
    assert (await report(fleet))["counts"] == {**SILENT, "absent": 3}


@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("", 1), ("y\n", 0)])
async def test_a_reset_asks(fleet: Planted, answer: str, status: int) -> None:
    old = await fleet.store.namespace()
    done = await run("cache", "reset", "--db", fleet.url, stdin=answer)
    assert done.exit_code == status
    new = await fleet.store.namespace()
    assert (new == old) == bool(status)
    if not status:
        assert f"{old} -> {new}" in done.stdout
        assert "within 6 s" in done.stdout
        assert "TTL" in done.stdout


async def test_a_reset_that_cannot_ask(fleet: Planted) -> None:
    old = await fleet.store.namespace()
    done = await run("cache", "reset", "--db", fleet.url, "--json")
    assert isinstance(done.exception, ConfigurationError)
    assert await fleet.store.namespace() == old


async def test_every_kind_of_database(store_url: str, valkey_url: str) -> None:
    async with planted(store_url, valkey_url) as fleet:
        found = await report(fleet, "--app", fleet.key.app_name)
        assert (found["sessions"], found["counts"]["equal"]) == (1, 3)
        assert (await run("cache", "reset", "--db", store_url, "--yes")).exit_code == 0
        assert (await report(fleet, "--app", fleet.key.app_name))["counts"] == {**SILENT, "absent": 3}


# --- as processes --------------------------------------------------------------------------------


async def test_exit_status_and_streams(fleet: Planted) -> None:
    given = ("--db", fleet.url, "--cache", fleet.cache_url)
    equal = await process("verify", *given, "--json")
    assert (equal.returncode, json.loads(equal.stdout)["status"], equal.stderr) == (0, 0, "")
    await fleet.write_unheard()
    different = await process("verify", *given)
    assert different.returncode == 1
    assert "stale" in different.stdout
    assert "sessions compared" in different.stderr, "progress"
    nobody = f"redis://127.0.0.1:{servers.free_port()}"
    nowhere = await process("verify", "--db", fleet.url, "--cache", nobody)
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert "does not answer" in nowhere.stderr
    assert "Traceback" not in nowhere.stderr
    refused = await process("cache", "reset")
    assert (refused.returncode, refused.stdout) == (2, "")
    reset = await process("cache", "reset", "--db", fleet.url, "--yes")
    assert (reset.returncode, reset.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("verify", "cache")),
        (("verify",), ("--repair", "--app", "--limit", "Exit status: 0 all equal")),
        (("cache",), ("reset",)),
        (("cache", "reset"), ("--yes", "--json", "Exit status: 0 done")),
    ],
)
async def test_help(command: tuple[str, ...], words: tuple[str, ...]) -> None:
    done = await process(*command, "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert all(word in text for word in words), text
