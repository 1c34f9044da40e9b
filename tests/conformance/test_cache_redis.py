"""RedisSessionCache on real servers: round trips, faults, stamps, clients of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import fakeredis
import pytest
import redis.asyncio
from redis.asyncio import Redis

from tests.processes import OwnServer, free_port, start_valkey
from tests.relay import Relay
from tiered_sessions.cache import keys
from tiered_sessions.cache.base import (
    ApplyReply,
    FillReply,
    Granted,
    Hit,
    LeaseRefused,
    Masked,
    Miss,
    Unavailable,
)
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.cache.scripts import script
from tiered_sessions.errors import ConfigurationError
from tiered_sessions.records import Content, EventRecord, SessionKey, Tag

SESSION = SessionKey("app", "user", "session")
KEY = SESSION.session
TAG = Tag(1, 1, 1, 1)
CONTENT = Content(TAG, b"{}", (EventRecord(1, "e", 1, b'{"secret":"hush"}'),))


@pytest.fixture
def server() -> Iterator[OwnServer]:
    """A Valkey server that the test may kill, fill and flush."""
    own = start_valkey()
    yield own
    own.close()


@pytest.fixture
async def cache(redis_url: str, redis_namespace: str) -> AsyncIterator[RedisSessionCache]:
    own = RedisSessionCache(redis_url, namespace=redis_namespace)
    yield own
    await own.close()


async def fill(cache: RedisSessionCache) -> Granted:
    lease = await cache.lease(KEY, "t")
    assert isinstance(lease, Granted)
    assert await cache.fill(KEY, "t", lease.granted_at, lease.stamp, CONTENT) is FillReply.STORED
    return lease


async def all_commands(cache: RedisSessionCache) -> list[object]:
    """Returns the replies to one command of each kind."""
    return [
        *await cache.lookup(SESSION.scopes),
        await cache.intent(KEY, "t"),
        await cache.release(KEY, "t"),
        await cache.lease(KEY, "t"),
        await cache.fill(KEY, "t", 0, "", CONTENT),
        await cache.apply(KEY, "t", TAG, TAG, CONTENT.events, b"{}", 0),
        await cache.drop(KEY, "t", TAG),
        await cache.touch(KEY, TAG, 0, ""),
        await cache.elect("t", 1),
        await cache.probe(),
    ]


async def answered(cache: RedisSessionCache) -> None:
    """Returns once the server answers within the cache's time-out."""
    async with asyncio.timeout(10):
        while isinstance(await cache.probe(), Unavailable):
            pass


async def test_a_hot_lookup_is_one_round_trip(redis_url: str, redis_namespace: str) -> None:
    async with Relay(redis_url) as relay:
        cache = RedisSessionCache(relay.url, namespace=redis_namespace)
        await fill(cache)
        with relay.recording() as flights:
            session, *_ = await cache.lookup(SESSION.scopes)
        assert isinstance(session, Hit)
        names = [keys.entry_key(redis_namespace, scope) for scope in SESSION.scopes]
        shared = [f"HMGET {name}" for name in names[1:]]
        assert [flight.commands for flight in flights] == [["TIME", f"HGETALL {names[0]}", *shared]]
        with relay.recording() as flights:
            await cache.lookup((KEY,), newest=0)
        assert [flight.commands for flight in flights] == [["TIME", f"HMGET {names[0]}"]]
        await cache.lookup((KEY,), newest=20)
        with relay.recording() as flights:
            session, *_ = await cache.lookup(SESSION.scopes, newest=20)
        assert isinstance(session, Hit)
        tail = f"EVALSHA {script('tail').sha}"
        assert [flight.commands for flight in flights] == [["TIME", tail, *shared]]
        with relay.recording() as flights:
            await cache.intent(KEY, "t")
            await cache.apply(KEY, "t", TAG, TAG._replace(revision=2), (), None, 0)
        # Only a server that has never seen a script is sent its text.
        texts = [flight for flight in flights if flight.commands[0].startswith("EVAL ")]
        assert len(flights) == 2 + len(texts)
        with relay.recording() as flights:
            await cache.intent(KEY, "t")
            await cache.apply(KEY, "t", TAG, TAG._replace(revision=2), (), None, 0)
        assert len(flights) == 2
        await cache.close()


async def test_every_key_has_a_life(cache: RedisSessionCache, redis_url: str) -> None:
    name = keys.entry_key(cache.namespace, KEY)
    async with Redis.from_url(redis_url) as client:

        async def lives() -> bool:
            return 0 < await client.pttl(name) <= 1.1 * cache.limits.idle_ttl

        await cache.intent(KEY, "t")
        assert await lives()
        await cache.release(KEY, "t")
        assert await client.exists(name) == 0
        await fill(cache)
        assert await lives()
        await cache.intent(KEY, "t")
        assert await cache.apply(KEY, "t", Tag(9, 9, 9, 9), Tag(9, 10, 9, 9), (), None, 0) is ApplyReply.GAP
        assert await client.exists(name) == 0
        await fill(cache)
        await cache.intent(KEY, "t")
        await cache.drop(KEY, None, None)
        assert await lives()
        assert await cache.elect("t", 900) is True
        assert 0 < await client.pttl(keys.drain_key(cache.namespace)) <= 900


