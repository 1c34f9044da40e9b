"""Two real processes over one database: what one wrote, the other reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.faults.worker import Worker
from tests.patience import UNREFUSED
from tests.relay import Relay

Key = list[str]
# The mask of a writer that dies must not outlive the patience of a test.
HASTY = {"mask_age": 2.0, "statement_timeout": 2.0, "mask_life": 4.5}
HOT = ("reads.cache", "reads.process")


@pytest.fixture
def key() -> Key:
    return [f"app-{uuid4().hex[:12]}", "user", "session"]


@contextlib.asynccontextmanager
async def two(folder: Path, **settings: Any) -> AsyncIterator[tuple[Worker, Worker]]:
    async with Worker(folder, **settings) as first, Worker(folder, **settings) as second:
        yield first, second


async def read_hot(worker: Worker, key: Key) -> dict[str, Any]:
    """Reads until the cache answers; every read must be the same. Returns it."""
    first: dict[str, Any] = await worker.call("get", key)
    async with asyncio.timeout(20):
        while True:
            before = await worker.call("counters")
            assert await worker.call("get", key) == first
            after = await worker.call("counters")
            if any(after.get(name, 0) > before.get(name, 0) for name in HOT):
                return first


@pytest.mark.parametrize("cache", [None, "memory", "redis"])
async def test_a_read_after_a_commit_does_not_join_a_flight_sent_before_it(
    postgresql_url: str, redis_url: str, tmp_path: Path, key: Key, cache: str | None
) -> None:
    """R31: the first read's statement ran before the append, and its reply is held until after it."""
    address = redis_url if cache == "redis" else cache
    async with Relay(postgresql_url) as relay:
        readers = Worker(tmp_path, db_url=relay.url, cache=address)
        writers = Worker(tmp_path, db_url=postgresql_url, cache=address)
        async with readers as reader, writers as writer:
            await writer.call("create", key)
            await reader.call("get", [*key[:2], "another"])
            relay.hold_replies(to="FROM sessions")
            first = reader.call("get", key)
            await relay.wait_for(lambda _: bool(relay.held))
            await writer.call("append", key, "e1", {"k": 1})
            second = reader.call("get", key)
            await reader.began()
            assert not first.done()
            relay.heal()
            assert await first == {"events": [], "state": {}}
            assert await second == {"events": ["e1"], "state": {"k": 1}}
            assert await reader.call("get", key) == {"events": ["e1"], "state": {"k": 1}}


async def test_default_settings_share_a_sqlite_file(tmp_path: Path, key: Key) -> None:
    """Each process has a cache of its own; both make the tables at the same time."""
    async with two(tmp_path) as workers:
        await asyncio.gather(*(worker.call("get", key) for worker in workers))
        await workers[0].call("create", key)
        written = []
        for number in range(200):
            writer, reader = workers[number % 2], workers[(number + 1) % 2]
            written.append(f"e{number}")
            delta = {"n": number, "user:n": -number, "app:n": [number]}
            await writer.call("append", key, written[-1], delta)
            assert await reader.call("get", key) == {"events": written, "state": delta}
        counts = [await worker.call("counters") for worker in workers]
        assert all(count["reads.process"] for count in counts)
    assert (tmp_path / "tiered_sessions.db").exists()


@pytest.mark.parametrize("store_url", ["postgresql", "mariadb"], indirect=True)
async def test_each_reads_what_the_other_wrote(
    store_url: str, redis_url: str, tmp_path: Path, key: Key
) -> None:
    async with two(tmp_path, db_url=store_url, cache=redis_url, config=UNREFUSED) as workers:
        await workers[0].call("create", key)
        other = [*key[:2], "other"]
        await workers[1].call("create", other)
        written = []
        for number in range(60):
            writer, reader = workers[number % 2], workers[(number + 1) % 2]
            written.append(f"e{number}")
            delta = {"n": number, "user:n": -number, "app:n": [number]}
            await writer.call("append", key, written[-1], delta)
            assert await reader.call("get", key) == {"events": written, "state": delta}
            shared = {name: value for name, value in delta.items() if ":" in name}
            assert await reader.call("get", other) == {"events": [], "state": shared}
        counts = [await worker.call("counters") for worker in workers]
        print([{name: count.get(name, 0) for name in (*HOT, "reads.store")} for count in counts])


@pytest.mark.parametrize("store_url", ["postgresql", "mariadb"], indirect=True)
async def test_concurrent_appends_of_two_processes_make_one_log(
    store_url: str, redis_url: str, tmp_path: Path, key: Key
) -> None:
    each = 25
    async with two(tmp_path, db_url=store_url, cache=redis_url, config=UNREFUSED) as workers:
        await workers[0].call("create", key)

        async def write(name: str, worker: Worker) -> list[tuple[list[str], list[str]]]:
            """Returns each read with what this process had stored before it."""
            mine: list[str] = []
            reads = []
            for number in range(each):
                delta = {f"{name}{number}": number, f"user:{name}": number, f"app:{name}": number}
                for seen in await worker.call("append", key, f"{name}{number}", delta):
                    reads.append((list(mine), seen["events"]))
                mine.append(f"{name}{number}")
            return reads

        histories = await asyncio.gather(write("a", workers[0]), write("b", workers[1]))
        finals = [await worker.call("get", key) for worker in workers]
        assert finals[0] == finals[1]
        log = finals[0]["events"]
        assert sorted(log) == sorted(f"{name}{number}" for name in "ab" for number in range(each))
        for name in "ab":
            assert [event for event in log if event[0] == name] == [f"{name}{n}" for n in range(each)]
        own = {f"{name}{number}": number for name in "ab" for number in range(each)}
        shared = {f"{scope}:{name}": each - 1 for scope in ("user", "app") for name in "ab"}
        assert finals[0]["state"] == own | shared
        for history in histories:
            longest = 0
            for mine, seen in history:
                assert seen == log[: len(seen)]
                assert set(mine) <= set(seen)
                assert len(seen) >= longest
                longest = len(seen)


@pytest.mark.parametrize("stored", [True, False], ids=["after the commit", "before the statement"])
async def test_a_writer_killed_in_mid_append(
    postgresql_url: str, redis_url: str, tmp_path: Path, key: Key, stored: bool
) -> None:
    """What the survivor reads is what SQL holds, while the dead writer's mask lives and after it."""
    async with Relay(postgresql_url) as relay:
        writers = Worker(tmp_path, db_url=relay.url, cache=redis_url, config=HASTY)
        survivors = Worker(tmp_path, db_url=postgresql_url, cache=redis_url, config=HASTY)
        async with writers as writer, survivors as survivor:
            await survivor.call("create", key)
            await writer.call("append", key, "e1", {"k": 1, "user:k": 1})
            await read_hot(survivor, key)
            if stored:
                relay.hold_replies(to="INSERT INTO events")
            else:
                relay.hold_requests(to="INSERT INTO events")
            lost = writer.call("append", key, "e2", {"k": 2, "user:k": 2})
            await relay.wait_for(lambda _: bool(relay.held))
            await writer.kill()
            relay.reset_all()
            wanted = {"events": ["e1", "e2"], "state": {"k": 2, "user:k": 2}}
            if not stored:
                wanted = {"events": ["e1"], "state": {"k": 1, "user:k": 1}}
            assert await read_hot(survivor, key) == wanted
            await survivor.call("append", key, "e3", {"k": 3})
            wanted = {"events": [*wanted["events"], "e3"], "state": {**wanted["state"], "k": 3}}
            assert await read_hot(survivor, key) == wanted
        assert lost.cancelled()
