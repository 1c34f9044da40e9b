"""Waiting with a limit in a process that may have been held up itself.

An event loop that was busy for longer than a limit finds the reply and the end of the limit at once,
and a plain time-out would discard the reply. Here the loop turns a few times more first, so that what
has arrived is read: a slow process is not taken for a slow server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

HELD_UP: Final = 0.005
"""A timer that is later than this, in seconds, says that the loop was busy."""

# From the socket through a reader's task to whoever waits.
_TURNS: Final = 4


class Patience:
    """Limits of waits, of one event loop. One timer serves them all: most waits end long before."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        # Until when each task waits, on the loop's clock. Whoever finds itself gone has waited too long.
        self._waits: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.Handle | None = None
        self._due = 0.0
        self._turns = _TURNS

    @property
    def idle(self) -> bool:
        """Whether nobody waits."""
        return not self._waits

    async def within(self, command: Awaitable[T], limit: float) -> T:
        """Awaits `command` for at most `limit` seconds.

        Raises:
            TimeoutError: It took longer, and has been cancelled.
        """
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        when = loop.time() + limit
        cancelling = task.cancelling()
        waits = self._waits
        waits[task] = when
        if self._timer is None or when < self._due:
            self._watch(loop, when)
        try:
            reply = await command
        except BaseException as error:
            over = waits.pop(task, None) is None
            # As asyncio.timeout has it: who is cancelled by others as well hears of that.
            if over and task.uncancel() <= cancelling and isinstance(error, asyncio.CancelledError):
                raise TimeoutError from error
            raise
        if waits.pop(task, None) is None:
            task.uncancel()
        return reply

    def _watch(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = when
        self._timer = loop.call_at(when, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends the waits that are over; some turns later if the loop was busy when the first was due."""
        now = loop.time()
        if self._turns and now > self._due + HELD_UP:
            self._turns -= 1
            self._timer = loop.call_soon(self._look, loop)
            return
        self._timer, self._turns = None, _TURNS
        for task in [task for task, when in self._waits.items() if when <= now]:
            del self._waits[task]
            task.cancel()
        if self._waits:
            self._watch(loop, min(self._waits.values()))


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
