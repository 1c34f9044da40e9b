"""Faults of the cache server: slow, silent, forgetful, full."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import redis
import redis.asyncio

from tests.histories.faults_common import (
    DURING,
    NEVER,
    UNTIL_APPLIED,
    Injection,
    info,
    require,
    until,
)
from tiered_sessions.cli.cache import opened_store

if TYPE_CHECKING:
    from tests.histories.fleet import Fleet

ROUNDS = 3
PAUSE_MS = 700
SILENCE = 0.1
SET = ("SET", "fault:pause", "", "PX", 60_000)


async def silent(fleet: Fleet) -> bool:
    """Says whether the cache server leaves a ping unanswered."""
    client = redis.asyncio.Redis.from_url(fleet.cache.url, socket_timeout=SILENCE, retry=None)
    async with client:
        try:
            await client.execute_command("PING")
        except redis.TimeoutError:
            return True
    return False


class Paused(Injection):
    """The server's process is stopped (SIGSTOP): connections stay open, nothing answers."""

    name = "redis paused"

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        fleet.cache.pause()
        try:
            require(await silent(fleet), "a paused server does not answer")
            yield
        finally:
            fleet.cache.resume()


class ClientPause(Injection):
    """The server holds back its clients' commands, or only those that write, by its own CLIENT PAUSE."""

    def __init__(self, mode: str) -> None:
        self.name = f"redis CLIENT PAUSE {mode}"
        self._mode = mode

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        # By the server's clock, and in one packet: however slow this process, the pause has not ended
        # when the command comes that waits for its end.
        commands = (("TIME",), pause(self._mode), SET if self._mode == "WRITE" else ("PING",), ("TIME",))
        async with redis.asyncio.Redis.from_url(fleet.cache.url, single_connection_client=True) as client:
            await client.ping()
            wire = client.connection
            assert wire is not None
            await wire.send_packed_command(wire.pack_commands(commands))
            before = await wire.read_response()
            await wire.read_response()
            yield
            await wire.read_response()
            waited = milliseconds(await wire.read_response()) - milliseconds(before)
        require(waited > PAUSE_MS / 2, "commands wait for the end of a CLIENT PAUSE")


def pause(mode: str) -> tuple[object, ...]:
    """Returns the command that has the server hold back all clients' commands, or those that write."""
    return ("CLIENT", "PAUSE", PAUSE_MS, mode)


def milliseconds(told: Sequence[bytes]) -> int:
    """Returns what the server's TIME told."""
    seconds, microseconds = map(int, told)
    return seconds * 1000 + microseconds // 1000


class Emptied(Injection):
    """The server ends without a goodbye and starts again with nothing."""

    name = "redis restarted empty"
    staleness = UNTIL_APPLIED

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        before = (await info(fleet, "server"))["run_id"]
        await asyncio.to_thread(fleet.cache.kill)
        try:
            await fleet.progress(DURING)
        finally:
            await asyncio.to_thread(fleet.cache.restart)
        require((await info(fleet, "server"))["run_id"] != before, "another process answers")
        require((await info(fleet, "persistence"))["rdb_last_load_keys_loaded"] == 0, "it was empty")
        yield


class RestartedAtOnce(Injection):
    """The server ends and is there again at once: connections break, new ones find an empty server."""

    name = "redis restarted at once"
    staleness = UNTIL_APPLIED

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        before = (await info(fleet, "server"))["run_id"]
        await asyncio.to_thread(fleet.cache.restart)
        require((await info(fleet, "server"))["run_id"] != before, "another process answers")
        yield


class OldSnapshot(Injection):
    """The server dies and starts with what it held some time ago."""

    name = "redis restarted from an old snapshot"
    staleness = UNTIL_APPLIED

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        settings = await fleet.admin("CONFIG", "GET", "dir", "dbfilename")
        dump = os.path.join(settings[b"dir"], settings[b"dbfilename"])
        await fleet.admin("SAVE")
        try:
            await fleet.progress(2 * DURING)
            await asyncio.to_thread(fleet.cache.restart)
            loaded = (await info(fleet, "persistence"))["rdb_last_load_keys_loaded"]
            require(loaded > 0, "entries of the snapshot are back")
            yield
        finally:
            # Else every later restart would bring it back, too.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(dump)


class Flushed(Injection):
    """All keys vanish, masks and leases among them, at moments nobody chose."""

    name = "redis FLUSHALL"
    staleness = UNTIL_APPLIED
    command: tuple[str, ...] = ("FLUSHALL",)

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        for number in range(ROUNDS):
            if number:
                fleet.note(self.name)
            # Something to lose must be there.
            await until(fleet, lambda: fleet.admin("DBSIZE"), "there are keys to lose")
            before = await self._calls(fleet)
            await fleet.admin(*self.command)
            require(await self._calls(fleet) == before + 1, f"the server executed {self.name}")
            await fleet.progress(DURING // 2)
        yield

    async def _calls(self, fleet: Fleet) -> int:
        stats = await info(fleet, "commandstats")
        found = stats.get("cmdstat_" + "|".join(word.lower() for word in self.command), {})
        return int(found.get("calls", 0))


class ScriptsFlushed(Flushed):
    """The server forgets the scripts it is called to run by their digests."""

    name = "redis SCRIPT FLUSH"
    staleness = NEVER
    command = ("SCRIPT", "FLUSH")


class NamespaceChanged(Injection):
    """`tiered-sessions cache reset` while the servers run: one after the other hears of it."""

    name = "cache namespace changed"
    # What a server still reads under the old one, the others mask under the new one.
    staleness = 6.0

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        async with opened_store(fleet.database_url) as store:
            namespace = await store.reset_namespace()
        await until(
            fleet, lambda: fleet.admin("KEYS", f"*:{namespace}:*:s:*"), "entries of the new one are in use"
        )
        yield


class Full(Injection):
    """The server's memory is full: it evicts keys, or refuses to write."""

    def __init__(self, policy: str) -> None:
        self.name = f"redis full, {policy}"
        # Who is refused a mask knows it; who is robbed of one does not.
        self.staleness = NEVER if policy == "noeviction" else UNTIL_APPLIED
        self._policy = policy

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        used = (await info(fleet, "memory"))["used_memory"]
        before = await self._suffered(fleet)
        await fleet.admin("CONFIG", "SET", "maxmemory-policy", self._policy)
        await fleet.admin("CONFIG", "SET", "maxmemory", used - 1000)
        try:
            await until(fleet, lambda: self._more(fleet, before), "the server evicted or refused")
            yield
        finally:
            await fleet.admin("CONFIG", "SET", "maxmemory", 0)

    async def _more(self, fleet: Fleet, before: int) -> bool:
        return await self._suffered(fleet) > before

    async def _suffered(self, fleet: Fleet) -> int:
        """Returns how many keys were evicted, or how many commands refused for want of memory."""
        if self._policy == "noeviction":
            refused = (await info(fleet, "errorstats")).get("errorstat_OOM", {})
            return int(refused.get("count", 0))
        return int((await info(fleet, "stats"))["evicted_keys"])
