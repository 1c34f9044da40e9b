"""What only the in-process cache has: a bound in bytes, private use, snapshots."""

from __future__ import annotations

import pytest

from tiered_sessions.cache.base import CacheLimits, FillReply, Granted, Hit, LeaseRefused, Masked, Miss
from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.records import Content, EventRecord, ScopeKey, SessionKey, Tag

TAG = Tag(1, 1, 1, 1)


def key(number: int) -> ScopeKey:
    return SessionKey("app", "user", f"s{number}").session


def content(size: int) -> Content:
    return Content(TAG, b"{}", (EventRecord(1, "e", 1, b"x" * size),))


async def fill(cache: MemoryCache, scope: ScopeKey, what: Content) -> None:
    lease = await cache.lease(scope, "t")
    assert isinstance(lease, Granted)
    assert await cache.fill(scope, "t", lease.granted_at, "", what) is FillReply.STORED


async def test_the_least_recently_used_key_goes_first() -> None:
    cache = MemoryCache(max_bytes=10_000)
    for number in range(3):
        await fill(cache, key(number), content(2_000))
    assert isinstance((await cache.lookup((key(0),)))[0], Hit)
    await fill(cache, key(3), content(2_000))
    found = await cache.lookup([key(number) for number in range(4)])
    assert [type(each) for each in found] == [Hit, Miss, Hit, Hit]


async def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = MemoryCache(max_bytes=5_000)
    await fill(cache, key(0), content(1_000))
    await cache.intent(key(0), "w")
    big = (EventRecord(2, "f", 1, b"x" * 9_000),)
    await cache.apply(key(0), "w", TAG, TAG._replace(revision=2), big, None, 0)
    assert isinstance((await cache.lookup((key(0),)))[0], Miss)
    await fill(cache, key(1), content(9_000))
    assert isinstance((await cache.lookup((key(1),)))[0], Miss)


async def test_it_is_private_unless_told_otherwise() -> None:
    assert MemoryCache().shared is False
    assert MemoryCache(shared=True).shared is True


async def test_a_snapshot_is_a_value_and_comes_back() -> None:
    now = [0]
    cache = MemoryCache(CacheLimits(mask_life=10), clock=lambda: now[0])
    await fill(cache, key(0), content(5))
    await cache.elect("one", 10)
    before = cache.snapshot()
    await cache.intent(key(0), "w")
    masked = cache.snapshot()
    assert len({before, masked}) == 2
    cache.restore(before)
    assert cache.snapshot() == before
    assert isinstance((await cache.lookup((key(0),)))[0], Hit)
    assert await cache.elect("two", 10) is False
    cache.restore(masked)
    assert isinstance((await cache.lookup((key(0),)))[0], Masked)


async def test_its_stamp_can_play_a_failover() -> None:
    cache = MemoryCache()
    cache.stamp = "one"
    lease = await cache.lease(key(0), "t")
    assert isinstance(lease, Granted)
    await cache.fill(key(0), "t", lease.granted_at, lease.stamp, content(5))
    cache.stamp = "two"
    (found,) = await cache.lookup((key(0),))
    assert isinstance(found, Hit)
    assert (found.entry_stamp, found.stamp) == ("one", "two")


@pytest.mark.parametrize("close", [False, True])
async def test_close_forgets_all(close: bool) -> None:
    cache = MemoryCache()
    await fill(cache, key(0), content(5))
    if close:
        await cache.close()
    assert (await cache.lease(key(0), "t") is LeaseRefused.PRESENT) is not close
    assert isinstance(await cache.probe(), int)
