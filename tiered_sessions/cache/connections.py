"""Ways to the servers of a cache: for each, two connections that all callers share.

The package sends its commands itself instead of through a client's `execute_command`, for three
reasons: a client repeats what may have run already (a lease must not be), a pool does not tell which
server answered (5.6), and it sends the commands of each caller apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, ConnectionError, MovedError, RedisClusterException

from ..errors import ConfigurationError
from .line import Line
from .loan import Loan
from .queue import FAULTS, Answers, Call, CallQueue
from .resp import Command, Packed

__all__ = [
    "FAULTS",
    "Answers",
    "Call",
    "ClusterConnections",
    "Command",
    "Connections",
    "PoolConnections",
    "adopt",
]

QueueMaker = Callable[[Callable[[], None]], CallQueue]
"""Makes the calls of one connection, given what to do when its server is found demoted."""


class Connections(Protocol):
    """A way to the server, or servers, of one cache."""

    def groups(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        """Returns the keys `names` by the server that holds them."""
        ...

    def fly(self, name: str, commands: Packed) -> Awaitable[Answers]:
        """Sends `commands` in one packet to the server that holds the key `name`, and awaits the replies.

        Raises:
            RedisError, RedisClusterException, OSError: The outcome is unknown.
        """
        ...

    def post(self, name: str, call: Call) -> bool:
        """Sends a small call soon to the server that holds the key `name`.

        False: that needs to be waited for, and nothing was done.

        Raises:
            RedisError: Too much waits already; nothing was sent.
        """
        ...

    def hurry(self) -> None:
        """Sends what was posted."""
        ...

    async def close(self) -> None:
        """Ends what flies; closes the connections if they are the package's own."""
        ...


class Server:
    """One server: a connection for what is small, and one for whole entries if there may be two.

    Attributes:
        post: Sends a small call soon.
        hurry: Sends what was posted.
    """

    def __init__(self, make: QueueMaker, connections: int) -> None:
        self._small = make(self._demoted)
        self._bulk = make(self._demoted) if connections > 1 else self._small
        # Not methods that hand on: every call of the service comes by here.
        self.post: Callable[[Call], None] = self._small.post
        self.hurry: Callable[[], None] = self._small.hurry

    def fly(self, commands: Packed) -> Awaitable[Answers]:
        """Sends `commands` and awaits the replies."""
        if not commands.bulk:
            return self._small.fly(commands)
        # They may read what was posted before them.
        self.hurry()
        return self._bulk.fly(commands)

    async def close(self) -> None:
        """Fails what flies and closes the connections."""
        try:
            await self._small.close()
        finally:
            await self._bulk.close()

    def _demoted(self) -> None:
        # A replica refuses the writes of one connection and would answer the reads of the other.
        self._small.leave()
        self._bulk.leave()


