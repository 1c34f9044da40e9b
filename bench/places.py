"""Where a run keeps its data: databases, files and key prefixes of its own, removed at the end."""

from __future__ import annotations

import os
import tempfile
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import redis.asyncio
from sqlalchemy import URL, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from tiered_sessions.cache.keys import FORMAT

from .records import Family

# The same variables and standards as the tests' (tests/servers.py).
_SERVERS: Final = {
    "postgresql": ("TIERED_SESSIONS_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/postgres"),
    "mariadb": ("TIERED_SESSIONS_TEST_MYSQL", "mysql://root@127.0.0.1:3306/"),
    "redis": ("TIERED_SESSIONS_TEST_REDIS", "redis://127.0.0.1:6379/0"),
}
_DRIVERS: Final = {"postgresql": "postgresql+asyncpg", "mariadb": "mysql+aiomysql"}


def default_url(server: str) -> str:
    """Returns the address of a server from the environment, else its standard port on this machine."""
    variable, standard = _SERVERS[server]
    return os.environ.get(variable) or standard


@dataclass(frozen=True, slots=True)
class Servers:
    """Addresses of servers that run already, and a folder on the disk to measure SQLite on."""

    postgresql: str
    mariadb: str
    redis: str
    folder: str | None = None


class Places:
    """Makes databases for one run; `async with` removes them, and every key with the run's name."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.run = f"bench{uuid.uuid4().hex[:10]}"
        self._made: list[tuple[Family, str]] = []
        self._namespaces: set[str] = set()
        self._stack = AsyncExitStack()
        self._folder = ""

    async def __aenter__(self) -> Self:
        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(dir=self.servers.folder))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._remove_keys()
        for family, name in self._made:
            force = " WITH (FORCE)" if family == "postgresql" else ""
            await self._administer(family, f"DROP DATABASE IF EXISTS {name}{force}")
        await self._stack.aclose()

    @property
    def prefix(self) -> str:
        """What the keys of services without namespaces begin with."""
        return f"{self.run}:"

    async def database(self, family: Family, subject: str, template: str | None = None) -> str:
        """Makes a database, empty or (on PostgreSQL) as a copy of another, and returns its address."""
        name = f"{self.run}_{subject.replace('-', '_')}"
        if family == "sqlite":
            return f"sqlite+aiosqlite:///{Path(self._folder) / name}.db"
        characters = " CHARACTER SET utf8mb4" if family == "mariadb" else ""
        copied = f" TEMPLATE {make_url(template).database}" if template else ""
        self._made.append((family, name))
        await self._administer(family, f"CREATE DATABASE {name}{characters}{copied}")
        return self._server(family).set(database=name).render_as_string(hide_password=False)

    async def tidy(self, family: Family, url: str) -> None:
        """Has the server take stock of what was loaded, as it would by itself in time."""
        statements = {
            "postgresql": ["VACUUM ANALYZE"],
            "mariadb": ["ANALYZE TABLE sessions, events, app_states, user_states"],
            "sqlite": ["ANALYZE"],
        }
        await _execute(url, statements[family])

    async def keep_track(self, url: str) -> None:
        """Notes a database of ours, whose cache entries are to be removed."""
        self._namespaces.add(await namespace(url))

    async def _administer(self, family: Family, statement: str) -> None:
        await _execute(self._server(family).render_as_string(hide_password=False), [statement])

    def _server(self, family: Family) -> URL:
        given = self.servers.postgresql if family == "postgresql" else self.servers.mariadb
        return make_url(given).set(drivername=_DRIVERS[family])

    async def _remove_keys(self) -> None:
        patterns = [f"{self.prefix}*", *(f"{FORMAT}:{name}:*" for name in self._namespaces)]
        async with redis.asyncio.Redis.from_url(self.servers.redis) as client:
            for pattern in patterns:
                await remove_keys(client, pattern)


async def _execute(url: str, statements: list[str]) -> None:
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            for statement in statements:
                await connection.execute(text(statement))
    finally:
        await engine.dispose()


async def namespace(url: str) -> str:
    """Returns what the keys of a database of ours are told from others' by."""
    engine = create_async_engine(url)
    query = "SELECT value FROM adk_internal_metadata WHERE {} = 'tiered_sessions_namespace'"
    column = "`key`" if engine.dialect.name == "mysql" else "key"
    try:
        async with engine.connect() as connection:
            return str((await connection.execute(text(query.format(column)))).scalar_one())
    finally:
        await engine.dispose()


async def remove_keys(client: redis.asyncio.Redis, pattern: str) -> None:
    """Deletes the keys that match, and no others."""
    found = [key async for key in client.scan_iter(pattern, count=5000)]
    for start in range(0, len(found), 1000):
        await client.unlink(*found[start : start + 1000])
