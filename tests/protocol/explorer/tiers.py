"""The cache and the floors as values: a state is a number, a command's effect is looked up.

Both are the product's own.
"""

from __future__ import annotations

import copy
from collections.abc import Coroutine
from typing import Any, NamedTuple

from tests.protocol.explorer.machines import Table, freeze
from tests.protocol.explorer.sql import SCOPES
from tiered_sessions.cache.base import CacheLimits
from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.records import ScopeKey
from tiered_sessions.tier import steps
from tiered_sessions.tier.floors import Floors


class Elected(NamedTuple):
    """`Elect`, and which process asks."""

    owner: str


class Rest(NamedTuple):
    """What is left of a `LookUp` when some keys have been read."""

    seen: tuple[Any, ...]
    keys: tuple[ScopeKey, ...]
    newest: int | None


def _done(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the memory cache must not wait")


class CacheStates:
    """All states of the cache met in one exploration: the product's MemoryCache, put there."""

    def __init__(self, replies: Table, limits: CacheLimits) -> None:
        self.table = Table()
        self._now = 0
        self._replies = replies
        self._known: dict[tuple[Any, ...], tuple[int, int]] = {}
        clock = lambda: self._now  # noqa: E731
        self._cache = MemoryCache(limits, clock=clock, shared=True)
        self.empty = self.table.add(self._cache.snapshot())

    def perform(self, cache: int, now: int, stamp: str, number: int, command: Any) -> tuple[int, int]:
        """Executes the command of this number: the state afterwards, and the reply's number."""
        name = cache, now, stamp, number
        found = self._known.get(name)
        if found is None:
            self._put(cache, now, stamp)
            reply = self._perform(command)
            after = self.table.add(self._cache.snapshot())
            found = self._known[name] = after, self._replies.add(reply, freeze(reply))
        return found

    def look(self, cache: int, now: int, stamp: str) -> tuple[Any, ...]:
        """Returns what a reader of all scopes would be shown."""
        self._put(cache, now, stamp)
        shown: tuple[Any, ...] = _done(self._cache.lookup(SCOPES))
        return shown

    def slots(self, cache: int) -> dict[ScopeKey, Any]:
        """Returns what each key holds."""
        return {name[1]: slot for name, slot in self.table.values[cache][0]}

    def without(self, cache: int, scope: ScopeKey) -> int:
        """Returns the state after the eviction of one key."""
        slots, elections = self.table.values[cache]
        return self.table.add((tuple(slot for slot in slots if slot[0][1] != scope), elections))

    def _put(self, cache: int, now: int, stamp: str) -> None:
        self._now = now
        self._cache.restore(self.table.values[cache])
        self._cache.stamp = stamp

    def _perform(self, command: Any) -> Any:
        cache = self._cache
        match command:
            case steps.LookUp():
                return _done(cache.lookup(*command))
            case steps.Intent():
                return _done(cache.intent(*command))
            case steps.Release():
                return _done(cache.release(*command))
            case steps.Lease():
                return _done(cache.lease(*command))
            case steps.Fill(scope, token, granted, content, expires):
                at, stamp = granted.granted_at, granted.stamp
                return _done(cache.fill(scope, token, at, stamp, content, expires))
            case steps.Apply():
                return _done(cache.apply(*command))
            case steps.Drop():
                return _done(cache.drop(*command))
            case steps.Touch():
                return _done(cache.touch(*command))
            case Elected(owner):
                return _done(cache.elect(owner, 1000))
        raise AssertionError(command)


class FloorStates:
    """All states of a process's floors met in one exploration: the product's Floors, copied."""

    def __init__(self, replies: Table, life: float | None) -> None:
        self._now = 0
        self._table = Table()
        self._replies = replies
        self._known: dict[tuple[Any, ...], tuple[int, int]] = {}
        self.empty = self._add(Floors(life, lambda: self._now / 1000))

    def ask(self, floors: int, now: int, question: Any) -> tuple[int, int]:
        """Returns the state afterwards, and the reply's number."""
        name = floors, now, type(question), question
        found = self._known.get(name)
        if found is None:
            self._now = now
            after = copy.deepcopy(self._table.values[floors])
            reply = self._answer(after, question)
            found = self._known[name] = self._add(after), self._replies.add(reply, freeze(reply))
        return found

    def _add(self, floors: Floors) -> int:
        return self._table.add(floors, freeze(vars(floors)))

    @staticmethod
    def _answer(floors: Floors, question: Any) -> Any:
        match question:
            case steps.Began():
                return floors.began()
            case steps.Judge():
                return floors.standings(*question)
            case steps.Served():
                return floors.served(*question)
            case steps.Observed():
                return floors.observed(*question)
            case steps.Wrote():
                return floors.wrote(*question)
        raise AssertionError(question)
