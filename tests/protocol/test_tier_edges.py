"""What an adversarial reading of the tier found: each test failed before its cure."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from tests.protocol.doubles import ToyStore, TroubledCache, run, tier
from tests.protocol.simulation import KEY
from tests.protocol.test_tier import ALL, BUDGET, append, event, names, timed
from tiered_sessions import metrics as counters
from tiered_sessions.cache.base import Hit, Miss
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.config import TieredConfig
from tiered_sessions.errors import StoreUnavailableError
from tiered_sessions.records import Already, Append, Content, Create, Listing, ScopeKey, SessionKey, Tag
from tiered_sessions.tier.floors import Floors
from tiered_sessions.tier.steps import Standing

TAG = Tag(1, 5, 7, 9)


class Counts:
    """Keeps the counters."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def count(self, name: str, value: int = 1) -> None:
        self.seen[name] += value


def test_a_slow_answer_does_not_undo_the_floor_of_a_delete() -> None:
    """I5, I6: served() after an own delete leaves "only SQL can say"."""
    floors = Floors(31.0, lambda: 0.0)
    floors.served((KEY.session,), (TAG,))
    floors.wrote(KEY.session, None)
    floors.served((KEY.session,), (TAG,))
    assert floors.judge(KEY.session, TAG) is Standing.DOUBT


def test_a_floor_is_what_sql_said_last() -> None:
    """Section 5.3, floor: lower or not, unless an own write came between."""
    floors = Floors(31.0, lambda: 0.0)
    began = floors.began()
    floors.wrote(KEY.session, TAG)
    older = TAG._replace(revision=4)
    assert not floors.observed(KEY.session, older, began)
    assert floors.judge(KEY.session, older) is Standing.BELOW
    assert floors.observed(KEY.session, older, floors.began())
    assert floors.judge(KEY.session, older) is Standing.FINE


def test_an_answer_as_old_as_another_read_does_not_lower_what_that_one_showed() -> None:
    # I6: it was asked before, and came back after; the cache may hold as old an entry (a failover).
    floors = Floors(31.0, lambda: 0.0)
    slow = floors.began()
    assert floors.observed(KEY.session, TAG, floors.began())
    older = TAG._replace(revision=TAG.revision - 1)
    assert floors.observed(KEY.session, older, slow), "its call began before the other was shown"
    assert floors.judge(KEY.session, older) is Standing.BELOW
    # Of another incarnation nobody can say which is older, nor of one that is missing.
    for unlike in (TAG._replace(incarnation=TAG.incarnation + 1), TAG._replace(nonce=TAG.nonce + 1), None):
        assert floors.observed(KEY.session, TAG, floors.began())
        assert floors.observed(KEY.session, unlike, slow)
        assert floors.judge(KEY.session, TAG) is Standing.DOUBT
    # Asked after all of that, SQL is believed: it has lost commits.
    assert floors.observed(KEY.session, older, floors.began())
    assert floors.judge(KEY.session, older) is Standing.FINE


def test_what_is_found_again_keeps_its_floor() -> None:
    """I6: an entry at its floor is served without `served()`, and the floor lives on from there."""
    now = 0.0
    floors = Floors(31.0, lambda: now)
    older = TAG._replace(revision=TAG.revision - 1)
    floors.served((KEY.session,), (TAG,))
    now = 30.0
    assert floors.standings(KEY.scopes, (TAG, TAG, None)) == (Standing.SAME, Standing.FINE, Standing.FINE)
    now = 60.0
    assert floors.standings((KEY.session,), (older,)) == (Standing.BELOW,)
    now = 61.0
    assert floors.standings((KEY.session,), (older,)) == (Standing.FINE,)


def test_floors_that_made_room_mean_validate() -> None:
    """Section 5.3, floor: what was forgotten too early is checked, until it would have expired."""
    now = 0.0
    floors = Floors(31.0, lambda: now, limit=1)
    floors.served((KEY.session,), (TAG,))
    floors.served((KEY.user,), (TAG,))
    assert floors.judge(KEY.session, TAG) is Standing.DOUBT
    now = 32.0
    assert floors.judge(KEY.session, TAG) is Standing.FINE


