"""The sampler: what it counts, on virtual time and on real servers, and that nobody feels it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from uuid import uuid4

import pytest

from tests.patience import PATIENT, patient
from tests.protocol.doubles import ToyStore, TroubledCache, run, tier
from tests.protocol.simulation import KEY
from tiered_sessions import Event, EventActions, TieredConfig, TieredSessionService
from tiered_sessions import metrics as counters
from tiered_sessions.errors import ConfigurationError, StaleSessionError
from tiered_sessions.metrics import Sampled
from tiered_sessions.records import Append, Create, NewEvent, Query, SessionKey, Tags
from tiered_sessions.tier.sampler import Sampler
from tiered_sessions.tier.tier import SessionTier

ALWAYS = TieredConfig(sample_rate=1.0)
ONCE, LATER, BOUND = counters.SAMPLED_AT_ONCE, counters.SAMPLED_LATER, counters.SAMPLED_AT_BOUND


class Counts:
    """Keeps the counters."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.compared = asyncio.Event()

    def count(self, name: str, value: int = 1) -> None:
        self.seen[name] += value
        if name == ONCE.compared:
            self.compared.set()

    def found(self, *ages: Sampled) -> list[tuple[int, int]]:
        """Returns compared and inconsistent entries at each age."""
        return [(self.seen[age.compared], self.seen[age.inconsistent]) for age in ages]


def write(store: ToyStore, name: str) -> None:
    """Changes SQL behind the cache's back."""
    event = NewEvent(name, "i", 1, b'{"id":"%s"}' % name.encode())
    store.sql.write(Append(KEY, store.sql.tag(KEY.session), 1, (event,)), ())


async def filled() -> tuple[ToyStore, TroubledCache]:
    """Returns a store of one event and a cache that holds it."""
    store, cache = ToyStore(), TroubledCache()
    write(store, "a")
    sessions = tier(store, cache, TieredConfig(sample_rate=0))
    await sessions.get(KEY, Query())
    await sessions.flush()
    sessions._owns_cache = False
    await sessions.close()
    return store, cache


def falsify(cache: TroubledCache) -> None:
    """Changes the entry's content and leaves its tag (I1 broken)."""
    slot = cache._get(KEY.session, 0)
    assert slot.entry is not None
    cache._put(KEY.session, replace(slot, entry=replace(slot.entry, state=b'{"planted":1}')))


async def sampled(store: ToyStore, cache: TroubledCache, counts: Counts) -> SessionTier:
    """Reads once, with a sample that follows it."""
    sessions = tier(store, cache, ALWAYS, counts)
    await sessions.get(KEY, Query())
    return sessions


