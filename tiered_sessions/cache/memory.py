"""A cache in this process: the reference every other cache equals, and the embedded default."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cachetools import LRUCache

from ..records import Content, EventRecord, ScopeKey, Tag
from . import chunks
from .base import (
    ApplyReply,
    CacheLimits,
    FillReply,
    Granted,
    Hit,
    LeaseRefused,
    Lookup,
    Masked,
    Miss,
    Unavailable,
)

_OVERHEAD = 512
_EVENT_OVERHEAD = 256


@dataclass(frozen=True, slots=True)
class Entry:
    """The content of one scope. `size`: bytes of the state and of all lines.

    From `expires_at` on nobody is shown it: the session has expired.
    """

    tag: Tag
    state: bytes
    chunks: tuple[tuple[EventRecord, ...], ...]
    complete: bool
    before: int | None
    validated_at: int
    filled_at: int
    stamp: str
    size: int
    expires_at: int | None

    def expired(self, now: int) -> bool:
        """Says whether the session has expired."""
        return self.expires_at is not None and self.expires_at <= now

    @property
    def events(self) -> int:
        """How many events the window holds."""
        return chunks.CHUNK * (len(self.chunks) - 1) + len(self.chunks[-1]) if self.chunks else 0

    def content(self, newest: int | None = None) -> Content:
        """Returns what a lookup shows of the entry."""
        if newest == 0:
            return Content(self.tag, b"", (), self.complete, self.before)
        events = tuple(event for chunk in self.chunks for event in chunk)
        if newest is not None and newest < len(events):
            return Content(self.tag, self.state, events[-newest:], complete=False)
        return Content(self.tag, self.state, events, self.complete, self.before)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to fill once, until `deadline`."""

    token: str
    granted_at: int
    deadline: int


@dataclass(frozen=True, slots=True)
class Slot:
    """All that one key holds. Entry, masks and lease live and die together (R8)."""

    entry: Entry | None = None
    masks: tuple[tuple[str, int], ...] = ()
    lease: Lease | None = None
    expires: int = 0

    def without(self, token: str | None) -> Slot:
        """Returns the slot without the mask of `token`."""
        return replace(self, masks=tuple(mask for mask in self.masks if mask[0] != token))

    def purged(self, now: int) -> Slot:
        """Returns the slot without expired masks, and if there was one without the entry (R4).

        The writer of an expired mask died, and may have committed: nobody will say so.
        """
        live = tuple(mask for mask in self.masks if mask[1] > now)
        if len(live) == len(self.masks):
            return self
        return Slot(masks=live, expires=self.expires if live else 0)

    def masked(self, now: int) -> bool:
        """Says whether a write is under way."""
        return any(deadline > now for _, deadline in self.masks)

    def living(self, until: int) -> Slot:
        """Returns the slot with a life to `until`, never a shorter one than it had (R15)."""
        return replace(self, expires=max(self.expires, until))


@dataclass(frozen=True, slots=True)
class Election:
    """Who drains the outbox, until `deadline`."""

    owner: str
    deadline: int


State = tuple[tuple[tuple[tuple[str, ScopeKey], Slot], ...], tuple[tuple[str, Election], ...]]
"""All that a MemoryCache holds, without the order of use: hashable, cheap to copy."""


def _monotonic() -> int:
    return time.monotonic_ns() // 1_000_000


def _slot_size(slot: Slot) -> int:
    if slot.entry is None:
        return _OVERHEAD
    return _OVERHEAD + slot.entry.size + _EVENT_OVERHEAD * slot.entry.events


