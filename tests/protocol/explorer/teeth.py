"""What the explorer must notice: steps of the product's source changed, and parts switched off.

Each bites in one of the small mixes, under which the product itself keeps its promise.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.protocol.explorer import sql
from tests.protocol.explorer.mixes import SMALL
from tests.protocol.explorer.search import Result, explore, mutant
from tests.protocol.mutations import MUTATIONS, Edit, edit
from tiered_sessions.cache.memory import Entry
from tiered_sessions.tier import chores, protocol

LOAD = "    snapshot: Snapshot | None = yield Ask(Load(key, wanted))\n"
SEAL = "    yield Seal()\n"
LEASES = "    tokens: dict[ScopeKey, str] = {}\n    asked: dict[int, ScopeKey] = {}\n    for scope in leases:"
INTENTS = """\
            asked[(yield Send(Intent(scope, token)))] = scope
        handles = tuple(asked)
        told: Told = yield from _told(asked)
"""
UNAWAITED = """\
            yield Later(Intent(scope, token))
        handles = ()
        told = Told(dict.fromkeys(scopes, 0), (), False)
"""
COMMIT = "    outcome = yield Ask(Write(operation, tuple(unmasked)))\n"
DELETION = "    outcome: DeleteOutcome = yield from _commit(operation, (session,), marked, rules)\n"
DROPPED = """\
        drops: list[Apply | Drop] = [Drop(scope, marked.token, None) for scope in marked.acknowledged]
        yield from _publish(drops, marked, rules)
"""
TOUCH = "                yield Later(Touch(scope, entry.content.tag, entry.now, entry.stamp))\n"
LATE_TOUCH = """\
                again = yield Ask(LookUp(key.scopes, 0))
                yield Later(Touch(scope, entry.content.tag, again[0].now, entry.stamp))
"""
FORGET = """\
    if done:
        yield Ask(ForgetOutbox(tuple(done)))
