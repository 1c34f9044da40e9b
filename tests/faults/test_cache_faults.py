"""The cache dies, hangs, forgets, fills up or slows down under load: no call fails, none is stale.

The load is of two services, as two servers would run them. Stale reads are only accepted where
docs/consistency.md allows them: the loss of a mask while its write is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
import redis
import redis.asyncio

from tests import servers
from tests.faults.load import Load, hot_reads
from tests.faults.worker import Counters
from tests.relay import Relay
from tests.servers import OwnServer
from tiered_sessions import TieredSessionService
from tiered_sessions.cache.redis import RedisSessionCache

# A lost mask or a writer that is cut off may show for milliseconds, until the apply or the drain; a
# stale entry that stays would show until `max_staleness`, 30 s. Between the two is room for a slow machine.
TRANSIENT = 3.0

_waits: ContextVar[list[tuple[float, float]]] = ContextVar("_waits")


class TimedCache(RedisSessionCache):
    """Notes when each command was awaited, for the call in whose context it was sent."""

    async def _fly(self, *arguments: Any) -> Any:
        began = time.monotonic()
        try:
            return await super()._fly(*arguments)
        finally:
            _waits.get([]).append((began, time.monotonic()))


class TimedService(TieredSessionService):
    """Notes for each call how long it waited for the cache in all."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.waited: list[float] = []

    async def get_session(self, *arguments: Any, **named: Any) -> Any:
        return await self._timed(super().get_session(*arguments, **named))

    async def append_event(self, *arguments: Any, **named: Any) -> Any:
        return await self._timed(super().append_event(*arguments, **named))

    async def _timed(self, call: Any) -> Any:
        waits: list[tuple[float, float]] = []
        token = _waits.set(waits)
        try:
            return await call
        finally:
            _waits.reset(token)
            self.waited.append(_together(waits))


def _together(waits: list[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals: parallel commands are waited for once."""
    total, end = 0.0, 0.0
    for began, ended in sorted(waits):
        total += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return total


class Fleet:
    """Two services over one database and one cache server, under load."""

    def __init__(self, server: OwnServer, services: list[TimedService], counters: list[Counters]) -> None:
        self.server = server
        self.services = services
        self.counters = counters
        self.load = Load(services)
        self.stale: list[float] = []

    def counted(self, name: str) -> list[int]:
        return [counters.counts[name] for counters in self.counters]

    async def cut_off(self) -> None:
        """Returns once every service has noticed that the cache does not answer."""
        await self.load.until(lambda: all(self.counted("breaker.opened")))

    async def back(self) -> None:
        """Returns once every service reads from the cache again."""
        before = [hot_reads(counters) for counters in self.counters]
        await self.load.until(
            lambda: all(hot_reads(c) >= n + 20 for c, n in zip(self.counters, before, strict=True))
        )


@pytest.fixture
def server() -> Iterator[OwnServer]:
    with servers.start_valkey() as server:
        yield server


@contextlib.asynccontextmanager
async def fleet(server: OwnServer, addresses: list[str]) -> AsyncIterator[Fleet]:
    """Puts a fleet under load, then checks all it saw, and prints the figures."""
    with servers.postgresql_database() as database:
        counters = [Counters(), Counters()]
        async with contextlib.AsyncExitStack() as stack:
            services = [
                TimedService(database, cache=TimedCache(address), metrics=counter, pool_size=8)
                for address, counter in zip(addresses, counters, strict=True)
            ]
            for service in services:
                stack.push_async_callback(service.close)
            truth = await stack.enter_async_context(TieredSessionService(database, cache=None))
            one = Fleet(server, services, counters)
            async with one.load as load:
                await load.turns(15)
                await one.back()
                yield one
            await load.settled(truth)
            await load.hot(counters)
            await load.settled(truth)
            one.stale = await load.check(truth)
        waited = sorted(wait for service in services for wait in service.waited)
        print(
            f"\n{len(load.reads)} reads, {load.appends} appends; stale {len(one.stale)}, "
            f"oldest {max(one.stale, default=0) * 1000:.1f} ms; waited for the cache in one call: median "
            f"{waited[len(waited) // 2] * 1000:.2f}, p99 {waited[len(waited) * 99 // 100] * 1000:.1f}, "
            f"longest {waited[-1] * 1000:.1f} ms; {dict(counters[0].counts)}"
        )
        await all_keys_expire(server)


async def all_keys_expire(server: OwnServer) -> None:
    async with redis.asyncio.Redis.from_url(server.url) as client:
        keys = [key async for key in client.scan_iter(count=1000)]
        assert keys
        # -2: it has gone meanwhile.
        assert [key for key in keys if await client.pttl(key) == -1] == []


async def admin(server: OwnServer, *command: str) -> Any:
    async with redis.asyncio.Redis.from_url(server.url) as client:
        return await client.execute_command(*command)


async def test_killed_and_restarted_empty(server: OwnServer) -> None:
    async with fleet(server, [server.url] * 2) as one:
        await asyncio.to_thread(server.kill)
        await one.cut_off()
        await one.load.turns(10)
        await asyncio.to_thread(server.restart)
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)
    assert all(one.counted("breaker.closed"))


async def test_restarted_at_once_on_the_same_port(server: OwnServer) -> None:
    async with fleet(server, [server.url] * 2) as one:
        for _ in range(3):
            await asyncio.to_thread(server.restart)
            await one.back()
    assert all(age < TRANSIENT for age in one.stale)


async def test_stopped_and_continued(server: OwnServer) -> None:
    async with fleet(server, [server.url] * 2) as one:
        server.pause()
        await one.cut_off()
        await one.load.turns(10)
        server.resume()
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)


async def test_flushed(server: OwnServer) -> None:
    async with fleet(server, [server.url] * 2) as one:
        for _ in range(10):
            await admin(server, "FLUSHALL")
            await one.load.turns(5)
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)


async def test_script_cache_flushed(server: OwnServer) -> None:
    async with fleet(server, [server.url] * 2) as one:
        for _ in range(10):
            await admin(server, "SCRIPT", "FLUSH")
            await one.load.turns(5)
        await one.back()
    assert one.stale == []


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
async def test_memory_is_full(server: OwnServer, policy: str) -> None:
    async with fleet(server, [server.url] * 2) as one:
        await admin(server, "CONFIG", "SET", "maxmemory-policy", policy)
        used = (await admin(server, "INFO", "memory"))["used_memory"]
        await admin(server, "CONFIG", "SET", "maxmemory", str(used - 1000))
        await one.load.turns(60)
        await admin(server, "CONFIG", "SET", "maxmemory", "0")
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)


async def test_black_hole(server: OwnServer) -> None:
    async with Relay(server.url) as relay, fleet(server, [relay.url] * 2) as one:
        relay.black_hole()
        await one.cut_off()
        await one.load.turns(10)
        relay.heal()
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)


async def test_slow(server: OwnServer) -> None:
    async with Relay(server.url) as relay, fleet(server, [relay.url] * 2) as one:
        relay.reply_delay = 0.2
        await one.cut_off()
        await one.load.turns(10)
        relay.reply_delay = 0.0
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)


async def test_one_server_is_cut_off(server: OwnServer) -> None:
    """Its writes reach the other one's reads through the outbox."""
    async with Relay(server.url) as relay, fleet(server, [relay.url, server.url]) as one:
        relay.refuse()
        await one.load.until(lambda: one.counted("outbox.written")[0] > 20)
        relay.heal()
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)
    assert sum(one.counted("outbox.drained"))
