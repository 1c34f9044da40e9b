"""A fleet under load: server processes, a cache, a database, and a relay on every way between them.

A fault is run against it while the processes' clients work; what they did and saw is the history.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import orjson
import redis.asyncio
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from tests import servers
from tests.histories.server import Server
from tests.patience import UNREFUSED
from tests.relay import Relay
from tests.servers import OwnServer

PATIENCE = 60.0
# The window is small, so that a history soon is longer than what is cached of it.
CONFIG = {"window_events": 32, **UNREFUSED}
# Seconds, for 0.05: all of the fleet runs on one machine, which is busy and not therefore at fault.
CACHE_PATIENCE = 0.25


class Fault(Protocol):
    """One row of the matrix.

    Further attributes are optional:
        config: Settings of `TieredConfig` for all servers.
        topology: Starts the cache servers instead: an async context manager's factory; what it yields has
            `url`, and `nodes`, the list of its `OwnServer`s. There are no cache relays then.
        own_database: Whether the database is a PostgreSQL of the fleet's own, `fleet.database`.
        loses_commits: Whether what was acknowledged may be lost; then only what is read in the end counts.

    Attributes:
        name: What the row is called.
        staleness: Seconds that docs/consistency.md allows; 0.0: never.
        store_fails: Whether callers may see StoreUnavailableError and CommitOutcomeUnknownError.
    """

    name: str
    staleness: float
    store_fails: bool

    async def run(self, fleet: Fleet) -> None:
        """Injects the fault, heals it and returns; called again and again while the clients work."""
        ...


def shares(fault: Fault) -> bool:
    """Says whether the fault needs no fleet of its own."""
    return not any(hasattr(fault, name) for name in ("config", "topology", "own_database"))


class Fleet:
    """`async with` starts everything, ends everything; the clients work from the start.

    Args:
        fault: What its servers are started for; None: for no fault.
        folder: An empty folder; holds the history, and the database if it is SQLite.
        database: "postgresql", "mysql" or "sqlite".
        cache: "redis" or "valkey".
        processes: How many servers.
        clients: How many clients in each.
        settings: Further settings of the processes (tests/histories/server.py).

    Attributes:
        cache: The cache server, or what the fault's topology yielded.
        database: The database server if it is the fleet's own.
        database_url: SQLAlchemy's address, past the relays.
        cache_relays: One a process, between it and the cache.
        sql_relays: One a process, between it and the database; none for SQLite.
        servers: The processes.
        app: Whose sessions they are.
        history: The file of what they did.
    """

    cache: Any
    database: OwnServer | None
    database_url: str
    cache_relays: list[Relay]
    sql_relays: list[Relay]
    servers: list[Server]

    def __init__(
        self,
        fault: Fault | None,
        folder: Path,
        *,
        database: str = "postgresql",
        cache: str = "redis",
        processes: int = 3,
        clients: int = 3,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.fault = fault
        self.folder = folder
        self.app = ""
        self.history = folder
        self.database = None
        self.cache_relays = []
        self.sql_relays = []
        self.servers = []
        self._kinds = (database, cache)
        self._processes = processes
        config = {**CONFIG, **getattr(fault, "config", {})}
        self._settings = {
            "clients": clients,
            "config": config,
            "patience": CACHE_PATIENCE,
            **(settings or {}),
        }
        self._stack = AsyncExitStack()
        self._runs = 0
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self.acknowledged = 0
        self.completed = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._new_history()
            stack.callback(lambda: self._file.close())
            await self._start_database(stack)
            await self._start_cache(stack)
            for number in range(self._processes):
                await self._add_server(stack, number)
            stack.push_async_callback(self._close_servers)
            async with asyncio.TaskGroup() as starts:
                for server in self.servers:
                    starts.create_task(server.start())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.__aexit__(None, None, None)

    async def again(self, fault: Fault) -> None:
        """Begins anew with another fault that `shares`, in sessions of another app.

        The clients must be paused.
        """
        self.fault = fault
        self._file.close()
        self._new_history()
        for server in self.servers:
            await server.ask("resume", self.app)

    # --- for faults --------------------------------------------------------------------------------

    async def admin(self, *command: object) -> Any:
        """Executes a command on the cache server, past the relays."""
        async with redis.asyncio.Redis.from_url(self.cache.url, socket_timeout=PATIENCE) as client:
            return await client.execute_command(*command)

    async def sql(self, *statements: str) -> list[Any]:
        """Executes statements on the database, past the relays, each committed by itself.

        Returns:
            The rows of the last one.
        """
        engine = create_async_engine(self.database_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        rows: list[Any] = []
        async with engine.connect() as connection:
            for statement in statements:
                found = await connection.exec_driver_sql(statement)
                rows = [tuple(row) for row in found] if found.returns_rows else []
        await engine.dispose()
        return rows

    async def progress(self, operations: int, *, any_outcome: bool = False) -> None:
        """Returns after that many more acknowledged operations, or failed ones with `any_outcome`."""
        if any_outcome:
            wanted = self.completed + operations
            await self.until(lambda: self.completed >= wanted)
        else:
            wanted = self.acknowledged + operations
            await self.until(lambda: self.acknowledged >= wanted)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Returns once `reached` is true, looking after each operation of any process.

        Raises:
            TimeoutError: It was not true for a minute.
            RuntimeError: A process ended that nobody killed.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((reached, future))
        self._look()
        async with asyncio.timeout(PATIENCE):
            await future

    def note(self, text: str) -> None:
        """Writes down an injected fault, with its time."""
        self.record(kind="fault", text=text, at=time.monotonic_ns())

    def record(self, **operation: Any) -> None:
        """Writes down what another writer did; the fields are those of `tests.histories.history`."""
        self._write(orjson.dumps(operation) + b"\n")

    def flush(self) -> None:
        """Writes out what is not in the file of the history yet."""
        self._file.flush()

    # --- plumbing ----------------------------------------------------------------------------------

    def heard(self, line: bytes) -> None:
        """Takes a line of a process: an operation begun or completed."""
        self._write(line)
        if b'"outcome":null' in line:
            return
        self.completed += 1
        if b'"outcome":"ok"' in line:
            self.acknowledged += 1
        self._look()

    def ended(self, server: Server, words: str) -> None:
        """Hears that a process ended that nobody killed."""
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(RuntimeError(f"server {server.number} ended: {words}"))
        self._waiting.clear()

    def _write(self, line: bytes) -> None:
        self._file.write(line)

    def _look(self) -> None:
        if not self._waiting:
            return
        for reached, future in self._waiting:
            if not future.done() and reached():
                future.set_result(None)
        self._waiting = [(reached, future) for reached, future in self._waiting if not future.done()]

    def _new_history(self) -> None:
        self._runs += 1
        self.app = f"fleet{self._runs}" if self._runs > 1 else "fleet"
        self.history = self.folder / f"history-{self._runs}.jsonl"
        self._file = self.history.open("ab")

    async def _close_servers(self) -> None:
        async with asyncio.TaskGroup() as ends:
            for server in self.servers:
                ends.create_task(server.close())

    async def _start_database(self, stack: AsyncExitStack) -> None:
        kind = self._kinds[0]
        if getattr(self.fault, "own_database", False):
            self.database = stack.enter_context(servers.start_postgres())
            self.database_url = self.database.url.replace("postgresql://", "postgresql+asyncpg://")
        elif kind == "sqlite":
            self.database_url = f"sqlite+aiosqlite:///{self.folder / 'sessions.db'}"
        else:
            made = servers.postgresql_database if kind == "postgresql" else servers.mariadb_database
            self.database_url = stack.enter_context(made())

    async def _start_cache(self, stack: AsyncExitStack) -> None:
        topology: Callable[[], AbstractAsyncContextManager[Any]] | None
        topology = getattr(self.fault, "topology", None)
        if topology is not None:
            self.cache = await stack.enter_async_context(topology())
        else:
            start = servers.start_valkey if self._kinds[1] == "valkey" else servers.start_redis
            self.cache = stack.enter_context(start())

    async def _add_server(self, stack: AsyncExitStack, number: int) -> None:
        cache_url, database_url = self.cache.url, self.database_url
        if getattr(self.fault, "topology", None) is None:
            relay = await stack.enter_async_context(Relay(cache_url))
            self.cache_relays.append(relay)
            cache_url = relay.url
        if not database_url.startswith("sqlite"):
            relay = await stack.enter_async_context(Relay(database_url))
            self.sql_relays.append(relay)
            database_url = relay.url
        settings = {**self._settings, "server": number, "db_url": database_url, "cache": cache_url}
        self.servers.append(Server(number, settings, self))
