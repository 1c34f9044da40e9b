"""What the first calls cost when Redis stops answering, before the library gives it up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from google.adk.events.event import Event
from google.adk.sessions.session import Session

from tests.relay import Relay

from .events import APP, stored_event
from .records import Group
from .subjects.base import Subject

_TRIALS = 5
_CALLS = 20


class Outage:
    """Cuts Redis off under a service that has been using it, several times."""

    def __init__(self, subject: Subject, uncached: Subject, group: Group) -> None:
        self._subject = subject
        self._uncached = uncached
        self._group = group
        self._clock = time.time()
        self._number = 0

    async def measure(self) -> dict[str, dict[str, float]]:
        """Returns, in ms, what a call takes without a cache and how much longer the first failing one took.

        "silent": Redis accepts and does not answer. "refused": it resets and refuses connections.
        """
        session = await self._get(self._uncached)
        plain = {
            "get": await self._plain(lambda: self._get(self._uncached)),
            "append": await self._plain(lambda: self._append(self._uncached, session)),
        }
        found = {}
        for fault in ("silent", "refused"):
            for name, seconds in (await self._trials(fault)).items():
                extra = [1000 * (one - plain[name]) for one in seconds]
                found[f"{name} {fault}"] = {
                    "sql": 1000 * plain[name],
                    "extra": statistics.median(extra),
                    "extra_most": max(extra),
                }
        return found

    async def _plain(self, call: Callable[[], Awaitable[Any]]) -> float:
        return statistics.median([await _timed(call()) for _ in range(_CALLS)])

    async def _trials(self, fault: str) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {"get": [], "append": []}
        for name in [*seconds] * _TRIALS:
            # What a writer without Redis leaves there may be old for others for a while: another session.
            self._number += 1
            async with Relay(self._subject.address.redis) as relay:
                subject = type(self._subject)(replace(self._subject.address, redis=relay.url))
                for _ in range(_CALLS):
                    session = await self._get(subject)
                    await self._append(subject, session)
                await subject.settle()
                if fault == "silent":
                    relay.black_hole()
                else:
                    relay.refuse()
                call = self._get(subject) if name == "get" else self._append(subject, session)
                seconds[name].append(await _timed(call))
                relay.heal()
                await subject.close()
        return seconds

    async def _get(self, subject: Subject) -> Session:
        found = await subject.service.get_session(
            app_name=APP,
            user_id=self._group.user_of(self._number),
            session_id=self._group.id_of(self._number),
        )
        assert found is not None
        return found

    async def _append(self, subject: Subject, session: Session) -> None:
        self._clock += 0.000_1
        event = stored_event(f"outage-{self._clock}", 0, self._clock)
        await subject.service.append_event(session, Event.model_validate(event))


async def _timed(call: Awaitable[Any]) -> float:
    began = time.perf_counter()
    await call
    return time.perf_counter() - began
