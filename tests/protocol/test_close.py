"""Closing a tier ends, whatever its background work does with the cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.protocol.doubles import ToyStore, TroubledCache, run, tier
from tests.protocol.simulation import KEY
from tiered_sessions.records import OutboxRow, Query


class Deaf(ToyStore):
    """A store whose driver takes the first cancellation for itself, as `wait_for` of Python 3.11 may."""

    def __init__(self) -> None:
        super().__init__()
        self.draining = asyncio.Event()
        self.heard = 0

    async def outbox(self, limit: int) -> Sequence[OutboxRow]:
        self.draining.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.heard += 1
            if self.heard > 1:
                raise
        return []


def test_close_ends_though_the_drain_swallows_its_cancellation() -> None:
    """Before, the drain went on for ever, and `close()` waited for it."""

    async def main() -> int:
        store = Deaf()
        here = tier(store, TroubledCache())
        assert await here.get(KEY, Query()) is not None
        await store.draining.wait()
        async with asyncio.timeout(60):
            await here.close()
        return store.heard

    assert run(main()) == 1


def test_close_ends_the_flight_that_another_waits_for() -> None:
    """Before, only the newest of a key was ended, and the one it waits for read on."""

    async def main() -> list[str]:
        store = ToyStore()
        here = tier(store, TroubledCache())
        await here.prepare()
        store.gate = asyncio.Event()
        first = asyncio.create_task(here.get(KEY, Query()))
        await store.asked.wait()
        second = asyncio.create_task(here.get(KEY, Query()))
        await asyncio.sleep(0.01)
        async with asyncio.timeout(60):
            await here.close()
            ends = await asyncio.gather(first, second, return_exceptions=True)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        return [*(type(end).__name__ for end in ends), *(str(task) for task in left)]

    assert run(main()) == ["StoreUnavailableError"] * 2
