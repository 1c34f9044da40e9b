"""What is under way: the commands of one call, and those that nobody waits for."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from enum import Enum
from functools import partial
from typing import Any

from .. import metrics as counters
from ..cache.base import (
    ApplyReply,
    FillReply,
    Hit,
    Masked,
    Miss,
    Posting,
    SessionCache,
    Unavailable,
)
from ..metrics import Metrics
from ..records import ScopeKey
from ..store.base import StoreWriter
from ..uncut import Uncut
from .breaker import LONGEST, Breaker
from .flights import Flight
from .patience import Patience, first_of
from .steps import (
    Answer,
    Apply,
    CacheCommand,
    Drop,
    Elect,
    Ended,
    Fill,
    Intent,
    Lease,
    LookUp,
    Release,
    Reply,
    ScopedCommand,
    Touch,
    Wait,
)

logger = logging.getLogger("tiered_sessions")

_LATER_TIMEOUT = 1.0
_LATER_LIMIT = 10_000

_COUNTED: dict[Enum, str] = {
    FillReply.STORED: counters.FILL_STORED,
    FillReply.MASKED: counters.FILL_REFUSED,
    FillReply.REFUSED: counters.FILL_REFUSED,
    ApplyReply.APPLIED: counters.APPLY_APPLIED,
    ApplyReply.OLD: counters.APPLY_APPLIED,
    ApplyReply.ABSENT: counters.APPLY_ABSENT,
    ApplyReply.GAP: counters.APPLY_GAP,
}
_FOUND: dict[type, str] = {
    Hit: counters.CACHE_HIT,
    Miss: counters.CACHE_MISS,
    Masked: counters.CACHE_MASKED,
    Unavailable: counters.CACHE_UNAVAILABLE,
}


_POSTED: dict[type, str] = {
    LookUp: "lookup",
    Intent: "intent",
    Release: "release",
    Lease: "lease",
    Apply: "apply",
    Drop: "drop",
}


class Call:
    """One call: its commands by handle, its connection, and what is left of its cache budget.

    A coroutine that was started and is waited for at once, alone, is awaited in place; any other
    becomes a task at the first wait. Nothing can come between, so both are "sent" at once.

    Attributes:
        cut: The wait in which the caller of a write was cancelled. It is to be waited again, where
            nobody can cancel it: before the statement was sent it then answers `Ended.CANCELLED`.
        asking: Whether the last wait was an `Ask`'s.
        stoppable: Whether it can be cut: a write.
        stopped: Whether it was.
    """

    def __init__(
        self, budget: float, *, stoppable: bool = False, flight: Flight[Answer] | None = None
    ) -> None:
        self.budget = budget
        self.flight = flight
        self.writer: StoreWriter | None = None
        self.committed = False
        self.cut: Wait | None = None
        self.asking = False
        self.stoppable = stoppable
        # By handle; of a command that was not worth sending its reply.
        self._commands: dict[int, Coroutine[Any, Any, Any] | asyncio.Future[Any] | Reply] = {}
        # How many of them are coroutines.
        self._unsent = 0
        # By handle, the first of which is 0.
        self._sent: list[float] = []
        self.stopped = False

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
        if self.stopped and not self.committed:
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
        if self.committed and self.stoppable:
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


class CacheCalls:
    """Performs cache commands under the breaker, and keeps those of the background."""

    def __init__(
        self,
        cache: SessionCache | None,
        breaker: Breaker,
        metrics: Metrics,
        clock: Callable[[], float],
        elected_for: float,
    ) -> None:
        self._cache = cache
        self._posting = cache if isinstance(cache, Posting) else None
        self._breaker = breaker
        self._metrics = metrics
        self._clock = clock
        self._last: dict[ScopeKey, asyncio.Task[Any]] = {}
        self._background: set[asyncio.Future[Any]] = set()
        self._elected_for = round(elected_for * 1000)
        self._owner = secrets.token_hex(8)

    @property
    def tasks(self) -> list[asyncio.Future[Any]]:
        """The background commands under way."""
        return list(self._background)

    def refused(self, command: CacheCommand) -> Any:
        """Returns the reply of a command that is not worth sending, None if it is."""
        if self._cache is not None and not self._breaker.open:
            return None
        if self._cache is not None and self._breaker.probe_due:
            self._breaker.probe_sent()
            probe = asyncio.create_task(self._probe(self._cache))
            self._background.add(probe)
            probe.add_done_callback(self._background.discard)
        return _unavailable(command, "the circuit breaker is open")

    def begin(self, command: CacheCommand) -> Coroutine[Any, Any, Any] | asyncio.Future[Any]:
        """Performs one command and tells the breaker how it went; it may wait for `hurry()` to be sent."""
        return self._post(command) or self.perform(command)

    def hurry(self) -> None:
        """Sends what was begun: somebody waits for it now."""
        if self._posting is not None:
            self._posting.hurry()

    def _post(self, command: CacheCommand) -> asyncio.Future[Any] | None:
        name = _POSTED.get(type(command))
        if self._posting is None or name is None:
            return None
        return self._posting.post(name, command, partial(self._noted, command, self._clock()))

    async def perform(self, command: CacheCommand) -> Any:
        """Performs one command and tells the breaker how it went."""
        began = self._clock()
        try:
            reply = await self._sent(command)
        except Exception as error:
            # No cache may do that (cache/base.py), but if one does it must not fail the call (I7).
            logger.exception("the cache raised %s", type(error).__name__)
            reply = _unavailable(command, type(error).__name__)
        return self._noted(command, began, reply)

    def _noted(self, command: CacheCommand, began: float, reply: Any) -> Any:
        if type(command) is LookUp:
            kinds = list(map(type, reply))
            failed = kinds.count(Hit) < len(kinds) and any(isinstance(part, Unavailable) for part in reply)
            for kind in set(kinds) & _FOUND.keys():
                self._metrics.count(_FOUND[kind], kinds.count(kind))
        else:
            failed = isinstance(reply, Unavailable)
            if failed:
                self._metrics.count(counters.CACHE_UNAVAILABLE)
            elif isinstance(reply, Enum) and reply in _COUNTED:
                self._metrics.count(_COUNTED[reply])
        if failed:
            self.failed(began)
        else:
            self._breaker.succeeded(self._clock() - began)
        return reply

    def failed(self, began: float) -> None:
        """Notes that a command sent at `began` failed or took too long."""
        if self._breaker.failed(began):
            self._metrics.count(counters.BREAKER_OPENED)
            logger.warning("the cache does not answer; reading from SQL until it does")

    def later(self, command: ScopedCommand) -> None:
        """Performs `command` in the background, after earlier ones of its key.

        The order saves hits; being lost costs a miss. With the breaker open, or too many waiting,
        it is discarded: the mask expires and takes the entry with it.
        """
        if self.refused(command) is not None or len(self._background) >= _LATER_LIMIT:
            self._metrics.count(counters.LATER_DISCARDED)
            return
        scope = command.scope
        earlier = self._last.get(scope)
        # What was posted is in order by itself.
        posted = self._post(command) if earlier is None else None
        if posted is None:
            posted = self._last[scope] = asyncio.create_task(self._follow(earlier, command))
            posted.add_done_callback(partial(self._forget, scope))
        self._background.add(posted)
        posted.add_done_callback(self._background.discard)

    def _forget(self, scope: ScopeKey, done: asyncio.Task[Any]) -> None:
        if self._last.get(scope) is done:
            del self._last[scope]

    async def flush(self) -> None:
        """Waits for the background commands of now; later ones are not of earlier writes."""
        self.hurry()
        if self._background:
            await asyncio.wait(tuple(self._background))

    async def _follow(self, earlier: asyncio.Task[Any] | None, command: CacheCommand) -> None:
        began = self._clock()
        try:
            # One limit for the turn and the command, so that a queue on a hanging cache ends.
            async with asyncio.timeout(_LATER_TIMEOUT):
                if earlier is not None and not earlier.done():
                    await asyncio.wait((earlier,))
                if not self._breaker.open:
                    await self.perform(command)
                    return
        except TimeoutError:
            self.failed(began)
        self._metrics.count(counters.LATER_DISCARDED)

    async def _probe(self, cache: SessionCache) -> None:
        try:
            # No longer than a command may take: a cache that is merely slow would open it again.
            async with asyncio.timeout(LONGEST):
                now = await cache.probe()
        except TimeoutError:
            return
        if not isinstance(now, Unavailable) and self._breaker.open:
            self._breaker.close(now)
            self._metrics.count(counters.BREAKER_CLOSED)
            logger.warning("the cache answers again")

    def _sent(self, command: CacheCommand) -> Awaitable[Any]:
        cache = self._cache
        assert cache is not None
        match command:
            case LookUp(keys, newest):
                return cache.lookup(keys, newest)
            case Intent(scope, token):
                return cache.intent(scope, token)
            case Release(scope, token):
                return cache.release(scope, token)
            case Lease(scope, token):
                return cache.lease(scope, token)
            case Fill(scope, token, granted, content, expires):
                at, stamp = granted.granted_at, granted.stamp
                return cache.fill(scope, token, at, stamp, content, expires)
            case Apply():
                return cache.apply(*command)
            case Drop(scope, token, keep):
                return cache.drop(scope, token, keep)
            case Touch(scope, tag, validated_at, stamp):
                return cache.touch(scope, tag, validated_at, stamp)
            case Elect():
                return cache.elect(self._owner, self._elected_for)


def _unavailable(command: CacheCommand, reason: str) -> Any:
    """Returns the reply of a command that was not performed."""
    down = Unavailable(reason)
    return tuple(down for _ in command.keys) if isinstance(command, LookUp) else down
