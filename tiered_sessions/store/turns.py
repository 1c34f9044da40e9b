"""Who may take a connection from the pool next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool

PATIENCE: Final = 0.02
"""How long callers wait while no connection at all comes free, in seconds."""


class Turns:
    """Has callers wait for the connections that the pool keeps, in their order.

    A pool opens a connection beyond those it keeps rather than let a caller wait a millisecond, and
    closes it when nobody waits: to open one takes as long as ten statements. Here these are for
    when the others are stuck.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        pool = engine.sync_engine.pool
        self._free: float = float("inf")
        self._longest = PATIENCE
        if isinstance(pool, AsyncAdaptedQueuePool) and pool.size() > 0:
            self._free, self._longest = pool.size(), pool.timeout()
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._ended = 0

    async def take(self) -> Callable[[], None]:
        """Waits for a turn, but not for ever; returns what to call when it has ended."""
        if self._free > 0:
            self._free -= 1
            return self._give_back
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(turn)
        end = loop.time() + self._longest

        seen = self._ended
        timer = loop.call_later(PATIENCE, lambda: look())

        def look() -> None:
            nonlocal timer, seen
            if seen != self._ended and loop.time() < end:
                seen = self._ended
                timer = loop.call_later(PATIENCE, look)
            elif not turn.done():
                turn.set_result(False)

        try:
            given = await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.result():
                self._give_back()
            raise
        finally:
            timer.cancel()
        return self._give_back if given else _nothing

    def _give_back(self) -> None:
        self._ended += 1
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._free += 1


def _nothing() -> None:
    pass
