"""Callers that share connections to Redis: who is answered by what, and what one does to others."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.processes import OwnServer, free_port, start_valkey
from tests.relay import Relay
from tiered_sessions.cache import line, queue
from tiered_sessions.cache.base import FillReply, Granted, Hit, Lookup, Masked, Miss, Unavailable
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.cache.resp import Push, PythonReader
from tiered_sessions.records import Content, EventRecord, ScopeKey, SessionKey, Tag

MANY = 32
KEYS = [SessionKey("app", f"user{number}", "session").session for number in range(MANY)]
SECONDS = 20.0
Make = Callable[..., RedisSessionCache]


@pytest.fixture
def server() -> Iterator[OwnServer]:
    """A Valkey server that the test may kill and pause."""
    with start_valkey() as own:
        yield own


@pytest.fixture
async def client(server: OwnServer) -> AsyncIterator[Redis]:
    """A way to look at the server beside the cache."""
    async with Redis.from_url(server.url) as own:
        await own.ping()
        yield own


@pytest.fixture(params=["url", "url without hiredis", "client"])
async def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes caches on a URL, by each way there is; closes them."""
    if request.param == "url without hiredis":
        monkeypatch.setattr(line, "new_reader", PythonReader)
        monkeypatch.setattr(line, "PUSH", Push)
    caches: list[RedisSessionCache] = []
    clients: list[Redis] = []

    def make(url: str, **settings: Any) -> RedisSessionCache:
        if request.param == "client":
            clients.append(Redis.from_url(url, retry=Retry(NoBackoff(), 0)))
        caches.append(RedisSessionCache(clients[-1] if clients else url, **settings))
        return caches[-1]

    yield make
    for closable in caches:
        await closable.close()
    for client in clients:
        await client.aclose()


def content(number: int) -> Content:
    events = (EventRecord(1, f"event{number}", 1, b"{}"),)
    return Content(Tag(1, number + 1, 1, 1), b'{"n":%d}' % number, events)


async def fill(cache: RedisSessionCache) -> str:
    """Fills the entry of each key with a content of its own; returns the server's stamp."""
    for number, key in enumerate(KEYS):
        lease = await cache.lease(key, "t")
        assert isinstance(lease, Granted)
        assert await cache.fill(key, "t", lease.granted_at, lease.stamp, content(number)) is FillReply.STORED
    return lease.stamp


async def header(cache: RedisSessionCache, key: ScopeKey = KEYS[0]) -> Lookup:
    (found,) = await cache.lookup((key,), newest=0)
    return found


async def end(cache: RedisSessionCache, key: ScopeKey = KEYS[0]) -> Lookup:
    (found,) = await cache.lookup((key,), newest=2)
    return found


async def whole(cache: RedisSessionCache, key: ScopeKey = KEYS[0]) -> Lookup:
    (found,) = await cache.lookup((key,))
    return found


def start(call: Callable[[RedisSessionCache, ScopeKey], Awaitable[Any]], cache: RedisSessionCache) -> Any:
    """Starts a call for each key."""
    return [asyncio.ensure_future(call(cache, key)) for key in KEYS]


async def intent(cache: RedisSessionCache, key: ScopeKey) -> int | Unavailable:
    return await cache.intent(key, "w")


async def sent(relay: Relay, commands: int) -> None:
    """Returns once so many commands of calls have reached the relay since it records."""
    async with asyncio.timeout(SECONDS):
        await relay.until(lambda: len(relay.commands()) >= commands)


async def served(cache: RedisSessionCache) -> None:
    """Returns once both connections serve."""
    async with asyncio.timeout(SECONDS):
        while isinstance(await header(cache), Unavailable) or isinstance(await whole(cache), Unavailable):
            pass


# --- sharing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [header, whole])
async def test_concurrent_callers_share_packets(
    server: OwnServer, client: Redis, make: Make, call: Callable[..., Awaitable[Lookup]]
) -> None:
    cache = make(server.url)
    await served(cache)
    before = await client.info()
    assert all(isinstance(found, Miss) for found in await asyncio.gather(*start(call, cache)))
    after = await client.info()
    # TIME and the read of each caller; this client's own INFO is one of either.
    assert after["total_commands_processed"] - before["total_commands_processed"] - 1 == 2 * MANY
    assert after["total_reads_processed"] - before["total_reads_processed"] - 1 <= 4
    assert after["connected_clients"] <= 3


