"""Clocks that pass when a test says so, or that a test waits for."""

from __future__ import annotations

import asyncio
from typing import Protocol

START = 4_000_000_000_000
"""Where a manual clock begins: far ahead, so that a server that also has a clock of its own ends nothing."""


class Clock(Protocol):
    """How the suite lets time pass for the cache.

    `tick`: how close to a deadline, in ms, the suite may look and still know what it will find.
    """

    tick: int

    async def advance(self, milliseconds: int) -> None:
        """Returns when the cache's server is so much older, or a little more."""
        ...


class ManualClock:
    """Milliseconds that pass when a test says so. Calling it returns the time."""

    tick = 1

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    async def advance(self, milliseconds: int) -> None:
        """Lets time pass at once."""
        self.now += milliseconds


class WaitingClock:
    """The time of a server whose clock cannot be moved: the suite waits.

    Args:
        tick: How many ms the few calls of one rule may take.
    """

    def __init__(self, tick: int = 100) -> None:
        self.tick = tick

    async def advance(self, milliseconds: int) -> None:
        """Waits so long."""
        await asyncio.sleep(milliseconds / 1000)