async def test_jitter_is_drawn_for_each_life(redis_url: str, redis_namespace: str) -> None:
    draws = iter([0.5, 2.0])
    cache = RedisSessionCache(redis_url, namespace=redis_namespace, jitter=lambda: next(draws))
    name = keys.entry_key(redis_namespace, KEY)
    async with Redis.from_url(redis_url) as client:
        await fill(cache)
        assert await client.pttl(name) <= cache.limits.idle_ttl / 2
        assert await cache.touch(KEY, TAG, 0, "") is True
        assert cache.limits.idle_ttl < await client.pttl(name) <= 2 * cache.limits.idle_ttl
    await cache.close()


async def test_the_stamp_names_the_server_that_answered(server: OwnServer) -> None:
    cache = RedisSessionCache(server.url)
    lease = await fill(cache)
    (found,) = await cache.lookup((KEY,))
    assert isinstance(found, Hit)
    assert found.stamp == found.entry_stamp == lease.stamp != ""
    server.kill()
    server.restart()
    (found,) = await cache.lookup((KEY,))
    if isinstance(found, Unavailable):
        (found,) = await cache.lookup((KEY,))
    assert isinstance(found, Miss)
    assert found.stamp not in ("", lease.stamp)
    await cache.close()


async def test_without_info_there_is_no_stamp(server: OwnServer) -> None:
    async with Redis.from_url(server.url) as client:
        await client.acl_setuser(
            "app", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"], commands=["-info"]
        )
    cache = RedisSessionCache(server.url.replace("//", "//app:pw@"))
    assert (await fill(cache)).stamp == ""
    (found,) = await cache.lookup((KEY,))
    assert isinstance(found, Hit)
    assert found.stamp == ""
    await cache.close()


async def test_a_flushed_script_is_sent_again(server: OwnServer) -> None:
    cache = RedisSessionCache(server.url)
    await fill(cache)
    async with Redis.from_url(server.url) as client:
        await client.script_flush()
    assert isinstance(await cache.intent(KEY, "t"), int)
    await cache.close()


async def test_a_connection_makes_known_what_withdraws_a_late_mask(server: OwnServer) -> None:
    """R6: such a command may run when nobody is left to hear that the server does not know its script."""
    cache = RedisSessionCache(server.url)
    await cache.probe()
    async with Redis.from_url(server.url) as client:
        assert await client.script_exists(script("drop").sha, script("release").sha) == [True, True]
    await cache.close()


async def test_a_lease_of_unknown_outcome_is_not_sent_again(server: OwnServer) -> None:
    async with Relay(server.url) as relay:
        cache = RedisSessionCache(relay.url)
        await fill(cache)
        await cache.drop(KEY, None, None)
        with relay.recording() as flights:
            relay.swallow_next_reply()
            assert isinstance(await cache.lease(KEY, "lost"), Unavailable)
        assert len(flights) == 1
        assert await cache.lease(KEY, "next") is LeaseRefused.WAIT
        await cache.close()


async def test_a_server_that_is_gone_is_unavailable() -> None:
    cache = RedisSessionCache(f"redis://:hush@127.0.0.1:{free_port()}")
    replies = await all_commands(cache)
    assert len(replies) == 12
    for reply in replies:
        assert isinstance(reply, Unavailable)
        assert "hush" not in reply.reason
    await cache.close()


async def test_a_black_hole_is_unavailable_and_then_heals(server: OwnServer) -> None:
    async with Relay(server.url) as relay:
        cache = RedisSessionCache(relay.url, timeout=0.05)
        await answered(cache)
        relay.black_hole(requests=False)
        assert all(isinstance(reply, Unavailable) for reply in await all_commands(cache))
        relay.heal()
        await answered(cache)
        assert await cache.close() is None


async def test_a_full_server_is_unavailable(server: OwnServer) -> None:
    cache = RedisSessionCache(server.url)
    async with Redis.from_url(server.url) as client:
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", "1")
    reply = await cache.intent(KEY, "t")
    assert isinstance(reply, Unavailable)
    assert "OutOfMemory" in reply.reason or "OOM" in reply.reason
    assert isinstance((await cache.lookup((KEY,)))[0], Miss)
    await cache.close()


async def test_a_wrong_password_is_unavailable(server: OwnServer) -> None:
    async with Redis.from_url(server.url) as client:
        await client.config_set("requirepass", "right")
    cache = RedisSessionCache(server.url.replace("//", "//:wrong@"))
    for reply in await all_commands(cache):
        assert isinstance(reply, Unavailable)
        assert "wrong" not in reply.reason.replace("wrong number", "")
    await cache.close()


