"""Waiting with a limit in a process that may have been held up itself.

An event loop that was busy for longer than a limit finds the reply and the end of the limit at once,
and a plain time-out would discard the reply. Here the loop turns a few times more first, so that what
has arrived is read: a slow process is not taken for a slow server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

HELD_UP: Final = 0.005
"""A timer that is later than this, in seconds, says that the loop was busy."""

# From the socket through a reader's task to whoever waits.
_TURNS: Final = 4


class _Timer:
    """Calls `end` at `when`, or some turns later if the loop was busy then."""

    def __init__(self, when: float, end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = end
        self._when = when
        self._turns = _TURNS
        self._handle: asyncio.Handle = self._loop.call_at(when, self._fire)

    def stop(self) -> None:
        self._handle.cancel()

    def _fire(self) -> None:
        if self._turns and self._loop.time() > self._when + HELD_UP:
            self._turns -= 1
            self._handle = self._loop.call_soon(self._fire)
        else:
            self._end()


async def within(command: Awaitable[T], limit: float) -> T:
    """Awaits `command` for at most `limit` seconds.

    Raises:
        TimeoutError: It took longer, and has been cancelled.
    """
    now = asyncio.get_running_loop().time
    async with asyncio.timeout(None) as bound:
        timer = _Timer(now() + limit, lambda: bound.reschedule(now()))
        try:
            return await command
        finally:
            timer.stop()


async def reply_of(future: asyncio.Future[T], limit: float) -> T:
    """Awaits a future that nobody else awaits for at most `limit` seconds.

    Raises:
        TimeoutError: It took longer; the future is done.
    """

    def end() -> None:
        if not future.done():
            future.set_exception(TimeoutError())

    timer = _Timer(asyncio.get_running_loop().time() + limit, end)
    try:
        return await future
    finally:
        timer.stop()


async def first_of(futures: Sequence[asyncio.Future[Any]], limit: float | None) -> set[asyncio.Future[Any]]:
    """Returns those of `futures` that are done when the first is, or none after `limit` seconds."""
    done = {future for future in futures if future.done()}
    if done:
        return done
    loop = asyncio.get_running_loop()
    when = None if limit is None else loop.time() + limit
    # `asyncio.wait` does the same, and more that shows in a write's time.
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: Any) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = None if when is None else loop.call_at(when, wake, None)
    for future in futures:
        future.add_done_callback(wake)
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()
        for future in futures:
            future.remove_done_callback(wake)
    done = {future for future in futures if future.done()}
    if not done and when is not None and loop.time() > when + HELD_UP:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        done = {future for future in futures if future.done()}
    return done
