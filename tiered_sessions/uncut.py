"""Waiting for what must not be cut short: a statement that may be committing (R29)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


class Uncut(asyncio.Future[T]):
    """A future that its waiter's cancellation does not touch.

    A task that is cancelled while it awaits this hears of it when this is done, by a `CancelledError`
    in place of the result, which is still here. A shield would let the waiter go at once.
    """

    task: asyncio.Task[None]
    """What it waits for, if that is a task: the event loop itself does not hold it."""

    def cancel(self, msg: Any = None) -> bool:
        return False

    def lose(self) -> None:
        """Ends it without a result: whoever waits is cancelled."""
        super().cancel()

    async def follow(self, work: Awaitable[T]) -> None:
        """Awaits `work`, and has its result."""
        try:
            self.set_result(await work)
        except Exception as error:
            self.set_exception(error)
        except BaseException:
            self.lose()
            raise


def uncut(work: Awaitable[T]) -> Uncut[T]:
    """Performs `work` in a task of its own."""
    outcome: Uncut[T] = Uncut(loop=asyncio.get_running_loop())
    outcome.task = asyncio.create_task(outcome.follow(work))
    return outcome