def test_a_list_sets_each_floor_as_a_read_of_it_alone_would() -> None:
    """I6: whether there was a floor or not, whoever set it, and when."""
    newer = TAG._replace(revision=TAG.revision + 1)
    elsewhere = TAG._replace(incarnation=TAG.incarnation + 1)
    names = ("new", "same", "over", "newer", "shown", "written", "deleted", "again")
    keys = [SessionKey("app", "ann", name) for name in names]
    now = 0.0
    listed, single = (Floors(31.0, lambda: now) for _ in range(2))
    for floors in (listed, single):
        now = 0.0
        floors.observed(keys[2].session, TAG, 0)
        now = 20.0
        floors.observed(keys[1].session, TAG, 0)
        floors.observed(keys[3].session, newer, 0)
        floors.observed(keys[7].session, elsewhere, 0)
    began = listed.began()
    assert began == single.began()
    for floors in (listed, single):
        floors.observed(keys[4].session, newer, began)
        floors.wrote(keys[5].session, newer)
        floors.wrote(keys[6].session, None)
    now = 40.0
    users = {"ann": Content(TAG, b"{}")}
    ids = ["ann"] * len(names)
    listed.listed(Listing("app", ids, names, [TAG] * len(names), ["{}"] * len(names), users, None), began)
    for key in keys:
        single.observed(key.session, TAG, began)
    single.observed(keys[0].user, TAG, began)
    single.observed(keys[0].app, None, began)
    assert listed._floors == single._floors
    assert all(type(scope) is ScopeKey for scope in listed._floors)


def test_a_repeated_append_raises_the_floor() -> None:
    """R22, I6: who is told "already stored" reads it, though the cache does not show it yet."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        sessions = tier(store, cache)
        await names(sessions)
        await sessions.flush()
        found = store.sql.load(KEY)
        assert found is not None
        write = Append(KEY, found.session.tag, 1, (event("late"),))
        store.sql.write(write, ())
        assert isinstance(await sessions.append(write), Already)
        assert await names(sessions) == ["late"]
        await sessions.close()

    run(main())


def test_a_repeated_append_takes_the_older_entry_away() -> None:
    """The first attempt had no masks and was not heard of: its repetition is, by every process."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        here, there = tier(store, cache), tier(store, cache)
        assert await names(here) == await names(there) == []
        await here.flush()
        found = store.sql.load(KEY)
        assert found is not None
        write = Append(KEY, found.session.tag, 1, (event("late"),), user_delta=b'{"k":1}')
        store.sql.write(write, ())
        assert isinstance(await here.append(write), Already)
        await here.flush()
        seen = await there.get(KEY, ALL)
        assert seen is not None
        assert seen.user is not None
        assert seen.session.events[-1].id == "late"
        assert seen.user.state == b'{"k":1}'
        await here.close()
        await there.close()

    run(main())


def test_a_read_shows_what_the_list_has_shown() -> None:
    """I6: a list comes from SQL, so it may be ahead of the cache."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        here = tier(store, cache)
        assert await names(here) == []
        await here.flush()
        found = store.sql.load(KEY)
        assert found is not None
        store.sql.write(Append(KEY, found.session.tag, 1, (event("elsewhere"),)), ())
        (listed,) = await here.sessions(KEY.app_name, None)
        assert listed.session.tag.revision == found.session.tag.revision + 1
        assert await names(here) == ["elsewhere"]
        await here.close()

    run(main())


async def test_a_lookup_outlives_its_namespace(valkey_url: str) -> None:
    """A namespace that begins while the answer is on its way is the next lookup's."""
    cache = RedisSessionCache(valkey_url)
    looking = asyncio.create_task(cache.lookup(KEY.scopes))
    await asyncio.sleep(0)
    cache.namespace = "another"
    assert all(isinstance(found, Miss) for found in await looking)
    await cache.close()


def test_a_reader_behind_a_sealed_flight_keeps_its_budget() -> None:
    """I7: the cache time of the flight it starts after counts, too."""

    async def main() -> list[float]:
        store, cache = ToyStore(), TroubledCache()
        sessions = tier(store, cache)
        await sessions.prepare()
        await cache.lease(KEY.session, "somebody")

        async def late(after: float) -> float:
            await asyncio.sleep(after)
            return await timed(sessions.get(KEY, ALL))

        took = await asyncio.gather(*(late(n * 0.006) for n in range(6)))
        await sessions.close()
        return took

    assert max(run(main())) <= BUDGET + 1e-9


