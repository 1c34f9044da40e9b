"""This library, in the forms it is used in."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio
from google.adk.sessions.base_session_service import BaseSessionService

from tiered_sessions.adk import TieredSessionService
from tiered_sessions.cache.keys import FORMAT

from .. import population
from ..events import APP
from ..places import namespace, remove_keys
from ..records import Group
from .base import Subject

_FAILING_CALLS = 20


class _Counters:
    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.ever: Counter[str] = Counter()

    def count(self, name: str, value: int = 1) -> None:
        self.counted[name] += value
        self.ever[name] += value


class Ours(Subject):
    """SQL with Redis in front, everything at its default."""

    def connect(self) -> BaseSessionService:
        # In order of need: `connect` is called by the base class's constructor.
        self._metrics = getattr(self, "_metrics", _Counters())
        return TieredSessionService(self.address.database, cache=self.cache(), metrics=self._metrics)

    def cache(self) -> Any:
        """Returns what the service is told of a cache."""
        return self.address.redis

    async def warm_elsewhere(self, group: Group) -> None:
        other = TieredSessionService(self.address.database, cache=self.cache())
        for number in range(group.sessions):
            await other.get_session(APP, group.user_of(number), group.id_of(number))
        await other.flush()
        await other.close()

    async def forget(self) -> None:
        name = await namespace(self.address.database)
        async with redis.asyncio.Redis.from_url(self.address.redis) as client:
            await remove_keys(client, f"{FORMAT}:{name}:*")

    async def settle(self) -> None:
        assert isinstance(self.service, TieredSessionService)
        await self.service.flush()

    def counters(self) -> dict[str, int]:
        counted = dict(self._metrics.counted)
        self._metrics.counted.clear()
        return counted

    @asynccontextmanager
    async def auditor(self) -> AsyncIterator[BaseSessionService]:
        async with TieredSessionService(self.address.database, cache=None) as service:
            yield service

    async def fill(self, groups: list[Group]) -> None:
        await population.fill_ours(self.address.database, groups)


class OursInProcess(Ours):
    """The embedded default: no Redis, the cache in the process and checked against SQL at every hit."""

    def cache(self) -> Any:
        return "memory"

    async def forget(self) -> None:
        """There is nothing that outlives a service."""


class OursUncached(OursInProcess):
    """Without a cache."""

    def cache(self) -> Any:
        return None


class OursCacheGone(OursInProcess):
    """With the address of a Redis where nothing listens, and the breaker open."""

    def cache(self) -> Any:
        return "redis://127.0.0.1:1/0"

    @property
    def _opened(self) -> bool:
        return self._metrics.ever["breaker.opened"] > 0

    async def ready(self, group: Group) -> None:
        for _ in range(_FAILING_CALLS):
            if self._opened:
                return
            await self.service.get_session(app_name=APP, user_id=group.user_of(0), session_id=group.id_of(0))
        raise RuntimeError("the breaker did not open")
