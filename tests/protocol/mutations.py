"""What the protocol cannot do without: each part can be switched off here, and only here.

An edit replaces a piece of the product's source, which must be there exactly once, and gives the
function the code that comes of it; or blinds the comparison of tags to one of their numbers.
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.protocol import scenarios
from tests.protocol.actors import RULES, Faults
from tests.protocol.scenarios import (
    Scenario,
    all_hits,
    always,
    for_itself,
    in_time,
    settled,
    violations,
    within,
)
from tests.protocol.simulation import NONE, World
from tests.protocol.toy_sql import Sql
from tiered_sessions.cache import memory
from tiered_sessions.cache.memory import Entry, MemoryCache, Slot
from tiered_sessions.records import Create, Tag
from tiered_sessions.tier import protocol, steps
from tiered_sessions.tier.flights import Flights
from tiered_sessions.tier.floors import Floors
from tiered_sessions.tier.steps import Rules

Edit = Callable[[pytest.MonkeyPatch], None]


def edit(owner: Any, name: str, old: str, new: str) -> Edit:
    """Returns what replaces `old` by `new` in the source of one function."""
    function: Any = inspect.getattr_static(owner, name)
    function = function.fget if isinstance(function, property) else function

    def apply(patch: pytest.MonkeyPatch) -> None:
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(old) == 1, f"{name} does not say {old!r} once"
        scope = dict(function.__globals__)
        text = source.replace(old, new).removeprefix("@property\n")
        flags = __future__.annotations.compiler_flag
        exec(compile(text, f"<{name}, edited>", "exec", flags, dont_inherit=True), scope)
        patch.setattr(function, "__code__", scope[function.__name__].__code__)

    return apply


def blind(number: str) -> Edit:
    """Returns what makes comparisons of tags overlook one of their numbers."""

    def equal(one: Tag, other: object) -> bool:
        return isinstance(other, Tag) and tuple(one._replace(**{number: 0})) == tuple(
            other._replace(**{number: 0})
        )

    def apply(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Tag, "__eq__", equal)
        patch.setattr(Tag, "__ne__", lambda one, other: not equal(one, other))

    return apply


@dataclass(frozen=True)
class Mutation:
    """One part of the protocol, and the runs that must miss it.

    `guards`: the race or invariant. `verdict`: what holds with the part, and not without it.
    """

    name: str
    guards: str
    off: Edit
    scenario: Scenario
    verdict: Callable[[World], bool] = always
    faults: Faults = NONE
    rules: Rules = RULES
    window: int = 200
    seeds: int = 100

    def violations(self) -> list[int]:
        """Returns the seeds under which the product, as it is now, breaks its promise."""
        seeds = range(self.seeds)
        return violations(self.scenario, self.verdict, seeds, self.faults, self.rules, self.window)


UNHURRIED = Faults(impatience=0.0, pauses=0.0)
PRIVATE = replace(RULES, private=True)
SMALL = replace(RULES, window_events=2)

MUTATIONS = [
    Mutation(
        "lease",
        "R1",
        edit(
            MemoryCache,
            "fill",
            "if lease is None or (lease.token, lease.granted_at) != (token, granted_at)"
            " or lease.deadline <= now:",
            "if False:",
        ),
        scenarios.raced,
        faults=Faults(slow=(steps.Fill,)),
    ),
    Mutation(
        "grant-time",
        "R6",
        edit(
            MemoryCache,
            "fill",
            "(lease.token, lease.granted_at) != (token, granted_at)",
            "lease.token != token",
        ),
        scenarios.raced,
        faults=Faults(slow=(steps.Lease, steps.Fill), duplicates=True),
        seeds=300,
    ),
    Mutation(
        "mask",
        "R3",
        edit(
            MemoryCache,
            "intent",
            "masks = (*slot.masks, (token, now + self.limits.mask_life))",
            "masks = slot.masks",
        ),
        scenarios.watched,
        faults=Faults(slow=(steps.Apply,)),
    ),
    Mutation(
        "mask-purge",
        "R4",
        edit(
            Slot,
            "purged",
            "return Slot(masks=live, expires=self.expires if live else 0)",
            "return replace(self, masks=live)",
        ),
        scenarios.alone,
        faults=Faults(slow=(steps.Write,), crashes=True),
        seeds=300,
    ),
    Mutation(
        "mask-of-an-unknown-commit",
        "R5",
        edit(
            protocol,
            "_commit",
            "if isinstance(outcome, Unknown):",
            "if isinstance(outcome, Unknown):\n        yield from _release(marked)",
        ),
        scenarios.alone,
        faults=Faults(unknown=True),
    ),
    Mutation(
        "mask-of-what-is-replaced",
        "I5",
        edit(Create, "scopes", "(self.key.session,) if self.replace_expired else ()", "()"),
        scenarios.replaced,
    ),
    Mutation(
        "predecessor",
        "R2 R21",
        edit(
            MemoryCache,
            "apply",
            "entry.tag == old or (old is None and _precedes(entry.tag, new))",
            "True",
        ),
        scenarios.chained,
        faults=Faults(slow=(steps.Apply,)),
    ),
    Mutation(
        "nonce",
        "R18",
        blind("nonce"),
        scenarios.lost,
        in_time,
        faults=Faults(lost_commits=True),
        seeds=300,
    ),
    Mutation(
        "update-time",
        "R28",
        blind("update_time"),
        scenarios.foreign,
        rules=within(0),
    ),
    Mutation(
        "incarnation-in-apply",
        "R17 R19",
        edit(memory, "_precedes", "old.incarnation == new.incarnation and ", ""),
        scenarios.reborn,
        settled,
        faults=Faults(slow=(steps.Apply,), pauses=0.1),
        seeds=200,
    ),
    Mutation(
        "incarnation-in-floor",
        "R17",
        edit(Floors, "judge", "or tag.incarnation != floor.tag.incarnation", ""),
        scenarios.forgotten,
        for_itself,
        faults=Faults(unstamped=True),
        seeds=300,
    ),
    Mutation(
        "floor",
        "I6 R10",
        edit(Floors, "judge", "floor = self._find(scope)", "return Standing.FINE"),
        scenarios.watched,
        for_itself,
        faults=Faults(unstamped=True),
    ),
    Mutation(
        "outbox",
        "R11",
        edit(
            protocol,
            "_commit",
            "unmasked = [scope for scope in scopes if scope not in marked.acknowledged]",
            "unmasked = []",
        ),
        scenarios.alone,
        settled,
        faults=Faults(cut_off=True),
    ),
    Mutation(
        "outbox-stamp",
        "R11",
        edit(Sql, "forget", "held.stamp == row.stamp", "True"),
        scenarios.drained,
        settled,
        faults=Faults(slow=(steps.ReadOutbox,), cut_off=True),
        seeds=300,
    ),
    Mutation(
        "keep-by-tag",
        "R11",
        edit(MemoryCache, "drop", "slot.entry.tag != keep", "keep is None"),
        scenarios.alone,
        settled,
        faults=Faults(cut_off=True),
    ),
    Mutation(
        "server-stamp",
        "R10",
        edit(protocol, "_verdict", "found.entry_stamp != found.stamp", "False"),
        scenarios.watched,
        faults=Faults(slow=(steps.Apply,), failover=True),
        seeds=200,
    ),
    Mutation(
        "stamp-of-the-lookup",
        "R10",
        edit(MemoryCache, "touch", "stamp=stamp", "stamp=self.stamp"),
        scenarios.validated,
        faults=Faults(slow=(steps.Touch,), failover=True),
        seeds=300,
    ),
    Mutation(
        "stamp-of-the-lease",
        "R10",
        edit(MemoryCache, "fill", "stamp=stamp", "stamp=self.stamp"),
        scenarios.raced,
        faults=Faults(slow=(steps.Fill,), failover=True),
        seeds=300,
    ),
    Mutation(
        "flight-rule",
        "R31",
        edit(Flights, "board", "newest is not None and not newest.sealed", "newest is not None"),
        scenarios.cold,
        faults=Faults(slow=(steps.Load,)),
    ),
    Mutation(
        "seal",
        "R31",
        edit(protocol, "fetch", "yield Seal()", "pass"),
        scenarios.cold,
        faults=Faults(slow=(steps.Load,)),
    ),
    Mutation(
        "private-caches",
        "R33",
        edit(protocol, "_verdict", "rules.private and not rules.exclusive", "False"),
        scenarios.watched,
        rules=PRIVATE,
    ),
    Mutation(
        "tag-of-what-is-kept",
        "R35",
        edit(protocol, "_look", " and known.tag == session.content.tag", ""),
        scenarios.watched,
    ),
    Mutation(
        "tag-of-older-events",
        "R35 R21",
        edit(protocol, "_look", "older is None or older.tag != content.tag", "older is None"),
        scenarios.long,
        rules=SMALL,
        window=2,
        faults=Faults(slow=(steps.LookUp,)),
    ),
    Mutation(
        "predecessor-of-what-is-kept",
        "R35 R21",
        edit(protocol, "_extend", "known.tag != operation.expected or ", ""),
        scenarios.chained,
    ),
    Mutation(
        "expiry",
        "I5",
        edit(Entry, "expired", "self.expires_at is not None and self.expires_at <= now", "False"),
        scenarios.expiring,
    ),
    Mutation(
        "expiry-from-the-grant",
        "I5",
        edit(
            MemoryCache,
            "fill",
            "expires_at=expires_at,",
            "expires_at=expires_at and expires_at + now - granted_at,",
        ),
        scenarios.brief,
        seeds=300,
    ),
]

HITS = [
    Mutation(
        "release",
        "hits",
        edit(MemoryCache, "release", "self._put(key, slot)", "pass"),
        scenarios.repeated,
        all_hits,
        faults=UNHURRIED,
        seeds=20,
    ),
    Mutation(
        "keep-in-drop",
        "hits",
        edit(MemoryCache, "drop", "slot.entry.tag != keep", "True"),
        scenarios.outdated,
        all_hits,
        faults=UNHURRIED,
        seeds=20,
    ),
    Mutation(
        "release-after-stale",
        "hits",
        edit(protocol, "_release", "if scope != but:", "if False:"),
        scenarios.outdated,
        all_hits,
        faults=UNHURRIED,
        seeds=20,
    ),
]
"""Not for safety: without these parts reads are right, and go to SQL."""
