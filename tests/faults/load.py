"""A load of reads and appends through several services, and the check of what they saw.

Each task reads a session and appends to what it read, over and over. Appends carry unique ids and
reads are lists of them (Elle's list-append), so one final reading of SQL tells of every read
whether it was a piece of the one log, and how old it was.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

from tests.faults.worker import Counters
from tiered_sessions import (
    CommitOutcomeUnknownError,
    Event,
    EventActions,
    GetSessionConfig,
    Session,
    StaleSessionError,
    StoreUnavailableError,
    TieredSessionService,
)

USER = "user"
WINDOW = GetSessionConfig(num_recent_events=20)
PAYLOAD = "x" * 1000
READS = 3
PATIENCE = 30.0


@dataclass
class Seen:
    """One read: when it began, how many appends of the session were acknowledged by then, its end."""

    session: str
    began: float
    acknowledged: int
    events: list[str]


@dataclass
class Log:
    """What the tasks know of one session: acknowledged appends, and when; those that failed for sure."""

    acknowledged: list[tuple[str, float]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)


class Load:
    """Runs the tasks while its `async with` block makes faults.

    Args:
        services: One a server. All append to one session; each has another one of which it is the only
            writer, as chats have, and the others read it.
        store_fails: Whether calls may fail as documented for a database that is away.
    """

    def __init__(self, services: Sequence[TieredSessionService], *, store_fails: bool = False) -> None:
        self._services = services
        self._names = ["shared", *(f"of{number}" for number in range(len(services)))]
        self._store_fails = store_fails
        self._numbers = itertools.count()
        self._stopping = False
        self._progress = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self.app = f"load-{uuid4().hex[:12]}"
        self.logs = {name: Log() for name in self._names}
        self.reads: list[Seen] = []
        self.outages = 0
        self.unknown = 0
        self.longest = 0.0

    async def __aenter__(self) -> Self:
        for name in self._names:
            await self._services[0].create_session(self.app, USER, session_id=name)
        for name in self._names:
            for number, service in enumerate(self._services):
                writes = name in ("shared", f"of{number}")
                self._tasks.append(asyncio.create_task(self._turns(service, name, writes)))
        return self

    async def __aexit__(self, error: object, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks, return_exceptions=error is not None)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Returns once `reached` is true, looking after each turn of a task."""
        async with asyncio.timeout(PATIENCE), self._progress:
            await self._progress.wait_for(lambda: reached() or any(task.done() for task in self._tasks))

    async def turns(self, count: int) -> None:
        """Returns after `count` more appends."""
        wanted = self.appends + count
        await self.until(lambda: self.appends >= wanted)

    @property
    def appends(self) -> int:
        """How many appends were acknowledged."""
        return sum(len(log.acknowledged) for log in self.logs.values())

    # --- one task ----------------------------------------------------------------------------

    async def _turns(self, service: TieredSessionService, name: str, writes: bool) -> None:
        while not self._stopping:
            began = time.monotonic()
            try:
                await self._turn(service, name, writes)
            except StoreUnavailableError:
                if not self._store_fails:
                    raise
                self.outages += 1
            self.longest = max(self.longest, time.monotonic() - began)
            async with self._progress:
                self._progress.notify_all()

    async def _turn(self, service: TieredSessionService, name: str, writes: bool) -> None:
        log = self.logs[name]
        for _ in range(READS):
            seen = Seen(name, time.monotonic(), len(log.acknowledged), [])
            session = await service.get_session(self.app, USER, name, WINDOW)
            assert session is not None
            seen.events = [event.id for event in session.events]
            self.reads.append(seen)
        if not writes:
            return
        number = next(self._numbers)
        event = _event(f"e{number}", number)
        try:
            await service.append_event(session, event)
        except StaleSessionError:
            return
        except StoreUnavailableError:
            log.refused.add(event.id)
            raise
        except CommitOutcomeUnknownError:
            if not self._store_fails:
                raise
            self.unknown += 1
            await self._settle(service, session, number)
        log.acknowledged.append((event.id, time.monotonic()))

    async def _settle(self, service: TieredSessionService, session: Session, number: int) -> None:
        """Appends the event of an unknown outcome again, with the same id, until it is acknowledged."""
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    again = await service.get_session(self.app, USER, session.id, WINDOW)
                    assert again is not None
                    await service.append_event(again, _event(f"e{number}", number))
                except (StaleSessionError, StoreUnavailableError, CommitOutcomeUnknownError):
                    # A refused connection fails at once: the others must have their turn.
                    await asyncio.sleep(0)
                    continue
                return

    # --- what it comes to --------------------------------------------------------------------

    async def check(self, truth: TieredSessionService) -> list[float]:
        """Compares every read with the log in SQL; `truth` is a service without a cache.

        Returns:
            The ages of stale reads in seconds: how long before its begin the oldest append that
            it misses was acknowledged.
        """
        logs = {name: await self._log(truth, name) for name in self._names}
        places = {name: {event: at for at, event in enumerate(log)} for name, log in logs.items()}
        for name, log in self.logs.items():
            stored = logs[name]
            assert len(set(stored)) == len(stored)
            assert {event for event, _ in log.acknowledged} <= set(stored)
            assert not log.refused & set(stored), "nothing was written, it said"
        ages = []
        for read in self.reads:
            stored, place = logs[read.session], places[read.session]
            end = place[read.events[-1]] + 1 if read.events else 0
            assert read.events == stored[max(0, end - 20) : end]
            known = self.logs[read.session].acknowledged[: read.acknowledged]
            missed = [moment for event, moment in known if place[event] >= end]
            if missed:
                ages.append(read.began - min(missed))
        return ages

    async def settled(self, truth: TieredSessionService) -> None:
        """Checks that each service reads what SQL holds, after all that flies has landed."""
        for service in self._services:
            await service.flush()
        for name in self._names:
            wanted = await self._log(truth, name)
            for service in self._services:
                assert await self._log(service, name) == wanted

    async def _log(self, service: TieredSessionService, name: str) -> list[str]:
        session = await service.get_session(self.app, USER, name)
        assert session is not None
        return [event.id for event in session.events]

    async def hot(self, counters: Sequence[Counters]) -> None:
        """Reads until the cache answers for each service and session."""
        async with asyncio.timeout(PATIENCE):
            for service, counter in zip(self._services, counters, strict=True):
                for name in self._names:
                    before = hot_reads(counter)
                    while hot_reads(counter) == before:
                        await service.get_session(self.app, USER, name, WINDOW)


def hot_reads(counters: Counters) -> int:
    """Returns how many reads needed no load from SQL."""
    return counters.counts["reads.cache"] + counters.counts["reads.process"]


def _event(id: str, number: int) -> Event:
    actions = EventActions(state_delta={"last": number, "user:last": number} if number % 5 == 0 else {})
    # Repeating an append must repeat its content, so the time is the number's.
    content: Any = {"parts": [{"text": PAYLOAD}]}
    return Event(id=id, author="a", content=content, timestamp=1_700_000_000 + number, actions=actions)
