"""The service's surroundings: what it is given, event loops, forks, closing, the log."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

import tiered_sessions
from tiered_sessions import (
    ConfigurationError,
    Event,
    EventActions,
    Session,
    TieredConfig,
    TieredSessionService,
)
from tiered_sessions.cache.memory import MemoryCache

VARIABLES = ("TIERED_SESSIONS_DB_URL", "DATABASE_URL", "TIERED_SESSIONS_REDIS_URL", "REDIS_URL")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


async def one_turn(service: TieredSessionService, session_id: str | None = None) -> Session:
    session = await service.create_session("app", "user", session_id=session_id)
    await service.append_event(session, Event(author="user", actions=EventActions(state_delta={"k": 1})))
    found = await service.get_session("app", "user", session.id)
    assert found == session
    return session


# --- what it is given ----------------------------------------------------------------------------


async def test_defaults_are_a_file_here_and_a_cache_in_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tiered_sessions"):
        async with TieredSessionService() as service:
            await one_turn(service)
    assert (tmp_path / "tiered_sessions.db").exists()
    ours = [record.getMessage() for record in caplog.records if record.name == "tiered_sessions"]
    assert ours == ["sessions in sqlite+aiosqlite:///./tiered_sessions.db, cache: memory"]


def test_environment_and_redaction(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def chosen(*arguments: str, **named: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, "tiered_sessions"):
            TieredSessionService(*arguments, **named)
        assert "hidden" not in caplog.text
        return caplog.records[-1].getMessage()

    monkeypatch.setenv("DATABASE_URL", "postgres://u:hidden@general/d?sslmode=require")
    monkeypatch.setenv("REDIS_URL", "redis://:hidden@general:6379/0")
    wanted = "sessions in postgres://u:***@general/d?sslmode=***, cache: redis://:***@general:6379/0"
    assert chosen() == wanted
    monkeypatch.setenv("TIERED_SESSIONS_DB_URL", "mysql://u:hidden@ours/d")
    monkeypatch.setenv("TIERED_SESSIONS_REDIS_URL", "rediss://:hidden@ours")
    assert chosen() == "sessions in mysql://u:***@ours/d, cache: rediss://:***@ours"
    assert chosen("sqlite:///x.db", cache=None) == "sessions in sqlite:///x.db, cache: none"
    assert chosen("sqlite:///x.db", cache="memory") == "sessions in sqlite:///x.db, cache: memory"
    monkeypatch.setenv("TIERED_SESSIONS_REDIS_URL", "")
    assert chosen("sqlite:///x.db").endswith("general:6379/0")


def test_unusable_arguments() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    for arguments, message in (
        ({"db_url": "sqlite://", "db_engine": engine}, "not both"),
        ({"db_engine": engine, "pool_size": 3}, "pool_size"),
        ({"db_url": ""}, "no scheme"),
        ({"db_url": "sqlite://", "cache": "localhost:6379"}, "redis://"),
        ({"db_url": "redis://h"}, "cache="),
    ):
        with pytest.raises(ConfigurationError, match=message) as caught:
            TieredSessionService(**arguments)  # type: ignore[arg-type]
        assert isinstance(caught.value, ValueError)
    with pytest.raises(ConfigurationError):
        TieredSessionService("sqlite://", cache=object())._wiring._build_cache()


async def test_metrics_and_config_reach_the_tier() -> None:
    class Counters(dict[str, int]):
        def count(self, name: str, value: int = 1) -> None:
            self[name] = self.get(name, 0) + value

    counters = Counters()
    config = TieredConfig(wait_apply=True)
    async with TieredSessionService("sqlite://", config=config, metrics=counters) as service:
        await one_turn(service)
    assert any(name.startswith("reads.") for name in counters)


# --- event loops ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("close", [True, False])
def test_every_loop_has_its_own_connections(tmp_path: Path, close: bool) -> None:
    service = TieredSessionService(f"sqlite:///{tmp_path / 's.db'}")
    engines = []

    async def turn(name: str) -> None:
        await one_turn(service, name)
        engines.append(service.db_engine)
        if close:
            await service.close()

    before = service.db_engine
    for name in ("a", "b"):
        asyncio.run(turn(name))
    assert engines[0] is before
    assert engines[1] is not before

    async def ids() -> list[str]:
        async with service:
            return [session.id for session in await service.list_sessions("app")]

    assert sorted(asyncio.run(ids())) == ["a", "b"]
    # What a closed loop left behind warns when it is collected: that belongs to this test.
    engines.clear()
    del before
    gc.collect()


async def test_loops_at_the_same_time(tmp_path: Path) -> None:
    service = TieredSessionService(f"sqlite:///{tmp_path / 's.db'}")
    await service.prepare_tables()
    failures: list[BaseException] = []

    def elsewhere(name: str) -> None:
        async def turn() -> None:
            await one_turn(service, name)
            await service.close()

        try:
            asyncio.run(turn())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=elsewhere, args=(str(n),)) for n in range(3)]
    for thread in threads:
        thread.start()
    await one_turn(service, "here")
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert failures == []
    assert await service.count_sessions("app") == 4
    await service.close()


@pytest.mark.parametrize("what", ["engine", "client", "cache", "memory"])
def test_what_belongs_to_one_loop_says_so(tmp_path: Path, what: str) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 's.db'}"
    engine = None

    def make() -> TieredSessionService:
        nonlocal engine
        if what == "engine":
            engine = create_async_engine(url)
            return TieredSessionService(db_engine=engine, cache=None)
        if what == "client":
            return TieredSessionService(url, cache=fakeredis.FakeAsyncRedis())
        if what == "cache":
            return TieredSessionService(url, cache=MemoryCache())
        return TieredSessionService("sqlite://", cache=None)

    service = make()

    async def first() -> None:
        await one_turn(service)
        await service.close()
        if engine is not None:
            await engine.dispose()

    async def second() -> None:
        with pytest.raises(ConfigurationError, match="belongs to the event loop and process"):
            await service.get_session("app", "user", "s")

    asyncio.run(first())
    asyncio.run(second())


FORK = """
import asyncio, os, sys, tiered_sessions as t

