"""The relay counts what really passes and breaks what it is told to."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis
import redis.asyncio

from tests.relay import Relay
from tests.wire import MysqlReader, PostgresqlReader, RedisReader, is_upkeep


async def test_a_pipeline_is_one_flight_of_redis(valkey_url: str) -> None:
    async with Relay(valkey_url) as relay, redis.asyncio.Redis.from_url(relay.url) as client:
        await client.ping()
        with relay.recording() as flights:
            pipeline = client.pipeline(transaction=False)
            pipeline.set("relay", "x" * 100_000)
            pipeline.get("relay")
            await pipeline.execute()
            await client.delete("relay")
        assert [flight.commands for flight in flights] == [["SET relay", "GET relay"], ["DEL relay"]]
        assert "PING" not in relay.commands()


async def test_statements_are_named_and_transaction_control_listed_apart(
    postgresql_url: str,
) -> None:
    async with Relay(postgresql_url.replace("+asyncpg", "")) as relay:
        connection = await asyncpg.connect(relay.url)
        try:
            await connection.fetchval("SELECT $1::int", 1)
            with relay.recording() as flights:
                assert await connection.fetchval("SELECT $1::int", 2) == 2
            assert [flight.commands for flight in flights] == [["SELECT $1::int"]]
            with relay.recording():
                async with connection.transaction():
                    await connection.execute("SELECT 3")
            assert relay.commands() == ["SELECT 3"]
            assert relay.upkeep() == ["BEGIN;", "COMMIT;"]
        finally:
            await connection.close()


async def test_what_a_fault_met_is_counted(valkey_url: str) -> None:
    async with Relay(valkey_url) as relay, redis.asyncio.Redis.from_url(relay.url, retry=None) as client:
        relay.reply_delay = 0.001
        with relay.recording() as flights:
            await client.get("relay")
        assert all(flight.answered for flight in flights)
        assert relay.injected["delayed"] >= 1
        relay.reply_delay = 0.0
        relay.hold_requests("ET")
        await client.get("relay")
        relay.hold_requests("GET")
        waiting = asyncio.ensure_future(client.get("relay"))
        await relay.until(lambda: relay.injected["held"] == 1)
        assert [flight.answered for flight in relay.held] == [False]
        relay.reset_all()
        assert relay.injected["reset"] == 1
        relay.heal()
        with pytest.raises(redis.ConnectionError):
            await waiting
        relay.refuse()
        with pytest.raises(redis.ConnectionError):
            await client.ping()
        assert relay.injected["refused"] == 1


async def test_a_black_hole_holds_replies_until_it_is_healed(valkey_url: str) -> None:
    async with Relay(valkey_url) as relay, redis.asyncio.Redis.from_url(relay.url) as client:
        await client.ping()
        relay.black_hole(requests=False)
        with relay.recording():
            ping = asyncio.ensure_future(client.ping())
            await relay.wait_for(lambda flights: bool(flights))
        assert not ping.done()
        relay.heal()
        assert await ping


async def test_a_swallowed_reply_is_of_a_command_that_ran(valkey_url: str) -> None:
    async with Relay(valkey_url) as relay:
        client = redis.asyncio.Redis.from_url(relay.url, retry=None, single_connection_client=True)
        async with client:
            await client.set("relay:n", 0)
            relay.swallow_next_reply()
            with pytest.raises(redis.ConnectionError):
                await client.incr("relay:n")
    async with redis.asyncio.Redis.from_url(valkey_url) as client:
        assert await client.getdel("relay:n") == b"1"


async def test_refused_and_cut_connections_are_errors_until_healed(valkey_url: str) -> None:
    async with Relay(valkey_url) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(relay.url).port)
        writer.write(b"*1\r\n$4\r\nPING\r\n")
        assert await reader.readline() == b"+PONG\r\n"
        relay.refuse()
        with pytest.raises(ConnectionResetError):
            await reader.readline()
        writer.close()
        async with redis.asyncio.Redis.from_url(relay.url) as client:
            relay.heal()
            assert await client.ping()


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_commands_are_read_whatever_the_packets(step: int) -> None:
    def read(reader: RedisReader | MysqlReader | PostgresqlReader, data: bytes) -> list[str]:
        return [c for i in range(0, len(data), step) for c in reader.feed(data[i : i + step])]

    assert read(RedisReader(), b"*2\r\n$3\r\nget\r\n$4\r\na\r\nb\r\n*1\r\n$4\r\nPING\r\n") == [
        "GET a\r\nb",
        "PING",
    ]
    assert read(MysqlReader(), b"\x09\0\0\0\x03SELECT 1\x01\0\0\0\x0e") == ["SELECT 1", "<ping>"]
    startup = b"\0\0\0\x09\0\x03\0\0\0"
    assert read(PostgresqlReader(), startup + b"Q\0\0\0\x0dSELECT 1\0") == ["<startup>", "SELECT 1"]


def test_upkeep_is_no_work() -> None:
    assert all(map(is_upkeep, ["BEGIN;", "begin isolation level serializable", "PING", "<ping>", "HELLO 3"]))
    assert not any(map(is_upkeep, ["BEGINNING", "SELECT 1", "EVALSHA abc", "BEGIN NOT ATOMIC x"]))
