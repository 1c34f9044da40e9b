"""Waiting for what must not be cut short: a statement that may be committing (R29)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Uncut(asyncio.Future[T]):
    """A future that its waiter's cancellation does not touch.

    A task that is cancelled while it awaits this hears of it when this is done, by a `CancelledError`
    in place of the result, which is still here. A shield would let the waiter go at once.
    """

    task: asyncio.Task[T]
    """What it waits for, if that is a task: the event loop itself does not hold it."""

    def cancel(self, msg: Any = None) -> bool:
        return False

    def lose(self) -> None:
        """Ends it without a result: whoever waits is cancelled."""
        super().cancel()

    def follow(self, task: asyncio.Task[T]) -> None:
        """Has the outcome of `task`, which may be cancelled before it has begun."""
        self.task = task
        task.add_done_callback(self._settle)

    def _settle(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.lose()
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())


def uncut(work: Coroutine[Any, Any, T]) -> Uncut[T]:
    """Performs `work` in a task of its own."""
    outcome: Uncut[T] = Uncut(loop=asyncio.get_running_loop())
    outcome.follow(asyncio.create_task(work))
    return outcome
