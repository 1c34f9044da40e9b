"""Caches with one mistake each, under the public suite; test_testing.py runs this and reads the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.unit import broken_masks
from tests.unit.broken_masks import Broken
from tiered_sessions.cache.base import ApplyReply, CacheLimits, Hit, Lookup, Masked, Miss
from tiered_sessions.cache.memory import Entry, MemoryCache, Slot
from tiered_sessions.records import ScopeKey, Tag
from tiered_sessions.testing import CacheSuite, ManualClock

# --- entries -------------------------------------------------------------------------------------


class AHeaderIsWhole(Broken):
    caught_by = "test_a_header_has_neither_state_nor_events"

    async def lookup(self, keys: Sequence[ScopeKey], newest: int | None = None) -> tuple[Lookup, ...]:
        return await super().lookup(keys)


class APartIsCalledWhole(Broken):
    caught_by = "test_the_newest_events_are_shown_as_a_part"

    async def lookup(self, keys: Sequence[ScopeKey], newest: int | None = None) -> tuple[Lookup, ...]:
        found = await super().lookup(keys, newest)
        return tuple(map(self.called_whole, keys, found))

    def called_whole(self, key: ScopeKey, found: Lookup) -> Lookup:
        entry = self.slot(key).entry
        if not isinstance(found, Hit) or entry is None:
            return found
        return replace(found, content=replace(found.content, complete=entry.complete))


class PartsAreNotMasked(Broken):
    caught_by = "test_a_part_is_masked_and_missing_as_the_whole"

    async def lookup(self, keys: Sequence[ScopeKey], newest: int | None = None) -> tuple[Lookup, ...]:
        found = await super().lookup(keys, newest)
        return tuple(Miss(each.now, "") if newest and isinstance(each, Masked) else each for each in found)


class NumbersAreFloats(Broken):
    caught_by = "test_numbers_come_back_exactly"

    async def lookup(self, keys: Sequence[ScopeKey], newest: int | None = None) -> tuple[Lookup, ...]:
        found = await super().lookup(keys, newest)
        return tuple(map(self.rounded, found))

    def rounded(self, found: Lookup) -> Lookup:
        if not isinstance(found, Hit):
            return found
        content = found.content
        tag = Tag(*(int(float(number)) for number in content.tag))
        before = None if content.before is None else int(float(content.before))
        return replace(found, content=replace(content, tag=tag, before=before))


class TimestampsAreFloats(NumbersAreFloats):
    caught_by = "test_timestamps_compare_exactly"


class TouchIgnoresTheTag(Broken):
    caught_by = "test_touch_notes_a_validation"

    async def touch(self, key: ScopeKey, tag: Tag, validated_at: int, stamp: str) -> Any:
        entry = self.slot(key).entry
        return await super().touch(key, entry.tag if entry else tag, validated_at, stamp)


class NothingEnds(Broken):
    caught_by = "test_an_entry_lives_idle_and_in_all_so_long"

    def _life(self, entry: Entry, now: int) -> int:
        return now + 10**9


class SessionsDoNotExpire(Broken):
    caught_by = "test_an_expired_session_is_a_miss_at_once"

    async def fill(self, *arguments: Any) -> Any:
        return await super().fill(*arguments[:5])


# --- apply ---------------------------------------------------------------------------------------


class BrokenApply(Broken):
    async def apply(self, key: ScopeKey, token: str, old: Tag | None, new: Tag, *rest: Any) -> Any:
        before = self.slot(key)
        reply = await super().apply(key, token, old, new, *rest)
        return self.afterwards(key, before, reply, new, *rest) or reply

    def afterwards(
        self, key: ScopeKey, before: Slot, reply: Any, new: Tag, events: Any, state: Any, at: int, *rest: Any
    ) -> Any:
        raise NotImplementedError


class ApplyMakesAnEntry(BrokenApply):
    caught_by = "test_apply_never_makes_an_entry"

    def afterwards(self, key: ScopeKey, before: Slot, reply: Any, new: Tag, *rest: Any) -> Any:
        if reply is ApplyReply.ABSENT:
            now = self._clock()
            entry = Entry(new, rest[1] or b"{}", (), False, None, now, now, "", 0, None)
            self.change(key, entry=entry, expires=now + 1_000)


class ApplyKeepsTheLease(BrokenApply):
    caught_by = "test_apply_revokes_the_lease"

    def afterwards(self, key: ScopeKey, before: Slot, *rest: Any) -> Any:
        self.change(key, lease=before.lease, expires=before.expires)


class ApplyBridgesAGap(Broken):
    caught_by = "test_apply_onto_another_tag_deletes"

    async def apply(self, key: ScopeKey, token: str, old: Tag | None, *rest: Any) -> Any:
        entry = self.slot(key).entry
        known = entry.tag if entry and old else old
        return await super().apply(key, token, known, *rest)


class AGapKeepsTheEntry(BrokenApply):
    caught_by = "test_a_shared_scope_is_replaced_whole"

    def afterwards(self, key: ScopeKey, before: Slot, reply: Any, *rest: Any) -> Any:
        if reply is ApplyReply.GAP:
            self.change(key, entry=before.entry, expires=before.expires)


class ApplyTakesAllMasks(BrokenApply):
    caught_by = "test_apply_takes_away_only_the_own_mask"

    def afterwards(self, key: ScopeKey, *rest: Any) -> Any:
        self.change(key, masks=())


class ApplyDoesNotPurge(BrokenApply):
    caught_by = "test_apply_deletes_what_anothers_expired_mask_hides"

    async def apply(self, key: ScopeKey, token: str, *rest: Any) -> Any:
        now = self._clock()
        self.change(key, masks=tuple(mask for mask in self.slot(key).masks if mask[1] > now))
        return await MemoryCache.apply(self, key, token, *rest)


class ALateApplyFindsNothing(Broken):
    caught_by = "test_a_late_apply_of_ones_own_still_holds"

    async def apply(self, key: ScopeKey, token: str, *rest: Any) -> Any:
        self._put(key, self.slot(key).purged(self._clock()))
        return await super().apply(key, token, *rest)


class ApplyMakesOlder(BrokenApply):
    caught_by = "test_apply_never_makes_an_entry_look_older"

    def afterwards(
        self, key: ScopeKey, before: Slot, reply: Any, new: Tag, events: Any, state: Any, at: int, *rest: Any
    ) -> Any:
        if reply is ApplyReply.APPLIED:
            self.change(key, entry=replace(self.slot(key).entry, validated_at=at))  # type: ignore[type-var]


class AppliedTwice(BrokenApply):
    caught_by = "test_apply_moves_the_entry_to_its_successor"

    def afterwards(self, key: ScopeKey, before: Slot, reply: Any, *rest: Any) -> Any:
        return ApplyReply.APPLIED if reply is ApplyReply.OLD else None


class ApplyEmptiesTheState(Broken):
    caught_by = "test_apply_without_a_state_leaves_it"

    async def apply(self, *arguments: Any) -> Any:
        *rest, state, at = arguments[:7]
        return await super().apply(*rest, state or b"{}", at, *arguments[7:])


class ApplyDoesNotProlong(BrokenApply):
    caught_by = "test_an_apply_prolongs_the_life"

    def afterwards(self, key: ScopeKey, before: Slot, reply: Any, *rest: Any) -> Any:
        if reply is not ApplyReply.GAP:
            self.change(key, expires=before.expires)


class ApplyLeavesTheExpiry(Broken):
    caught_by = "test_an_apply_moves_the_expiry_if_it_says_so"

    async def apply(self, *arguments: Any) -> Any:
        return await super().apply(*arguments[:7])


# --- windows -------------------------------------------------------------------------------------


class Bounds(Broken):
    bounds: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, limits: CacheLimits, **options: Any) -> None:
        super().__init__(replace(limits, **self.bounds), **options)


class FewerEvents(Bounds):
    caught_by = "test_a_fill_keeps_the_newest_events"
    bounds = {"window_events": 4}  # noqa: RUF012


class NoBoundOfEvents(Bounds):
    caught_by = "test_many_events_in_one_apply"
    bounds = {"window_events": 10**9, "window_bytes": 10**9}  # noqa: RUF012


class NoBoundOfBytes(Bounds):
    caught_by = "test_bytes_bound_a_fill"
    bounds = {"window_bytes": 10**9}  # noqa: RUF012


class ApplyForgetsBytes(Broken):
    caught_by = "test_bytes_bound_the_window_to_single_events"

    def _trimmed(self, entry: Entry) -> Entry:
        return replace(super()._trimmed(replace(entry, size=0)), size=entry.size)


class NothingIsMissing(Broken):
    caught_by = "test_an_applied_window_stays_bounded"

    def _trimmed(self, entry: Entry) -> Entry:
        return replace(super()._trimmed(entry), complete=entry.complete, before=entry.before)


# --- under the suite -----------------------------------------------------------------------------

BROKEN = [
    kind
    for kind in (*vars(broken_masks).values(), *list(globals().values()))
    if isinstance(kind, type) and issubclass(kind, Broken) and kind.caught_by
]


class TestBroken(CacheSuite):
    @pytest.fixture(params=[MemoryCache, *BROKEN], ids=lambda kind: kind.__name__)
    def cache(self, request: pytest.FixtureRequest, clock: ManualClock, limits: CacheLimits) -> MemoryCache:
        kind: type[MemoryCache] = request.param
        return kind(limits, clock=clock)