async def turn(service, name):
    session = await service.create_session("app", "user", session_id=name)
    await service.append_event(session, t.Event(author=name))
    return (await service.get_session("app", "user", name)).events[0].author

async def close(service):
    await service.close()

service = t.TieredSessionService({url!r}, cache={cache!r})
loop = asyncio.new_event_loop()
loop.run_until_complete(turn(service, "before"))
child = os.fork()
if child == 0:
    async def main():
        try:
            print(await turn(service, "child"))
            await service.close()
        except t.ConfigurationError as error:
            print("refused" if "process" in str(error) else error)
    asyncio.run(main())
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
print(loop.run_until_complete(turn(service, "after")))
loop.run_until_complete(service.close())
loop.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("database", ["sqlite", "memory", "postgresql"])
def test_fork(tmp_path: Path, request: pytest.FixtureRequest, database: str) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    cache: str | None = "memory"
    if database == "postgresql":
        url, cache = request.getfixturevalue("postgresql_url"), request.getfixturevalue("redis_url")
    elif database == "memory":
        url = "sqlite://"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK.format(url=url, cache=cache)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(tiered_sessions.__file__).parent.parent,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["refused" if database == "memory" else "child", "after"]


# --- life cycle ----------------------------------------------------------------------------------


def test_engine_is_there_before_any_loop() -> None:
    service = TieredSessionService("sqlite:///x.db", echo=False)
    engine = service.db_engine
    assert engine is service.db_engine

    async def use() -> None:
        assert service.db_engine is engine
        await one_turn(service)
        await service.close()
        assert service.db_engine is not engine
        await service.close()

    asyncio.run(use())


def test_closing_what_was_never_used() -> None:
    service = TieredSessionService("sqlite:///x.db")
    for use in (service.flush, service.close, service.close):
        asyncio.run(use())
    assert not Path("x.db").exists()


async def test_locks_are_forgotten(tmp_path: Path) -> None:
    async with TieredSessionService(f"sqlite:///{tmp_path / 's.db'}") as service:
        session = await service.create_session("app", "user")
        await asyncio.gather(*(service.append_event(session, Event(author=str(n))) for n in range(5)))
        assert service._writer._locks._locks == {}


async def test_waiting_append_may_be_cancelled(tmp_path: Path) -> None:
    async with TieredSessionService(f"sqlite:///{tmp_path / 's.db'}") as service:
        session = await service.create_session("app", "user")
        tasks = [asyncio.create_task(service.append_event(session, Event(author=str(n)))) for n in range(4)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(done[2], asyncio.CancelledError)
        assert [event.author for event in session.events] == ["0", "1", "3"]
        assert service._writer._locks._locks == {}
        found = await service.get_session("app", "user", session.id)
        assert found == session


async def test_given_client_stays_open(tmp_path: Path) -> None:
    client = fakeredis.FakeAsyncRedis()
    async with TieredSessionService(f"sqlite:///{tmp_path / 's.db'}", cache=client) as service:
        await one_turn(service)
    assert await client.ping()
    await client.aclose()
