"""Flights to Redis: commands packed into one round trip, on a connection whose server is known.

The package sends its commands itself instead of through a client's `execute_command`, for two
reasons: a client repeats what may have run already (a lease must not be), and a pool does not
tell which server answered (5.6).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, ConnectionPool
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from ..errors import ConfigurationError

Command = Sequence[str | bytes | int]
FAULTS = (RedisError, RedisClusterException, OSError)
"""What an unreachable, refusing or broken server makes redis-py raise."""

_WHO: tuple[Command, ...] = (("INFO", "server"), ("INFO", "replication"))


class Answers(NamedTuple):
    """The replies to one flight, errors of single commands among them, and who answered."""

    stamp: str
    replies: list[Any]


class Connections(Protocol):
    """A way to the server, or servers, of one cache."""

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """Returns the keys `names` by the server that holds them."""
        ...

    async def fly(self, name: str, commands: Sequence[Command]) -> Answers:
        """Sends `commands` in one packet to the server that holds the key `name`.

        Raises:
            RedisError, RedisClusterException, OSError: The outcome is unknown.
        """
        ...

    async def close(self) -> None:
        """Ends what flies; closes the connections if they are the package's own."""
        ...


class Flights:
    """Sends packets and collects their replies; knows the stamp of each connection."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._stamps: WeakKeyDictionary[Connection, str] = WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    async def fly(
        self,
        acquire: Callable[[], Awaitable[Any]],
        release: Callable[[Connection], Awaitable[None]],
        commands: Sequence[Command],
    ) -> Answers:
        """Sends `commands` on a connection and returns the replies.

        A cancelled caller leaves at once; its replies are read and thrown away, so that a slow
        server does not cost a new connection for each time-out.
        """
        connection: Connection | None = None
        replies: list[Any] = []
        sent = 0
        try:
            async with asyncio.timeout(self._timeout):
                connection = await acquire()
                # The first flight of a connection asks who it talks to; `_forget` hears of a reconnect.
                connection.register_connect_callback(self._forget)
                asks = connection not in self._stamps
                packet = [*_WHO, *commands] if asks else commands
                await connection.send_packed_command(connection.pack_commands(packet))
                sent = len(packet)
                await _collect(connection, replies, sent)
        except BaseException as error:
            if connection is not None:
                if sent and isinstance(error, asyncio.CancelledError):
                    self.background(self._drain(connection, release, replies, sent))
                else:
                    await _abandon(connection, release)
            raise
        if asks:
            self._stamps[connection] = _stamp(replies.pop(0), replies.pop(0))
        stamp = self._stamps.get(connection, "")
        if any(isinstance(reply, ReadOnlyError) for reply in replies):
            # A demoted master: the next connection asks for the address again.
            await connection.disconnect(nowait=True)
        await release(connection)
        return Answers(stamp, replies)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` until it is done or the flights are closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends the tasks in the background."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, connection: Connection) -> None:
        self._stamps.pop(connection, None)

    async def _drain(
        self,
        connection: Connection,
        release: Callable[[Connection], Awaitable[None]],
        replies: list[Any],
        sent: int,
    ) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await _collect(connection, replies, sent)
        except FAULTS:
            await _abandon(connection, release)
        except BaseException:
            await _abandon(connection, release)
            raise
        else:
            await release(connection)


class PoolConnections:
    """One server, or the master a Sentinel names."""

    def __init__(
        self, pool: ConnectionPool, timeout: float, closers: Sequence[Callable[[], Awaitable[None]]]
    ) -> None:
        self._pool = pool
        self._flights = Flights(timeout)
        self._closers = closers

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        return [list(names)]

    async def fly(self, name: str, commands: Sequence[Command]) -> Answers:
        return await self._flights.fly(self._pool.get_connection, self._pool.release, commands)

    async def close(self) -> None:
        await self._flights.close()
        for closer in self._closers:
            await closer()


class ClusterConnections:
    """The masters of a cluster, each for its slots."""

    def __init__(self, client: RedisCluster, timeout: float, owned: bool) -> None:
        self._client = client
        self._flights = Flights(timeout)
        self._owned = owned
        self._refreshing = False

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        groups: dict[int, list[str]] = {}
        for name in names:
            # By slot, not by node: a slot that moves is redirected alone.
            groups.setdefault(self._client.keyslot(name), []).append(name)
        return list(groups.values())

    async def fly(self, name: str, commands: Sequence[Command]) -> Answers:
        try:
            await self._client.initialize()
            answers = await self._fly(name, commands)
            moved = next((reply for reply in answers.replies if isinstance(reply, MovedError)), None)
            if moved is not None:  # nothing ran
                await self._client.nodes_manager.move_slot(moved)
                answers = await self._fly(name, commands)
        except (ConnectionError, RedisClusterException, OSError):
            self._refresh()
            raise
        if any(isinstance(reply, MovedError | ClusterDownError) for reply in answers.replies):
            self._refresh()
        return answers

    async def _fly(self, name: str, commands: Sequence[Command]) -> Answers:
        node = self._client.get_node_from_key(name)
        if node is None:
            raise ConnectionError("no node holds the key")

        async def release(connection: Connection) -> None:
            node.release(connection)

        return await self._flights.fly(lambda: _ready(node), release, commands)

    def _refresh(self) -> None:
        """Asks for the slots anew, in the background: the caller has its answer."""
        if not self._refreshing:
            self._refreshing = True
            self._flights.background(self._read_slots())

    async def _read_slots(self) -> None:
        try:
            await self._client.nodes_manager.initialize()
        except FAULTS:
            pass  # the next flight fails too, and asks again
        finally:
            self._refreshing = False

    async def close(self) -> None:
        await self._flights.close()
        if self._owned:
            await self._client.aclose()


async def _ready(node: ClusterNode) -> Connection:
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


async def _collect(connection: Connection, replies: list[Any], count: int) -> None:
    while len(replies) < count:
        try:
            reply = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
        except ResponseError as error:
            reply = error
        replies.append(reply)


async def _abandon(connection: Connection, release: Callable[[Connection], Awaitable[None]]) -> None:
    try:
        await connection.disconnect(nowait=True)
    finally:
        await release(connection)


def _stamp(server: Any, replication: Any) -> str:
    """Returns what names the process and its history, "" if it does not say."""
    names = []
    for reply, field in ((server, rb"run_id:(\w{16})"), (replication, rb"master_replid:(\w{16})")):
        found = re.search(field, reply) if isinstance(reply, bytes) else None
        if found is None:
            return ""
        names.append(found[1].decode())
    return "-".join(names)


def adopt(client: Redis | RedisCluster, timeout: float) -> Connections:
    """Returns the way through a client of the caller's, who closes it.

    Raises:
        ConfigurationError: The client is of another kind, or reads from replicas.
    """
    if isinstance(client, RedisCluster):
        if client.read_from_replicas or client.load_balancing_strategy is not None:
            raise ConfigurationError("the cache is never read from replicas: give a client that does not")
        return ClusterConnections(client, timeout, owned=False)
    if isinstance(client, Redis):
        return PoolConnections(client.connection_pool, timeout, ())
    raise ConfigurationError("the cache takes a URL or a client of redis.asyncio")