def test_wrong_content_is_counted_at_every_age(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> Counts:
        counts = Counts()
        store, cache = await filled()
        falsify(cache)
        sessions = await sampled(store, cache, counts)
        await asyncio.sleep(40)
        await sessions.close()
        return counts

    counts = run(main())
    assert counts.found(ONCE, LATER, BOUND) == [(3, 1)] * 3
    assert counts.seen[counters.SAMPLED_WRONG] == 3
    assert "its state" in caplog.text


@pytest.mark.parametrize(("falsely_validated", "at_bound"), [(False, 0), (True, 1)])
def test_an_entry_older_than_sql_is_counted_while_it_is_served(
    falsely_validated: bool, at_bound: int
) -> None:
    """I4: past max_staleness no read is served from it, unless somebody vouched for it falsely."""

    async def main() -> Counts:
        counts = Counts()
        store, cache = await filled()
        old = store.sql.tag(KEY.session)
        assert old is not None
        write(store, "b")
        sessions = await sampled(store, cache, counts)
        await asyncio.sleep(20)
        if falsely_validated:
            assert await cache.touch(KEY.session, old, cache._clock(), "") is True
        await asyncio.sleep(20)
        await sessions.close()
        return counts

    counts = run(main())
    assert counts.found(ONCE, LATER, BOUND) == [(3, 1), (3, 1), (3, at_bound)]
    assert counts.seen[counters.SAMPLED_WRONG] == 0


def test_a_late_fill_of_old_data_is_counted_though_there_was_no_entry() -> None:
    """R1: absent at once, old a second later."""

    async def main() -> Counts:
        counts = Counts()
        store, cache = await filled()
        entry = cache.snapshot()
        await cache.drop(KEY.session, None, None)
        write(store, "b")
        cache.refusing = True
        sessions = await sampled(store, cache, counts)
        await asyncio.sleep(0.5)
        cache.restore(entry)
        cache.refusing = False
        await asyncio.sleep(1)
        await sessions.close()
        return counts

    assert run(main()).found(ONCE, LATER) == [(0, 0), (3, 1)]


def test_a_change_after_the_sample_is_not_as_old_as_the_sample() -> None:
    async def main() -> Counts:
        counts = Counts()
        store, cache = await filled()
        sessions = await sampled(store, cache, counts)
        await asyncio.sleep(20)
        tag = store.sql.tag(KEY.session)
        assert tag is not None
        assert await cache.touch(KEY.session, tag, cache._clock(), "") is True
        await asyncio.sleep(9.5)
        write(store, "b")
        await asyncio.sleep(10)
        await sessions.close()
        return counts

    assert run(main()).found(ONCE, LATER, BOUND) == [(3, 0)] * 3


def test_a_write_under_way_is_not_compared() -> None:
    async def main() -> Counts:
        counts = Counts()
        store, cache = await filled()
        await cache.intent(KEY.session, "writer")
        write(store, "b")
        sessions = await sampled(store, cache, counts)
        await asyncio.sleep(2)
        await sessions.close()
        return counts

    assert run(main()).found(ONCE, LATER) == [(2, 0)] * 2, "user and app state only"


def test_a_healthy_fleet_counts_nothing() -> None:
    async def main() -> Counts:
        counts, chance = Counts(), random.Random(5)
        store, cache = ToyStore(), TroubledCache(0.001)
        fleet = [tier(store, cache, ALWAYS, counts) for _ in range(3)]
        others = [SessionKey("app", "user", f"s{number}") for number in range(3)]

        async def work(sessions: SessionTier, number: int) -> None:
            for step in range(60):
                found = await sessions.get(KEY, Query())
                assert found is not None
                name = f"{number}-{step}"
                event = NewEvent(name, "i", 1, b"{}")
                write = Append(KEY, found.session.tag, 1, (event,), user_delta=b'{"n":%d}' % step)
                try:
                    await sessions.append(write)
                except StaleSessionError:
                    continue
                if step % 10 == 0:
                    await sessions.delete(others[number])
                    await sessions.create(Create(others[number], 0, b"{}"))
                await asyncio.sleep(chance.random())

        await asyncio.gather(*(work(sessions, number) for number, sessions in enumerate(fleet)))
        await asyncio.sleep(40)
        for sessions in fleet:
            await sessions.close()
        return counts

    found = run(main()).found(ONCE, LATER, BOUND)
    assert [inconsistent for _, inconsistent in found] == [0, 0, 0]
    assert all(compared > 50 for compared, _ in found), found


async def test_a_healthy_load_on_real_servers_counts_nothing(store_url: str, valkey_url: str) -> None:
    counts, app, config = Counts(), f"app-{uuid4().hex}", replace(PATIENT, sample_rate=1.0)
    make = partial(TieredSessionService, store_url, cache=valkey_url, config=config, metrics=counts)
    with patient():
        async with make() as one, make() as other:
            session = await one.create_session(app, "user", {"user:a": 1, "app:b": 2.5, "c": 2**70}, "s")
            for number in range(20):
                actions = EventActions(state_delta={"n": number, "user:n": number})
                await one.append_event(session, Event(author="user", actions=actions))
                await one.flush()
                assert (await other.get_session(app, "user", "s")).state["n"] == number
                await other.flush()
            await counts.compared.wait()
    assert counts.seen[ONCE.inconsistent] == 0


def test_nobody_feels_it() -> None:
    """It looks only: the cache is left as it was, and the caller is gone before it begins."""

    async def main() -> None:
        counts = Counts()
        store, cache = await filled()
        before = cache.snapshot()
        cache.commands.clear()
        sessions = tier(store, cache, ALWAYS, counts)
        sessions._config = replace(ALWAYS, outbox_poll=1000)
        await sessions.prepare()
        store.statements.clear()
        await sessions.get(KEY, Query())
        assert store.statements == []
        await asyncio.sleep(2)
        assert counts.found(ONCE, LATER) == [(3, 0)] * 2
        assert set(cache.commands) <= {"lookup", "elect"}
        assert cache.snapshot()[0] == before[0]
        assert counts.seen[counters.CACHE_HIT] == 3, "the caller's own lookup only"
        await sessions.close()

    run(main())


def test_its_reads_wait_their_turn_among_the_callers() -> None:
    """Both of them: the tags that it begins with, and a second later the load."""

    async def main() -> None:
        counts = Counts()
        store, cache = await filled()
        sessions = tier(store, cache, replace(ALWAYS, store_reads=1), counts)
        await sessions.get(KEY, Query())
        for age in (ONCE, LATER):
            async with sessions._statements.reads:
                store.statements.clear()
                await asyncio.sleep(2)
                assert store.statements == []
            await asyncio.sleep(0.1)
            assert counts.found(age) == [(3, 0)]
        await sessions.close()

    run(main())


def test_nothing_is_compared_while_the_breaker_is_open() -> None:
    async def main() -> Counts:
        counts = Counts()
        store, cache = await filled()
        falsify(cache)
        sessions = tier(store, cache, ALWAYS, counts)
        await sessions.prepare()
        sessions._breaker._opened_at = float("inf")
        await sessions.get(KEY, Query())
        await asyncio.sleep(40)
        await sessions.close()
        return counts

    assert run(main()).found(ONCE, LATER, BOUND) == [(0, 0)] * 3


@pytest.mark.parametrize("trouble", ["hangs", "raises"])
def test_a_cache_in_trouble_costs_the_sample_only(trouble: str) -> None:
    async def main() -> int:
        store, cache = await filled()
        if trouble == "hangs":
            cache.delay = None
        else:
            cache.raising = True
        sessions = await sampled(store, cache, Counts())
        await asyncio.sleep(60)
        assert sessions._sampler is not None
        left = len(sessions._sampler.tasks)
        await sessions.close()
        return left

    assert run(main()) == 0


def test_a_private_cache_and_a_rate_of_0_need_no_sampler() -> None:
    async def main() -> None:
        cache = TroubledCache()
        assert tier(ToyStore(), cache, TieredConfig(sample_rate=0))._sampler is None
        assert tier(ToyStore(), None, ALWAYS)._sampler is None
        cache.shared = False
        assert tier(ToyStore(), cache, ALWAYS)._sampler is None

    run(main())


class Deaf(ToyStore):
    """A store whose driver takes a cancellation for itself, as `wait_for` of Python 3.11 may."""

    def __init__(self) -> None:
        super().__init__()
        self.holding = False
        self.held = asyncio.Event()

    async def tags(self, key: SessionKey) -> Tags:
        if self.holding:
            self.held.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.holding = False
        return await super().tags(key)


@pytest.mark.parametrize("swallowed", [False, True])
def test_close_ends_samples_that_wait(swallowed: bool) -> None:
    async def main() -> float:
        store, cache = Deaf(), TroubledCache()
        sessions = tier(store, cache, ALWAYS)
        await sessions.prepare()
        store.holding = swallowed
        await sessions.get(KEY, Query())
        if swallowed:
            await store.held.wait()
        else:
            await asyncio.sleep(2)
        assert sessions._sampler is not None
        assert sessions._sampler.tasks
        began = asyncio.get_running_loop().time()
        await sessions.close()
        assert not sessions._sampler.tasks
        return asyncio.get_running_loop().time() - began

    assert run(main()) < 0.5


def idle(config: TieredConfig) -> Sampler:
    """Returns a sampler whose every sample waits for SQL."""

    async def never(*_: object) -> Tags:
        await asyncio.Event().wait()
        raise AssertionError

    sessions = tier(ToyStore(), TroubledCache())
    cache = sessions._cache
    assert cache is not None
    clock = asyncio.get_running_loop().time
    return Sampler(cache, sessions._statements.load, never, config, sessions._breaker, Counts(), clock)


@pytest.mark.parametrize(
    ("rate", "calls", "least", "most"), [(0.01, 2_000, 12, 28), (1.0, 1000, 32, 32), (0.001, 999, 0, 0)]
)
def test_how_many_are_sampled(rate: float, calls: int, least: int, most: int) -> None:
    """As many as the rate says, never more than 32 at once, none in a process of few calls."""

    async def main() -> int:
        random.seed(7)
        sampler = idle(TieredConfig(sample_rate=rate))
        for _ in range(calls):
            sampler.offer(KEY)
        return len(sampler.tasks)

    assert least <= run(main()) <= most


def test_a_rate_is_a_share() -> None:
    for rate in (-0.1, 1.1):
        with pytest.raises(ConfigurationError, match="sample_rate"):
            TieredConfig(sample_rate=rate)


@pytest.mark.parametrize(("staleness", "ages"), [(None, 2), (0.0, 2), (0.5, 3), (30.0, 3)])
def test_the_ages_follow_the_bound(staleness: float | None, ages: int) -> None:
    async def main() -> list[float]:
        return [age for age, _ in idle(TieredConfig(sample_rate=1.0, max_staleness=staleness))._ages]

    found = run(main())
    assert len(found) == ages
    assert found == sorted(found)