async def test_each_caller_is_answered_by_its_own_reply(server: OwnServer, make: Make) -> None:
    """R31 holds by construction if nothing ever shifts: not by those who leave, at whatever moment."""
    cache = make(server.url)
    stamp = await fill(cache)
    draw = random.Random(7)

    async def caller(number: int, turns: int) -> None:
        looking = asyncio.ensure_future(draw.choice([header, end, whole])(cache, KEYS[number]))
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns and looking.cancel():
            return
        found = await looking
        assert isinstance(found, Hit)
        assert found.content.tag == content(number).tag
        assert found.content in (content(number), replace(content(number), state=b"", events=()))
        assert found.stamp == stamp

    for _ in range(30):
        await asyncio.gather(*(caller(number, draw.choice([0, 0, 1, 2, 5])) for number in range(MANY)))


async def test_a_flushed_script_is_sent_again_by_each(server: OwnServer, client: Redis, make: Make) -> None:
    cache = make(server.url)
    assert isinstance(await intent(cache, KEYS[0]), int)
    await client.script_flush()
    assert all(isinstance(reply, int) for reply in await asyncio.gather(*start(intent, cache)))
    assert all(isinstance(found, Masked) for found in await asyncio.gather(*start(header, cache)))
    await client.script_flush()
    assert all(isinstance(found, Masked) for found in await asyncio.gather(*start(end, cache)))


async def test_whole_entries_do_not_delay_what_is_small(server: OwnServer, make: Make) -> None:
    async with Relay(server.url) as relay:
        cache = make(relay.url)
        await fill(cache)
        relay.hold_replies("HGETALL")
        with relay.recording():
            looking = asyncio.ensure_future(whole(cache))
            await sent(relay, 2)
            async with asyncio.timeout(SECONDS):
                assert isinstance(await header(cache), Hit)
                assert isinstance(await intent(cache, KEYS[1]), int)
        assert not looking.done()
        relay.heal()
        assert isinstance(await looking, Hit)
        assert {flight.connection for flight in relay.flights} == {0, 1}


# --- who leaves -----------------------------------------------------------------------------------


async def test_who_is_cancelled_or_out_of_time_leaves_alone(server: OwnServer, make: Make) -> None:
    async with Relay(server.url) as relay:
        cache = make(relay.url, timeout=SECONDS)
        stamp = await fill(cache)
        relay.black_hole(requests=False)
        with relay.recording() as flights:
            looking = start(header, cache)
            hasty = asyncio.ensure_future(asyncio.wait_for(header(cache), 0.01))
            await sent(relay, 2)
            looking[0].cancel()
            looking[7].cancel()
            for leaver in (looking[0], looking[7]):
                with pytest.raises(asyncio.CancelledError):
                    await leaver
            with pytest.raises(TimeoutError):
                await hasty
            assert not any(each.done() for number, each in enumerate(looking) if number not in (0, 7))
            relay.heal()
            for number, each in enumerate(looking):
                if number not in (0, 7):
                    found = await each
                    assert isinstance(found, Hit)
                    assert (found.content.tag, found.stamp) == (content(number).tag, stamp)
            assert isinstance(await header(cache), Hit)
        assert len({flight.connection for flight in flights}) == 1
        assert "INFO server" not in relay.upkeep()


