"""What a write tells Redis without awaiting it: when it leaves, in which order, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.processes import OwnServer, start_valkey
from tests.relay import Relay
from tiered_sessions.cache import keys, queue
from tiered_sessions.cache.base import (
    ApplyReply,
    FillReply,
    Granted,
    Hit,
    LeaseRefused,
    Masked,
    Miss,
    Posting,
    Unavailable,
)
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.records import Content, EventRecord, SessionKey, Tag

KEY = SessionKey("app", "user", "session").session
OTHER = SessionKey("app", "user", "other").session
OLD, NEW = Tag(1, 1, 1, 1), Tag(1, 2, 2, 2)
EVENT = EventRecord(2, "second", 2, b"{}")


@pytest.fixture
def server() -> Iterator[OwnServer]:
    """A Valkey server that the test may kill."""
    with start_valkey() as own:
        yield own


@pytest.fixture
async def relay(server: OwnServer) -> AsyncIterator[Relay]:
    async with Relay(server.url) as own:
        yield own


@pytest.fixture
async def cache(relay: Relay) -> AsyncIterator[RedisSessionCache]:
    own = RedisSessionCache(relay.url)
    assert isinstance(own, Posting)
    lease = await own.lease(KEY, "lease")
    assert isinstance(lease, Granted)
    events = (EventRecord(1, "first", 1, b"{}"),)
    content = Content(OLD, b"{}", events)
    assert await own.fill(KEY, "lease", lease.granted_at, lease.stamp, content) is FillReply.STORED
    await own.intent(OTHER, "other")
    # From now on the server knows the script.
    assert await own.apply(OTHER, "w", OLD, NEW, (EVENT,), None, 1) is ApplyReply.ABSENT
    yield own
    await own.close()


def post(cache: RedisSessionCache, name: str, *arguments: Any) -> asyncio.Future[Any]:
    future = cache.post(name, arguments, lambda reply: (name, reply))
    assert future is not None
    return future


def post_apply(cache: RedisSessionCache) -> asyncio.Future[Any]:
    return post(cache, "apply", KEY, "w", OLD, NEW, (EVENT,), None, 1)


async def test_it_leaves_with_what_is_sent_next(relay: Relay, cache: RedisSessionCache) -> None:
    assert isinstance(await cache.intent(KEY, "w"), int)
    with relay.recording() as flights:
        applied = post_apply(cache)
        (found,) = await cache.lookup((KEY,), newest=0)
    assert isinstance(found, Hit)
    assert found.content.tag == NEW
    assert await applied == ("apply", ApplyReply.APPLIED)
    assert len(flights) == 1


async def test_whole_entries_are_read_after_it(relay: Relay, cache: RedisSessionCache) -> None:
    """They travel on a connection of their own, which does not wait for the other."""
    await cache.lookup((KEY,))
    assert isinstance(await cache.intent(KEY, "w"), int)
    with relay.recording() as flights:
        applied = post_apply(cache)
        await cache.lookup((KEY,))
    assert await applied == ("apply", ApplyReply.APPLIED)
    assert ["EVALSHA" in flight.commands[0] for flight in flights] == [True, False]


async def test_alone_it_leaves_soon(cache: RedisSessionCache) -> None:
    async with asyncio.timeout(10):
        assert await post(cache, "release", OTHER, "other") == ("release", None)
    (found,) = await cache.lookup((OTHER,))
    assert isinstance(found, Miss)


async def test_what_somebody_waits_for_leaves_together(relay: Relay, cache: RedisSessionCache) -> None:
    with relay.recording() as flights:
        masks = [post(cache, "intent", key, "w") for key in (KEY, OTHER)]
        cache.hurry()
        for _, now in await asyncio.gather(*masks):
            assert isinstance(now, int)
    assert len(flights) == 1
    assert [type(found) for found in await cache.lookup((KEY, OTHER))] == [Masked, Masked]


async def test_leases_are_told_apart_as_if_awaited(relay: Relay, cache: RedisSessionCache) -> None:
    free = KEY._replace(session_id="free")
    with relay.recording() as flights:
        leases = [post(cache, "lease", key, "reader") for key in (free, KEY, OTHER)]
        cache.hurry()
        granted, present, masked = [reply for _, reply in await asyncio.gather(*leases)]
    assert len(flights) == 1
    assert (present, masked) == (LeaseRefused.PRESENT, LeaseRefused.MASKED)
    assert isinstance(granted, Granted)
    assert await cache.lease(free, "another") is LeaseRefused.WAIT
    content = Content(OLD, b"{}")
    assert await cache.fill(free, "reader", granted.granted_at, granted.stamp, content) is FillReply.STORED
    (found,) = await cache.lookup((free,))
    assert isinstance(found, Hit)
    # Not in doubt: it was filled by the process that answers.
    assert found.entry_stamp == found.stamp != ""


async def test_a_flushed_script_is_posted_again(server: OwnServer, cache: RedisSessionCache) -> None:
    async with Redis.from_url(server.url) as client:
        await client.script_flush()
    assert await post(cache, "drop", KEY, None, None) == ("drop", None)
    assert isinstance((await cache.lookup((KEY,)))[0], Miss)


async def test_headers_are_looked_up_as_well(relay: Relay, cache: RedisSessionCache) -> None:
    for _ in range(2):  # the second time the replies are known
        with relay.recording() as flights:
            posted = post(cache, "lookup", (KEY, OTHER), 0)
            assert not posted.done()
            cache.hurry()
            name, (found, other) = await posted
        assert (name, len(flights)) == ("lookup", 1)
        assert isinstance(found, Hit)
        assert (found.content.tag, found.held, found.entry_stamp) == (OLD, 1, found.stamp)
        assert isinstance(other, Masked)
    # Whole entries travel on a connection of their own.
    for newest in (None, 1):
        assert cache.post("lookup", ((KEY,), newest), lambda reply: reply) is None


async def test_a_key_of_another_type_is_unavailable_alone(
    server: OwnServer, cache: RedisSessionCache
) -> None:
    async with Redis.from_url(server.url) as client:
        await client.set(keys.entry_key("", OTHER), "x")
    _, found = await post(cache, "lookup", (KEY, OTHER), 0)
    assert isinstance(found[0], Hit)
    assert found[1] == Unavailable("ResponseError: WRONGTYPE")


async def test_who_leaves_takes_back_what_was_not_sent(cache: RedisSessionCache) -> None:
    heard: list[Any] = []
    leaving = cache.post("drop", (KEY, None, None), heard.append)
    assert leaving is not None
    leaving.cancel()
    assert isinstance((await cache.lookup((KEY,)))[0], Hit)
    assert heard == []


async def test_a_broken_connection_is_told_as_unavailable(relay: Relay, cache: RedisSessionCache) -> None:
    relay.black_hole(requests=False)
    with relay.recording():
        posted = post(cache, "intent", KEY, "w")
        looked = post(cache, "lookup", (KEY, OTHER), 0)
        await relay.wait_for(bool)
        relay.reset_all()
        name, reply = await posted
        _, found = await looked
    assert (name, type(reply)) == ("intent", Unavailable)
    assert [type(one) for one in found] == [Unavailable, Unavailable]


async def test_a_server_that_hangs_costs_the_time_out(relay: Relay, server: OwnServer) -> None:
    cache = RedisSessionCache(relay.url, timeout=0.1)
    assert isinstance(await cache.intent(OTHER, "w"), int)
    relay.black_hole()
    name, reply = await post(cache, "intent", KEY, "w")
    assert (name, type(reply)) == ("intent", Unavailable)
    relay.heal()
    await cache.close()


async def test_a_full_queue_refuses_at_once(
    cache: RedisSessionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "CALLS", 0)
    posted = post(cache, "intent", KEY, "w")
    assert posted.done()
    assert isinstance(posted.result()[1], Unavailable)
    looked = post(cache, "lookup", (KEY,), 0)
    assert looked.done()
    assert isinstance(looked.result()[1][0], Unavailable)


async def test_close_ends_what_was_posted(cache: RedisSessionCache) -> None:
    posted = post(cache, "release", OTHER, "other")
    await cache.close()
    assert posted.done()
    assert isinstance(posted.result()[1], Unavailable)