async def test_a_key_of_another_type_is_unavailable_alone(cache: RedisSessionCache, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as client:
        await client.set(keys.entry_key(cache.namespace, KEY), "x", px=60_000)
    session, user, _ = await cache.lookup(SESSION.scopes)
    assert session == Unavailable("ResponseError: WRONGTYPE")
    assert isinstance(user, Miss)


@pytest.mark.parametrize(
    "damage",
    [{"i": "x"}, {"c0": "torn"}, {"n": "7"}, {"c0": "1\t2\n"}, {"k1": "3"}, {"mt": "x"}, {"p": "x"}],
)
async def test_a_damaged_entry_is_a_miss(
    cache: RedisSessionCache, redis_url: str, damage: dict[str, str]
) -> None:
    await fill(cache)
    async with Redis.from_url(redis_url) as client:
        await client.hset(keys.entry_key(cache.namespace, KEY), mapping=damage)
    assert isinstance((await cache.lookup((KEY,)))[0], Miss)
    # What is no number ends the script.
    assert isinstance((await cache.lookup((KEY,), 20))[0], Miss | Unavailable)


async def test_a_part_costs_what_it_has(server: OwnServer) -> None:
    """Of a long window only the last chunks travel."""
    cache = RedisSessionCache(server.url, max_connections=1)
    events = tuple(EventRecord(seq, f"e{seq}", seq, b'{"a":"%s"}' % (b"x" * 1000)) for seq in range(1, 201))
    lease = await cache.lease(KEY, "t")
    assert isinstance(lease, Granted)
    whole = replace(CONTENT, events=events)
    assert await cache.fill(KEY, "t", lease.granted_at, "", whole) is FillReply.STORED
    async with Redis.from_url(server.url) as client:

        async def sent() -> int:
            return int((await client.info("stats"))["total_net_output_bytes"])

        for newest, lines in ((1, 4), (4, 4), (5, 8), (20, 20), (21, 24), (66, 68), (67, 200), (1000, 200)):
            await cache.lookup((KEY,), newest)
            start, again = await sent(), await sent()
            (found,) = await cache.lookup((KEY,), newest)
            cost = await sent() - again - (again - start)
            assert isinstance(found, Hit)
            assert found.content.events == events[-newest:]
            assert 1000 * lines < cost < 1030 * lines + 1000
    await cache.close()


async def test_a_cancelled_caller_costs_no_connection(server: OwnServer) -> None:
    async with Relay(server.url) as relay:
        cache = RedisSessionCache(relay.url, max_connections=1)
        lease = await fill(cache)
        relay.black_hole(requests=False)
        with relay.recording():
            task = asyncio.create_task(cache.lookup((KEY,)))
            await relay.wait_for(lambda flights: bool(flights))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with relay.recording() as flights:
            relay.heal()
            assert isinstance(await cache.probe(), int)
            (found,) = await cache.lookup((KEY,))
        assert isinstance(found, Hit)
        assert found.stamp == lease.stamp
        # One or two: the probe may still join what the cancelled caller has sent.
        assert {flight.connection for flight in flights} == {0}
        await cache.close()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
async def test_a_callers_client_is_used_and_left_open(
    redis_url: str, redis_namespace: str, protocol: int, decode: bool
) -> None:
    client = redis.asyncio.Redis.from_url(redis_url, protocol=protocol, decode_responses=decode)
    cache = RedisSessionCache(client, namespace=redis_namespace)
    lease = await fill(cache)
    assert lease.stamp
    (found,) = await cache.lookup((KEY,))
    assert isinstance(found, Hit)
    assert found.content == CONTENT
    (found,) = await cache.lookup((KEY,), newest=0)
    assert isinstance(found, Hit)
    await cache.close()
    assert await client.ping()
    await client.aclose()


async def test_fakeredis_serves_without_a_stamp() -> None:
    client = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    cache = RedisSessionCache(client)
    assert isinstance(await cache.intent(KEY, "t"), int)
    (found,) = await cache.lookup((KEY,))
    assert isinstance(found, Masked)
    assert await cache.release(KEY, "t") is None
    await fill(cache)
    (found,) = await cache.lookup((KEY,))
    assert isinstance(found, Hit)
    assert found.content == CONTENT
    await cache.close()
    await client.aclose()


async def test_a_caller_waits_for_a_connection_and_no_longer_than_the_time_out(server: OwnServer) -> None:
    async with Relay(server.url) as relay:
        patient = RedisSessionCache(relay.url, max_connections=2)
        assert all(isinstance(r, int) for r in await asyncio.gather(*(patient.probe() for _ in range(20))))
        await patient.close()
        cache = RedisSessionCache(relay.url, max_connections=2, timeout=0.2)
        await answered(cache)
        relay.black_hole()
        replies = await asyncio.gather(*(cache.probe() for _ in range(6)))
        assert all(isinstance(reply, Unavailable) for reply in replies)
        await cache.close()


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://:hush@localhost",
        "redis://:hush@localhost:port",
        "redis+sentinel://:hush@localhost",
        "redis+cluster://:hush@localhost:x",
        "redis://:hush@localhost?socket_timeout=soon",
    ],
)
def test_an_unreadable_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        RedisSessionCache(url)
    assert "hush" not in str(raised.value)
