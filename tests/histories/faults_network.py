"""Faults of the wire between servers and cache: slow, cut, silent one way; of all servers or of one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from tests.histories.faults_common import (
    DURING,
    Injection,
    all_met,
    counted,
    in_time,
    met,
    until,
)
from tests.relay import Flight, Relay
from tiered_sessions import metrics

if TYPE_CHECKING:
    from tests.histories.fleet import Fleet

ROUNDS = 3


class Slow(Injection):
    """Each piece takes `delay` seconds more, either way."""

    def __init__(self, delay: float) -> None:
        self.name = f"redis slow, {1000 * delay:g} ms each way"
        self._delay = delay

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        for relay in fleet.cache_relays:
            relay.request_delay = relay.reply_delay = self._delay
        try:
            await all_met(fleet.cache_relays, "delayed")
            yield
        finally:
            for relay in fleet.cache_relays:
                relay.request_delay = relay.reply_delay = 0.0


async def went_round(fleet: Fleet, chosen: Sequence[int]) -> None:
    """Returns once each of these servers has recorded what it could not mask."""
    before = [await counted(fleet.servers[number], metrics.OUTBOX_WRITTEN) for number in chosen]

    async def more() -> bool:
        now = [await counted(fleet.servers[number], metrics.OUTBOX_WRITTEN) for number in chosen]
        return all(after > earlier for after, earlier in zip(now, before, strict=True))

    await until(fleet, more, f"servers {list(chosen)} write to the outbox")


class Cut(Injection):
    """Connections of the chosen servers are cut and new ones refused."""

    name = "redis refuses connections"

    async def chosen(self, fleet: Fleet) -> Sequence[int]:
        """Returns the numbers of the servers that are cut off."""
        return range(len(fleet.servers))

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        chosen = await self.chosen(fleet)
        relays = [fleet.cache_relays[number] for number in chosen]
        for relay in relays:
            relay.refuse()
        try:
            await all_met(relays, "refused")
            await went_round(fleet, chosen)
            yield
        finally:
            for relay in relays:
                relay.heal()


class HalfOpen(Injection):
    """What is sent does not arrive, in one direction or both; nobody closes a connection.

    Healed, everything arrives at last: commands that run long after their sender gave up (R6).
    """

    def __init__(self, *, requests: bool, replies: bool) -> None:
        lost = "nothing" if requests and replies else "no request" if requests else "no reply"
        self.name = f"redis half-open, {lost} arrives"
        self._lost = {"requests": requests, "replies": replies}

    async def chosen(self, fleet: Fleet) -> Sequence[int]:
        """Returns the numbers of the servers whose packets are lost."""
        return range(len(fleet.servers))

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        chosen = await self.chosen(fleet)
        relays = [fleet.cache_relays[number] for number in chosen]
        for relay in relays:
            relay.black_hole(**self._lost)
        try:
            await all_met(relays, "held")
            await went_round(fleet, chosen)
            yield
        finally:
            for relay in relays:
                relay.heal()


class RepliesSwallowed(Injection):
    """Commands run and their replies are lost with the connection, one here and one there."""

    name = "redis replies swallowed"

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        # So few that the breaker stays closed, and the next command is exposed again.
        for _ in range(ROUNDS):
            for relay in fleet.cache_relays:
                relay.swallow_next_reply()
                await met(relay, "swallowed")
                await fleet.progress(1)
        yield


class Resets(Injection):
    """All connections are cut at once, again and again; new ones are welcome."""

    name = "redis connections reset"

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        for _ in range(ROUNDS):
            for relay in fleet.cache_relays:
                before = relay.injected["reset"]
                async with in_time("connections are cut"):
                    while relay.injected["reset"] == before:
                        relay.reset_all()
                        await fleet.progress(1)
            await fleet.progress(DURING // ROUNDS)
        yield


class OneCutOff(HalfOpen):
    """One server reaches the cache no more, without being told so; the others do.

    It writes and reads: its writes must reach the others' reads, its reads come from SQL.
    """

    def __init__(self, number: int) -> None:
        super().__init__(requests=True, replies=True)
        self.name = f"partition: server {number} and redis"
        self._number = number

    async def chosen(self, fleet: Fleet) -> Sequence[int]:
        return (self._number,)


class OneCut(Cut):
    """One server's connections to the cache are refused; the others' are not."""

    def __init__(self, number: int) -> None:
        self.name = f"partition: server {number} refused by redis"
        self._number = number

    async def chosen(self, fleet: Fleet) -> Sequence[int]:
        return (self._number,)


class HeldBack(Injection):
    """One server's commands of one kind do not arrive, until it gives up on all of them.

    Args:
        name: Whose commands.
        command: What they contain.
    """

    def __init__(self, name: str, command: str) -> None:
        self.name = f"partition: {name} and redis"
        self._command = command

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        relay = fleet.cache_relays[0]
        relay.hold_requests(self._command)
        try:
            await met(relay, "held")
            await went_round(fleet, (0,))
            yield
        finally:
            relay.heal()


class AllCutOff(HalfOpen):
    """No server reaches the cache: nobody can drain."""

    def __init__(self) -> None:
        super().__init__(requests=True, replies=True)
        self.name = "partition: all servers and redis"


class DrainerCutOff(Cut):
    """The one server that drains the outbox reaches the cache no more."""

    name = "partition: the drainer and redis"
    # Who drains is seen in what it asks of SQL.
    databases = ("postgresql", "mysql")

    async def chosen(self, fleet: Fleet) -> Sequence[int]:
        return (await drainer(fleet),)


async def drainer(fleet: Fleet) -> int:
    """Returns the number of the server that reads the outbox."""

    async def reads(number: int, relay: Relay) -> int:
        with relay.recording():
            await relay.wait_for(_reads_outbox)
        return number

    async with in_time("a server reads the outbox"):
        waiting = [asyncio.ensure_future(reads(*one)) for one in enumerate(fleet.sql_relays)]
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return done.pop().result()


def _reads_outbox(flights: list[Flight]) -> bool:
    return any(
        text.lstrip().upper().startswith("SELECT") and "FROM cache_outbox" in " ".join(text.split())
        for flight in flights
        for text in flight.commands
    )
