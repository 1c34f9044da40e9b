"""The cache dies, hangs, forgets, fills up or slows down under load: no call fails, none is stale.

The load is of two services, as two servers would run them. Stale reads are only accepted where
docs/consistency.md allows them: the loss of a mask while its write is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any
from weakref import WeakSet

import pytest
import redis
import redis.asyncio

from tests import servers
from tests.faults.load import Load, hot_reads
from tests.faults.worker import Counters
from tests.patience import UNREFUSED
from tests.relay import Relay
from tests.servers import OwnServer
from tiered_sessions import TieredConfig, TieredSessionService
from tiered_sessions.tier.call import Call

# A lost mask or a writer that is cut off may show for milliseconds, until the apply or the drain; a
# stale entry that stays would show until `max_staleness`, 30 s. Between the two is room for a slow machine.
TRANSIENT = 3.0
# If the server that is cut off is the one elected to drain, another takes over when its term (two
# polls of 0.5 s) has ended and the next poll is due; the rest is for a busy machine.
TAKEOVER = 3.0


class Fleet:
    """Two services over one database and one cache server, under load.

    Attributes:
        stale: The ages of stale reads, known after the load has ended.
    """

    def __init__(self, services: list[TieredSessionService], counters: list[Counters]) -> None:
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
            lambda: all(hot_reads(c) >= n + 5 for c, n in zip(self.counters, before, strict=True))
        )


@pytest.fixture
def server() -> Iterator[OwnServer]:
    with servers.start_valkey() as server:
        yield server


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Fills with what each call has waited for the cache in all, in seconds."""
    budget = TieredConfig().cache_budget
    figures: list[float] = []
    # What a flight waits is noted by who boarded it, and it begins with the rest of that one's budget.
    calls: WeakSet[Call] = WeakSet()
    make, end = Call.__init__, Call.end

    def made(call: Call, begins_with: float, **options: Any) -> None:
        make(call, begins_with, **options)
        if begins_with == budget and call.flight is None:
            calls.add(call)

    async def ended(call: Call) -> None:
        if call in calls:
            figures.append(budget - call.budget)
        await end(call)

    monkeypatch.setattr(Call, "__init__", made)
    monkeypatch.setattr(Call, "end", ended)
    return figures


Fleets = Callable[..., AbstractAsyncContextManager[Fleet]]


@pytest.fixture
def fleet(server: OwnServer, postgresql_url: str, spent: list[float]) -> Fleets:
    """Puts a fleet under load, then checks all it saw, and prints the figures."""

    @contextlib.asynccontextmanager
    async def start(*addresses: str) -> AsyncIterator[Fleet]:
        counters = [Counters(), Counters()]
        async with contextlib.AsyncExitStack() as stack:
            services = [
                TieredSessionService(
                    postgresql_url,
                    cache=address,
                    config=TieredConfig(**UNREFUSED),
                    metrics=counter,
                    pool_size=8,
                )
                for address, counter in zip(addresses, counters, strict=True)
            ]
            for service in services:
                stack.push_async_callback(service.close)
            truth = await stack.enter_async_context(TieredSessionService(postgresql_url, cache=None))
            one = Fleet(services, counters)
            async with one.load as load:
                await one.back()
                yield one
            await load.settled(truth)
            await load.hot(counters)
            await load.settled(truth)
            one.stale = await load.check(truth)
        spent.sort()
        print(
            f"\n{len(load.reads)} reads, {load.appends} appends; stale {len(one.stale)}, oldest "
            f"{max(one.stale, default=0) * 1000:.1f} ms; waited for the cache in one call: median "
            f"{spent[len(spent) // 2] * 1000:.2f}, p99 {spent[len(spent) * 99 // 100] * 1000:.1f}, "
            f"longest {spent[-1] * 1000:.1f} ms; {dict(counters[0].counts)}"
        )
        await all_keys_expire(server)

    return start


async def all_keys_expire(server: OwnServer) -> None:
    async with redis.asyncio.Redis.from_url(server.url) as client:
        keys = [key async for key in client.scan_iter(count=1000)]
        assert keys
        # -2: it has gone meanwhile.
        assert [key for key in keys if await client.pttl(key) == -1] == []


async def admin(server: OwnServer, *command: str) -> Any:
    async with redis.asyncio.Redis.from_url(server.url) as client:
        return await client.execute_command(*command)


async def test_killed_and_restarted_empty(server: OwnServer, fleet: Fleets) -> None:
    async with fleet(server.url, server.url) as one:
        # At once, and on the same port: connections break, the next ones find an empty server.
        await asyncio.to_thread(server.restart)
        await one.back()
        await asyncio.to_thread(server.kill)
        await one.cut_off()
        await one.load.turns(10)
        await asyncio.to_thread(server.restart)
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)
    assert all(one.counted("breaker.closed"))


async def test_stopped_and_continued(server: OwnServer, fleet: Fleets) -> None:
    async with fleet(server.url, server.url) as one:
        server.pause()
        await one.cut_off()
        await one.load.turns(10)
        server.resume()
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)


async def test_flushed(server: OwnServer, fleet: Fleets) -> None:
    async with fleet(server.url, server.url) as one:
        for _ in range(10):
            await admin(server, "FLUSHALL")
            await one.load.turns(5)
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)


async def test_script_cache_flushed(server: OwnServer, fleet: Fleets) -> None:
    async with fleet(server.url, server.url) as one:
        for _ in range(10):
            await admin(server, "SCRIPT", "FLUSH")
            await one.load.turns(5)
        await one.back()
    assert one.stale == []


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
async def test_memory_is_full(server: OwnServer, fleet: Fleets, policy: str) -> None:
    async with fleet(server.url, server.url) as one:
        await admin(server, "CONFIG", "SET", "maxmemory-policy", policy)
        used = (await admin(server, "INFO", "memory"))["used_memory"]
        await admin(server, "CONFIG", "SET", "maxmemory", str(used - 1000))
        await one.load.turns(40)
        await admin(server, "CONFIG", "SET", "maxmemory", "0")
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)


@pytest.mark.parametrize("fault", ["black hole", "slow"])
async def test_unanswering(server: OwnServer, fleet: Fleets, fault: str) -> None:
    async with Relay(server.url) as relay, fleet(relay.url, relay.url) as one:
        if fault == "slow":
            relay.reply_delay = 0.2
        else:
            relay.black_hole()
        await one.cut_off()
        await one.load.turns(10)
        relay.reply_delay = 0.0
        relay.heal()
        await one.back()
    assert all(age < TRANSIENT for age in one.stale)


async def test_one_server_is_cut_off(server: OwnServer, fleet: Fleets) -> None:
    """Its writes reach the other one's reads through the outbox."""
    async with Relay(server.url) as relay, fleet(relay.url, server.url) as one:
        relay.refuse()
        await one.load.until(lambda: one.counted("outbox.written")[0] > 10)
        # Whoever was elected to drain may be the one that cannot.
        await one.load.until(lambda: one.counted("outbox.drained")[1] > 0)
        relay.heal()
        await one.back()
    assert all(age < TAKEOVER for age in one.stale)
