"""The scenarios: small ones for every test run, larger ones for `make model`."""

from __future__ import annotations

from dataclasses import replace

from tests.protocol.explorer.programs import (
    apart,
    append,
    create,
    delete,
    drain,
    foreign,
    read,
    sweep,
    then,
    turn,
)
from tests.protocol.explorer.state import RULES, Faults, Promise, Scenario

_MASKS_END = (5_000,)
_BOUND_ENDS = (31_000,)
_STRONG = replace(RULES, max_staleness=0)
_SESSION = replace(RULES, max_staleness=None)
_PRIVATE = replace(RULES, private=True)
_ALONE = ((0, turn("a")), (1, read(2)))
_BESIDE = ((0, turn("a")), (1, turn("b")), (1, read()))
_BLIND = ((0, append("a")), (1, read()))
_RENEWED = ((0, then(delete(), create())), (1, turn("a")))

_NEVER = (
    Scenario("a writer, two reads", _ALONE),
    Scenario("a writer, a cold reader", ((0, turn("a")), (1, read())), cold=True),
    Scenario("two writers, a reader", _BESIDE),
    Scenario("two writers, user state", ((0, turn("a", user=True)), (1, turn("b", user=True))), user=True),
    Scenario("user state, two reads", ((0, turn("a", user=True)), (1, read(2))), user=True),
    Scenario(
        "appends without a tag",
        (
            (0, then(read(), append("b", compare=False), read())),
            (1, then(append("a", compare=False), read())),
        ),
    ),
    Scenario("a window too short", ((0, turn("a")), (1, read()), (2, turn("b"))), window=1),
    Scenario(
        "a window of a session created again",
        ((0, then(read(), delete(), create())), (1, read())),
        cold=True,
        window=1,
    ),
    Scenario(
        "fewer and more events than the window",
        ((0, turn("a")), (1, read(limit=1)), (1, read(limit=2))),
        window=1,
    ),
    Scenario("a part, then all", ((0, turn("a")), (1, then(read(limit=1), read())))),
    Scenario("a part, then what came since", ((0, append("a")), (1, then(read(limit=1), read(after=0))))),
    Scenario("a part is added to", ((0, append("a")), (1, then(turn("b", limit=1), read(limit=2), read())))),
    Scenario("a part beside all", ((0, turn("a")), (1, read(limit=1)), (1, read()))),
    Scenario("events since a moment", ((0, append("a")), (1, turn("b")), (1, read(after=1))), window=1),
    Scenario(
        "a fill that is not the answer",
        ((0, append("a")), (1, read(after=0))),
        cold=True,
        window=1,
        rules=replace(RULES, window_events=1),
    ),
    Scenario(
        "two queries, two flights",
        ((0, append("a")), (1, read(limit=1)), (1, read(limit=2))),
        cold=True,
        faults=Faults(polls=0),
    ),
    Scenario(
        "a part of a window of a session created again",
        ((0, then(read(), delete(), create())), (1, read(limit=2))),
        cold=True,
        window=1,
    ),
    Scenario("a shared flight", ((0, delete()), (1, read()), (1, read())), cold=True),
    Scenario(
        "a shared flight that looks again",
        ((0, then(read(), delete())), (1, read()), (1, read())),
        cold=True,
        faults=Faults(polls=0),
    ),
    Scenario("deleted and created again", _RENEWED),
    Scenario(
        "created with user state",
        ((0, then(delete(), create(user=True))), (1, read(2))),
        user=True,
    ),
    Scenario("expired", _ALONE, jumps=_MASKS_END, ends=5_000),
    Scenario(
        "expired, swept and created again",
        ((0, then(sweep(), create())), (1, read(2))),
        jumps=_MASKS_END,
        ends=5_000,
    ),
    Scenario(
        "expires between lease and fill",
        ((0, read(2)),),
        cold=True,
        jumps=(1_000, 2_000),
        ends=3_000,
    ),
    Scenario(
        "replaced, clocks differ",
        ((0, create()), (1, read(2))),
        faults=Faults(expiries=1),
        ends=60_000,
    ),
    Scenario("strong reads", ((0, turn("a")), (1, turn("b"))), rules=_STRONG),
    Scenario("strong reads, foreign writer", ((0, turn("a")), (1, read()), (2, foreign("f"))), rules=_STRONG),
    Scenario("session level", ((0, turn("a")), (1, turn("b"))), rules=_SESSION, cold=True),
    Scenario("a private cache", ((0, read(2)), (1, apart(turn("b")))), rules=_PRIVATE),
    Scenario(
        "a private cache, foreign writer",
        ((0, turn("a")), (0, read()), (1, foreign("f"))),
        rules=_PRIVATE,
    ),
    Scenario("waits for the apply", _ALONE, rules=replace(RULES, wait_apply=True)),
    Scenario("past the bound", _ALONE, jumps=_BOUND_ENDS),
    Scenario("writers die", _ALONE, jumps=_MASKS_END, faults=Faults(crashes=1)),
    Scenario("deleters die", ((0, delete()), (1, read(2))), jumps=_MASKS_END, faults=Faults(crashes=1)),
    Scenario("masks age", _BLIND, jumps=_MASKS_END),
    Scenario("leases end", _BLIND, jumps=(2_500,), cold=True),
    Scenario("readers give up", ((0, turn("a")), (1, read())), cold=True, faults=Faults(timers=1)),
    Scenario("commands arrive twice", _BLIND, cold=True, faults=Faults(copies=1)),
    Scenario("callers leave", _ALONE, jumps=_MASKS_END, faults=Faults(cancels=1)),
    Scenario(
        "outcome unknown, said again",
        ((0, turn("a", retry=True)), (1, read())),
        jumps=_MASKS_END,
        faults=Faults(unknowns=1),
    ),
    Scenario("a reader cut off", _ALONE, cut=(1,)),
    Scenario("evicted alone", _ALONE, calm=True, faults=Faults(evictions=2)),
    Scenario("failover, stamped", _ALONE, calm=True, faults=Faults(failovers=1, saves=1)),
    Scenario(
        "a touch across a failover",
        ((0, read()), (1, append("a"))),
        jumps=_BOUND_ENDS,
        calm=True,
        faults=Faults(failovers=1),
    ),
    Scenario(
        "a fill across a failover",
        ((0, read()), (1, append("a"))),
        cold=True,
        calm=True,
        faults=Faults(failovers=1, saves=1),
    ),
)
_TRANSIENT = (
    Scenario("evicted while written", _ALONE, Promise.TRANSIENT, faults=Faults(evictions=1)),
    Scenario(
        "evicted, one process",
        ((0, turn("a")), (0, read(2))),
        Promise.TRANSIENT,
        faults=Faults(evictions=1),
    ),
    Scenario("a late commit", _ALONE, Promise.TRANSIENT, jumps=_MASKS_END, late=True),
    Scenario("failover while written", _ALONE, Promise.TRANSIENT, faults=Faults(failovers=1, saves=1)),
    Scenario("a writer cut off", (*_ALONE, (2, drain())), Promise.TRANSIENT, cut=(0,)),
    Scenario("two drainers", (*_ALONE[:1], (1, drain()), (2, drain())), Promise.TRANSIENT, cut=(0,)),
    Scenario(
        "recorded twice",
        (
            (0, then(append("a"), append("b", compare=False))),
            (1, drain()),
            (2, read()),
        ),
        Promise.TRANSIENT,
        cut=(0,),
        cold=True,
    ),
    Scenario("masks late", (*_ALONE, (2, drain())), Promise.TRANSIENT, faults=Faults(cutoffs=1)),
    Scenario("masks lost", (*_ALONE, (2, drain())), Promise.TRANSIENT, faults=Faults(cutoffs=1, strays=1)),
    Scenario(
        "masks late, two writers, one lost",
        (*_BESIDE[:2], (2, drain())),
        Promise.TRANSIENT,
        faults=Faults(cutoffs=1, strays=1, polls=0),
    ),
    Scenario(
        "masks late, user state",
        ((0, turn("a", user=True)), (1, read()), (2, drain())),
        Promise.TRANSIENT,
        user=True,
        faults=Faults(cutoffs=1, polls=0),
    ),
    Scenario(
        "masks late, deleted and created again",
        (*_RENEWED[:1], (1, read()), (2, drain())),
        Promise.TRANSIENT,
        faults=Faults(cutoffs=2, polls=0),
    ),
    Scenario(
        "masks late, replaced",
        ((0, create()), (1, read(2)), (2, drain())),
        Promise.TRANSIENT,
        ends=60_000,
        faults=Faults(cutoffs=1, expiries=1, polls=0),
    ),
    Scenario(
        "masks late, outcome unknown, said again",
        ((0, turn("a", retry=True)), (1, read())),
        Promise.TRANSIENT,
        faults=Faults(cutoffs=2, unknowns=1, polls=0),
    ),
    Scenario(
        "masks and leases late",
        ((0, append("a")), (1, read(2))),
        Promise.TRANSIENT,
        cold=True,
        faults=Faults(cutoffs=1, timers=1),
    ),
    Scenario(
        "cut off with user state",
        ((0, turn("a", user=True)), (1, read()), (2, drain())),
        Promise.TRANSIENT,
        cut=(0,),
        user=True,
    ),
    Scenario(
        "user state made anew",
        (
            (
                0,
                then(
                    append("a", user=True),
                    foreign("x", "no user"),
                    append("b", compare=False, user=True),
                    read(),
                ),
            ),
        ),
        Promise.TRANSIENT,
        jumps=_MASKS_END,
        user=True,
    ),
    Scenario(
        "a drainer dies",
        ((0, turn("a")), (1, drain())),
        Promise.TRANSIENT,
        cut=(0,),
        faults=Faults(crashes=1),
    ),
)
_BOUNDED = (
    Scenario(
        "evicted, then dead",
        _BLIND,
        Promise.BOUNDED,
        jumps=_MASKS_END,
        faults=Faults(evictions=1, crashes=1),
    ),
    Scenario(
        "a late commit of the dead",
        _BLIND,
        Promise.BOUNDED,
        jumps=(5_000, 31_000),
        late=True,
        faults=Faults(crashes=1),
    ),
    Scenario(
        "failover without stamps",
        _BLIND,
        Promise.BOUNDED,
        stamps=False,
        jumps=_BOUND_ENDS,
        faults=Faults(failovers=1, saves=1),
    ),
    Scenario(
        "failover to before a re-creation",
        ((1, then(delete(), create(), read(2))), (0, read())),
        Promise.BOUNDED,
        stamps=False,
        faults=Faults(failovers=1),
    ),
    Scenario(
        "SQL loses a commit",
        ((0, turn("a")), (1, turn("b"))),
        Promise.BOUNDED,
        jumps=_BOUND_ENDS,
        faults=Faults(losses=1),
    ),
    Scenario(
        "foreign events",
        ((0, turn("a")), (1, read()), (2, foreign("f"))),
        Promise.BOUNDED,
        jumps=_BOUND_ENDS,
    ),
    Scenario(
        "foreign state",
        ((1, read(2)), (2, foreign("f", "state"))),
        Promise.BOUNDED,
        jumps=(31_000, 31_000),
    ),
)
SMALL = (*_NEVER, *_TRANSIENT, *_BOUNDED)

