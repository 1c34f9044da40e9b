"""Round trips of a call, counted and timed by a relay in front of each server."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from google.adk.events.event import Event
from google.adk.sessions.session import Session
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.relay import Relay

from .events import APP, stored_event
from .records import Group
from .subjects.base import Subject
from .workloads import TURN

_CALLS = 10
_DELAY = 0.010
"""Seconds by which a relay lengthens each round trip when it is found out which are waited for."""


@dataclass(frozen=True, slots=True)
class Trips:
    """Round trips of one call.

    Attributes:
        sql: Flights to the database, counted; the median.
        redis: Flights to Redis, counted until background work is done; the median.
        awaited_sql: Flights the caller waited for: how much longer the call took with slower round trips,
            in units of how much longer one round trip did.
        awaited_redis: The same for Redis.
    """

    sql: float
    redis: float
    awaited_sql: float
    awaited_redis: float


class TripCounter:
    """Counts for one implementation, connected through relays."""

    def __init__(self, subject: Subject, group: Group, first: int) -> None:
        self._original = subject
        self._group = group
        self._first = first
        self._clock = time.time()
        self._bare: tuple[Callable[[], Awaitable[Any]], ...] = ()

    async def count(self) -> dict[str, dict[str, float]]:
        """Returns the round trips of a hot get, an append and a chat turn."""
        async with AsyncExitStack() as stack:
            address = self._original.address
            database = await stack.enter_async_context(Relay(address.database))
            redis = await stack.enter_async_context(Relay(address.redis))
            relayed = replace(address, database=database.url, redis=redis.url)
            subject = type(self._original)(relayed)
            stack.push_async_callback(subject.close)
            client = await stack.enter_async_context(Redis.from_url(relayed.redis))
            engine = create_async_engine(relayed.database, isolation_level="AUTOCOMMIT")
            stack.push_async_callback(engine.dispose)
            connection = await stack.enter_async_context(engine.connect())
            self._bare = (lambda: connection.execute(text("SELECT 1")), client.ping)
            found: dict[str, dict[str, float]] = {}
            for offset, (name, call) in enumerate(self._calls(subject)):
                found[name] = asdict(await self._of(call, subject, self._first + offset, database, redis))
            return found

    def _calls(self, subject: Subject) -> list[tuple[str, Callable[[int], Awaitable[Any]]]]:
        session: Session | None = None

        async def get(number: int) -> Session:
            found = await subject.service.get_session(
                app_name=APP, user_id=self._group.user_of(number), session_id=self._group.id_of(number)
            )
            assert found is not None
            return found

        async def append(number: int) -> None:
            nonlocal session
            session = session or await get(number)
            await subject.service.append_event(session, self._event(number))

        async def turn(number: int) -> None:
            own = await get(number)
            for _ in range(TURN):
                await subject.service.append_event(own, self._event(number))

        return [("get", get), ("append", append), ("turn", turn)]

    def _event(self, number: int) -> Event:
        self._clock += 0.000_1
        return Event.model_validate(stored_event(f"trip-{number}-{self._clock}", 0, self._clock))

    async def _of(
        self,
        call: Callable[[int], Awaitable[Any]],
        subject: Subject,
        number: int,
        database: Relay,
        redis: Relay,
    ) -> Trips:
        for _ in range(3):
            await call(number)
        sql, cache = [], []
        for _ in range(_CALLS):
            await subject.settle()
            with database.recording() as in_sql, redis.recording() as in_redis:
                await call(number)
                await subject.settle()
                sql.append(len(in_sql))
                cache.append(len(in_redis))
        plain = await _seconds(lambda: call(number), subject)
        slower = []
        for relay, bare in zip((database, redis), self._bare, strict=True):
            single = await _seconds(bare, subject)
            relay.request_delay = relay.reply_delay = _DELAY / 2
            delayed = await _seconds(lambda: call(number), subject)
            # The relay's timers are late, by a tenth of what they were told.
            single = await _seconds(bare, subject) - single
            relay.request_delay = relay.reply_delay = 0.0
            slower.append(max(0.0, (delayed - plain) / single))
        return Trips(statistics.median(sql), statistics.median(cache), *slower)


async def _seconds(call: Callable[[], Awaitable[Any]], subject: Subject) -> float:
    await call()
    seconds = []
    for _ in range(_CALLS):
        await subject.settle()
        began = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - began)
    await subject.settle()
    # The least: what else goes on on the machine only adds.
    return min(seconds)
