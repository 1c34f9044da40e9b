"""The contract of a cache: one entry a scope, guarded by masks and a fill lease.

Every method is one atomic step on one key (`lookup` reads several keys, each atomically). None
raises for a cache fault: it answers `Unavailable`, and only the protocol decides what that means.
Times are milliseconds of the clock of the server that answered. consistency.md 5.1 gives each
step its reason; cache/memory.py is the reference every other cache is compared with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from ..records import Content, EventRecord, ScopeKey, Tag


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The cache did not answer, or answered with an error: the outcome is unknown."""

    reason: str


@dataclass(slots=True, unsafe_hash=True)
class Hit:
    """An unmasked entry, whose window has `held` events. Never changed: `frozen` would treble its cost.

    `content` is what was asked for. With a part of the events it is not complete, and its `before` is
    unknown; a header has neither state nor events.
    `stamp` names the server process that answered, `entry_stamp` the one that answered when the
    entry was filled or last validated ("" : unknown). `validated_at` precedes the SQL read that
    made the entry.
    """

    content: Content
    validated_at: int
    entry_stamp: str
    now: int
    stamp: str
    held: int


@dataclass(frozen=True, slots=True)
class Miss:
    """No entry, or a worthless one: its session has expired, or its every mask (a writer died)."""

    now: int
    stamp: str


@dataclass(frozen=True, slots=True)
class Masked:
    """A write of this key is under way: only SQL knows."""

    now: int
    stamp: str


Lookup = Hit | Miss | Masked | Unavailable


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is the caller's: it may fill once, with this `granted_at`."""

    granted_at: int
    stamp: str


class LeaseRefused(Enum):
    """Why a lease was not granted."""

    MASKED = "masked"
    PRESENT = "present"
    WAIT = "wait"


class FillReply(Enum):
    """What became of a fill."""

    STORED = "stored"
    MASKED = "masked"
    REFUSED = "refused"


class ApplyReply(Enum):
    """What became of an apply."""

    APPLIED = "applied"
    ABSENT = "absent"
    OLD = "old"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """Sizes and lives of entries. Lives in milliseconds.

    `jitter` is drawn for each TTL set: the TTL is `idle_ttl * jitter()`.
    """

    idle_ttl: int = 3_600_000
    max_age: int = 86_400_000
    window_events: int = 200
    window_bytes: int = 1024 * 1024
    mask_life: int = 4_000
    lease_life: int = 2_000


class SessionCache(Protocol):
    """One cache. All methods may be called concurrently from one event loop."""

    shared: bool
    """Whether every writer of the database uses this cache; else each hit is checked in SQL."""

    namespace: str
    """Part of every key. Changing it makes every entry unreachable at once (R27)."""

    async def lookup(self, keys: Sequence[ScopeKey], newest: int | None = None) -> tuple[Lookup, ...]:
        """Reads the entries of `keys` in one round trip.

        `newest` concerns sessions: how many of the newest events are wanted, with the state. None: all;
        0: only the header.
        """
        ...

    async def intent(self, key: ScopeKey, token: str) -> int | Unavailable:
        """Masks the entry until `token` is released or `mask_life` is over; revokes the lease.

        Returns the server's time.
        """
        ...

    async def release(self, key: ScopeKey, token: str) -> Unavailable | None:
        """Takes away the token's mask, whose write is known to have changed nothing, or its lease."""
        ...

    async def lease(self, key: ScopeKey, token: str) -> Granted | LeaseRefused | Unavailable:
        """Asks for the right to fill.

        An entry with an expired mask is deleted first (R4), and one whose session has expired.
        """
        ...

    async def fill(
        self,
        key: ScopeKey,
        token: str,
        granted_at: int,
        stamp: str,
        content: Content,
        expires_at: int | None = None,
    ) -> FillReply | Unavailable:
        """Stores what was read from SQL after `granted_at`, if the lease is still the caller's.

        From `expires_at` on, a time of the server, the entry is a miss. None: never.
        """
        ...

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
        """Moves an entry from `old` to its successor `new` and takes the writer's mask away.

        Never makes an entry (R15). `state` None leaves the state, `expires_at` None when the
        entry expires. `old` None is a shared scope,
        whose writer does not know the predecessor: an older entry of the same incarnation is
        replaced whole, any other is deleted.
        """
        ...

    async def drop(self, key: ScopeKey, token: str | None, keep: Tag | None) -> Unavailable | None:
        """Deletes the entry unless its tag is `keep`; takes `token`'s mask and the lease away."""
        ...

    async def touch(self, key: ScopeKey, tag: Tag, validated_at: int, stamp: str) -> bool | Unavailable:
        """Notes that the entry was found equal to SQL at `validated_at`, if its tag is `tag`."""
        ...

    async def elect(self, owner: str, life: int) -> bool | Unavailable:
        """Makes `owner` the one drainer of the fleet for `life` ms, or says that another is."""
        ...

    async def probe(self) -> int | Unavailable:
        """Returns the server's time: the half-open breaker's one question."""
        ...

    async def close(self) -> None:
        """Closes what this object opened."""
        ...


@runtime_checkable
class Posting(Protocol):
    """What a cache may be besides: one that is told things without a coroutine for each."""

    def post(
        self, name: str, arguments: Sequence[Any], taker: Callable[[Any], Any]
    ) -> asyncio.Future[Any] | None:
        """Calls the method `name` soon: with what is sent next, at the latest at `hurry()` or in a moment.

        Commands of one key run in the order of the calls. The future's result is what `taker` makes of
        the reply, which is called only if the future was not cancelled; None: await the method instead.
        """
        ...

    def hurry(self) -> None:
        """Sends what was posted: somebody waits for it now."""
        ...
