"""Each rule of consistency.md 5.1, on every cache, by a clock that the test moves."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import fakeredis
import pytest
from redis.asyncio import Redis

from tests.conformance.virtual_time import live_by
from tiered_sessions.cache import chunks
from tiered_sessions.cache.base import ApplyReply, CacheLimits, SessionCache
from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.testing import CacheSuite, ManualClock
from tiered_sessions.testing.cache_samples import KEY, content, event, fill, hit, tag


class TestCache(CacheSuite):
    """What every cache must do, and what ours do alike beyond that."""

    @pytest.fixture(params=["memory", "redis", "valkey", "fakeredis"])
    async def cache(
        self, request: pytest.FixtureRequest, clock: ManualClock, limits: CacheLimits
    ) -> AsyncIterator[SessionCache]:
        """A cache of each kind, living by `clock`."""
        if request.param == "memory":
            yield MemoryCache(limits, clock=clock)
            return
        name = uuid.uuid4().hex
        if request.param == "fakeredis":
            client: Redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
        else:
            client = Redis.from_url(request.getfixturevalue(f"{request.param}_url"))
            if request.param == "redis":
                name = request.getfixturevalue("redis_namespace")
        cache = RedisSessionCache(client, limits, namespace=name, jitter=lambda: 1.0)
        live_by(cache, clock)
        yield cache
        await cache.close()
        await client.aclose()

    async def test_an_applied_window_loses_whole_chunks(self, cache: SessionCache) -> None:
        await fill(cache, content(40, 40))
        full = 40 + chunks.CHUNK
        for revision in range(41, full + 2):
            new = (event(revision),)
            reply = await cache.apply(KEY, "writer", tag(revision - 1), tag(revision), new, None, 0)
            assert reply is ApplyReply.APPLIED
            found = (await hit(cache)).content
            # At so many events a whole chunk can go and leave 40.
            assert len(found.events) == (revision if revision < full else revision - chunks.CHUNK)
            assert found.before == (None if revision < full else 1_000_000 + chunks.CHUNK)
            assert found.complete == (revision < full)
