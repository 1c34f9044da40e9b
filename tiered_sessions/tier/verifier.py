"""Compares entries of the cache with SQL and disturbs neither: nothing is filled, touched or locked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ..cache.base import Hit, Lookup, Masked, Miss, SessionCache, Unavailable
from ..cache.chunks import left_out
from ..codec import same_json
from ..records import Content, Query, ScopeKey, SessionKey, Snapshot, Tag

_LOOKS: Final = 5


class Verdict(Enum):
    """What a comparison found. `UNSETTLED`: the entry moved at every look, or its row is gone."""

    EQUAL = "equal"
    ABSENT = "absent"
    MASKED = "masked"
    UNSETTLED = "unsettled"
    STALE = "stale"
    WRONG = "wrong"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one entry. Durations in milliseconds of the cache server's clock.

    `age`: since the entry was last known to equal SQL. `allowed`: how long a read may still be served
    from it without asking SQL; 0: no read is.
    """

    scope: ScopeKey
    verdict: Verdict
    reason: str = ""
    cached: Tag | None = None
    stored: Tag | None = None
    age: int = 0
    allowed: float = 0

    @property
    def compared(self) -> bool:
        """Whether there was an entry to compare, and it was compared."""
        return self.verdict in (Verdict.EQUAL, Verdict.STALE, Verdict.WRONG)

    @property
    def different(self) -> bool:
        """Whether the entry is not what SQL says."""
        return self.verdict in (Verdict.STALE, Verdict.WRONG)


class Verifier:
    """Looks at the cache, at SQL and at the cache again, so that no write under way looks like a fault.

    Args:
        cache: The cache that all servers share.
        load: Reads a session from SQL at one moment.
        max_staleness: Milliseconds, as the services have it; None: no bound.
    """

    def __init__(
        self,
        cache: SessionCache,
        load: Callable[[SessionKey, Query], Awaitable[Snapshot | None]],
        max_staleness: int | None,
    ) -> None:
        self._cache = cache
        self._load = load
        self._max_staleness = max_staleness

    async def compare(self, key: SessionKey, scopes: Sequence[ScopeKey] = ()) -> list[Finding]:
        """Compares the entries of a session, or only those of `scopes`, in this order."""
        wanted = tuple(scopes) or key.scopes
        findings = {scope: Finding(scope, Verdict.UNSETTLED, "it changed at every look") for scope in wanted}
        moving = wanted
        for _ in range(_LOOKS):
            moving = await self._look(key, moving, findings)
            if not moving:
                break
        return [findings[scope] for scope in wanted]

    async def repair(self, finding: Finding) -> bool:
        """Drops an entry that differs; false if the cache did not answer."""
        # A wrong entry carries SQL's very tag, so there is nothing to keep.
        keep = finding.stored if finding.verdict is Verdict.STALE else None
        return await self._cache.drop(finding.scope, None, keep) is None

    async def _look(
        self, key: SessionKey, scopes: tuple[ScopeKey, ...], findings: dict[ScopeKey, Finding]
    ) -> tuple[ScopeKey, ...]:
        """Settles what one round can; returns the scopes whose entry moved meanwhile."""
        hits: dict[ScopeKey, Hit] = {}
        for scope, found in zip(scopes, await self._cache.lookup(scopes), strict=True):
            if isinstance(found, Hit):
                hits[scope] = found
            else:
                findings[scope] = _without(scope, found)
        if not hits:
            return ()
        window = len(hits[key.session].content.events) if key.session in hits else 0
        snapshot = await self._load(key, Query(limit=max(1, window)))
        differing: dict[ScopeKey, Tag | None] = {}
        for scope, hit in hits.items():
            stored = snapshot.content(scope) if snapshot else None
            if stored is not None and stored.tag == hit.content.tag:
                # Equal tags are equal content whenever either was read (I1): no second look.
                findings[scope] = _contents(scope, hit, stored)
            elif snapshot is None and scope != key.session:
                reason = "the session it would be read with is gone"
                findings[scope] = Finding(scope, Verdict.UNSETTLED, reason)
            else:
                differing[scope] = stored.tag if stored else None
        if not differing:
            return ()
        # The first look precedes the read, so an entry ahead of SQL is no commit that came between;
        # the second follows it, so an entry behind SQL is no write that has not masked it yet.
        again = await self._cache.lookup(tuple(differing), 0)
        moved = []
        for (scope, tag), found in zip(differing.items(), again, strict=True):
            if not isinstance(found, Hit):
                findings[scope] = _without(scope, found)
            elif found.content.tag == hits[scope].content.tag:
                findings[scope] = self._stale(scope, found, tag)
            else:
                moved.append(scope)
        return tuple(moved)

    def _stale(self, scope: ScopeKey, hit: Hit, stored: Tag | None) -> Finding:
        cached = hit.content.tag
        age = max(0, hit.now - hit.validated_at)
        allowed = float("inf") if self._max_staleness is None else max(0, self._max_staleness - age)
        if hit.entry_stamp != hit.stamp:
            # From before a failover: every read checks it.
            allowed = 0
        if stored is None:
            reason = "SQL has no such row"
        elif stored.incarnation != cached.incarnation:
            reason = "SQL holds another incarnation of the row, or another program's"
        elif stored.revision < cached.revision:
            reason = "the entry is ahead of SQL, which has lost commits"
        else:
            reason = "SQL has moved on"
        return Finding(scope, Verdict.STALE, reason, cached, stored, age, allowed)


def _without(scope: ScopeKey, found: Lookup) -> Finding:
    """Says why there is no entry to compare."""
    if isinstance(found, Unavailable):
        return Finding(scope, Verdict.UNREACHABLE, found.reason)
    assert isinstance(found, Miss | Masked)
    return Finding(scope, Verdict.MASKED if isinstance(found, Masked) else Verdict.ABSENT)


def _contents(scope: ScopeKey, hit: Hit, stored: Content) -> Finding:
    reason = difference(hit.content, stored)
    verdict = Verdict.WRONG if reason else Verdict.EQUAL
    age = max(0, hit.now - hit.validated_at)
    return Finding(scope, verdict, reason, hit.content.tag, stored.tag, age)


def difference(entry: Content, stored: Content) -> str:
    """Says in what an entry differs from what SQL holds at the same tag; empty: in nothing.

    `stored` holds at least as many of the newest events as the entry, if there are so many.
    """
    cut = len(stored.events) - len(entry.events)
    if cut < 0:
        return f"it holds {-cut} events that SQL does not"
    older = stored.events[:cut]
    before = left_out(stored.complete, stored.before, older) if older else stored.before
    if entry.complete and (older or not stored.complete):
        return "it denies that there are older events"
    if not entry.complete and entry.before is not None and before is not None and entry.before < before:
        return "it names too early a time for the newest of the events it leaves out"
    if not _same(entry.state, stored.state):
        return "its state"
    for ours, theirs in zip(entry.events, stored.events[cut:], strict=True):
        if ours[:3] != theirs[:3] or not _same(ours.payload, theirs.payload):
            return f"its event {theirs.seq}"
    return ""


def _same(cached: bytes, stored: bytes) -> bool:
    try:
        return same_json(cached, stored)
    except ValueError:
        return False
