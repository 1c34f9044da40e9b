"""Keys, tags and contents to try a cache with, and the fixtures of its rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ..cache import chunks
from ..cache.base import CacheLimits, FillReply, Granted, Hit, LeaseRefused, Masked, Miss, SessionCache
from ..records import Content, EventRecord, ScopeKey, SessionKey, Tag
from .clocks import Clock, ManualClock

KEY, USER, APP = SessionKey("app", "user", "session").scopes
LIMITS = CacheLimits(
    idle_ttl=10_000, max_age=50_000, window_events=40, window_bytes=5_000, mask_life=400, lease_life=200
)


class CacheFixtures:
    """What the rules are given. `cache` is yours; the others have a default."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def clock(self) -> Clock:
        """The clock that the cache lives by."""
        return ManualClock()

    @pytest.fixture
    def limits(self, request: pytest.FixtureRequest) -> CacheLimits:
        """The limits that the cache has to be made with; its TTLs without jitter."""
        given: CacheLimits = getattr(request, "param", LIMITS)
        return given

    @pytest.fixture
    def cache(self, clock: Clock, limits: CacheLimits) -> Any:
        """An empty cache that lives by `clock` within `limits`."""
        raise NotImplementedError("give your subclass of the suite a fixture `cache`")


def tag(revision: int, nonce: int = 5) -> Tag:
    """Returns the tag of a revision of the one incarnation."""
    return Tag(2**62 + 1, revision, nonce, 1_700_000_000_000_001)


def event(seq: int, size: int = 20) -> EventRecord:
    """Returns an event with an id and a payload that need care."""
    return EventRecord(seq, f"é\ud800\t{seq}", 1_000_000 + seq, b'{"x":"' + b"y" * size + b'"}')


def events(first: int, last: int) -> tuple[EventRecord, ...]:
    """Returns the events from `first` to `last`, both included."""
    return tuple(map(event, range(first, last + 1)))


def content(revision: int, count: int = 0, *, complete: bool = True, before: int | None = None) -> Content:
    """Returns a content with its newest `count` events."""
    return Content(tag(revision), b'{"a":1}', events(revision - count + 1, revision), complete, before)


async def granted(cache: SessionCache, token: str, key: ScopeKey = KEY) -> int:
    """Takes a lease and returns its time."""
    lease = await cache.lease(key, token)
    assert isinstance(lease, Granted), lease
    return lease.granted_at


async def fill(cache: SessionCache, what: Content, key: ScopeKey = KEY, expires_at: int | None = None) -> int:
    """Fills under a lease and returns the lease's time."""
    at = await granted(cache, "filler", key)
    assert await cache.fill(key, "filler", at, "stamp", what, expires_at) is FillReply.STORED
    return at


async def look(
    cache: SessionCache, key: ScopeKey = KEY, newest: int | None = None
) -> Hit | Masked | Miss:
    """Looks one key up."""
    (found,) = await cache.lookup((key,), newest)
    assert isinstance(found, Hit | Masked | Miss), found
    return found


async def hit(cache: SessionCache, key: ScopeKey = KEY) -> Hit:
    """Looks one key up that is there."""
    found = await look(cache, key)
    assert isinstance(found, Hit), found
    return found


async def mask(cache: SessionCache, token: str, key: ScopeKey = KEY) -> int:
    """Masks a key and returns the server's time."""
    at = await cache.intent(key, token)
    assert isinstance(at, int), at
    return at


async def now(cache: SessionCache) -> int:
    """Returns the server's time."""
    at = await cache.probe()
    assert isinstance(at, int), at
    return at


async def absent(cache: SessionCache, key: ScopeKey = KEY) -> bool:
    """Says that there is neither an entry, nor a mask, nor a lease, by taking a lease."""
    reply = await cache.lease(key, "finder")
    assert isinstance(reply, Granted | LeaseRefused), reply
    return isinstance(reply, Granted)


def part(whole: Content, newest: int | None) -> Content:
    """Returns what a lookup of the `newest` events shows of a session's entry."""
    if newest == 0:
        return replace(whole, state=b"", events=())
    if newest is None or newest >= len(whole.events):
        return whole
    return Content(whole.tag, whole.state, whole.events[-newest:], complete=False, before=None)


def check_window(found: Content, whole: Content) -> None:
    """Checks that `found` is `whole`, or `whole` with its oldest events left out and that said (I2)."""
    assert (found.tag, found.state) == (whole.tag, whole.state)
    kept, all_ = (tuple(map(chunks.flat, each.events)) for each in (found, whole))
    assert kept == all_[len(all_) - len(kept) :]
    gone = whole.events[: len(all_) - len(kept)]
    assert found.complete == (whole.complete and not gone)
    before = chunks.left_out(whole.complete, whole.before, gone) if gone else whole.before
    assert found.before == before
