"""What a process keeps of a session of which it was asked for a part."""

from __future__ import annotations

from tests.protocol.doubles import ToyStore, TroubledCache, run, tier
from tests.protocol.simulation import KEY
from tests.protocol.test_tier import append
from tests.protocol.test_tier_edges import Counts
from tiered_sessions import metrics as counters
from tiered_sessions.records import Query


def test_a_kept_part_leaves_the_rest_to_the_cache() -> None:
    """5.4: SQL is not asked for events that the cache has; once they are kept, nor is the cache."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        sessions = tier(store, cache)
        for name in "abc":
            await append(sessions, name)
        await sessions.flush()
        store.statements.clear()
        metrics = Counts()
        reader = tier(store, cache, metrics=metrics)
        await reader.prepare()

        async def read(query: Query) -> list[str]:
            found = await reader.get(KEY, query)
            assert found is not None
            return [one.id for one in found.session.events]

        for query, shown, source, looks in [
            (Query(limit=2), ["b", "c"], counters.READ_CACHE, 1),
            (Query(limit=1), ["c"], counters.READ_PROCESS, 1),
            (Query(limit=0), [], counters.READ_PROCESS, 1),
            (Query(), ["a", "b", "c"], counters.READ_CACHE, 2),
            (Query(limit=2), ["b", "c"], counters.READ_PROCESS, 1),
            (Query(), ["a", "b", "c"], counters.READ_PROCESS, 1),
        ]:
            cache.commands.clear()
            metrics.seen.clear()
            assert await read(query) == shown
            assert metrics.seen[source] == 1, query
            assert cache.commands == ["lookup"] * looks
        assert store.statements == []
        await reader.close()
        await sessions.close()

    run(main())