def test_close_lets_a_started_write_end() -> None:
    """R29: close() waits for a statement under way, and nothing is left afterwards."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        sessions = tier(store, cache)
        await names(sessions)
        found = store.sql.load(KEY)
        assert found is not None
        store.gate, store.asked = asyncio.Event(), asyncio.Event()
        writing = asyncio.create_task(sessions.append(Append(KEY, found.session.tag, 1, (event("a"),))))
        await store.asked.wait()
        closing = asyncio.create_task(sessions.close())
        await asyncio.sleep(1)
        assert not closing.done()
        store.gate.set()
        await writing
        await closing
        assert len(asyncio.all_tasks()) == 1
        with pytest.raises(StoreUnavailableError, match="closed"):
            await sessions.get(KEY, ALL)

    run(main())


def test_a_write_cancelled_again_and_again_ends_as_it_must() -> None:
    """R23, R29: behind its statement a stale append takes its mask away, whoever waits for it or not."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache(delay=0.01)
        sessions = tier(store, cache)
        await names(sessions)
        await sessions.flush()
        writing = asyncio.create_task(sessions.append(Append(KEY, TAG, 1, (event("a"),))))
        cancelled = 0
        while not writing.done():
            await asyncio.sleep(0.001)
            cancelled += "append" in store.statements and writing.cancel()
        assert writing.cancelled()
        assert cancelled > 5, "it has waited for the cache"
        assert cache.commands[-1] == "drop"
        assert isinstance((await cache.lookup((KEY.session,)))[0], Hit)
        assert store.released
        await sessions.close()

    run(main())


@pytest.mark.parametrize("operation", ["sweep", "replace"])
@pytest.mark.parametrize("cached", [False, True])
def test_a_cancelled_call_sends_no_second_statement(operation: str, cached: bool) -> None:
    """R29: what was sent is completed; a sweep's next deletion and a replacement are not begun."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        sessions = tier(store, cache if cached else None, TieredConfig(sweep_every=0))
        await names(sessions)
        await sessions.flush()
        store.live(KEY, 1)
        await asyncio.sleep(1)
        if operation == "sweep":
            store.overdue = [SessionKey("app", "user", "another")]
            working = asyncio.create_task(sessions.delete_expired())
        else:
            working = asyncio.create_task(sessions.create(Create(KEY, 0, b"{}")))
        written = "delete" if operation == "sweep" else "create"
        store.gate = asyncio.Event()
        cache.commands.clear()
        while written not in store.statements:
            store.gate.set()
            await asyncio.sleep(0)
            store.gate.clear()
        working.cancel()
        await asyncio.sleep(0)
        store.gate.set()
        await asyncio.wait((working,))
        assert working.cancelled()
        assert store.statements.count(written) == 1
        assert store.statements.count("checkout") == store.released == 1
        await sessions.flush()
        assert cache.commands.count("intent") == (cached and operation == "sweep")
        await sessions.close()

    run(main())


def test_a_read_that_close_cuts_off_says_so() -> None:
    """A caller that nobody cancelled does not see a CancelledError."""

    async def main() -> None:
        store = ToyStore()
        sessions = tier(store, None, TieredConfig(close_timeout=1))
        await sessions.prepare()
        store.gate = asyncio.Event()
        reading = asyncio.create_task(names(sessions))
        await store.asked.wait()
        await sessions.close()
        with pytest.raises(StoreUnavailableError, match="closed"):
            await reading

    run(main())


def test_an_unforeseen_error_does_not_end_the_drainer(caplog: pytest.LogCaptureFixture) -> None:
    """R11: the outbox is drained although one round failed in a way nobody thought of."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        sessions = tier(store, cache)
        working, store.outbox = store.outbox, None  # type: ignore[method-assign]
        await sessions.prepare()
        store.sql.record((KEY.session,))
        await asyncio.sleep(5)
        assert store.sql.outbox
        store.outbox = working  # type: ignore[method-assign]
        await asyncio.sleep(5)
        assert not store.sql.outbox
        await sessions.close()

    run(main())
    assert "tried again" in caplog.text


def test_flush_returns_although_others_write_on() -> None:
    """flush() is about the writes that returned before it."""

    async def main() -> None:
        sessions = tier(ToyStore(), TroubledCache(0.001))
        stop = asyncio.Event()

        async def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await append(sessions, f"e{number}")

        writing = asyncio.create_task(write())
        await asyncio.sleep(1)
        assert await timed(sessions.flush()) < 1
        stop.set()
        await writing
        await sessions.close()

    run(main())