"""
ROWS = "    rows: Sequence[OutboxRow] = yield Ask(ReadOutbox())\n"
OUTCOME = "            yield Wrote(scope, None)\n    elif isinstance(outcome, Failed)"
APPLIED = "        yield from _publish(commands, marked, rules)\n    elif isinstance(outcome, Stale)"

Change = tuple[str, str]

_SWAPS: dict[str, tuple[str, tuple[Change, ...]]] = {
    "the statement before its masks": ("a writer, two reads", ((INTENTS, UNAWAITED),)),
    "the masks are taken away before the statement": (
        "a writer, two reads",
        ((COMMIT, "    yield from _release(marked)\n" + COMMIT),),
    ),
    "the load before the lease": (
        "a writer, a cold reader",
        (
            (LOAD, ""),
            (
                LEASES,
                LOAD.replace("wanted", "query")
                + LEASES.replace("    tokens", "    wanted = query\n    tokens"),
            ),
        ),
    ),
    "a flight is joined after its load": ("a shared flight", ((SEAL, ""), (LOAD, LOAD + SEAL))),
    "a flight is joined after its second look": (
        "a shared flight that looks again",
        (
            (SEAL, ""),
            ("    # To fill is to read the whole window", SEAL + "    # To fill is to read the whole window"),
        ),
    ),
    "the drop before the deletion": (
        "deleted and created again",
        (
            (DROPPED, ""),
            (DELETION, textwrap.indent(textwrap.dedent(DROPPED), "    ") + DELETION),
        ),
    ),
    "no apply, the mask is released": (
        "a writer, two reads",
        ((APPLIED, APPLIED.replace("_publish(commands, marked, rules)", "_release(marked)")),),
    ),
    "the statement under aged masks": ("masks age", (("if (yield Young(handles)):", "if True:"),)),
    "masks released when the outcome is unknown": (
        "outcome unknown, said again",
        (
            (
                OUTCOME,
                OUTCOME.replace("Wrote(scope, None)", "Later(Release(scope, marked.token))"),
            ),
        ),
    ),
    "no outbox rows": ("a writer cut off", ((COMMIT, COMMIT.replace("tuple(unmasked)", "()")),)),
    "kept content whatever its tag": (
        "a writer, two reads",
        ((" and known.tag == session.content.tag", ""),),
    ),
    "the time of a check read after its tags": ("foreign state", ((TOUCH, LATE_TOUCH),)),
    "at 0 an entry is not checked": (
        "strong reads, foreign writer",
        (("strong = rules.max_staleness == 0\n", "strong = False\n"),),
    ),
    "older events of another history": (
        "a window of a session created again",
        (("if older is None or older.tag != content.tag:", "if older is None:"),),
    ),
    "more events than the window holds are not looked for": (
        "fewer and more events than the window",
        (("if not query.answered_by(content):", "if False:"),),
    ),
    "what was filled is the answer": (
        "a fill that is not the answer",
        (("if wanted != query and not query.answered_by(snapshot.session):", "if False:"),),
    ),
    "the floor is not asked": (
        "evicted, one process",
        (("yield Judge(scopes, tuple(tags))", "0, (Standing.FINE,) * 3"),),
    ),
    "a call that never ends": ("a writer, two reads", ((COMMIT, COMMIT + "    yield Wait((10**6,))\n"),)),
    "a call that raises": ("a writer, two reads", ((COMMIT, COMMIT + "    assert outcome is None\n"),)),
    "a wait for the cache without a limit": (
        "a writer, two reads",
        (("found = yield Ask(look)", "found = (yield Wait(((yield Send(look)),))).value"),),
    ),
}
_ENDS = {
    "a part is called whole": ("a part is added to", ("complete=False", "complete=self.complete")),
    "a part knows what came before": (
        "a part, then what came since",
        ("complete=False", "complete=False, before=-1"),
    ),
    "a part of the oldest events": ("a part, then all", ("events[-newest:]", "events[:newest]")),
}
"""Changes of what a lookup shows of an entry."""
_DRAINING = (ROWS, ROWS + "    yield Ask(ForgetOutbox(tuple(rows)))\n"), (FORGET, "")

_PARTS = {
    "lease": "a window of a session created again",
    "grant-time": "commands arrive twice",
    "mask": "a writer, two reads",
    "mask-purge": "writers die",
    "mask-of-an-unknown-commit": "outcome unknown, said again",
    "mask-of-what-is-replaced": "replaced, clocks differ",
    "predecessor": "two writers, a reader",
    "nonce": "SQL loses a commit",
    "update-time": "foreign state",
    "incarnation-in-apply": "user state made anew",
    "incarnation-in-floor": "failover to before a re-creation",
    "floor": "evicted, one process",
    "outbox": "masks lost",
    "outbox-stamp": "recorded twice",
    "keep-by-tag": "masks lost",
    "server-stamp": "failover, stamped",
    "stamp-of-the-lookup": "a touch across a failover",
    "stamp-of-the-lease": "a fill across a failover",
    "flight-rule": "a shared flight",
    "seal": "a shared flight",
    "private-caches": "a private cache",
    "tag-of-what-is-kept": "a writer, two reads",
    "tag-of-older-events": "a window of a session created again",
    "predecessor-of-what-is-kept": "appends without a tag",
    "expiry": "expired",
    "expiry-from-the-grant": "expires between lease and fill",
}
"""By their names in mutations.py."""

# The rule stands in the SQL, and the explorer has a toy of its own.
_OWN = {"outbox-stamp": edit(sql, "perform", "r not in rows", "r.scope not in [row.scope for row in rows]")}


class Tooth(NamedTuple):
    """A change, and the mix that must notice it."""

    name: str
    mix: str
    explore: Callable[[], Result]


def _swap(name: str, changes: tuple[Change, ...]) -> Callable[[], Result]:
    return lambda: explore(NAMED[name], protocol=mutant(protocol, *changes))


def _part(name: str, off: Edit) -> Callable[[], Result]:
    def explored() -> Result:
        with pytest.MonkeyPatch.context() as patch:
            off(patch)
            return explore(NAMED[name])

    return explored


NAMED = {mix.name: mix for mix in SMALL}
TEETH = (
    *(Tooth(name, mix, _swap(mix, changes)) for name, (mix, changes) in _SWAPS.items()),
    Tooth(
        "a row forgotten before its drop",
        "a drainer dies",
        lambda: explore(NAMED["a drainer dies"], chores=mutant(chores, *_DRAINING)),
    ),
    Tooth(
        "rows never forgotten",
        "a writer cut off",
        lambda: explore(NAMED["a writer cut off"], chores=mutant(chores, (FORGET, ""))),
    ),
    *(Tooth(name, mix, _part(mix, edit(Entry, "content", *change))) for name, (mix, change) in _ENDS.items()),
    *(
        Tooth(
            "without " + part.name, _PARTS[part.name], _part(_PARTS[part.name], _OWN.get(part.name, part.off))
        )
        for part in MUTATIONS
    ),
)