class PoolConnections:
    """One server, or the master a Sentinel names."""

    def __init__(
        self, make: QueueMaker, connections: int, closers: Sequence[Callable[[], Awaitable[None]]]
    ) -> None:
        self._server = Server(make, connections)
        self._closers = closers
        self.hurry: Callable[[], None] = self._server.hurry

    def groups(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        return (names,)

    def fly(self, name: str, commands: Packed) -> Awaitable[Answers]:
        return self._server.fly(commands)

    def post(self, name: str, call: Call) -> bool:
        self._server.post(call)
        return True

    async def close(self) -> None:
        await self._server.close()
        for closer in self._closers:
            await closer()


class ClusterConnections:
    """The masters of a cluster, each for its slots."""

    def __init__(self, client: RedisCluster, timeout: float, connections: int, *, owned: bool) -> None:
        self._client = client
        self._timeout = timeout
        self._connections = connections
        self._owned = owned
        self._servers: dict[str, Server] = {}
        self._refreshing: asyncio.Task[None] | None = None

    def groups(self, names: Sequence[str]) -> Sequence[Sequence[str]]:
        groups: dict[int, list[str]] = {}
        for name in names:
            # By slot, not by node: a slot that moves is redirected alone.
            groups.setdefault(self._client.keyslot(name), []).append(name)
        return tuple(groups.values())

    async def fly(self, name: str, commands: Packed) -> Answers:
        try:
            await self._client.initialize()
            answers = await self._holder(name).fly(commands)
            moved = next((reply for reply in answers.replies if isinstance(reply, MovedError)), None)
            if moved is not None:  # nothing ran
                await self._client.nodes_manager.move_slot(moved)
                answers = await self._holder(name).fly(commands)
        except (ConnectionError, RedisClusterException, OSError):
            self._refresh()
            raise
        if any(isinstance(reply, MovedError | ClusterDownError) for reply in answers.replies):
            self._refresh()
        return answers

    def post(self, name: str, call: Call) -> bool:
        # A slot may have moved, and its new holder be asked.
        return False

    def hurry(self) -> None:
        pass  # nothing was posted

    def _holder(self, name: str) -> Server:
        """Returns the server that holds the key `name`."""
        node = self._client.get_node_from_key(name)
        if node is None:
            raise ConnectionError("no node holds the key")
        server = self._servers.get(node.name)
        if server is None:
            make = _own_queue(node, self._timeout) if self._owned else _lent_queue(node, self._timeout)
            server = self._servers[node.name] = Server(make, self._connections)
        return server

    def _refresh(self) -> None:
        """Asks for the slots anew, in the background: the caller has its answer."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._read_slots())

    async def _read_slots(self) -> None:
        try:
            nodes = self._client.nodes_manager
            await nodes.initialize()
            for name in self._servers.keys() - nodes.nodes_cache.keys():
                await self._servers.pop(name).close()
        except FAULTS:
            pass  # the next flight fails too, and asks again
        finally:
            self._refreshing = None

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for server in self._servers.values():
            await server.close()
        if self._owned:
            await self._client.aclose()


def own(dial: Callable[[], AbstractConnection], timeout: float) -> QueueMaker:
    """Returns what makes queues for connections of our own; `dial` gives one that is not open yet."""
    return lambda demoted: Line(dial, timeout, demoted)


def lent(
    acquire: Callable[[], Awaitable[Any]], release: Callable[[Any], Awaitable[None]], timeout: float
) -> QueueMaker:
    """Returns what makes queues for connections that are borrowed and given back."""
    return lambda demoted: Loan(acquire, release, timeout, demoted)


def _own_queue(node: ClusterNode, timeout: float) -> QueueMaker:
    def dial() -> AbstractConnection:
        # As the node does it; but its own connections end whenever slots have moved.
        settings = {**node.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        connection: AbstractConnection = node.connection_class(**settings)
        return connection

    return own(dial, timeout)


def _lent_queue(node: ClusterNode, timeout: float) -> QueueMaker:
    async def acquire() -> AbstractConnection:
        """Returns a free connection of `node`, closed if the server has closed it."""
        connection = node.acquire_connection()
        try:
            await node.disconnect_if_needed(connection)
            if connection.is_connected and await connection.can_read():
                await connection.disconnect(nowait=True)
        except BaseException:
            node.release(connection)
            raise
        return connection

    async def release(connection: Any) -> None:
        node.release(connection)

    return lent(acquire, release, timeout)


def adopt(client: Redis | RedisCluster, timeout: float, connections: int) -> Connections:
    """Returns the way through a client of the caller's, who closes it.

    Raises:
        ConfigurationError: The client is of another kind, or reads from replicas.
    """
    if isinstance(client, RedisCluster):
        if client.read_from_replicas or client.load_balancing_strategy is not None:
            raise ConfigurationError("the cache is never read from replicas: give a client that does not")
        return ClusterConnections(client, timeout, connections, owned=False)
    if isinstance(client, Redis):
        pool: ConnectionPool = client.connection_pool
        make = lent(pool.get_connection, pool.release, timeout)
        return PoolConnections(make, min(connections, pool.max_connections), ())
    raise ConfigurationError("the cache takes a URL or a client of redis.asyncio")