class MemoryCache:
    """A `SessionCache` of one process, bounded in bytes; the least recently used key goes first.

    Attributes:
        shared: False, unless every writer of the database is in this process and uses this object.
        stamp: The server stamp of its answers; a test that plays a failover changes it.
    """

    def __init__(
        self,
        limits: CacheLimits | None = None,
        max_bytes: int = 128 * 1024 * 1024,
        *,
        clock: Callable[[], int] = _monotonic,
        shared: bool = False,
        namespace: str = "",
    ) -> None:
        self.limits = limits or CacheLimits()
        self.shared = shared
        self.namespace = namespace
        self.stamp = ""
        self._clock = clock
        self._slots: LRUCache[tuple[str, ScopeKey], Slot] = LRUCache(max_bytes, getsizeof=_slot_size)
        self._elections: dict[str, Election] = {}

    # --- the steps of consistency.md 5.1 ------------------------------------------------------

    async def lookup(self, keys: Sequence[ScopeKey], newest: int | None = None) -> tuple[Lookup, ...]:
        now = self._clock()
        return tuple(self._look(key, now, newest if key.kind == "session" else None) for key in keys)

    def _look(self, key: ScopeKey, now: int, newest: int | None) -> Lookup:
        slot = self._get(key, now)
        if slot.masked(now):
            return Masked(now, self.stamp)
        if slot.entry is None or slot.masks or slot.entry.expired(now):
            return Miss(now, self.stamp)
        entry = slot.entry
        content = entry.content(newest)
        return Hit(content, entry.validated_at, entry.stamp, now, self.stamp, entry.events)

    async def intent(self, key: ScopeKey, token: str) -> int | Unavailable:
        now = self._clock()
        slot = self._get(key, now).without(token)
        masks = (*slot.masks, (token, now + self.limits.mask_life))
        self._put(key, replace(slot, masks=masks, lease=None).living(now + 2 * self.limits.mask_life))
        return now

    async def release(self, key: ScopeKey, token: str) -> Unavailable | None:
        slot = self._get(key, self._clock()).without(token)
        if slot.lease is not None and slot.lease.token == token:
            slot = replace(slot, lease=None)
        self._put(key, slot)
        return None

    async def lease(self, key: ScopeKey, token: str) -> Granted | LeaseRefused | Unavailable:
        now = self._clock()
        slot = self._get(key, now).purged(now)
        if slot.entry is not None and not slot.masks and slot.entry.expired(now):
            slot = Slot()
        self._put(key, slot)
        if slot.masks:
            return LeaseRefused.MASKED
        if slot.entry is not None:
            return LeaseRefused.PRESENT
        if slot.lease is not None and slot.lease.deadline > now:
            return LeaseRefused.WAIT
        lease = Lease(token, now, now + self.limits.lease_life)
        self._put(key, replace(slot, lease=lease).living(now + 2 * self.limits.lease_life))
        return Granted(now, self.stamp)

    async def fill(
        self,
        key: ScopeKey,
        token: str,
        granted_at: int,
        stamp: str,
        content: Content,
        expires_at: int | None = None,
    ) -> FillReply | Unavailable:
        now = self._clock()
        slot = self._get(key, now)
        if slot.masked(now):
            return FillReply.MASKED
        lease = slot.lease
        # A lease that was delivered twice may have been granted twice: only its time tells (R6).
        if lease is None or (lease.token, lease.granted_at) != (token, granted_at) or lease.deadline <= now:
            return FillReply.REFUSED
        content, lines = chunks.trim(content, self.limits.window_events, self.limits.window_bytes)
        entry = Entry(
            tag=content.tag,
            state=content.state,
            chunks=chunks.split(content.events),
            complete=content.complete,
            before=content.before,
            validated_at=granted_at,
            filled_at=now,
            stamp=stamp,
            size=len(content.state) + sum(map(len, lines)),
            expires_at=expires_at,
        )
        self._put(key, Slot(entry, expires=self._life(entry, now)))
        return FillReply.STORED

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
        now = self._clock()
        # The own mask goes first: however late, this writer is alive and tells what it wrote.
        slot = replace(self._get(key, now).without(token).purged(now), lease=None)
        entry = slot.entry
        if entry is None:
            reply = ApplyReply.ABSENT
        elif entry.tag == new:
            reply = ApplyReply.OLD
            slot = replace(slot, expires=self._life(entry, now))
        elif entry.tag == old or (old is None and _precedes(entry.tag, new)):
            reply = ApplyReply.APPLIED
            entry = self._trimmed(_moved(entry, new, events, state, validated_at, expires_at))
            slot = replace(slot, entry=entry, expires=self._life(entry, now))
        else:
            reply = ApplyReply.GAP
            slot = replace(slot, entry=None)
        self._put(key, slot)
        return reply

    async def drop(self, key: ScopeKey, token: str | None, keep: Tag | None) -> Unavailable | None:
        now = self._clock()
        slot = replace(self._get(key, now).without(token), lease=None)
        if slot.entry is None or slot.entry.tag != keep:
            slot = replace(slot, entry=None).purged(now)
        self._put(key, slot)
        return None

    async def touch(self, key: ScopeKey, tag: Tag, validated_at: int, stamp: str) -> bool | Unavailable:
        now = self._clock()
        slot = self._get(key, now)
        if slot.entry is None or slot.entry.tag != tag:
            return False
        entry = replace(slot.entry, validated_at=max(slot.entry.validated_at, validated_at), stamp=stamp)
        self._put(key, replace(slot, entry=entry, expires=self._life(entry, now)))
        return True

    async def elect(self, owner: str, life: int) -> bool | Unavailable:
        now = self._clock()
        held = self._elections.get(self.namespace)
        if held is not None and held.owner != owner and held.deadline >= now:
            return False
        self._elections[self.namespace] = Election(owner, now + life)
        return True

    async def probe(self) -> int | Unavailable:
        return self._clock()

    async def close(self) -> None:
        self._slots.clear()
        self._elections.clear()

    # --- for explorers and tests --------------------------------------------------------------

    def snapshot(self) -> State:
        """Returns all it holds, as one hashable value."""
        return tuple(sorted(self._slots.items(), key=lambda item: item[0])), tuple(
            sorted(self._elections.items(), key=lambda item: item[0])
        )

    def restore(self, state: State) -> None:
        """Makes it hold what it held when `state` was taken."""
        self._slots.clear()
        self._slots.update(state[0])
        self._elections = dict(state[1])

    # --- inside -------------------------------------------------------------------------------

    def _get(self, key: ScopeKey, now: int) -> Slot:
        slot: Slot | None = self._slots.get((self.namespace, key))
        return Slot() if slot is None or slot.expires < now else slot

    def _put(self, key: ScopeKey, slot: Slot) -> None:
        name = (self.namespace, key)
        if slot.entry is not None and _slot_size(slot) > self._slots.maxsize:
            slot = replace(slot, entry=None)
        if slot.entry is None and not slot.masks and slot.lease is None:
            self._slots.pop(name, None)
        else:
            self._slots[name] = slot

    def _life(self, entry: Entry, now: int) -> int:
        return now + max(1, min(self.limits.idle_ttl, entry.filled_at + self.limits.max_age - now))

    def _trimmed(self, entry: Entry) -> Entry:
        """Drops whole chunks from the front while enough is left, then lines of a last one."""
        limits = self.limits
        while entry.chunks and (
            entry.events - chunks.CHUNK >= limits.window_events
            or (entry.size > limits.window_bytes and len(entry.chunks) > 1)
        ):
            entry = _shortened(entry, len(entry.chunks[0]))
        while entry.size > limits.window_bytes and entry.chunks:
            entry = _shortened(entry, 1)
        return entry


