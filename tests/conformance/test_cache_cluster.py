"""RedisSessionCache on a cluster of three real servers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import pytest
import redis
from redis.asyncio import RedisCluster
from redis.cluster import LoadBalancingStrategy

from tests.processes import OwnServer, free_port, start_valkey
from tiered_sessions.cache import keys
from tiered_sessions.cache.base import (
    ApplyReply,
    FillReply,
    Granted,
    Hit,
    Masked,
    Miss,
    Unavailable,
)
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.errors import ConfigurationError
from tiered_sessions.records import Content, EventRecord, SessionKey, Tag

SLOTS = 16384


def _client(server: OwnServer) -> contextlib.closing[redis.Redis]:
    return contextlib.closing(redis.Redis.from_url(server.url, decode_responses=True))


def _formed(info: str | dict[str, str]) -> bool:
    known = info if isinstance(info, dict) else dict(row.split(":") for row in info.split())
    return known["cluster_state"] == "ok" and known["cluster_known_nodes"] == "3"


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[OwnServer]]:
    """Three masters that share the slots."""
    servers = [
        start_valkey(
            cluster_enabled="yes", cluster_port=free_port(), cluster_node_timeout=2000, appendfsync="no"
        )
        for _ in range(3)
    ]
    buses = []
    for number, server in enumerate(servers):
        with _client(server) as client:
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            buses.append(client.config_get("cluster-port")["cluster-port"])
    with _client(servers[0]) as client:
        for server, bus in zip(servers[1:], buses[1:], strict=True):
            client.execute_command("CLUSTER MEET", "127.0.0.1", server.port, bus)
    for server in servers:
        with _client(server) as client:
            deadline = time.monotonic() + 30
            while not _formed(client.execute_command("CLUSTER INFO")):
                assert time.monotonic() < deadline, "the cluster did not form"
                time.sleep(0.02)
    yield servers
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def url(nodes: list[OwnServer]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def content(revision: int) -> Content:
    events = tuple(EventRecord(seq, f"e{seq}", seq, b"{}") for seq in range(1, revision + 1))
    return Content(Tag(1, revision, 1, 1), b'{"a":1}', events)


async def test_the_whole_protocol_runs_on_a_cluster(url: str) -> None:
    cache = RedisSessionCache(url, namespace="whole")
    stamps = set()
    for number in range(8):
        session = SessionKey(f"app{number}", "user", "session")
        for scope in session.scopes:
            lease = await cache.lease(scope, "t")
            assert isinstance(lease, Granted)
            stamps.add(lease.stamp)
            what = content(3) if scope.kind == "session" else Content(Tag(1, 3, 1, 1), b"{}")
            assert await cache.fill(scope, "t", lease.granted_at, lease.stamp, what) is FillReply.STORED
        assert isinstance(await cache.intent(session.session, "w"), int)
        (found, *_) = await cache.lookup(session.scopes)
        assert isinstance(found, Masked)
        new = content(4)
        reply = await cache.apply(session.session, "w", content(3).tag, new.tag, new.events[-1:], None, 0)
        assert reply is ApplyReply.APPLIED
        first, user, app = await cache.lookup(session.scopes)
        assert isinstance(first, Hit)
        assert isinstance(user, Hit)
        assert isinstance(app, Hit)
        assert first.content == new
        assert first.stamp == user.stamp == first.entry_stamp == user.entry_stamp != ""
        assert app.stamp == app.entry_stamp
    assert len(stamps) == 3
    assert isinstance(await cache.probe(), int)
    assert await cache.elect("t", 1000) is True
    await cache.close()


async def test_a_slot_that_moves_is_followed(url: str, nodes: list[OwnServer]) -> None:
    cache = RedisSessionCache(url, namespace="moves")
    key = SessionKey("app", "user", "moved").session
    async with RedisCluster.from_url(nodes[0].url) as client:
        slot = client.keyslot(keys.entry_key("moves", key))
    assert isinstance((await cache.lookup((key,)))[0], Miss)
    owner = slot * 3 // SLOTS
    target = nodes[(owner + 1) % 3]
    with _client(target) as client:
        identity = client.execute_command("CLUSTER MYID")
    for node in (target, *nodes):
        with _client(node) as client:
            client.execute_command("CLUSTER SETSLOT", slot, "NODE", identity)
    lease = await cache.lease(key, "t")
    assert isinstance(lease, Granted)
    assert await cache.fill(key, "t", lease.granted_at, lease.stamp, content(1)) is FillReply.STORED
    (found,) = await cache.lookup((key,))
    assert isinstance(found, Hit)
    await cache.close()


async def test_a_callers_cluster_client_is_left_open(nodes: list[OwnServer]) -> None:
    client = RedisCluster.from_url(nodes[1].url)
    cache = RedisSessionCache(client, namespace="lent")
    session = SessionKey("app", "user", "session")
    assert all(isinstance(found, Miss) for found in await cache.lookup(session.scopes))
    await cache.close()
    assert await client.set("lent", 1, px=1000)
    await client.aclose()


async def test_a_client_that_reads_replicas_is_refused(nodes: list[OwnServer]) -> None:
    client = RedisCluster.from_url(nodes[0].url, load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN)
    with pytest.raises(ConfigurationError):
        RedisSessionCache(client)
    await client.aclose()


async def test_a_dead_node_costs_only_its_slots(nodes: list[OwnServer]) -> None:
    cache = RedisSessionCache(f"redis+cluster://127.0.0.1:{nodes[0].port}", namespace="dead")
    sessions = [SessionKey(f"app{number}", "user", "session").session for number in range(12)]
    for node in nodes:
        with _client(node) as client:
            client.config_set("cluster-require-full-coverage", "no")

    async def kinds() -> set[type]:
        return {type((await cache.lookup((key,)))[0]) for key in sessions}

    assert await kinds() == {Miss}
    nodes[2].kill()
    assert await kinds() == {Miss, Unavailable}
    nodes[2].restart()
    async with asyncio.timeout(30):
        while await kinds() != {Miss}:
            pass
    await cache.close()


async def test_no_node_at_all_is_unavailable() -> None:
    cache = RedisSessionCache(f"redis+cluster://:hush@127.0.0.1:{free_port()}")
    reply = await cache.intent(SessionKey("app", "user", "session").session, "t")
    assert isinstance(reply, Unavailable)
    assert "hush" not in reply.reason
    await cache.close()