async def test_what_was_not_sent_yet_is_taken_back(
    server: OwnServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6: behind a server that hangs nothing piles up that would run for callers long gone."""
    monkeypatch.setattr(line, "WINDOW", 4)
    async with Relay(server.url) as relay:
        cache = make(relay.url, timeout=SECONDS)
        await intent(cache, KEYS[0])
        relay.black_hole(requests=False)
        with relay.recording():
            first = [asyncio.ensure_future(intent(cache, key)) for key in KEYS[:4]]
            await sent(relay, 1)
            rest = [asyncio.ensure_future(intent(cache, key)) for key in KEYS[4:]]
            await asyncio.sleep(0)
            for each in rest:
                each.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            relay.heal()
            assert all(isinstance(reply, int) for reply in await asyncio.gather(*first))
        found = await asyncio.gather(*start(header, cache))
        assert [type(each) for each in found] == [Masked] * 4 + [Miss] * (MANY - 4)


# --- what breaks ----------------------------------------------------------------------------------


async def test_a_server_that_hangs_costs_each_its_time_out_and_no_more(server: OwnServer, make: Make) -> None:
    patient, cache = make(server.url), make(server.url, timeout=0.3)
    stamp = await fill(patient)
    await served(cache)
    server.pause()

    async def took(call: Awaitable[Any]) -> float:
        began = time.monotonic()
        assert isinstance(await call, Unavailable)
        return time.monotonic() - began

    try:
        for _ in range(2):  # on open connections, then on new ones
            calls = [took(call(cache, key)) for key in KEYS for call in (header, whole, intent)]
            spent = await asyncio.gather(*calls)
            # A machine that stands still for seconds would be needed to confuse it with another bound.
            assert max(spent) < 0.3 + 5
    finally:
        server.resume()
    await served(cache)
    found = await header(patient, KEYS[3])
    assert found.stamp == stamp


async def test_who_was_not_sent_yet_is_out_of_time_as_well(
    server: OwnServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not kept for the next connection, which would take its own time to fail."""
    monkeypatch.setattr(line, "WINDOW", 1)
    cache = make(server.url, timeout=3.0)
    await served(cache)
    server.pause()
    try:
        first, second = (asyncio.ensure_future(header(cache, key)) for key in KEYS[:2])
        assert isinstance(await first, Unavailable)
        assert isinstance(await asyncio.wait_for(second, 1.5), Unavailable)
    finally:
        server.resume()


async def test_a_killed_connection_costs_what_was_on_it(server: OwnServer, client: Redis, make: Make) -> None:
    """What flew is unknown and not sent again; what comes next has another connection."""
    async with Relay(server.url) as relay:
        cache = make(relay.url, timeout=SECONDS)
        await intent(cache, KEYS[0])
        await served(cache)
        before = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
        await client.client_pause(60_000, all=False)
        with relay.recording():
            flying = start(intent, cache)
            await sent(relay, 1)
            await asyncio.sleep(0)
            await client.client_kill_filter(_type="normal", skipme=True)
            assert all(isinstance(reply, Unavailable) for reply in await asyncio.gather(*flying))
            found = await whole(cache)
            if isinstance(found, Unavailable):
                # The connection for whole entries was killed too, and may not have heard of it before.
                found = await whole(cache)
            assert isinstance(found, Masked)
            await client.client_unpause()
            assert isinstance(await intent(cache, KEYS[1]), int)
        after = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
        assert after - before == 1


async def test_each_connection_asks_first_who_answers(server: OwnServer, make: Make) -> None:
    """5.6: a reply carries the stamp of the process that gave it, before and after a restart."""
    async with Relay(server.url) as relay:
        cache = make(relay.url)
        old = await fill(cache)
        server.kill()
        server.restart()
        for _ in range(5):
            for found in await asyncio.gather(*start(header, cache), *start(whole, cache)):
                assert isinstance(found, Unavailable) or found.stamp not in ("", old)
        assert isinstance(found, Miss)
        for number in {flight.connection for flight in relay.flights}:
            commands = [c for flight in relay.flights if flight.connection == number for c in flight.commands]
            # The relay lets a connection in before it knows that its server is gone.
            told = [c for c in commands if not c.startswith(("HELLO", "CLIENT"))]
            assert told[:2] in (["INFO server", "INFO replication"], [])


async def test_a_demoted_master_is_left_by_both_connections(
    server: OwnServer, client: Redis, make: Make
) -> None:
    cache = make(server.url)
    old = await fill(cache)
    await asyncio.gather(header(cache), whole(cache))
    await client.replicaof("127.0.0.1", str(free_port()))
    assert await intent(cache, KEYS[0]) == Unavailable("ReadOnlyError")
    await client.replicaof("NO", "ONE")
    for found in await asyncio.gather(header(cache), whole(cache)):
        assert isinstance(found, Hit)
        assert found.stamp not in ("", old)


@pytest.mark.parametrize("bound", ["CALLS", "BYTES"])
async def test_a_full_queue_refuses_at_once(
    server: OwnServer, make: Make, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    async with Relay(server.url) as relay:
        cache = make(relay.url, timeout=SECONDS)
        await intent(cache, KEYS[0])
        monkeypatch.setattr(line, "WINDOW", 1)
        relay.black_hole(requests=False)
        with relay.recording():
            first = asyncio.ensure_future(intent(cache, KEYS[0]))
            await sent(relay, 1)
            second = asyncio.ensure_future(intent(cache, KEYS[1]))
            await asyncio.sleep(0)
            monkeypatch.setattr(queue, bound, 2 if bound == "CALLS" else 200)
            refused = await intent(cache, KEYS[2])
            assert refused == Unavailable("ConnectionError: too many commands wait for the server")
            assert not first.done()
            assert not second.done()
            relay.heal()
            assert isinstance(await first, int)
            assert isinstance(await second, int)
        assert isinstance(await intent(cache, KEYS[2]), int)


# --- closing, loops, pools ------------------------------------------------------------------------


async def test_close_ends_what_flies_and_leaves_nothing(server: OwnServer, client: Redis) -> None:
    cache = RedisSessionCache(server.url, timeout=SECONDS)
    before = asyncio.all_tasks()
    await served(cache)
    server.pause()
    try:
        flying = [*start(header, cache), *start(whole, cache)]
        await asyncio.sleep(0)
        async with asyncio.timeout(SECONDS / 2):
            await cache.close()
        for found in await asyncio.gather(*flying):
            assert found == Unavailable("ConnectionError: the cache was closed")
    finally:
        server.resume()
    assert asyncio.all_tasks() == before
    async with asyncio.timeout(SECONDS):
        while (await client.info("clients"))["connected_clients"] != 1:
            pass


async def test_close_ends_an_attempt_to_connect(server: OwnServer) -> None:
    cache = RedisSessionCache(server.url, timeout=SECONDS)
    before = asyncio.all_tasks()
    server.pause()
    try:
        flying = [asyncio.ensure_future(header(cache)), asyncio.ensure_future(whole(cache))]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(SECONDS / 2):
            await cache.close()
        assert all(isinstance(found, Unavailable) for found in await asyncio.gather(*flying))
    finally:
        server.resume()
    assert asyncio.all_tasks() == before


async def test_a_close_that_is_cancelled_has_closed_all_the_same(server: OwnServer, client: Redis) -> None:
    for turns in range(6):
        cache = RedisSessionCache(server.url)
        before = asyncio.all_tasks()
        await served(cache)
        closing = asyncio.ensure_future(cache.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        await cache.close()
        assert asyncio.all_tasks() == before
        async with asyncio.timeout(SECONDS):
            while (await client.info("clients"))["connected_clients"] != 1:
                pass


def test_an_event_loop_that_is_over_is_let_go(server: OwnServer) -> None:
    """A service in a notebook: its loop ended, the cache is closed in the next one and goes on there."""
    cache = RedisSessionCache(server.url)

    async def again() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await header(cache)
        await cache.close()
        assert isinstance(await header(cache), Miss)
        await cache.close()

    with warnings.catch_warnings():
        # Of the connection nobody closed in time.
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(header(cache))
        asyncio.run(again())
        gc.collect()


async def test_another_event_loop_is_told(server: OwnServer, make: Make) -> None:
    cache = make(server.url)
    await served(cache)
    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(header(cache)))
    assert isinstance(await header(cache), Miss)


async def test_a_pool_of_one_is_enough_and_is_given_back(server: OwnServer) -> None:
    async with Redis.from_url(server.url, max_connections=1) as client:
        cache = RedisSessionCache(client)
        await fill(cache)
        found = await asyncio.gather(*start(header, cache), *start(whole, cache))
        assert all(isinstance(each, Hit) for each in found)
        assert await client.ping()
        await cache.close()
        assert await client.ping()


class LosesCancellation(Connection):
    """As redis-py on Python 3.11 if a machine stands still: `asyncio.wait_for`, by which it sends, then loses
    the cancellation of a flight whose time is over."""

    stands_still = False

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        await super().send_packed_command(command, check_health)
        if type(self).stands_still:
            type(self).stands_still = False
            time.sleep(1.1)  # noqa: ASYNC251  nobody else has a turn, either
            with contextlib.suppress(asyncio.CancelledError):
                for _ in range(3):
                    await asyncio.sleep(0)


async def test_a_connection_with_unread_replies_is_not_given_back(server: OwnServer) -> None:
    """R31: else its next user would be given the answers to another's questions."""
    pool = ConnectionPool.from_url(server.url, connection_class=LosesCancellation, max_connections=1)
    async with Redis.from_pool(pool) as client:
        # All by the one connection of the pool.
        cache, patient = RedisSessionCache(client, timeout=1.0), RedisSessionCache(client)
        assert isinstance(await intent(patient, KEYS[0]), int)
        server.pause()
        LosesCancellation.stands_still = True
        assert isinstance(await header(cache), Unavailable)
        assert not LosesCancellation.stands_still
        server.resume()
        await served(cache)
        replies = await asyncio.gather(*start(intent, patient), *start(header, patient))
        assert all(isinstance(reply, int) for reply in replies[:MANY])
        assert all(isinstance(reply, Masked) for reply in replies[MANY:])
        await cache.close()
        await patient.close()


async def test_a_unix_socket_is_shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("u") / "s"
    with start_valkey(unixsocket=path):
        cache = RedisSessionCache(f"unix://{path}?db=1")
        assert await fill(cache)
        assert all(isinstance(found, Hit) for found in await asyncio.gather(*start(whole, cache)))
        await cache.close()


# --- what a server should not send ----------------------------------------------------------------

TIME = b"*2\r\n$1\r\n7\r\n$1\r\n0\r\n"


@contextlib.asynccontextmanager
async def scripted(*answers: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """Yields the URL of a server that says these things to each TIME in turn, then goes on with the
    last, and a list of its connections."""
    waiting = list(answers)
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(len(connections))
        while data := await reader.read(65536):
            writer.write(b"$-1\r\n" * (data.count(b"\nINFO\r") + data.count(b"\nSCRIPT\r")))
            for _ in range(data.count(b"\nTIME\r")):
                writer.write(waiting.pop(0) if len(waiting) > 1 else waiting[0])
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}?protocol=2", connections


@pytest.mark.parametrize(
    ("odd", "reply", "connections"),
    [
        (b">2\r\n+pushed\r\n+unasked\r\n" + TIME, 7000, 1),
        (b"-LOADING the dataset\r\n", Unavailable("BusyLoadingError"), 1),
        (TIME + TIME, 7000, 2),
        (b"HTTP/1.1 400 Bad Request\r\n", Unavailable("InvalidResponse"), 2),
    ],
)
async def test_odd_answers_are_nobody_elses(
    odd: bytes, reply: int | Unavailable, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for new_reader, push in ((line.new_reader, line.PUSH), (PythonReader, Push)):
        monkeypatch.setattr(line, "new_reader", new_reader)
        monkeypatch.setattr(line, "PUSH", push)
        async with scripted(odd, TIME) as (url, opened):
            cache = RedisSessionCache(url)
            assert await cache.probe() == reply
            for _ in range(3):
                assert await cache.probe() == 7000
            assert len(opened) == connections
            await cache.close()


async def test_an_odd_reply_to_a_posted_lookup_is_unavailable() -> None:
    async with scripted(b"_\r\n" * 2) as (url, _):
        cache = RedisSessionCache(url)
        posted = cache.post("lookup", (KEYS[:1], 0), lambda reply: reply)
        assert posted is not None
        assert await posted == (Unavailable("the reply is not one to a lookup"),)
        await cache.close()
