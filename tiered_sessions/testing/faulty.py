"""A cache that fails on order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import TypeVar

from ..cache.base import (
    ApplyReply,
    FillReply,
    Granted,
    LeaseRefused,
    Lookup,
    SessionCache,
    Unavailable,
)
from ..records import Content, EventRecord, ScopeKey, Tag

T = TypeVar("T")

STEPS = frozenset(
    ("lookup", "intent", "release", "lease", "fill", "apply", "drop", "touch", "elect", "probe")
)


class Fault(Enum):
    """What becomes of a step."""

    REFUSE = "refuse"
    """It does not reach the cache and answers `Unavailable` (R11, R12)."""

    LOSE = "lose"
    """It is performed and answers `Unavailable`: the reply was lost."""

    HOLD = "hold"
    """It is performed when `heal` is called, however late (R6)."""


class FaultyCache:
    """A `SessionCache` that hands every step on to `inner`, but for those it was told to spoil.

    Attributes:
        inner: The cache that performs what is performed.
        steps: The name of every step it was asked for, in order.
    """

    def __init__(self, inner: SessionCache) -> None:
        self.inner = inner
        self.steps: list[str] = []
        self._faults: dict[str, Fault] = {}
        self._healed = asyncio.Event()

    def spoil(self, fault: Fault, *steps: str) -> None:
        """Spoils the steps of these names from now on; without a name, every step.

        Raises:
            ValueError: There is no step of that name.
        """
        if unknown := set(steps) - STEPS:
            raise ValueError(f"no step of a cache: {', '.join(sorted(unknown))}")
        self._faults |= dict.fromkeys(steps or STEPS, fault)

    def heal(self) -> None:
        """Ends every fault, and performs the steps that were held."""
        self._faults.clear()
        self._healed.set()
        self._healed = asyncio.Event()

    async def _perform(self, name: str, step: Callable[[], Awaitable[T]]) -> T | Unavailable:
        self.steps.append(name)
        fault = self._faults.get(name)
        if fault is Fault.REFUSE:
            return Unavailable("refused on order")
        if fault is Fault.HOLD:
            await self._healed.wait()
        reply = await step()
        return Unavailable("reply lost on order") if fault is Fault.LOSE else reply

    # --- a SessionCache -----------------------------------------------------------------------

    @property
    def shared(self) -> bool:
        """Whether every writer of the database uses the cache behind."""
        return self.inner.shared

    @shared.setter
    def shared(self, shared: bool) -> None:
        self.inner.shared = shared

    @property
    def namespace(self) -> str:
        """The namespace of the cache behind."""
        return self.inner.namespace

    @namespace.setter
    def namespace(self, namespace: str) -> None:
        self.inner.namespace = namespace

    async def lookup(self, keys: Sequence[ScopeKey], newest: int | None = None) -> tuple[Lookup, ...]:
        reply = await self._perform("lookup", lambda: self.inner.lookup(keys, newest))
        return (reply,) * len(keys) if isinstance(reply, Unavailable) else reply

    async def intent(self, key: ScopeKey, token: str) -> int | Unavailable:
        return await self._perform("intent", lambda: self.inner.intent(key, token))

    async def release(self, key: ScopeKey, token: str) -> Unavailable | None:
        return await self._perform("release", lambda: self.inner.release(key, token))

    async def lease(self, key: ScopeKey, token: str) -> Granted | LeaseRefused | Unavailable:
        return await self._perform("lease", lambda: self.inner.lease(key, token))

    async def fill(
        self,
        key: ScopeKey,
        token: str,
        granted_at: int,
        stamp: str,
        content: Content,
        expires_at: int | None = None,
    ) -> FillReply | Unavailable:
        return await self._perform(
            "fill", lambda: self.inner.fill(key, token, granted_at, stamp, content, expires_at)
        )

    async def apply(
        self,
        key: ScopeKey,
        token: str,
        old: Tag | None,
        new: Tag,
        events: tuple[EventRecord, ...],
        state: bytes | None,
        validated_at: int,
        expires_at: int | None = None,
    ) -> ApplyReply | Unavailable:
        return await self._perform(
            "apply",
            lambda: self.inner.apply(key, token, old, new, events, state, validated_at, expires_at),
        )

    async def drop(self, key: ScopeKey, token: str | None, keep: Tag | None) -> Unavailable | None:
        return await self._perform("drop", lambda: self.inner.drop(key, token, keep))

    async def touch(self, key: ScopeKey, tag: Tag, validated_at: int, stamp: str) -> bool | Unavailable:
        return await self._perform("touch", lambda: self.inner.touch(key, tag, validated_at, stamp))

    async def elect(self, owner: str, life: int) -> bool | Unavailable:
        return await self._perform("elect", lambda: self.inner.elect(owner, life))

    async def probe(self) -> int | Unavailable:
        return await self._perform("probe", self.inner.probe)

    async def close(self) -> None:
        """Closes the cache behind."""
        await self.inner.close()
