"""One load per key and process: concurrent readers share it (R30), but never a read that was
sent before they asked (R31)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flight(Generic[V]):
    """One shared load.

    It may be joined until it is sealed, which happens before it first reads. `ahead` is the flight
    it starts after.
    """

    def __init__(self, ahead: Flight[V] | None) -> None:
        loop = asyncio.get_running_loop()
        self.ahead = ahead
        self.sealed = False
        self.left_cache: asyncio.Future[None] = loop.create_future()
        self.task: asyncio.Task[V]

    def leave_cache(self) -> None:
        """Notes that from here on the flight waits for SQL only."""
        if not self.left_cache.done():
            self.left_cache.set_result(None)

    async def wait_for_cache(self, limit: float) -> bool:
        """Waits until it has left the cache; false if that took longer than `limit` seconds."""
        if not self.left_cache.done():
            await asyncio.wait((self.left_cache,), timeout=max(limit, 0.0))
        return self.left_cache.done()


class Flights(Generic[K, V]):
    """At most one flight a key runs; those who come too late share the next one."""

    def __init__(self) -> None:
        self._newest: dict[K, Flight[V]] = {}
        self._flying: set[asyncio.Task[V]] = set()

    def board(
        self, key: K, load: Callable[[Flight[V]], Awaitable[V]], *, cached: bool = True
    ) -> Flight[V]:
        """Returns the flight of `key` that has not been sealed yet, starting one if needed.

        `cached`: one that is started asks the cache, too, before it reads.
        The flight is a task of its own: a caller that is cancelled does not take it down.
        """
        newest = self._newest.get(key)
        if newest is not None and not newest.sealed:
            return newest
        flight = self._newest[key] = Flight(newest)
        if not cached:
            flight.leave_cache()
        flight.task = asyncio.get_running_loop().create_task(self._fly(key, flight, load))
        self._flying.add(flight.task)
        flight.task.add_done_callback(self._landed)
        return flight

    @property
    def tasks(self) -> list[asyncio.Task[V]]:
        """The flights under way, and those that wait for one."""
        return list(self._flying)

    async def _fly(self, key: K, flight: Flight[V], load: Callable[[Flight[V]], Awaitable[V]]) -> V:
        try:
            if flight.ahead is not None:
                await asyncio.wait((flight.ahead.task,))
                flight.ahead = None
            return await load(flight)
        finally:
            flight.sealed = True
            flight.leave_cache()
            if self._newest.get(key) is flight:
                del self._newest[key]

    def _landed(self, task: asyncio.Task[V]) -> None:
        self._flying.discard(task)
        if not task.cancelled():
            # Or a failure that no caller stayed to hear of would be reported as forgotten.
            task.exception()