_SEEN = then(append("a"), read()), then(append("b"), read())
_TWO = ((0, append("a")), (1, append("b")))
LARGE = (
    Scenario("2 writers x 2 readers", (*_TWO, (0, read()), (1, read()))),
    Scenario("2 writers x 3 readers", ((0, _SEEN[0]), (1, _SEEN[1]), (2, read()))),
    Scenario("3 writers x 2 readers", ((0, _SEEN[0]), (1, _SEEN[1]), (2, append("c")))),
    Scenario(
        "2 writers x 1 reader, two die",
        (*_TWO, (2, read())),
        jumps=_MASKS_END,
        faults=Faults(crashes=2),
    ),
    Scenario("3 turns", ((0, turn("a")), (1, turn("b")), (2, turn("c")))),
    Scenario("1 writer x 2 readers, cold", ((0, turn("a")), (1, read()), (1, read(2))), cold=True),
    Scenario("2 writers, cold", ((0, turn("a")), (1, turn("b"))), cold=True),
    Scenario(
        "parts of a window, cold",
        ((0, turn("a")), (1, read(limit=1)), (1, read(limit=2))),
        cold=True,
        window=1,
    ),
    Scenario(
        "parts of a window of a session created again",
        ((0, then(read(), delete(), create(), append("a", compare=False))), (1, read(2, limit=2))),
        cold=True,
        window=1,
    ),
    Scenario(
        "parts beside all, 2 writers",
        ((0, turn("a", limit=1)), (1, then(turn("b", limit=1), read())), (1, read(limit=2))),
    ),
    Scenario(
        "events since a moment, a writer dies",
        ((0, turn("a")), (1, read(2, after=1))),
        jumps=_MASKS_END,
        window=1,
        faults=Faults(crashes=1),
    ),
    Scenario(
        "2 writers x 1 reader, user state",
        ((0, turn("a", user=True)), (1, turn("b", user=True)), (1, read())),
        user=True,
    ),
    Scenario("user state, cold", ((0, turn("a", user=True)), (1, read())), user=True, cold=True),
    Scenario("append, delete, create, read", (*_RENEWED, (1, read()))),
    Scenario("append, delete, create, read twice", (*_RENEWED, (1, read(2)))),
    Scenario("strong, 2 writers x 1 reader", ((0, turn("a")), (1, turn("b")), (0, read())), rules=_STRONG),
    Scenario(
        "a private cache, 2 writers", ((0, turn("a")), (0, read(2)), (1, apart(turn("b")))), rules=_PRIVATE
    ),
    Scenario("masks age, cold", ((0, turn("a")), (1, read())), jumps=_MASKS_END, cold=True),
    Scenario("leases end, a turn", ((0, turn("a")), (1, read())), jumps=(2_500,), cold=True),
    Scenario("expires, cold", ((0, read()), (1, read())), cold=True, jumps=(1_000, 2_000), ends=3_000),
    Scenario(
        "unknown outcome, said again, 2 reads",
        ((0, turn("a", retry=True)), (1, read(2))),
        jumps=_MASKS_END,
        faults=Faults(unknowns=1),
    ),
    Scenario(
        "unknown outcome, said again, user state",
        ((0, turn("a", user=True, retry=True)), (1, read())),
        jumps=_MASKS_END,
        user=True,
        faults=Faults(unknowns=1),
    ),
    Scenario("commands arrive twice, twice", _BLIND, cold=True, faults=Faults(copies=2, polls=0)),
    Scenario(
        "callers fly alone",
        ((0, delete()), (1, read()), (1, read())),
        cold=True,
        faults=Faults(alone=1, polls=0),
    ),
    Scenario(
        "leases late, two processes",
        ((0, append("a")), (1, read()), (2, read())),
        cold=True,
        faults=Faults(timers=2, polls=0),
    ),
    Scenario(
        "a lease late, deleted and created again",
        (*_RENEWED[:1], (1, read()), (1, read())),
        cold=True,
        faults=Faults(timers=1, polls=0),
    ),
    Scenario(
        "masks late, a caller leaves",
        ((0, turn("a")), (1, read()), (2, drain())),
        Promise.TRANSIENT,
        jumps=_MASKS_END,
        faults=Faults(cutoffs=1, cancels=1, polls=0),
    ),
    Scenario("readers of an append give up", _BLIND, cold=True, faults=Faults(timers=1, alone=1)),
    Scenario("user state, two cold reads", ((0, turn("a", user=True)), (1, read(2))), user=True, cold=True),
    Scenario(
        "a turn evicted, then dead",
        ((0, turn("a")), (1, read())),
        Promise.BOUNDED,
        jumps=_MASKS_END,
        faults=Faults(evictions=1, crashes=1),
    ),
    Scenario(
        "evicted, then dead, 2 reads",
        _ALONE,
        Promise.BOUNDED,
        jumps=_MASKS_END,
        faults=Faults(evictions=1, crashes=1),
    ),
    Scenario(
        "a late commit of the dead, 2 reads",
        _ALONE,
        Promise.BOUNDED,
        jumps=(5_000, 31_000),
        late=True,
        faults=Faults(crashes=1),
    ),
    Scenario("2 writers, keys evicted", _BESIDE[:2], Promise.TRANSIENT, faults=Faults(evictions=2)),
    Scenario(
        "2 writers, masks lost, drained twice",
        ((0, turn("a")), (1, turn("b")), (2, drain(2))),
        Promise.TRANSIENT,
        faults=Faults(cutoffs=2),
    ),
    Scenario("2 writers, failover", _BESIDE[:2], Promise.TRANSIENT, faults=Faults(failovers=1, saves=1)),
    Scenario(
        "failover without stamps, 2 reads",
        _ALONE,
        Promise.BOUNDED,
        stamps=False,
        jumps=_BOUND_ENDS,
        faults=Faults(failovers=1, saves=1),
    ),
    Scenario(
        "SQL loses two commits",
        ((0, turn("a")), (1, turn("b"))),
        Promise.BOUNDED,
        jumps=_BOUND_ENDS,
        faults=Faults(losses=2),
    ),
    Scenario(
        "foreign events, 2 reads",
        ((0, turn("a")), (1, read(2)), (2, foreign("f"))),
        Promise.BOUNDED,
        jumps=_BOUND_ENDS,
    ),
)
