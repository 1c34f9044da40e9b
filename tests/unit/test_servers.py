"""The test servers themselves: what the other suites rely on."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
import redis
import redis.asyncio

from tests import servers


async def test_each_module_gets_an_empty_postgresql_database(postgresql_url: str) -> None:
    connection = await asyncpg.connect(postgresql_url.replace("+asyncpg", ""))
    try:
        assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
    finally:
        await connection.close()


def test_own_valkey_is_killed_and_comes_back_empty() -> None:
    with servers.start_valkey() as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("a", "1")
        first = server.pid
        server.kill()
        with redis.Redis.from_url(server.url, retry=None) as client, pytest.raises(redis.ConnectionError):
            client.ping()
        server.restart()
        assert server.pid != first
        with redis.Redis.from_url(server.url) as client:
            assert client.get("a") is None


async def test_a_paused_server_keeps_its_connections_and_answers_later() -> None:
    with servers.start_valkey() as server:
        async with redis.asyncio.Redis.from_url(server.url) as client:
            await client.ping()
            server.pause()
            ping = asyncio.ensure_future(client.ping())
            done, _ = await asyncio.wait([ping], timeout=0.05)
            assert not done
            server.resume()
            assert await ping


async def test_own_postgresql_keeps_its_data_over_a_crash() -> None:
    with servers.start_postgres() as server:
        servers.sql_on_postgresql(server.url, "CREATE TABLE kept (a int)", "INSERT INTO kept VALUES (7)")
        server.kill()
        server.restart()
        connection = await asyncpg.connect(server.url)
        try:
            assert await connection.fetchval("SELECT a FROM kept") == 7
        finally:
            await connection.close()


def test_own_mariadb_keeps_its_data_over_a_crash() -> None:
    with servers.start_mariadb() as server:
        servers.sql_on_mysql(
            server.url, "CREATE DATABASE kept", "CREATE TABLE kept.t (a int)", "INSERT INTO kept.t VALUES (7)"
        )
        server.kill()
        server.restart()
        servers.sql_on_mysql(server.url, "DROP TABLE kept.t")


def test_a_required_backend_fails_instead_of_skipping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERED_SESSIONS_REQUIRE", "postgresql, mysql")
    with pytest.raises(pytest.fail.Exception, match="mariadb is required"):
        servers.missing("mariadb", "not here")
    with pytest.raises(pytest.skip.Exception, match="redis: not here"):
        servers.missing("redis", "not here")


def test_urls_are_led_to_another_database_or_port() -> None:
    assert servers.with_path("mysql://u:p@h:3/", "d", "mysql+aiomysql") == "mysql+aiomysql://u:p@h:3/d"
    assert servers.with_port("redis://:pw@h:1/0", 9) == "redis://:pw@127.0.0.1:9/0"