def test_a_queue_on_a_hanging_cache_ends() -> None:
    """I7, flush(): many commands of one key wait for each other, but not each for itself."""

    async def main() -> None:
        sessions = tier(ToyStore(), TroubledCache())
        cache = sessions._cache
        assert isinstance(cache, TroubledCache)
        for number in range(50):
            await append(sessions, f"e{number}")
        cache.delay = None
        for number in range(50, 60):
            await append(sessions, f"e{number}")
        assert await timed(sessions.flush()) <= 1.001
        await sessions.close()

    run(main())


def test_the_breaker_does_not_flap_on_a_slow_cache() -> None:
    """Section 7: a probe that is answered late does not close it; the pause between probes grows."""

    async def main() -> Counts:
        counts = Counts()
        sessions = tier(ToyStore(), TroubledCache(0.2), metrics=counts)
        for _ in range(600):
            await names(sessions)
            await asyncio.sleep(0.1)
        await sessions.close()
        return counts

    seen = run(main()).seen
    assert seen[counters.BREAKER_OPENED] == 1
    assert seen[counters.BREAKER_CLOSED] == 0


def test_a_changed_namespace_is_followed_by_validation() -> None:
    """R27: until every process has heard of it, hits are checked against SQL."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        early, late = tier(store, cache), tier(store, TroubledCache())
        await names(early)
        await names(late)
        changed = "other"

        async def namespace() -> str:
            return changed

        store.namespace = namespace  # type: ignore[method-assign]
        await asyncio.sleep(8)
        assert cache.namespace == changed
        assert await names(early) == []
        await early.flush()
        # The other process still masks and applies under the old name.
        await append(late, "unseen")
        assert await names(early) == ["unseen"]
        await asyncio.sleep(20)
        await names(early)
        await early.flush()
        store.statements.clear()
        assert await names(early) == ["unseen"]
        assert store.statements == [], "trusted again"
        await early.close()
        await late.close()

    run(main())


async def _beyond_the_window() -> tuple[ToyStore, TroubledCache]:
    """Returns a store of three events and a cache that holds the newest one only."""
    store, cache = ToyStore(), TroubledCache()
    cache.limits = replace(cache.limits, window_events=1)
    sessions = tier(store, cache)
    for name in "abc":
        await append(sessions, name)
    await sessions.flush()
    await cache.drop(KEY.session, None, None)
    await tier(store, cache).get(KEY, ALL)
    store.statements.clear()
    return store, cache


def test_a_history_longer_than_the_window_costs_one_statement_once() -> None:
    """R21: older events are joined at the same tag; what was joined is kept in the process."""

    async def main() -> None:
        store, cache = await _beyond_the_window()
        reader = tier(store, cache)
        await reader.prepare()
        await asyncio.sleep(0.1)
        assert await names(reader) == ["a", "b", "c"]
        assert store.statements == ["older"]
        assert await names(reader) == ["a", "b", "c"]
        assert store.statements == ["older"]
        await reader.close()

    run(main())


def test_older_events_of_another_revision_are_not_joined() -> None:
    """R21, R32: an append between window and older events means a whole load."""

    async def main() -> None:
        store, cache = await _beyond_the_window()
        reader = tier(store, cache)
        found = store.sql.load(KEY)
        assert found is not None
        store.gate, store.asked = asyncio.Event(), asyncio.Event()
        older = store.older

        async def overtaken(*arguments: object) -> object:
            store.sql.write(Append(KEY, found.session.tag, 1, (event("d"),)), ())
            return await older(*arguments)  # type: ignore[arg-type]

        store.older = overtaken  # type: ignore[assignment, method-assign]
        store.gate.set()
        assert await names(reader) == ["a", "b", "c", "d"]
        assert store.statements == ["older", "load"]
        await reader.close()

    run(main())


def test_a_process_that_was_held_up_does_not_blame_the_cache() -> None:
    """Its waits end late, all at once, with the replies unread: that must not open the breaker."""

    async def main(held_up: float) -> int:
        store, cache, counts = ToyStore(), TroubledCache(), Counts()
        sessions = tier(store, cache, metrics=counts)
        await names(sessions)
        await sessions.flush()
        cache.delay = None
        loop = asyncio.get_running_loop()
        for _ in range(10):
            loop.call_later(0.004, setattr, loop, "_now", loop.time() + 0.004 + held_up)
            assert await names(sessions) == []
        await sessions.close()
        return counts.seen[counters.BREAKER_OPENED]

    assert run(main(0.2)) == 0
    assert run(main(0.0)) == 1
