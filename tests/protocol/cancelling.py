"""Cancelling a call at its n-th wait, and the places to do it in."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncEngine

from tests.protocol.fleet import World
from tests.protocol.fleet_server import ERRAND, Errand, Server
from tiered_sessions.cache.base import SessionCache
from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.config import TieredConfig
from tiered_sessions.store.base import SessionStore
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.store import SqlSessionStore
from tiered_sessions.tier.tier import SessionTier

CONFIG = TieredConfig(sweep_every=0)


class Cancelled:
    """One call. Is cancelled when its tasks wait for the `at`-th time."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._task: asyncio.Task[Any] | None = None
        self._asked = False

    async def performs(self, work: Coroutine[Any, Any, object]) -> bool:
        """Performs `work`; false if it ended before it was to be cancelled."""
        context = contextvars.copy_context()
        context.run(CALL.set, self)
        self._task = asyncio.get_running_loop().create_task(work, context=context)
        await asyncio.wait((self._task,))
        assert self._task.cancelled() is self._asked, "the caller does not hear of it"
        if not self._asked:
            self._task.result()
        return self._left <= 0

    def waits(self) -> None:
        """Notes that one of its tasks waits now."""
        self._left -= 1
        if self._left == 0:
            asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        assert self._task is not None
        self._asked = self._task.cancel()


CALL: contextvars.ContextVar[Cancelled | None] = contextvars.ContextVar("call", default=None)


class Counted(Coroutine[Any, Any, Any]):
    """A coroutine each of whose waits is told to the call it belongs to."""

    def __init__(self, work: Coroutine[Any, Any, Any], call: Cancelled) -> None:
        self._work = work
        self._call = call

    def send(self, value: Any) -> Any:
        waited_for = self._work.send(value)
        self._call.waits()
        return waited_for

    def throw(self, *error: Any) -> Any:
        waited_for = self._work.throw(*error)
        self._call.waits()
        return waited_for

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Any:
        raise NotImplementedError


def count_waits(loop: asyncio.AbstractEventLoop) -> None:
    """Has the loop tell each call of its waits."""
    inner = loop.get_task_factory()

    def make(loop: Any, work: Any, **options: Any) -> Any:
        context = options.get("context")
        call = CALL.get() if context is None else context.get(CALL)
        counted = work if call is None else Counted(work, call)
        if inner is None:
            return asyncio.Task(counted, loop=loop, **options)
        return inner(loop, counted, **options)

    loop.set_task_factory(make)


# --- where -----------------------------------------------------------------------------------------


@dataclass
class Rig:
    """Two tiers over one database and one cache."""

    sessions: SessionTier
    other: SessionTier
    store: SessionStore
    cache: SessionCache
    checked_out: Callable[[], int]
    masks: Callable[[], int] | None = None
    app_name: str = "app"
    wait: Callable[[float], Awaitable[None]] | None = None
    """Lets time pass for the cache. None, as `masks`: its time is not ours."""

    async def close(self) -> None:
        """Closes both."""
        await self.sessions.close()
        await self.other.close()


Open = Callable[[], AbstractAsyncContextManager[Rig]]


def open_sockets() -> int:
    """Returns how many sockets the running loop has open."""
    loop: Any = asyncio.get_running_loop()
    return len(loop._selector.get_map())


def masks_in(cache: MemoryCache) -> int:
    return sum(len(slot.masks) for slot in cache._slots.values())


@asynccontextmanager
async def virtual(world: World) -> AsyncIterator[Rig]:
    """Two servers of a world, whose every command travels."""
    ERRAND.set(Errand())
    world.servers = first, second = [Server(world), Server(world)]
    rig = Rig(
        first.tier,
        second.tier,
        cast("SessionStore", second.store),
        cast("SessionCache", second.cache),
        lambda: first.store.engine.checked_out + second.store.engine.checked_out,
        masks=lambda: masks_in(world.cache),
        wait=asyncio.sleep,
    )
    try:
        yield rig
    finally:
        await rig.close()


@asynccontextmanager
async def real(url: str, *caches: SessionCache) -> AsyncIterator[Rig]:
    """Two tiers on a real database, each with an engine of its own."""
    engines = [build_engine(url, CONFIG) for _ in range(2)]
    stores = [SqlSessionStore(engine, owns_engine=True, config=CONFIG) for engine in engines]
    first, second = (
        SessionTier(store, cache, CONFIG, owns_cache=cache is not caches[0] or len(caches) > 1)
        for store, cache in zip(stores, (caches[0], caches[-1]), strict=True)
    )
    rig = Rig(first, second, stores[1], caches[-1], lambda: sum(_checked_out(engine) for engine in engines))
    try:
        yield rig
    finally:
        await rig.close()


def _checked_out(engine: AsyncEngine) -> int:
    pool: Any = engine.sync_engine.pool
    return int(pool.checkedout())


@asynccontextmanager
async def sqlite(url: str) -> AsyncIterator[Rig]:
    """A file, and a cache whose clock stands still but for `wait`."""
    now = 1_000_000

    async def wait(seconds: float) -> None:
        nonlocal now
        now += round(seconds * 1000)

    cache = MemoryCache(clock=lambda: now, shared=True)
    async with real(url, cache) as rig:
        rig.masks, rig.wait = lambda: masks_in(cache), wait
        yield rig
