"""The commands of the cache: sent under the breaker, counted, and those that nobody waits for kept."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine
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
from .breaker import LONGEST, Breaker
from .steps import (
    Apply,
    CacheCommand,
    Drop,
    Elect,
    Fill,
    Intent,
    Lease,
    LookUp,
    Release,
    ScopedCommand,
    Touch,
    Unsent,
)

logger = logging.getLogger("tiered_sessions")

_LATER_TIMEOUT = 1.0
"""How long a command in the background may take, with its turn, in seconds."""
_LATER_LIMIT = 10_000
"""How many of them there may be."""

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
"""What a cache that posts takes, by the names of its methods."""


class CacheCalls:
    """Performs cache commands under the breaker, and keeps those of the background.

    Attributes:
        elsewhere: Seconds that this process has spent, in all, on other work between sending commands and
            looking for their replies.
    """

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
        self.elsewhere = 0.0
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
        return _of(command, Unsent("the circuit breaker is open"))

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
        return self._posting.post(name, command, partial(self._noted, command, self._clock(), self.elsewhere))

    async def perform(self, command: CacheCommand) -> Any:
        """Performs one command and tells the breaker how it went."""
        began, elsewhere = self._clock(), self.elsewhere
        try:
            reply = await self._sent(command)
        except Exception as error:
            # No cache may do that (cache/base.py), but if one does it must not fail the call (I7).
            logger.exception("the cache raised %s", type(error).__name__)
            reply = _of(command, Unavailable(type(error).__name__))
        return self._noted(command, began, elsewhere, reply)

    def _noted(self, command: CacheCommand, began: float, elsewhere: float, reply: Any) -> Any:
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
            self._breaker.succeeded(self._clock() - began - (self.elsewhere - elsewhere))
        return reply

    def failed(self, began: float) -> None:
        """Notes that a command sent at `began` failed or took too long."""
        if self._breaker.failed(began):
            self._metrics.count(counters.BREAKER_OPENED)
            logger.warning("the cache does not answer; reading from SQL until it does")

    def later(self, command: ScopedCommand, behind: bool = False) -> None:
        """Performs `command` in the background, after earlier ones of its key.

        The order saves hits; being lost costs a miss. With too many waiting, or the breaker open unless
        it goes `behind` another, it is discarded: the mask expires and takes the entry with it.
        """
        if (not behind and self.refused(command) is not None) or len(self._background) >= _LATER_LIMIT:
            self._metrics.count(counters.LATER_DISCARDED)
            return
        scope = command.scope
        earlier = self._last.get(scope)
        # What was posted is in order by itself.
        posted = self._post(command) if earlier is None else None
        if posted is None:
            posted = self._last[scope] = asyncio.create_task(self._follow(earlier, command, behind))
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

    async def _follow(self, earlier: asyncio.Task[Any] | None, command: CacheCommand, behind: bool) -> None:
        began = self._clock()
        try:
            # One limit for the turn and the command, so that a queue on a hanging cache ends.
            async with asyncio.timeout(_LATER_TIMEOUT):
                if earlier is not None and not earlier.done():
                    await asyncio.wait((earlier,))
                if behind or not self._breaker.open:
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


def _of(command: CacheCommand, down: Unavailable) -> Any:
    """Returns the reply to a command that was not performed."""
    return tuple(down for _ in command.keys) if isinstance(command, LookUp) else down
