"""What the faults share: how old the documentation lets a read be, how a fault is shown to have happened."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.relay import Relay
from tiered_sessions import metrics
from tiered_sessions.cache.scripts import script

if TYPE_CHECKING:
    from tests.histories.fleet import Fleet
    from tests.histories.server import Server

# Seconds, by the rows of docs/consistency.md. That a writer was cut off is no matter of these: the history
# tells it of each write. The documented figure is milliseconds until an apply; the rest is for a busy
# machine. What is stuck, and must not be, shows until `max_staleness`, 30 s.
NEVER = 0.0
UNTIL_APPLIED = 2.0

# Operations of the whole fleet while the fault lasts, and after it.
DURING = 20
AFTER = 20
PATIENCE = 40.0

SCRIPTS = {name: f"EVALSHA {script(name).sha}" for name in ("intent", "apply", "drop")}
# What the statements of an append contain: the one that writes, the one that commits (PostgreSQL's commits
# by itself), and the one that waits for the row.
APPEND = {"postgresql": "UPDATE sessions x SET revision", "mysql": "UPDATE sessions SET"}
COMMIT = {"postgresql": APPEND["postgresql"], "mysql": "COMMIT"}
LOCK = {"postgresql": APPEND["postgresql"], "mysql": "FOR UPDATE"}


def require(happened: object, what: str) -> None:
    """Fails unless the fault happened as its name says."""
    if not happened:
        raise AssertionError(f"the fault did not happen: {what}")


class Injection:
    """A fault that begins, lasts while the clients work, and ends.

    Attributes:
        databases: For which databases the row is.
        hides_cache: Whether the fault keeps servers from the cache.
    """

    name: str
    staleness: float = NEVER
    store_fails: bool = False
    databases: Sequence[str] = ("postgresql", "mysql", "sqlite")
    hides_cache: bool = True

    def inject(self, fleet: Fleet) -> AbstractAsyncContextManager[None]:
        """Makes the fault, shows that it happened, and ends it with the block."""
        raise NotImplementedError

    async def run(self, fleet: Fleet) -> None:
        """Injects the fault, has the clients work, heals it, has them work again."""
        fleet.note(self.name)
        async with self.inject(fleet):
            await fleet.progress(DURING, any_outcome=self.store_fails)
        if self.hides_cache:
            await recovered(fleet)
        await fleet.progress(AFTER)


async def recovered(fleet: Fleet) -> None:
    """Returns once every server reads from the cache again."""
    before = [await hot_reads(server) for server in fleet.servers]

    async def back() -> bool:
        now = [await hot_reads(server) for server in fleet.servers]
        return all(after > earlier for after, earlier in zip(now, before, strict=True))

    await until(fleet, back, "every server reads from the cache again", any_outcome=True)


async def hot_reads(server: Server) -> int:
    """Returns how many reads of a server needed no load from SQL."""
    counts = await server.ask("counters")
    return int(counts.get(metrics.READ_CACHE, 0) + counts.get(metrics.READ_PROCESS, 0))


async def counted(server: Server, name: str) -> int:
    """Returns a counter of a server's service."""
    return int((await server.ask("counters")).get(name, 0))


async def until(
    fleet: Fleet, reached: Callable[[], Awaitable[object]], what: str, *, any_outcome: bool = False
) -> None:
    """Looks again and again while the clients work, until `reached`; fails if it never is."""
    # Not `in_time`: redis-py sends by `asyncio.wait_for`, which on Python 3.11 may lose a cancellation.
    deadline = time.monotonic() + PATIENCE
    while not await reached():
        require(time.monotonic() < deadline, what)
        await fleet.progress(1, any_outcome=any_outcome)


@contextlib.asynccontextmanager
async def in_time(what: str) -> AsyncIterator[None]:
    """Fails if the block does not end."""
    try:
        async with asyncio.timeout(PATIENCE):
            yield
    except TimeoutError as error:
        raise AssertionError(f"the fault did not happen: {what}") from error


async def met(relay: Relay, fault: str, times: int = 1) -> None:
    """Returns once that fault has met traffic of a relay `times` more often than now."""
    wanted = relay.injected[fault] + times
    async with in_time(f"a relay meets traffic: {fault}"):
        await relay.until(lambda: relay.injected[fault] >= wanted)


async def all_met(relays: Sequence[Relay], fault: str) -> None:
    """Returns once that fault has met traffic of each relay."""
    await asyncio.gather(*(met(relay, fault) for relay in relays))


async def holding(relay: Relay) -> None:
    """Returns once a relay holds back what it was told to."""
    async with in_time("a relay holds something back"):
        await relay.until(lambda: bool(relay.held))


def forget(relay: Relay) -> None:
    """Heals a relay; what it held back is lost with its connections."""
    relay.reset_all()
    relay.heal()


def process_file(pid: int, name: str) -> bytes | None:
    """Returns what Linux's /proc tells of a process; None if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}", name).read_bytes()
    return None


def dialect(fleet: Fleet) -> str:
    """Returns "postgresql", "mysql" or "sqlite"."""
    return fleet.database_url.partition("+")[0]


async def info(fleet: Fleet, section: str) -> dict[str, Any]:
    """Returns what the cache server says of itself."""
    found: dict[str, Any] = await fleet.admin("INFO", section)
    return found


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables for what is started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
