"""Sequences of steps drawn by chance: a cache answers each as the reference does (section 9, 2)."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from ..cache import chunks
from ..cache.base import CacheLimits, Granted, Hit, Masked, Miss, SessionCache, Unavailable
from ..cache.memory import MemoryCache
from ..records import Content, EventRecord, ScopeKey, SessionKey, Tag
from .cache_samples import CacheFixtures, check_window, part
from .clocks import START, ManualClock

KEYS = (
    SessionKey("app", "user", "s{1}/:").session,
    SessionKey("app", "user", "s{1}/:").user,
    ScopeKey("app", "app"),
)
SEQUENCES = 12
STEPS = 30
VARIETY = [
    CacheLimits(2_000, 5_000, window_events=17, window_bytes=100_000, mask_life=400, lease_life=200),
    CacheLimits(300, 900, window_events=5, window_bytes=700, mask_life=400, lease_life=200),
    CacheLimits(2_000, 5_000, window_events=40, window_bytes=3_000, mask_life=400, lease_life=200),
]


class Sequence:
    """A reference with an endless window, the cache, and what chance does to both."""

    def __init__(self, chance: Random, cache: SessionCache, clock: ManualClock, limits: CacheLimits) -> None:
        self.chance = chance
        self.cache = cache
        self.clock = clock
        self.limits = limits
        endless = CacheLimits(
            limits.idle_ttl, limits.max_age, 10**9, 10**12, limits.mask_life, limits.lease_life
        )
        self.reference = MemoryCache(endless, clock=clock, namespace=cache.namespace)
        self.granted: dict[tuple[ScopeKey, str], int] = {}
        self.told: list[str] = []

    async def run(self) -> None:
        """Performs some steps, and looks after each."""
        await self.load()
        steps = (self.wait, self.mask, self.die, self.release, self.lease, self.fill, self.load, self.drop)
        for _ in range(STEPS):
            step = self.chance.choice((*steps, self.touch, self.apply, self.apply, self.apply, self.elect))
            await step()
            await self.look()

    # --- the steps ----------------------------------------------------------------------------

    async def wait(self) -> None:
        await self.clock.advance(
            self.chance.choice((0, 1, 199, 200, 201, 299, 300, 301, 399, 400, 401, 800, 801, 3_000))
        )
        self.told.append(f"now {self.clock.now - START}")

    async def mask(self) -> None:
        await self.both("intent", self.key(), self.token())

    async def die(self) -> None:
        await self.mask()
        await self.clock.advance(self.limits.mask_life)
        self.told.append(f"now {self.clock.now - START}")

    async def release(self) -> None:
        await self.both("release", self.key(), self.token())

    async def lease(self) -> None:
        await self.ask(self.key(), self.token())

    async def fill(self) -> None:
        await self.give(self.key(), self.token(), self.chance.choice((0, 0, 1)))

    async def load(self) -> None:
        key, token = self.key(), self.token()
        await self.ask(key, token)
        await self.give(key, token, 0)

    async def apply(self) -> None:
        key = self.key()
        shared = key.kind != "session"
        old = await self.current(key)
        new = self.tag()
        if old is not None and self.chance.random() < 0.8:
            new = old._replace(revision=old.revision + 1, nonce=new.nonce)
        if old is None or self.chance.random() < 0.1:
            old = self.tag()
        await self.both(
            "apply",
            key,
            self.token(),
            None if shared else old,
            new,
            () if shared else self.events(),
            self.chance.choice((None, self.state())),
            self.clock.now + self.chance.randint(-500, 500),
            self.expiry(),
        )

    async def drop(self) -> None:
        key = self.key()
        keep = self.chance.choice((None, await self.current(key), self.tag()))
        await self.both("drop", key, self.chance.choice((None, self.token())), keep)

    async def touch(self) -> None:
        key = self.key()
        tag = await self.current(key) or self.tag()
        if self.chance.random() < 0.3:
            tag = self.chance.choice((self.tag(), tag._replace(nonce=0), tag._replace(update_time=0)))
        at = self.clock.now + self.chance.randint(-500, 500)
        await self.both("touch", key, tag, at, self.chance.choice("xy"))

    async def elect(self) -> None:
        await self.both("elect", self.token(), self.chance.choice((1, 200)))

    async def ask(self, key: ScopeKey, token: str) -> None:
        reply = await self.both("lease", key, token)
        if isinstance(reply, Granted):
            self.granted[key, token] = reply.granted_at

    async def give(self, key: ScopeKey, token: str, off: int) -> None:
        shared = key.kind != "session"
        complete = shared or self.chance.random() < 0.5
        before = None if complete else self.chance.choice((None, -3, 2**53 + 1))
        content = Content(self.tag(), self.state(), () if shared else self.events(), complete, before)
        at = self.granted.get((key, token), START) + off
        await self.both("fill", key, token, at, f"stamp-{token}", content, self.expiry())

    # --- what chance chooses ------------------------------------------------------------------

    def key(self) -> ScopeKey:
        return self.chance.choice((KEYS[0], *KEYS))

    def token(self) -> str:
        return self.chance.choice("ab")

    def tag(self) -> Tag:
        pick = self.chance.choice
        return Tag(pick((7, 2**63 - 1)), pick(range(5)), pick((-5, 2**62 + 1)), pick((10, 2**53 + 1)))

    def state(self) -> bytes:
        return self.chance.choice((b"{}", b'{"k":"' + b"v" * 150 + b'"}'))

    def events(self) -> tuple[EventRecord, ...]:
        payloads = (b"{}", b'{"a":\n1}', b'{"a":"' + b"x" * 90 + b'\t"}')
        times = (0, -1, 2**53, 2**53 + 1, -(2**53) - 1, self.chance.randint(-(10**17), 10**17))
        ids = ("e", "é\t", "\ud800")
        pick = self.chance.choice
        return tuple(
            EventRecord(seq, pick(ids), pick(times), pick(payloads))
            for seq in range(1, 1 + pick((0, 1, 1, 2, 16, 30)))
        )

    def expiry(self) -> int | None:
        left = self.chance.choice((None, None, None, None, 0, 1, 199, 200, 400, 10**11))
        return None if left is None else self.clock.now + left

    # --- both caches --------------------------------------------------------------------------

    async def current(self, key: ScopeKey) -> Tag | None:
        (found,) = await self.reference.lookup((key,))
        return found.content.tag if isinstance(found, Hit) else None

    async def both(self, step: str, *arguments: Any) -> Any:
        self.told.append(f"{step}{arguments}")
        wanted = await getattr(self.reference, step)(*arguments)
        found = await getattr(self.cache, step)(*arguments)
        if isinstance(found, Granted):
            found = Granted(found.granted_at, "")
        assert found == wanted, self.story()
        return wanted

    async def look(self) -> None:
        wanted = await self.reference.lookup(KEYS)
        found = await self.cache.lookup(KEYS)
        for ours, theirs in zip(wanted, found, strict=True):
            assert type(theirs) is type(ours), self.story()
            assert not isinstance(ours, Unavailable)
            assert isinstance(theirs, Hit | Miss | Masked)
            assert theirs.now == ours.now, self.story()
            if isinstance(ours, Hit) and isinstance(theirs, Hit):
                self.same(theirs, ours)
        newest = self.chance.choice((0, 1, 2, 16, 17, 40))
        session, *shared = found
        if isinstance(session, Hit):
            session = replace(session, content=part(session.content, newest))
        assert await self.cache.lookup(KEYS, newest) == (session, *shared), self.story()

    def same(self, found: Hit, wanted: Hit) -> None:
        assert found.validated_at == wanted.validated_at, self.story()
        assert found.entry_stamp == wanted.entry_stamp, self.story()
        check_window(found.content, wanted.content)
        kept = found.content.events
        assert len(kept) == found.held, self.story()
        assert len(kept) < self.limits.window_events + chunks.CHUNK, self.story()
        size = len(found.content.state) + sum(len(event.payload) for event in kept)
        assert size <= self.limits.window_bytes or not kept, self.story()

    def story(self) -> str:
        return "\n".join(("after these steps:", *self.told))


class SequenceRules(CacheFixtures):
    """Equality with the reference, under a clock that both live by."""

    @pytest.mark.parametrize("limits", VARIETY, indirect=True, ids=["events", "brief", "bytes"])
    @pytest.mark.parametrize("seed", range(4))
    async def test_it_answers_as_the_reference(
        self, cache: SessionCache, clock: ManualClock, limits: CacheLimits, seed: int
    ) -> None:
        """Section 9, 2: reply by reply, and all that a lookup shows after each."""
        name = cache.namespace
        for number in range(SEQUENCES):
            cache.namespace = f"{name}-{number}"
            await Sequence(Random(f"{seed}-{number}"), cache, clock, limits).run()
        cache.namespace = name