def _lines(events: Sequence[EventRecord]) -> int:
    return sum(len(chunks.line(event)) for event in events)


def _precedes(old: Tag, new: Tag) -> bool:
    return old.incarnation == new.incarnation and old.revision < new.revision


def _moved(
    entry: Entry,
    new: Tag,
    events: Sequence[EventRecord],
    state: bytes | None,
    validated_at: int,
    expires_at: int | None,
) -> Entry:
    last = entry.chunks[-1] if entry.chunks else ()
    tail = chunks.split((*last, *map(chunks.flat, events)))
    state = entry.state if state is None else state
    return replace(
        entry,
        tag=new,
        state=state,
        chunks=(*entry.chunks[:-1], *tail),
        validated_at=max(entry.validated_at, validated_at),
        size=entry.size - len(entry.state) + len(state) + _lines(events),
        expires_at=entry.expires_at if expires_at is None else expires_at,
    )


def _shortened(entry: Entry, count: int) -> Entry:
    """Drops the first `count` events of the first chunk."""
    first, rest = entry.chunks[0], entry.chunks[1:]
    gone, left = first[:count], first[count:]
    return replace(
        entry,
        chunks=(left, *rest) if left else rest,
        complete=False,
        before=chunks.left_out(entry.complete, entry.before, gone),
        size=entry.size - _lines(gone),
    )
