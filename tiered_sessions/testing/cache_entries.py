"""The rules of entries: what a lookup shows, and how apply and touch move it (consistency.md 5.1)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ..cache.base import ApplyReply, CacheLimits, FillReply, Hit, LeaseRefused, Masked, Miss, SessionCache
from ..records import Content, ScopeKey, Tag
from .cache_samples import (
    KEY,
    USER,
    CacheFixtures,
    content,
    event,
    events,
    fill,
    granted,
    hit,
    look,
    mask,
    now,
    part,
    tag,
)
from .clocks import Clock


class EntryRules(CacheFixtures):
    """lookup and touch: what was stored is what is found, dated by what precedes its read."""

    async def test_what_is_filled_is_found(self, cache: SessionCache, clock: Clock) -> None:
        """I1; `validated_at` is the time of the grant, which precedes the SQL read."""
        at = await granted(cache, "filler")
        await clock.advance(clock.tick)
        what = content(30, 30, complete=False, before=-7)
        assert await cache.fill(KEY, "filler", at, "stamp", what) is FillReply.STORED
        await clock.advance(5)
        session, user = await cache.lookup((KEY, USER))
        assert isinstance(session, Hit)
        assert session.content == what
        assert (session.validated_at, session.entry_stamp, session.held) == (at, "stamp", 30)
        assert session.now >= at + clock.tick + 5
        assert isinstance(user, Miss)
        assert user.now >= at + clock.tick + 5

    async def test_a_header_has_neither_state_nor_events(self, cache: SessionCache) -> None:
        """5.4: of a shared scope a header is the whole."""
        await fill(cache, content(30, 20, complete=False, before=9))
        await fill(cache, content(3), USER)
        session, user = await cache.lookup((KEY, USER), newest=0)
        assert isinstance(session, Hit)
        assert session.content == Content(tag(30), b"", (), False, 9)
        assert session.held == 20
        assert isinstance(user, Hit)
        assert user.content == content(3)
        assert user.held == 0

    @pytest.mark.parametrize("complete", [True, False])
    async def test_the_newest_events_are_shown_as_a_part(self, cache: SessionCache, complete: bool) -> None:
        """I2, R21: only who was shown all of an entry is told that nothing, or what, came before."""
        first = content(20, 20, complete=complete, before=None if complete else 9)
        await fill(cache, first)
        await fill(cache, content(3), USER)
        for last in range(20, 36):
            whole = replace(first, tag=tag(last), events=events(1, last))
            for newest in (None, 0, 1, 2, last - 17, last - 16, last - 1, last, last + 1, 1000):
                session, user = await cache.lookup((KEY, USER), newest)
                assert isinstance(session, Hit)
                assert session.content == part(whole, newest)
                assert session.held == last
                assert isinstance(user, Hit)
                assert user.content == content(3)
            new = (event(last + 1),)
            await cache.apply(KEY, "writer", tag(last), tag(last + 1), new, None, 0)

    async def test_a_part_is_masked_and_missing_as_the_whole(self, cache: SessionCache) -> None:
        """I4; and there may be no events."""
        assert isinstance(await look(cache, KEY, 2), Miss)
        await fill(cache, content(3))
        found = await look(cache, KEY, 2)
        assert isinstance(found, Hit)
        assert found.content == content(3)
        await mask(cache, "writer")
        assert isinstance(await look(cache, KEY, 2), Masked)

    async def test_numbers_come_back_exactly(self, cache: SessionCache) -> None:
        """R17, R18: tags are compared whole, so no bit of 64 may be lost."""
        for number in (2**63 - 1, -(2**63), 2**53 + 1, 0):
            extreme = Tag(number, 2**53 + 1, number, number)
            last = event(7)._replace(seq=2**53 + 1, timestamp=number)
            what = Content(extreme, b"{}", (last,), False, number)
            await fill(cache, what)
            assert (await hit(cache)).content == what
            assert await cache.touch(KEY, extreme, 0, "") is True
            await cache.drop(KEY, None, None)

    async def test_touch_notes_a_validation(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits
    ) -> None:
        """5.3: an entry found equal to SQL lives on, and never looks older for it."""
        await fill(cache, content(5, 5))
        await clock.advance(limits.idle_ttl - clock.tick)
        later = await now(cache)
        assert await cache.touch(KEY, tag(5), later, "newer") is True
        assert (await hit(cache)).entry_stamp == "newer"
        assert await cache.touch(KEY, tag(5), 0, "newest") is True
        for other in (tag(5, 6), tag(4), tag(5)._replace(incarnation=1), tag(5)._replace(update_time=0)):
            assert await cache.touch(KEY, other, later + 1, "other") is False
        await clock.advance(limits.idle_ttl - clock.tick)
        found = await hit(cache)
        assert (found.validated_at, found.entry_stamp) == (later, "newest")
        assert found.content == content(5, 5)
        assert await cache.touch(USER, tag(5), later, "other") is False
        assert isinstance(await look(cache, USER), Miss)

    async def test_an_entry_lives_idle_and_in_all_so_long(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits
    ) -> None:
        """I8: nothing stays for ever, used or not."""
        await fill(cache, content(5, 5))
        await clock.advance(limits.idle_ttl - clock.tick)
        assert isinstance(await look(cache), Hit)
        await clock.advance(2 * clock.tick)
        assert isinstance(await look(cache), Miss)
        await fill(cache, content(5, 5))
        step = limits.idle_ttl * 9 // 10
        for _ in range(limits.max_age // step + 1):
            assert await cache.touch(KEY, tag(5), 0, "") is True
            await clock.advance(step)
        assert isinstance(await look(cache), Miss)

    @pytest.mark.parametrize("newest", [None, 0, 2])
    async def test_an_expired_session_is_a_miss_at_once(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits, newest: int | None
    ) -> None:
        """Section 7: at its `expires_at`, and masked as any other."""
        await fill(cache, content(5, 5), expires_at=await now(cache) + limits.idle_ttl // 4)
        await clock.advance(limits.idle_ttl // 4 - clock.tick)
        assert isinstance(await look(cache, KEY, newest), Hit)
        await clock.advance(clock.tick)
        assert isinstance(await look(cache, KEY, newest), Miss)
        await mask(cache, "writer")
        assert isinstance(await look(cache, KEY, newest), Masked)


class ApplyRules(CacheFixtures):
    """apply: an entry moves from a tag to its successor, or goes."""

    async def test_apply_moves_the_entry_to_its_successor(self, cache: SessionCache, clock: Clock) -> None:
        """I3; a repeated apply changes nothing (R6)."""
        await fill(cache, content(17, 17))
        await clock.advance(clock.tick)
        begun = await mask(cache, "writer")
        new = events(18, 19)
        reply = await cache.apply(KEY, "writer", tag(17), tag(19), new, b'{"b":2}', begun)
        assert reply is ApplyReply.APPLIED
        found = await hit(cache)
        assert found.content == Content(tag(19), b'{"b":2}', events(1, 19))
        assert (found.validated_at, found.entry_stamp) == (begun, "stamp")
        await clock.advance(clock.tick)
        late = await now(cache)
        assert await cache.apply(KEY, "writer", tag(17), tag(19), new, b"{}", late) is ApplyReply.OLD
        again = await hit(cache)
        assert (again.content, again.validated_at) == (found.content, begun)

    async def test_apply_never_makes_an_entry_look_older(self, cache: SessionCache) -> None:
        """The bound of I4 is counted from `validated_at`."""
        at = await fill(cache, content(1, 1))
        assert await cache.apply(KEY, "w", tag(1), tag(2), (event(2),), None, at - 1) is ApplyReply.APPLIED
        assert (await hit(cache)).validated_at == at

    async def test_apply_without_a_state_leaves_it(self, cache: SessionCache) -> None:
        """A write without a delta."""
        await fill(cache, content(1, 1))
        assert await cache.apply(KEY, "w", tag(1), tag(2), (event(2),), None, 0) is ApplyReply.APPLIED
        assert (await hit(cache)).content == content(2, 2)
        assert await cache.apply(KEY, "w", tag(2), tag(3), (), b'{"b":2}', 0) is ApplyReply.APPLIED
        assert (await hit(cache)).content == Content(tag(3), b'{"b":2}', events(1, 2))

    async def test_apply_never_makes_an_entry(self, cache: SessionCache) -> None:
        """R15"""
        for key, old in ((KEY, tag(1)), (USER, None)):
            await mask(cache, "writer", key)
            assert await cache.apply(key, "writer", old, tag(2), (), b"{}", 0) is ApplyReply.ABSENT
            assert isinstance(await look(cache, key), Miss)
            await granted(cache, "reader", key)

    async def test_apply_revokes_the_lease(self, cache: SessionCache) -> None:
        """R1, R9: its mask may have been evicted."""
        at = await granted(cache, "reader")
        assert await cache.apply(KEY, "writer", tag(1), tag(2), (), None, 0) is ApplyReply.ABSENT
        assert await cache.fill(KEY, "reader", at, "", content(1)) is FillReply.REFUSED

    @pytest.mark.parametrize(
        "old", [tag(4), tag(5, 6), tag(5)._replace(incarnation=1), tag(5)._replace(update_time=0)]
    )
    async def test_apply_onto_another_tag_deletes(self, cache: SessionCache, old: Tag) -> None:
        """R2, R17, R18, R28: the tag is compared whole, and a gap is not bridged."""
        await fill(cache, content(5, 5))
        await mask(cache, "other")
        assert await cache.apply(KEY, "writer", old, tag(6), (event(6),), None, 0) is ApplyReply.GAP
        assert isinstance(await look(cache), Masked)
        await cache.release(KEY, "other")
        assert isinstance(await look(cache), Miss)
        await granted(cache, "reader")

    async def test_apply_takes_away_only_the_own_mask(self, cache: SessionCache) -> None:
        """R3, of two writers at once."""
        await fill(cache, content(1, 1))
        await mask(cache, "one")
        await mask(cache, "two")
        assert await cache.apply(KEY, "one", tag(1), tag(2), (event(2),), None, 0) is ApplyReply.APPLIED
        assert isinstance(await look(cache), Masked)
        await cache.release(KEY, "two")
        assert (await hit(cache)).content == content(2, 2)

    async def test_a_late_apply_of_ones_own_still_holds(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits
    ) -> None:
        """However late, this writer is alive and tells what it wrote."""
        await fill(cache, content(1, 1))
        await mask(cache, "writer")
        await clock.advance(limits.mask_life)
        assert await cache.apply(KEY, "writer", tag(1), tag(2), (event(2),), None, 0) is ApplyReply.APPLIED
        assert (await hit(cache)).content == content(2, 2)

    async def test_apply_deletes_what_anothers_expired_mask_hides(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits
    ) -> None:
        """R4: the other may have committed before it died."""
        await fill(cache, content(1, 1))
        await mask(cache, "dead")
        await clock.advance(limits.mask_life)
        await mask(cache, "writer")
        assert await cache.apply(KEY, "writer", tag(1), tag(2), (event(2),), None, 0) is ApplyReply.ABSENT
        await granted(cache, "reader")

    @pytest.mark.parametrize(
        ("new", "reply"),
        [
            (Tag(2**62 + 1, 8, 9, 1), ApplyReply.APPLIED),
            (tag(5), ApplyReply.OLD),
            (tag(5, 6), ApplyReply.GAP),
            (tag(4), ApplyReply.GAP),
            (Tag(1, 8, 9, 1), ApplyReply.GAP),
        ],
    )
    async def test_a_shared_scope_is_replaced_whole(
        self, cache: SessionCache, new: Tag, reply: ApplyReply
    ) -> None:
        """R19: its writer does not know the predecessor."""
        await fill(cache, content(5), USER)
        assert await cache.apply(USER, "writer", None, new, (), b'{"new":1}', 0) is reply
        found = await look(cache, USER)
        if reply is ApplyReply.GAP:
            assert isinstance(found, Miss)
        else:
            assert isinstance(found, Hit)
            assert found.content == (content(5) if reply is ApplyReply.OLD else Content(new, b'{"new":1}'))

    @pytest.mark.parametrize("key", [KEY, USER])
    async def test_an_apply_prolongs_the_life(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits, key: ScopeKey
    ) -> None:
        """Section 7: the TTL slides on a write, also on one that was told twice."""
        await fill(cache, content(5), key)
        for old, new in ((5, 6), (5, 6), (6, 7)):
            await clock.advance(limits.idle_ttl - clock.tick)
            known = None if key == USER else tag(old)
            reply = await cache.apply(key, "writer", known, tag(new), (), b"{}", 0)
            assert reply in (ApplyReply.APPLIED, ApplyReply.OLD)
        await clock.advance(limits.idle_ttl - clock.tick)
        assert (await hit(cache, key)).content.tag == tag(7)

    async def test_an_apply_moves_the_expiry_if_it_says_so(
        self, cache: SessionCache, clock: Clock, limits: CacheLimits
    ) -> None:
        """Section 7: a sliding session lives on from its last append."""
        life = limits.idle_ttl // 4
        await fill(cache, content(5, 5), expires_at=await now(cache) + life)
        assert await cache.apply(KEY, "w", tag(5), tag(6), (), None, 0) is ApplyReply.APPLIED
        await clock.advance(life)
        assert isinstance(await look(cache), Miss)
        until = await now(cache) + life
        assert await cache.apply(KEY, "w", tag(6), tag(7), (), None, 0, until) is ApplyReply.APPLIED
        await clock.advance(life - clock.tick)
        assert (await hit(cache)).content.tag == tag(7)
        assert await cache.lease(KEY, "reader") is LeaseRefused.PRESENT
        await clock.advance(clock.tick)
        assert isinstance(await look(cache), Miss)
