"""A new namespace: running services follow it, and what SQL has lost is shown no more."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.conformance.planted import PATIENT, planted
from tests.protocol.doubles import ToyStore, TroubledCache, run, tier
from tests.protocol.test_tier import append, names
from tiered_sessions import TieredSessionService
from tiered_sessions import metrics as counters
from tiered_sessions.cache import keys
from tiered_sessions.cli.cache import IN_FORCE_WITHIN
from tiered_sessions.config import TieredConfig
from tiered_sessions.errors import SchemaMismatchError
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.store import SqlSessionStore


class Counts:
    """Keeps the counters."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def count(self, name: str, value: int = 1) -> None:
        self.seen[name] += value


async def test_lost_commits_are_shown_until_a_reset_and_not_after(store_url: str, valkey_url: str) -> None:
    counts = Counts()
    async with (
        planted(store_url, valkey_url) as fleet,
        TieredSessionService(store_url, cache=valkey_url, config=PATIENT, metrics=counts) as reader,
    ):
        await fleet.lose_commit()

        async def last() -> str:
            session = await reader.get_session(*fleet.key)
            assert session is not None
            return session.events[-1].id

        assert await last() == "e99"
        old = await fleet.store.namespace()
        new = await fleet.store.reset_namespace()
        assert new != old
        assert await fleet.store.namespace() == new
        followed = reader._wiring.tier()._namespace
        assert followed is not None
        # What its upkeep does when five seconds have passed.
        await followed.read()
        assert await last() == "e2"
        assert counts.seen[counters.READ_STORE] == 1
        await reader.flush()
        assert await fleet.client.hexists(keys.entry_key(new, fleet.key.session), "r")
        assert await fleet.client.hexists(keys.entry_key(old, fleet.key.session), "r"), "left to its TTL"
        assert await last() == "e2"
        assert counts.seen[counters.READ_STORE] == 1, "hot again"


def test_every_service_follows_within_the_time_that_is_told() -> None:
    """The command says `IN_FORCE_WITHIN`; entries filled before are reached by nobody after it."""

    async def main() -> None:
        store = ToyStore()
        caches = [TroubledCache() for _ in range(3)]
        fleet = []
        for cache in caches:
            fleet.append(tier(store, cache, TieredConfig(sample_rate=0)))
            await append(fleet[-1], f"e{len(fleet)}")
            await asyncio.sleep(1.7)
        new = await store.reset_namespace()
        assert all(cache.namespace != new for cache in caches)
        await asyncio.sleep(IN_FORCE_WITHIN)
        assert all(cache.namespace == new for cache in caches)
        for sessions in fleet:
            store.statements.clear()
            assert await names(sessions) == ["e1", "e2", "e3"]
            assert "load" in store.statements
            await sessions.close()

    run(main())


async def test_a_database_without_a_namespace_is_refused(sqlite_url: str) -> None:
    config = TieredConfig()
    store = SqlSessionStore(build_engine(sqlite_url, config), owns_engine=True, config=config)
    await store.prepare()
    async with store.engine.begin() as connection:
        await connection.exec_driver_sql("DELETE FROM adk_internal_metadata")
    with pytest.raises(SchemaMismatchError, match="no cache namespace"):
        await store.reset_namespace()
    await store.close()
