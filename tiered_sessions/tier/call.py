"""One call: its commands that are under way, its connection, and what is left of its budget."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from ..store.base import StoreWriter
from ..uncut import Uncut
from .flights import Flight
from .patience import Patience, first_of
from .steps import Answer, Ended, Reply, Wait


class Call:
    """One call: its commands by handle, its connection, and what is left of its cache budget.

    A coroutine that was started and is waited for at once, alone, is awaited in place; any other
    becomes a task at the first wait. Nothing can come between, so both are "sent" at once.

    Attributes:
        budget: How long it may still wait for the cache, in seconds.
        flight: The flight that it is, if it is one.
        writer: Its connection, once it has one.
        writing: Whether its statement was sent: from then on it is completed (R29).
        stoppable: Whether it can be cut: a write.
        stopped: Whether it was.
        cut: The wait in which the caller of a write was cancelled. It is to be waited again, where
            nobody can cancel it: before the statement was sent it then answers `Ended.CANCELLED`.
        asking: Whether what was waited for last answers an `Ask`.
        meanwhile: Is called once, while the cache is asked, if nobody else waits for it. It raises nothing.
    """

    def __init__(
        self, budget: float, *, stoppable: bool = False, flight: Flight[Answer] | None = None
    ) -> None:
        self.budget = budget
        self.flight = flight
        self.writer: StoreWriter | None = None
        self.writing = False
        self.stoppable = stoppable
        self.stopped = False
        self.cut: Wait | None = None
        self.asking = False
        self.meanwhile: Callable[[], None] | None = None
        # By handle; of a command that was not worth sending its reply.
        self._commands: dict[int, Coroutine[Any, Any, Any] | asyncio.Future[Any] | Reply] = {}
        # How many of them are coroutines.
        self._unsent = 0
        # By handle, the first of which is 0.
        self._sent: list[float] = []

    def start(self, command: Coroutine[Any, Any, Any] | asyncio.Future[Any], sent: float = math.inf) -> int:
        """Starts a command, or takes one that is under way; returns its handle."""
        handle = len(self._sent)
        self._sent.append(sent)
        self._commands[handle] = command
        if not isinstance(command, asyncio.Future):
            self._unsent += 1
        return handle

    def reply(self, value: Any) -> int:
        """Returns the handle of a command whose reply is known without sending it."""
        handle = len(self._sent)
        self._sent.append(math.inf)
        self._commands[handle] = Reply(handle, value)
        return handle

    def age(self, handles: Iterable[int], now: float) -> float:
        """Returns how long ago the first of `handles` was sent, in seconds."""
        return now - min([self._sent[handle] for handle in handles], default=now)

    async def wait(self, step: Wait, limit: float | None, patience: Patience) -> Reply | Ended:
        """Returns the first reply among the step's handles, or why there is none within `limit` seconds."""
        if self.stopped and not self.writing:
            return Ended.CANCELLED
        handles, commands = step.handles, self._commands
        for handle in handles:
            if type(known := commands[handle]) is Reply:
                del commands[handle]
                return known
        if limit is not None and limit <= 0:
            return Ended.TIMER
        alone = self._alone(handles)
        # All in one coroutine: each more that is entered shows in a write's time.
        try:
            if alone is None:
                return await self._first(handles, limit)
            reply = await (alone if limit is None else patience.within(alone, limit))
            del commands[handles[0]]
            return Reply(handles[0], reply)
        except TimeoutError:
            if limit is None or alone is None:
                raise
            return Ended.TIMER
        except asyncio.CancelledError:
            if self.stoppable and not self.stopped:
                self.stopped = True
                self.cut = step
            raise

    def interrupt(self, work: object) -> None:
        """Notes that the caller was cancelled while `work` was awaited in place, as `wait` does."""
        if self.stoppable and not self.stopped:
            self.stopped = self.asking = True
            # A coroutine has heard of it, too, and is over.
            self.cut = Wait((self.start(work),) if isinstance(work, asyncio.Future) else ())

    def _alone(self, handles: tuple[int, ...]) -> Awaitable[Any] | None:
        """Returns the one command that is waited for, if it may be awaited in place; else None."""
        if len(handles) != 1:
            return None
        command = self._commands[handles[0]]
        assert not isinstance(command, Reply), "there is nothing to wait for"
        if isinstance(command, Uncut):
            return command
        # What a cancelled caller leaves half-way after its statement is waited for again.
        if self.writing and self.stoppable:
            return None
        if isinstance(command, asyncio.Future):
            return None if self._unsent or isinstance(command, asyncio.Task) else command
        if self._unsent > 1:
            return None
        self._unsent = 0
        return command

    async def _first(self, handles: tuple[int, ...], limit: float | None) -> Reply | Ended:
        if self._unsent:
            self._unsent = 0
            for handle, command in self._commands.items():
                if not isinstance(command, asyncio.Future | Reply):
                    self._commands[handle] = asyncio.create_task(command)
        if not handles:
            assert limit is not None
            await asyncio.sleep(limit)
            return Ended.TIMER
        futures: list[Any] = [self._commands[handle] for handle in handles]
        done = await first_of(futures, limit)
        for handle, future in zip(handles, futures, strict=True):
            if future in done:
                del self._commands[handle]
                return Reply(handle, future.result())
        return Ended.TIMER

    @property
    def idle(self) -> bool:
        """Whether there is nothing to end."""
        return not self._commands and self.writer is None

    async def end(self) -> None:
        """Ends what is still under way (late replies are of no use) and returns the connection."""
        tasks = []
        for command in self._commands.values():
            if isinstance(command, asyncio.Future):
                command.cancel()
                if isinstance(command, asyncio.Task):
                    tasks.append(command)
            elif not isinstance(command, Reply):
                command.close()
        try:
            if tasks:
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            if self.writer is not None:
                await self.writer.release()
