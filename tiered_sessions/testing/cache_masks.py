"""The rules of masks and leases: who may show an entry, and who may make one (consistency.md 5.1)."""

from __future__ import annotations

import asyncio

from ..cache.base import ApplyReply, CacheLimits, FillReply, Granted, LeaseRefused, Masked, Miss, SessionCache
from ..records import ScopeKey, SessionKey
from .cache_samples import (
    APP,
    KEY,
    USER,
    CacheFixtures,
    content,
    event,
    fill,
    granted,
    hit,
    look,
    mask,
    now,
    tag,
)
from .clocks import Clock

LOOK_ALIKES = (
    SessionKey("app", "user", "Session").session,
    SessionKey("app", "user", "session ").session,
    SessionKey("app", "user", "").session,
    SessionKey("app", "", "user/session").session,
    SessionKey("app/user", "", "session").session,
    SessionKey("app", "user:s:session", "").session,
    SessionKey("app", "user", "{session}").session,
    SessionKey("app", "user", "sessio\u0301n").session,
    SessionKey("app", "user", "sessi\u00f3n").session,
    SessionKey("app", "user", "%73ession").session,
    ScopeKey("user", "app", "user"),
    ScopeKey("user", "app", ""),
    ScopeKey("user", "app/user", ""),
    ScopeKey("app", "app"),
    ScopeKey("app", "app/user"),
)


class MaskRules(CacheFixtures):
    """intent and release: a write under way hides the entry, and a writer that dies deletes it."""

    async def test_a_mask_hides_the_entry_and_its_expiry_deletes_it(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits
    ) -> None:
        """R3, R4: a mask that expires never shows the entry again."""
        await fill(cache, content(1, 1))
        before = await now(cache)
        assert before <= await mask(cache, "writer") <= await now(cache)
        await clock.advance(limits.mask_life - clock.tick)
        assert isinstance(await look(cache), Masked)
        assert isinstance(await look(cache, newest=0), Masked)
        assert await cache.lease(KEY, "reader") is LeaseRefused.MASKED
        await clock.advance(clock.tick)
        assert isinstance(await look(cache), Miss)
        assert isinstance(await look(cache, newest=0), Miss)
        await granted(cache, "reader")

    async def test_a_released_mask_shows_the_entry_again(self, cache: SessionCache) -> None:
        """Each mask is one writer's: a release takes away its own."""
        await fill(cache, content(1, 1))
        for token in ("one", "two"):
            await mask(cache, token)
        await cache.release(KEY, "one")
        await cache.release(KEY, "nobody")
        assert isinstance(await look(cache), Masked)
        await cache.release(KEY, "two")
        assert (await hit(cache)).content == content(1, 1)

    async def test_a_mask_without_an_entry_refuses_a_lease(self, cache: SessionCache) -> None:
        """R9: a mask stands for a write, whether there is something to hide or not."""
        await mask(cache, "writer")
        assert isinstance(await look(cache), Masked)
        assert await cache.lease(KEY, "reader") is LeaseRefused.MASKED
        await cache.release(KEY, "writer")
        assert isinstance(await look(cache), Miss)
        await granted(cache, "reader")

    async def test_masks_taken_together_all_hold(self, cache: SessionCache) -> None:
        """Each intent is one atomic step."""
        await fill(cache, content(1, 1))
        tokens = [f"writer-{number}" for number in range(10)]
        for order in (tokens, tokens[::-1]):
            await asyncio.gather(*(mask(cache, token) for token in tokens))
            for token in order:
                assert isinstance(await look(cache), Masked)
                await cache.release(KEY, token)
            assert (await hit(cache)).content == content(1, 1)

    async def test_an_intent_revokes_the_lease(self, cache: SessionCache) -> None:
        """R1: what was read before the write began is not stored."""
        at = await granted(cache, "reader")
        await mask(cache, "writer")
        assert await cache.fill(KEY, "reader", at, "", content(1)) is FillReply.MASKED
        await cache.release(KEY, "writer")
        assert await cache.fill(KEY, "reader", at, "", content(1)) is FillReply.REFUSED
        assert isinstance(await look(cache), Miss)

    async def test_an_intent_prolongs_a_life_and_never_shortens_it(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits
    ) -> None:
        """R15: an entry does not end between the intent and the apply."""
        await fill(cache, content(5, 5))
        await clock.advance(limits.idle_ttl - clock.tick)
        await mask(cache, "writer")
        await clock.advance(2 * limits.mask_life - clock.tick)
        assert await cache.apply(KEY, "writer", tag(5), tag(6), (), None, 0) is ApplyReply.APPLIED
        await mask(cache, "writer")
        await cache.release(KEY, "writer")
        await clock.advance(limits.idle_ttl - 2 * clock.tick)
        assert (await hit(cache)).content.tag == tag(6)


