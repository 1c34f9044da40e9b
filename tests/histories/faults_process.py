"""Faults of the servers themselves: killed at each step of a write, and with a wrong clock."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal

from tests.histories.faults_common import (
    APPEND,
    COMMIT,
    DURING,
    LOCK,
    SCRIPTS,
    Injection,
    dialect,
    forget,
    holding,
    process_file,
    require,
    until,
)
from tests.histories.faults_sql import transaction, waiting
from tests.histories.server import CLOCK_SHIFT, FORMAT
from tiered_sessions.cache import keys

if TYPE_CHECKING:
    from tests.histories.fleet import Fleet
    from tests.relay import Relay

SHIFTS = (60, -60)


class Killed(Injection):
    """A server is killed (`kill -9`) at one step of a write, another server each time; later it is back."""

    hides_cache = False

    def __init__(self, step: str) -> None:
        self.name = f"writer killed {step}"
        self._turn = 0

    def at_the_step(self, fleet: Fleet, number: int) -> AbstractAsyncContextManager[None]:
        """Enters its block when that server is at the step and cannot go on."""
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        number = self._turn % len(fleet.servers)
        self._turn += 1
        server, pid = fleet.servers[number], fleet.servers[number].pid
        try:
            async with self.at_the_step(fleet, number):
                await server.kill()
        finally:
            # Else what a dead process had sent would arrive now.
            for relay in (fleet.cache_relays[number], *fleet.sql_relays[number : number + 1]):
                forget(relay)
        try:
            require(not server.alive and process_file(pid, "stat") is None, "it is dead")
            await fleet.progress(DURING)
        finally:
            if not server.alive:
                await server.start()
        yield


class KilledOnTheWire(Killed):
    """Killed when a command has been sent and not arrived, or has run and was not acknowledged.

    Args:
        step: Said of the moment.
        wire: On which way.
        command: The script, or "append" or "commit": the statement.
        held: Whether the command is held back, or its reply.
    """

    def __init__(
        self, step: str, wire: Literal["cache", "sql"], command: str, held: Literal["request", "reply"]
    ) -> None:
        super().__init__(step)
        self._wire = wire
        self._command = command
        self._held = held
        if wire == "sql":
            self.databases = ("postgresql", "mysql")

    @contextlib.asynccontextmanager
    async def at_the_step(self, fleet: Fleet, number: int) -> AsyncIterator[None]:
        if self._command == "intent" and fleet.sql_relays:
            # Who waits too long for a mask goes on without.
            fleet.sql_relays[number].hold_requests(APPEND[dialect(fleet)])
        relay = (fleet.cache_relays if self._wire == "cache" else fleet.sql_relays)[number]
        statements = {"append": APPEND, "commit": COMMIT}.get(self._command)
        command = statements[dialect(fleet)] if statements else SCRIPTS[self._command]
        (relay.hold_requests if self._held == "request" else relay.hold_replies)(command)
        await holding(relay)
        yield


class KilledWaitingForALock(Killed):
    """Killed while its statement waits for a row that another program has locked."""

    databases = ("postgresql", "mysql")
    store_fails = True

    def __init__(self) -> None:
        super().__init__("while its statement waits for a row lock")

    @contextlib.asynccontextmanager
    async def at_the_step(self, fleet: Fleet, number: int) -> AsyncIterator[None]:
        relay, text = fleet.sql_relays[number], LOCK[dialect(fleet)]

        async def waits() -> bool:
            return _unanswered(relay, text) and await waiting(fleet) > 0

        async with transaction(fleet, "SELECT id FROM sessions FOR UPDATE"):
            await until(fleet, waits, "a statement of the server waits for a lock", any_outcome=True)
            yield


def _unanswered(relay: Relay, text: str) -> bool:
    return any(
        not flight.answered and any(text in command for command in flight.commands)
        for flight in relay.flights
    )


class WrongClocks(Injection):
    """The wall clocks of two servers are wrong, one ahead and one behind."""

    hides_cache = False
    name = f"server clocks moved {SHIFTS[0]:+} s and {SHIFTS[1]:+} s"

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        wrong = list(zip(fleet.servers, SHIFTS, strict=False))
        try:
            for server, seconds in wrong:
                server.environment = {CLOCK_SHIFT: str(seconds)}
                await server.kill()
                await server.start()
                told = process_file(server.pid, "environ") or b""
                require(f"{CLOCK_SHIFT}={seconds}\0".encode() in told + b"\0", "its clock is wrong")
            yield
        finally:
            for server, _ in wrong:
                server.environment = {}
                if server.alive:
                    await server.kill()
                await server.start()


class RollingUpgrade(Injection):
    """Servers restart one by one with a release that keeps its entries in another format.

    Neither release masks, nor drops, what the other has cached.
    """

    hides_cache = False
    name = "rolling upgrade with two cache formats"
    config: dict[str, Any] = {"max_staleness": 2.0}  # noqa: RUF012 - part of the protocol of faults
    staleness = config["max_staleness"]

    def __init__(self) -> None:
        self._release = 0

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        self._release += 1
        # Not the product's own, nor that of the last time.
        release = f"{keys.FORMAT}-{self._release}"
        for server in fleet.servers:
            server.environment = {FORMAT: release}
            await server.close()
            await server.start()
            await until(
                fleet, lambda: fleet.admin("KEYS", f"{release}:*:s:*"), "entries of the new format are in use"
            )
            await fleet.progress(DURING)
        yield


def steps() -> list[Killed]:
    """Returns a row for each step of a write."""
    return [
        KilledOnTheWire("before its mask arrives", "cache", "intent", "request"),
        KilledOnTheWire("before its mask is acknowledged", "cache", "intent", "reply"),
        KilledOnTheWire("before its statement arrives", "sql", "append", "request"),
        KilledWaitingForALock(),
        KilledOnTheWire("after its commit, unacknowledged", "sql", "commit", "reply"),
        KilledOnTheWire("before its apply arrives", "cache", "apply", "request"),
        KilledOnTheWire("before its apply is acknowledged", "cache", "apply", "reply"),
        KilledOnTheWire("before its drop arrives", "cache", "drop", "request"),
    ]
