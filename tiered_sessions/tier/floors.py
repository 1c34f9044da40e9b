"""The tags this process wrote or served: no later read of it may be older (I6)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..records import Listing, ScopeKey, Tag
from ..untracked import untrack
from .steps import Standing

_LIMIT = 100_000
# To look it up in its class takes as long as to judge by it.
_SAME = Standing.SAME


@dataclass(slots=True)
class _Floor:
    """`tag` None: only SQL can say. `written`, `changed`: at which change of a floor it was set so."""

    tag: Tag | None
    written: int
    changed: int
    expires: float


class Floors:
    """Remembers one tag a scope for `life` seconds, or as long as there is room (None).

    Longer is not needed: an entry that may still be served after `life` was found equal to SQL
    after the floor was set.
    """

    def __init__(self, life: float | None, clock: Callable[[], float], limit: int = _LIMIT) -> None:
        self._life = float("inf") if life is None else life
        self._clock = clock
        self._limit = limit
        self._floors: OrderedDict[ScopeKey, _Floor] = OrderedDict()
        self._changes = 0
        # Until then a floor that had to make room might have mattered.
        self._forgot_until = 0.0

    def began(self) -> int:
        """Returns the number of the last change."""
        return self._changes

    def judge(self, scope: ScopeKey, tag: Tag) -> Standing:
        """Compares an entry's tag with the floor. Only within one incarnation is lower older."""
        floor = self._find(scope)
        if floor is None:
            return Standing.DOUBT if self._clock() < self._forgot_until else Standing.FINE
        if tag == floor.tag:
            return Standing.FINE
        if floor.tag is None or tag.incarnation != floor.tag.incarnation:
            return Standing.DOUBT
        if tag.revision < floor.tag.revision:
            return Standing.BELOW
        # One revision with two nonces: SQL lost commits, or a foreign writer came by (R18, R28).
        return Standing.DOUBT if tag.revision == floor.tag.revision else Standing.FINE

    def standings(self, scopes: Sequence[ScopeKey], tags: Sequence[Tag | None]) -> tuple[Standing, ...]:
        """Judges entries, one a scope; where there is none (None), nothing is wrong with it."""
        floors, now = self._floors, self._clock()
        judged: list[Standing] = []
        for scope, tag in zip(scopes, tags, strict=True):
            floor = floors.get(scope)
            if floor is not None and floor.tag == tag and floor.expires > now and tag is not None:
                # Nearly always: what was served is served again.
                floor.expires = now + self._life
                floors.move_to_end(scope)
                judged.append(_SAME)
            else:
                judged.append(Standing.FINE if tag is None else self.judge(scope, tag))
        return tuple(judged)

    def served(self, scopes: Sequence[ScopeKey], tags: Sequence[Tag]) -> None:
        """Raises the floors to what a caller is about to see."""
        for scope, tag in zip(scopes, tags, strict=True):
            floor = self._find(scope)
            # Unless an own write finished while this answer was on its way: then its word stays.
            if floor is None or self.judge(scope, tag) is Standing.FINE:
                self._set(scope, tag, floor.written if floor else 0)

    def wrote(self, scope: ScopeKey, tag: Tag | None) -> None:
        """Sets the floor to an own write."""
        self._set(scope, tag, self._changes + 1)

    def observed(self, scope: ScopeKey, tag: Tag | None, began: int) -> bool:
        """Sets the floor to what SQL said, lower or not: SQL is the truth.

        Unless an own write finished since the question was sent and the answer does not hold it:
        then it returns false, and the question must be asked again. If only another read has shown
        something else since, this answer may be shown, as its call is as old; but it may be older than
        that one, so it says nothing of what later calls may be shown.
        """
        now = self._clock()
        floor = self._floors.get(scope)
        if floor is not None and floor.expires > now and tag is not None and floor.tag == tag:
            # Nothing to compare and nothing to change, whoever said it.
            floor.expires = now + self._life
            self._floors.move_to_end(scope)
            return True
        floor = self._find(scope)
        if floor is not None and floor.changed > began:
            # One that is missing may have been there before, or since.
            standing = Standing.DOUBT if tag is None else self.judge(scope, tag)
            if floor.written > began:
                if standing is Standing.BELOW or not _comparable(tag, floor.tag):
                    return False
            elif standing is Standing.BELOW:
                return True
            elif standing is Standing.DOUBT:
                tag = None
        self._set(scope, tag, floor.written if floor else 0)
        return True

    def listed(self, found: Listing, began: int) -> None:
        """Sets the floors to what SQL listed, each as `observed` does."""
        floors, app, now = self._floors, found.app_name, self._clock()
        for user, session, tag in zip(found.user_ids, found.session_ids, found.tags, strict=True):
            # Equal to the key, and made in no time.
            scope: Any = ("session", app, user, session)
            floor = floors.get(scope)
            if floor is not None and floor.expires > now and floor.tag == tag:
                floor.expires = now + self._life
                floors.move_to_end(scope)
            else:
                self.observed(ScopeKey(*scope), tag, began)
        for user in set(found.user_ids):
            shared = found.users.get(user)
            self.observed(ScopeKey("user", app, user), shared.tag if shared else None, began)
        if found.tags:
            self.observed(ScopeKey("app", app), found.app.tag if found.app else None, began)

    def clear(self) -> None:
        """Forgets everything: another namespace begins."""
        self._floors.clear()

    def _find(self, scope: ScopeKey) -> _Floor | None:
        floor = self._floors.get(scope)
        if floor is not None and floor.expires <= self._clock():
            del self._floors[scope]
            return None
        return floor

    def _set(self, scope: ScopeKey, tag: Tag | None, written: int) -> None:
        now = self._clock()
        last = self._floors.get(scope)
        if last is None or last.tag != tag or last.written != written:
            self._changes += 1
            changed = self._changes
        else:
            changed = last.changed
        if last is None:
            floor = self._floors[scope] = _Floor(tag, written, changed, now + self._life)
            untrack(scope)
            untrack(floor)
        else:
            last.tag, last.written, last.changed, last.expires = tag, written, changed, now + self._life
            self._floors.move_to_end(scope)
        while self._floors:
            oldest = next(iter(self._floors.values()))
            if oldest.expires > now:
                if len(self._floors) <= self._limit:
                    break
                self._forgot_until = oldest.expires
            self._floors.popitem(last=False)


def _comparable(one: Tag | None, other: Tag | None) -> bool:
    return one is not None and other is not None and one.incarnation == other.incarnation
