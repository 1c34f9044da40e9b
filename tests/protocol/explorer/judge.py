"""What must hold: I1-I8, judged against every version SQL ever had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from tests.protocol.explorer.sql import KEY, SCOPES, SqlStates
from tests.protocol.explorer.state import Promise, Scenario, State
from tests.protocol.explorer.tiers import CacheStates
from tiered_sessions.cache.base import CacheLimits, Hit
from tiered_sessions.cache.chunks import CHUNK
from tiered_sessions.records import Already, Committed, Content, Failed, Query, Snapshot, Unknown
from tiered_sessions.tier.steps import Answer, CacheCommand, Wait

_CACHE = get_args(CacheCommand)
_ALL = Query()


class Violated(Exception):
    """Something that must hold does not."""


Versions = tuple[Content | None, ...]


def _same(one: Content | None, other: Content | None) -> bool:
    """Compares tags as the numbers they are, however the product does."""
    if one is None or other is None:
        return one is other
    return one == other and tuple(one.tag) == tuple(other.tag)


def _shown(version: Content | None, query: Query) -> Content | None:
    """Returns what a reader who asks so sees of a version; what lies before it is no part of an answer."""
    if version is None or query == Query():
        return version
    return replace(version, events=query.select(version.events), complete=True, before=None)


def _index(versions: Versions, content: Content | None, query: Query, first: int = 0) -> int | None:
    """Returns which version this is, from `first` on."""
    shown = content and _shown(content, query)
    found = (at for at in range(first, len(versions)) if _same(_shown(versions[at], query), shown))
    return next(found, None)


def _tail(content: Content, version: Content | None) -> bool:
    """Says whether an entry is that version, or its newest events (I1, I2)."""
    if version is None or tuple(content.tag) != tuple(version.tag) or content.state != version.state:
        return False
    count = len(content.events)
    if content.complete:
        return content.events == version.events
    return content.events == version.events[len(version.events) - count :]


class Judge:
    """Judges what a scenario shows."""

    def __init__(self, scenario: Scenario, cache: CacheStates, sql: SqlStates) -> None:
        self._scenario = scenario
        self._cache = cache
        self._sql = sql
        limits = CacheLimits()
        self._longest = max(limits.idle_ttl, 2 * limits.mask_life)
        self._judged: set[tuple[Any, ...]] = set()
        self._now: dict[int, tuple[int, ...]] = {}

    def now(self, sql: int) -> tuple[int, ...]:
        """Returns the newest version of each scope that has to be shown."""
        found = self._now.get(sql)
        if found is None:
            state = self._sql.table.values[sql]
            last = [len(each) - 1 for each in state.versions]
            # Whether a session has expired is for each clock to say, until its id is taken again.
            last[0] -= state.over and bool(self._scenario.faults.expiries)
            found = self._now[sql] = tuple(last)
        return found

    def due(self, sql: int, now: int, seen: tuple[int, ...]) -> tuple[int, ...]:
        """Returns what a read that begins must at least show. `seen`: what its process has (I6)."""
        if self._scenario.promise is Promise.NEVER:
            return self.now(sql)
        bound = self._scenario.rules.max_staleness
        if self._scenario.promise is not Promise.BOUNDED or bound is None:
            return seen
        since = self._sql.table.values[sql].since
        old = tuple(sum(at < now - bound for at in each) - 1 for each in since)
        return old if self._scenario.faults.losses else tuple(map(max, seen, old))

    def cache(self, state: State) -> None:
        """I1, I2, I8 of every entry; I4, I5 of those that would be served, where nothing may be old."""
        name = state.cache, state.sql, state.now, state.stamp
        if name in self._judged:
            return
        self._judged.add(name)
        versions = dict(zip(SCOPES, self._sql.table.values[state.sql].versions, strict=True))
        for scope, slot in self._cache.slots(state.cache).items():
            if not 0 < slot.expires <= state.now + self._longest:
                raise Violated(f"I8: the key of {scope.kind} lives until {slot.expires}, for ever")
            if slot.entry is None:
                continue
            if slot.entry.events >= self._scenario.window + CHUNK:
                raise Violated(f"I8: the entry of {scope.kind} holds {slot.entry.events} events")
            content = slot.entry.content()
            if not any(_tail(content, version) for version in versions[scope]):
                raise Violated(f"I1: the entry of {scope.kind} was never committed: {content}")
        rules = self._scenario.rules
        bound = rules.max_staleness
        if self._scenario.promise is not Promise.NEVER or bound is None or bound == 0 or rules.private:
            return
        shown = self._cache.look(state.cache, state.now, state.stamp)
        for scope, found in zip(SCOPES, shown, strict=True):
            if not isinstance(found, Hit) or found.entry_stamp != found.stamp:
                continue
            if found.now - found.validated_at > bound:
                continue
            due = versions[scope][self.now(state.sql)[SCOPES.index(scope)] :]
            if not any(_tail(found.content, version) for version in due):
                raise Violated(f"I4: an old entry of {scope.kind} can be served: {found.content}")

    def moved(self, before: int, after: int, sql: int, command: Any) -> None:
        """I3: an entry moves only to a successor, a session's to the next version."""
        name = before, after, sql, command.scope
        if name in self._judged:
            return
        self._judged.add(name)
        scope = command.scope
        old = getattr(self._cache.slots(before).get(scope), "entry", None)
        new = getattr(self._cache.slots(after).get(scope), "entry", None)
        if old is None or new is None or tuple(old.tag) == tuple(new.tag):
            return
        versions = self._sql.table.values[sql].versions[SCOPES.index(scope)]
        tags = [tuple(version.tag) if version else None for version in versions]
        left = [at for at, tag in enumerate(tags) if tag == tuple(old.tag)]
        far = [at - start for at, tag in enumerate(tags) if tag == tuple(new.tag) for start in left]
        if not any(moved == 1 or (moved > 1 and scope != KEY.session) for moved in far):
            raise Violated(f"I3: the entry of {scope.kind} moved by {far} versions: {command}")

    def answer(
        self, sql: int, answer: Answer, bound: tuple[int, ...], query: Query = _ALL
    ) -> tuple[int, ...]:
        """I1 and I4-I6 of one answer: returns the versions shown."""
        versions = self._sql.table.values[sql].versions
        shown = list(bound)
        snapshot = answer.snapshot
        for at, scope in enumerate(SCOPES if snapshot else SCOPES[:1]):
            content = snapshot.content(scope) if snapshot else None
            found = _index(versions[at], content, query, bound[at])
            if found is None:
                known = _index(versions[at], content, query) is not None
                wrong = f"I4-I6: too old, version {bound[at]} was due" if known else "I1: never committed"
                raise Violated(f"{wrong}: {scope.kind} {content} from {answer.source}")
            shown[at] = found
        return tuple(shown)

    def latest(self, sql: int, answer: Answer, prefix: str) -> None:
        """Checks that an answer is what SQL says now."""
        try:
            self.answer(sql, answer, self.now(sql))
        except Violated as error:
            raise Violated(f"{prefix}{error}") from None

    def waits(self, wait: Wait, commands: list[Any]) -> None:
        """I7: nobody waits for the cache without a limit. `commands`: those waited for."""
        if wait.timer is None and any(isinstance(command, _CACHE) for command in commands):
            raise Violated(f"I7: waits for the cache without a limit: {commands}")

    def written(self, outcome: Any, own: tuple[int, ...]) -> tuple[int, ...]:
        """Returns what the process's next reads must show after this outcome."""
        faults = self._scenario.faults
        broken = outcome is None or isinstance(outcome, Failed | Unknown)
        if broken and not (faults.unknowns or faults.cancels):
            raise Violated(f"I7: a write fails without a fault of SQL: {outcome}")
        if isinstance(outcome, Committed | Already | Snapshot) or outcome is True:
            return own
        return (0,) * len(SCOPES)
