"""Caches with one mistake each, about who may show an entry or make one; broken_caches.py runs them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from tiered_sessions.cache.memory import MemoryCache, Slot
from tiered_sessions.records import ScopeKey, Tag


class Broken(MemoryCache):
    """`caught_by`: the rule that is about this mistake."""

    caught_by = ""

    def slot(self, key: ScopeKey) -> Slot:
        return MemoryCache._get(self, key, self._clock())

    def change(self, key: ScopeKey, **changes: Any) -> None:
        self._put(key, replace(self.slot(key), **changes))


# --- masks ---------------------------------------------------------------------------------------


class NoMask(Broken):
    caught_by = "test_a_mask_without_an_entry_refuses_a_lease"

    async def intent(self, key: ScopeKey, token: str) -> Any:
        self.change(key, lease=None)
        return self._clock()


class ExpiredMaskUnmasks(Broken):
    caught_by = "test_a_mask_hides_the_entry_and_its_expiry_deletes_it"

    def _get(self, key: ScopeKey, now: int) -> Slot:
        slot = super()._get(key, now)
        return replace(slot, masks=tuple(mask for mask in slot.masks if mask[1] > now))


class ReleaseTakesAllMasks(Broken):
    caught_by = "test_a_released_mask_shows_the_entry_again"

    async def release(self, key: ScopeKey, token: str) -> None:
        self.change(key, masks=())


class IntentIsTorn(Broken):
    caught_by = "test_masks_taken_together_all_hold"

    async def intent(self, key: ScopeKey, token: str) -> Any:
        before = self.slot(key)
        await asyncio.sleep(0)
        self._put(key, before)
        return await super().intent(key, token)


class IntentKeepsTheLease(Broken):
    caught_by = "test_an_intent_revokes_the_lease"

    async def intent(self, key: ScopeKey, token: str) -> Any:
        lease = self.slot(key).lease
        reply = await super().intent(key, token)
        self.change(key, lease=lease)
        return reply


class IntentShortensTheLife(Broken):
    caught_by = "test_an_intent_prolongs_a_life_and_never_shortens_it"

    async def intent(self, key: ScopeKey, token: str) -> Any:
        reply = await super().intent(key, token)
        self.change(key, expires=reply + 2 * self.limits.mask_life)
        return reply


class IntentDoesNotProlong(Broken):
    caught_by = "test_an_intent_prolongs_a_life_and_never_shortens_it"

    async def intent(self, key: ScopeKey, token: str) -> Any:
        before = self.slot(key).expires
        reply = await super().intent(key, token)
        if before:
            self.change(key, expires=before)
        return reply


# --- leases --------------------------------------------------------------------------------------


class ReleaseKeepsTheLease(Broken):
    caught_by = "test_a_released_lease_is_free"

    async def release(self, key: ScopeKey, token: str) -> None:
        before = self.slot(key)
        await super().release(key, token)
        self.change(key, lease=before.lease, expires=before.expires)


class LeaseAlwaysGranted(Broken):
    caught_by = "test_of_leases_asked_for_together_one_is_granted"

    async def lease(self, key: ScopeKey, token: str) -> Any:
        self.change(key, lease=None)
        return await super().lease(key, token)


class LeaseEndsEarly(Broken):
    caught_by = "test_a_lease_holds_until_it_ends"

    async def lease(self, key: ScopeKey, token: str) -> Any:
        reply = await super().lease(key, token)
        lease = self.slot(key).lease
        self.change(key, lease=lease and replace(lease, deadline=lease.granted_at + 1))
        return reply


class FillIgnoresTheGrantTime(Broken):
    caught_by = "test_a_lease_is_one_and_ends"

    async def fill(self, key: ScopeKey, token: str, granted_at: int, *rest: Any) -> Any:
        lease = self.slot(key).lease
        return await super().fill(key, token, lease.granted_at if lease else granted_at, *rest)


class FillIgnoresTheLease(Broken):
    caught_by = "test_a_fill_without_a_lease_is_refused"

    async def fill(self, key: ScopeKey, token: str, granted_at: int, *rest: Any) -> Any:
        self.change(key, lease=None)
        await super().lease(key, token)
        return await super().fill(key, token, self._clock(), *rest)


class FillInheritsTheExpiry(Broken):
    caught_by = "test_an_expired_entry_makes_room_for_a_fill"
    seen: int | None = None

    async def fill(self, *arguments: Any) -> Any:
        *rest, expires_at = arguments if len(arguments) == 6 else (*arguments, None)
        self.seen = expires_at or self.seen
        return await super().fill(*rest, self.seen)


class FillIsDatedLate(Broken):
    caught_by = "test_what_is_filled_is_found"

    async def fill(self, key: ScopeKey, *rest: Any) -> Any:
        reply = await super().fill(key, *rest)
        if entry := self.slot(key).entry:
            self.change(key, entry=replace(entry, validated_at=self._clock()))
        return reply


# --- drop, election, keys ------------------------------------------------------------------------


class DropIgnoresKeep(Broken):
    caught_by = "test_drop_keeps_the_tag_that_sql_has"

    async def drop(self, key: ScopeKey, token: str | None, keep: Tag | None) -> None:
        await super().drop(key, token, None)


class DropTakesAllMasks(Broken):
    caught_by = "test_drop_leaves_the_masks_of_others"

    async def drop(self, key: ScopeKey, token: str | None, keep: Tag | None) -> None:
        await super().drop(key, token, keep)
        self.change(key, masks=())


class DropKeepsTheLease(Broken):
    caught_by = "test_drop_revokes_the_lease"

    async def drop(self, key: ScopeKey, token: str | None, keep: Tag | None) -> None:
        before = self.slot(key)
        await super().drop(key, token, keep)
        self.change(key, lease=before.lease, expires=before.expires)


class EveryoneIsElected(Broken):
    caught_by = "test_of_owners_elected_together_there_is_one"

    async def elect(self, owner: str, life: int) -> bool:
        return True


class NobodyElseIsEverElected(Broken):
    caught_by = "test_one_owner_drains"

    async def elect(self, owner: str, life: int) -> Any:
        return await super().elect(owner, 10**15)


class OneNamespace(Broken):
    caught_by = "test_a_namespace_hides_all"

    namespace = property(lambda self: "", lambda self, name: None)  # type: ignore[assignment]


class KeysIgnoreCase(Broken):
    caught_by = "test_keys_that_look_alike_are_different"

    def _get(self, key: ScopeKey, now: int) -> Slot:
        return super()._get(ScopeKey(*map(str.lower, key)), now)  # type: ignore[arg-type]

    def _put(self, key: ScopeKey, slot: Slot) -> None:
        super()._put(ScopeKey(*map(str.lower, key)), slot)  # type: ignore[arg-type]


class OneKeyOfAUser(Broken):
    caught_by = "test_a_key_changes_without_its_neighbours"

    def _get(self, key: ScopeKey, now: int) -> Slot:
        return super()._get(ScopeKey("app", *key[1:2]), now)

    def _put(self, key: ScopeKey, slot: Slot) -> None:
        super()._put(ScopeKey("app", *key[1:2]), slot)