class LeaseRules(CacheFixtures):
    """lease and fill: one reader makes the entry, of what it read after the lease was granted."""

    async def test_a_lease_is_one_and_ends(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits
    ) -> None:
        """R1, R6: a fill is bound to the token and to the time of the grant."""
        first = await granted(cache, "one")
        assert await cache.lease(KEY, "two") is LeaseRefused.WAIT
        assert await cache.lease(KEY, "one") is LeaseRefused.WAIT
        await clock.advance(limits.lease_life)
        assert await cache.fill(KEY, "one", first, "", content(1)) is FillReply.REFUSED
        second = await granted(cache, "one")
        assert second > first
        assert await cache.fill(KEY, "one", first, "", content(1)) is FillReply.REFUSED
        assert await cache.fill(KEY, "two", second, "", content(1)) is FillReply.REFUSED
        assert await cache.fill(KEY, "one", second, "", content(2)) is FillReply.STORED
        assert await cache.fill(KEY, "one", second, "", content(3)) is FillReply.REFUSED
        assert await cache.lease(KEY, "three") is LeaseRefused.PRESENT
        assert (await hit(cache)).content == content(2)

    async def test_a_lease_holds_until_it_ends(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits
    ) -> None:
        """R30: as long as its life says, nobody else loads."""
        at = await granted(cache, "one")
        await clock.advance(limits.lease_life - clock.tick)
        assert await cache.lease(KEY, "two") is LeaseRefused.WAIT
        assert await cache.fill(KEY, "one", at, "", content(1)) is FillReply.STORED

    async def test_a_released_lease_is_free(self, cache: SessionCache) -> None:
        """R6: whoever was granted it too late gives it back, and nobody else's."""
        await granted(cache, "late")
        await cache.release(KEY, "nobody")
        assert await cache.lease(KEY, "reader") is LeaseRefused.WAIT
        await cache.release(KEY, "late")
        await granted(cache, "reader")

    async def test_of_leases_asked_for_together_one_is_granted(self, cache: SessionCache) -> None:
        """R30: one reader of the fleet loads."""
        replies = await asyncio.gather(*(cache.lease(KEY, f"reader-{number}") for number in range(10)))
        assert sum(isinstance(reply, Granted) for reply in replies) == 1
        assert replies.count(LeaseRefused.WAIT) == 9

    async def test_a_fill_without_a_lease_is_refused(self, cache: SessionCache) -> None:
        """R1"""
        assert await cache.fill(KEY, "reader", await now(cache), "", content(1)) is FillReply.REFUSED
        assert isinstance(await look(cache), Miss)

    async def test_an_expired_entry_makes_room_for_a_fill(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits
    ) -> None:
        """An expired session may be created again; the new one has another life."""
        await fill(cache, content(5, 5), expires_at=await now(cache) + limits.idle_ttl // 4)
        assert await cache.lease(KEY, "early") is LeaseRefused.PRESENT
        await clock.advance(limits.idle_ttl // 4)
        await fill(cache, content(1, 1))
        await clock.advance(limits.idle_ttl - clock.tick)
        assert (await hit(cache)).content == content(1, 1)


class DropRules(CacheFixtures):
    """drop, elect and the namespace: what takes entries away."""

    async def test_drop_keeps_the_tag_that_sql_has(self, cache: SessionCache) -> None:
        """R23: a stale writer does not throw the fresh entry away."""
        await fill(cache, content(5, 5))
        await mask(cache, "writer")
        await cache.drop(KEY, "writer", tag(5))
        assert (await hit(cache)).content == content(5, 5)
        await cache.drop(KEY, None, tag(5))
        assert (await hit(cache)).content == content(5, 5)
        await cache.drop(KEY, None, tag(5, 6))
        assert isinstance(await look(cache), Miss)

    async def test_drop_leaves_the_masks_of_others(self, cache: SessionCache) -> None:
        """Another writer may be about to commit."""
        await fill(cache, content(5, 5))
        await mask(cache, "writer")
        await mask(cache, "other")
        await cache.drop(KEY, "writer", None)
        assert isinstance(await look(cache), Masked)
        assert await cache.lease(KEY, "reader") is LeaseRefused.MASKED
        await cache.release(KEY, "other")
        assert isinstance(await look(cache), Miss)
        await granted(cache, "reader")

    async def test_drop_revokes_the_lease(self, cache: SessionCache) -> None:
        """R16: a slow fill does not bring a deleted session back."""
        at = await granted(cache, "reader")
        await cache.drop(KEY, None, None)
        assert await cache.fill(KEY, "reader", at, "", content(1)) is FillReply.REFUSED

    async def test_one_owner_drains(self, cache: SessionCache, clock: Clock) -> None:
        """Section 6: one process of the fleet drains the outbox, until its time is over."""
        life = 5 * clock.tick + 500
        assert await cache.elect("one", life) is True
        assert await cache.elect("two", life) is False
        await clock.advance(life - clock.tick)
        assert await cache.elect("two", life) is False
        assert await cache.elect("one", life) is True
        await clock.advance(2 * clock.tick)
        assert await cache.elect("two", life) is False
        await clock.advance(life)
        assert await cache.elect("two", life) is True

    async def test_of_owners_elected_together_there_is_one(self, cache: SessionCache) -> None:
        """An election is one atomic step."""
        replies = await asyncio.gather(*(cache.elect(f"owner-{number}", 10_000) for number in range(10)))
        assert sorted(map(bool, replies)) == [False] * 9 + [True]

    async def test_a_namespace_hides_all(self, cache: SessionCache) -> None:
        """R27: changing the namespace orphans entries, masks and the election at once."""
        await fill(cache, content(1, 1))
        await mask(cache, "writer", USER)
        await cache.elect("one", 10_000)
        name = cache.namespace
        cache.namespace = f"{name}-next"
        assert isinstance(await look(cache), Miss)
        assert isinstance(await look(cache, USER), Miss)
        assert await cache.elect("two", 10_000) is True
        cache.namespace = name
        assert (await hit(cache)).content == content(1, 1)
        assert isinstance(await look(cache, USER), Masked)

    async def test_keys_that_look_alike_are_different(self, cache: SessionCache) -> None:
        """R34: every scope has an entry of its own, found at its place in the answer."""
        keys = (KEY, *LOOK_ALIKES)
        for number, key in enumerate(keys):
            await fill(cache, content(number), key)
        found = await cache.lookup(keys)
        assert [getattr(each, "content", each) for each in found] == [content(n) for n in range(len(keys))]
        await cache.drop(KEY, None, None)
        await mask(cache, "writer", APP)
        assert isinstance(await look(cache), Miss)
        assert isinstance(await look(cache, APP), Masked)
        for number, key in enumerate(LOOK_ALIKES, 1):
            if key != APP:
                assert (await hit(cache, key)).content == content(number)

    async def test_a_key_changes_without_its_neighbours(self, cache: SessionCache) -> None:
        """R19: user and app state are entries of their own."""
        for key in (KEY, USER, APP):
            await fill(cache, content(1), key)
        await mask(cache, "writer", USER)
        assert [type(each).__name__ for each in await cache.lookup((APP, USER, KEY))] == [
            "Hit",
            "Masked",
            "Hit",
        ]
        reply = await cache.apply(KEY, "writer", tag(1), tag(2), (event(2),), None, 0)
        assert reply is ApplyReply.APPLIED
        assert isinstance(await look(cache, USER), Masked)
        assert (await hit(cache, APP)).content == content(1)
