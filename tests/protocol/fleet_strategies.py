"""What Hypothesis draws for the fleet: the calls, and the faults that their commands meet."""

from __future__ import annotations

import hypothesis.strategies as st

from tests.protocol.faulty import Fault, Plan
from tiered_sessions.records import Query, SessionKey
from tiered_sessions.testing.faulty import STEPS

KEYS = (SessionKey("app", "user", "a"), SessionKey("app", "user", "b"))
CACHE_FAULTS = [
    *map(Fault, ("refused", "refused", "never", "never", "lost", "silent", "evict", "evict", "flush")),
    *(Fault("slow", seconds) for seconds in (0.002, 0.01, 0.03, 1.5, 6.0)),
    *(Fault("twice", seconds) for seconds in (0.003, 0.05, 5.0)),
    *(Fault("failover", steps) for steps in (0, 1, 3)),
]
STORE_FAULTS = [
    *map(Fault, ("down", "cut", "cut", "cut", "vanish", "locked")),
    *(Fault("later", seconds) for seconds in (0.01, 5.0)),
    *(Fault("slow", seconds) for seconds in (0.002, 0.003, 0.4, 1.9, 5.0)),
    *(Fault("after", seconds) for seconds in (0.002, 0.003, 0.4, 1.9)),
]
OFTEN = ("lookup", "intent", "lease", "fill", "apply")
QUERIES = ("load", "tags", "older", "namespace", "expired", "outbox", "outbox done")

servers = st.integers(0, 2)
keys = st.sampled_from(KEYS)
firsts = st.integers(0, 2)
cache_faults = st.dictionaries(
    st.tuples(st.sampled_from((*sorted(STEPS), *OFTEN)), firsts),
    st.sampled_from(CACHE_FAULTS),
    min_size=1,
    max_size=3,
)
store_faults = st.dictionaries(
    st.tuples(st.sampled_from(("write", "write", "writer", "load", *QUERIES)), st.integers(0, 1)),
    st.sampled_from(STORE_FAULTS),
    min_size=1,
    max_size=1,
)
nothing: st.SearchStrategy[dict[tuple[str, int], Fault]] = st.just({})
both = st.builds(dict.__or__, cache_faults, store_faults)
lags = st.lists(st.sampled_from([0.0, 0.0003, 0.001, 0.002]), min_size=1, max_size=7).map(tuple)
meets = st.builds(Plan, nothing | cache_faults | store_faults | both, lags)
pauses = st.sampled_from([None, 0.0, 0.0007, 0.0012, 0.002, 0.006])
queries = st.builds(
    Query, st.sampled_from([None, None, 0, 1, 2, 3, 5]), st.sampled_from([None, None, 1, 3, 6])
)
races = st.lists(
    st.tuples(
        st.integers(0, 14).map(lambda n: n * 0.0004),
        servers,
        st.sampled_from(["read", "read", "read", "turn", "turn", "append", "delete"]),
    ),
    min_size=2,
    max_size=6,
)
crowds = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 0.0005, 0.001, 0.002]), keys, st.integers(0, 1)),
    min_size=2,
    max_size=5,
)
leaves = st.lists(st.tuples(st.integers(0, 16).map(lambda n: n * 0.0003), st.integers(0, 4)), max_size=3)
scopes = st.sets(st.sampled_from(["session", "user", "app"]))
