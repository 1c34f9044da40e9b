"""SessionTier on virtual time: budgets, the breaker, flights, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.protocol.doubles import ToyStore, TroubledCache, run, tier
from tests.protocol.simulation import KEY
from tiered_sessions.cache.base import Unavailable
from tiered_sessions.config import TieredConfig
from tiered_sessions.errors import (
    EventIdConflictError,
    SessionExistsError,
    SessionNotFoundError,
    StaleSessionError,
    StoreUnavailableError,
)
from tiered_sessions.records import Already, Append, Committed, Create, NewEvent, Query, SessionKey, Tag
from tiered_sessions.tier.tier import SessionTier

ALL = Query()
BUDGET = TieredConfig().cache_budget


def event(name: str) -> NewEvent:
    return NewEvent(name, "i", 1, b'{"id":"%s"}' % name.encode())


async def append(sessions: SessionTier, name: str, user: bool = False) -> Committed | Already:
    found = await sessions.get(KEY, ALL)
    assert found is not None
    delta = b'{"k":1}' if user else None
    return await sessions.append(Append(KEY, found.session.tag, 1, (event(name),), user_delta=delta))


async def names(sessions: SessionTier) -> list[str]:
    found = await sessions.get(KEY, ALL)
    assert found is not None
    return [e.id for e in found.session.events]


async def timed(work: Awaitable[object]) -> float:
    began = asyncio.get_running_loop().time()
    await work
    return asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("delay", [0.0, 0.004, 0.012, 0.024, 0.030, 0.045, 0.060, 5.0, None])
@pytest.mark.parametrize("staleness", [30.0, 0.0, None])
def test_no_call_waits_for_the_cache_longer_than_its_budget(
    delay: float | None, staleness: float | None
) -> None:
    """I7: slow, dead or a black hole, no call fails and none waits more than 50 ms in all."""

    async def main() -> float:
        store, cache = ToyStore(), TroubledCache(delay)
        sessions = tier(store, cache, TieredConfig(max_staleness=staleness))
        await sessions.prepare()
        longest = 0.0
        for number in range(4):
            found = store.sql.load(KEY)
            assert found is not None
            longest = max(longest, await timed(sessions.get(KEY, ALL)))
            write = Append(KEY, found.session.tag, 1, (event(f"e{number}"),), user_delta=b'{"a":1}')
            longest = max(longest, await timed(sessions.append(write)))
            with pytest.raises(StaleSessionError):
                await sessions.append(Append(KEY, found.session.tag, 1, (event("x"),)))
            assert await names(sessions) == [f"e{n}" for n in range(number + 1)]
            other = SessionKey("app", "user", f"s{number}")
            create = Create(other, 0, b"{}", app_delta=b"{}")
            longest = max(longest, await timed(sessions.create(create)))
        longest = max(longest, await timed(sessions.delete(KEY)))
        assert await sessions.get(KEY, ALL) is None
        await sessions.close()
        return longest

    assert run(main()) <= BUDGET + 1e-9


def test_many_readers_of_a_slow_cache_keep_their_budgets() -> None:
    """I7 for those who join another's flight: each has a budget of its own."""

    async def main() -> list[float]:
        store, cache = ToyStore(), TroubledCache(0.012)
        sessions = tier(store, cache)
        await sessions.prepare()

        async def late(after: float) -> float:
            await asyncio.sleep(after)
            return await timed(sessions.get(KEY, ALL))

        took = await asyncio.gather(*(late(n * 0.003) for n in range(20)))
        await sessions.close()
        return took

    assert max(run(main())) <= BUDGET + 1e-9


def test_someone_elses_lease_is_polled_within_the_budget() -> None:
    """5.3 step 5: WAIT, then SQL without a fill."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        sessions = tier(store, cache)
        await sessions.prepare()
        await cache.lease(KEY.session, "somebody")
        took = await timed(sessions.get(KEY, ALL))
        assert 0 < took <= BUDGET + 1e-9
        assert store.statements == ["load"]
        await sessions.flush()
        assert cache.commands.count("fill") == 2, "the user and app scopes only"
        await sessions.close()

    run(main())


def test_the_breaker_stops_traffic_and_heals_by_itself() -> None:
    """Section 7: after five failures no call waits; a probe closes it, entries older than it are checked."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        sessions = tier(store, cache)
        await append(sessions, "a")
        await sessions.flush()
        assert await names(sessions) == ["a"]
        cache.delay = None
        for _ in range(8):
            await names(sessions)
        assert await timed(names(sessions)) == 0
        asked = len(cache.commands)
        await append(sessions, "b")
        assert len(cache.commands) == asked, "no cache traffic while it is open"
        assert set(store.sql.outbox) == {KEY.session}
        cache.delay = 0.0
        for _ in range(6):
            await asyncio.sleep(2)
            await names(sessions)
        await sessions.flush()
        assert await names(sessions) == ["a", "b"]
        for _ in range(5):
            await asyncio.sleep(1)
        assert not store.sql.outbox, "drained once the cache was back"
        store.statements.clear()
        assert await names(sessions) == ["a", "b"]
        assert store.statements == [], "hot again"
        await sessions.close()

    run(main())


def test_what_withdraws_a_late_mask_goes_though_it_has_opened_the_breaker() -> None:
    """Also to a cache that cannot post, as a cluster: the turn of the command comes when it is open."""

    async def main() -> None:
        cache = TroubledCache(delay=None)
        sessions = tier(ToyStore(), cache)
        await sessions.prepare()
        for number in range(8):
            await sessions.delete(KEY._replace(session_id=f"s{number}"))
        await sessions.flush()
        assert cache.commands.count("intent") == cache.commands.count("drop") == 5
        await sessions.close()

    run(main())


class Overloaded(Unavailable):
    """What a cache of somebody else's may answer."""


@pytest.mark.parametrize("call", ["get", "append"])
def test_the_breaker_counts_every_kind_of_unavailable_as_a_failure(call: str) -> None:
    async def main() -> None:
        cache = TroubledCache()
        sessions = tier(ToyStore(), cache)
        tag = (await append(sessions, "a")).tag
        await sessions.flush()
        cache.refusal, cache.refusing = Overloaded, True

        async def ask(number: int) -> None:
            nonlocal tag
            if call == "get":
                await names(sessions)
            else:
                tag = (await sessions.append(Append(KEY, tag, 1, (event(f"b{number}"),)))).tag

        for number in range(8):
            await ask(number)
        asked = len(cache.commands)
        await ask(8)
        assert len(cache.commands) == asked, "no cache traffic while it is open"
        await sessions.close()

    run(main())


@pytest.mark.parametrize("trouble", ["refusing", "raising"])
def test_a_failing_cache_costs_no_time(trouble: str) -> None:
    """I7: an error is answered from SQL at once, even one that the contract forbids."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        setattr(cache, trouble, True)
        sessions = tier(store, cache)
        assert await timed(append(sessions, "a", user=True)) == 0
        assert await names(sessions) == ["a"]
        assert set(store.sql.outbox) == {KEY.session, KEY.user}
        await sessions.close()

    run(main())


def test_a_read_never_joins_a_flight_whose_load_was_sent() -> None:
    """R31: the second read begins after a commit that the first one's load cannot hold."""

    async def main() -> None:
        store = ToyStore()
        store.gate = asyncio.Event()
        reader, writer = tier(store, None), store.sql
        await reader.prepare()
        first = asyncio.create_task(names(reader))
        await store.asked.wait()
        tag = writer.tag(KEY.session)
        writer.write(Append(KEY, tag, 1, (event("new"),)), ())
        second, third = asyncio.create_task(names(reader)), asyncio.create_task(names(reader))
        await asyncio.sleep(0)
        store.gate.set()
        assert await first == []
        assert await second == await third == ["new"]
        assert store.statements.count("load") == 2, "those who came too late share the next one"
        await reader.close()

    run(main())


def test_concurrent_readers_share_one_load() -> None:
    """R30: a herd on one session is one statement."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache(0.001)
        sessions = tier(store, cache)
        await asyncio.gather(*(names(sessions) for _ in range(50)))
        assert store.statements.count("load") == 1
        await sessions.close()

    run(main())


def test_outcomes_become_errors() -> None:
    """The typed errors of an append and of a create."""

    async def main() -> None:
        sessions = tier(ToyStore(), TroubledCache())
        done = await append(sessions, "a")
        with pytest.raises(EventIdConflictError, match="Event a is already stored"):
            await sessions.append(Append(KEY, done.tag, 1, (NewEvent("a", "i", 1, b'{"other":1}'),)))
        again = await sessions.append(Append(KEY, Tag(1, 1, 1, 1), 1, (event("a"),)))
        assert again == Already(done.tag, True)
        with pytest.raises(SessionExistsError, match="Session with id session already exists"):
            await sessions.create(Create(KEY, 0, b"{}"))
        with pytest.raises(SessionNotFoundError, match="Session nobody not found"):
            await sessions.append(Append(SessionKey("app", "user", "nobody"), None, 1, (event("a"),)))
        assert await sessions.delete(KEY)
        assert not await sessions.delete(KEY)
        await sessions.close()

    run(main())


def test_expired_sessions_are_swept_in_the_background() -> None:
    """Section 7: by the elected drainer, or by each process where nobody is elected."""

    async def main(cache: TroubledCache | None) -> None:
        store = ToyStore()
        sessions = tier(store, cache, TieredConfig(sweep_every=60.0))
        await append(sessions, "a")
        store.live(KEY, 1000)
        await asyncio.sleep(2)
        assert KEY.session in store.sql.rows
        await asyncio.sleep(100)
        assert KEY.session not in store.sql.rows
        await sessions.close()
        assert len(asyncio.all_tasks()) == 1

    private = TroubledCache()
    private.shared = False
    for cache in (None, private, TroubledCache()):
        run(main(cache))


def test_nothing_is_swept_in_the_background_if_nobody_wants_it() -> None:
    """`sweep_every=0`: only `delete_expired` does."""

    async def main(cache: TroubledCache | None) -> None:
        store = ToyStore()
        sessions = tier(store, cache, TieredConfig(sweep_every=0))
        await append(sessions, "a")
        store.live(KEY, 1000)
        await asyncio.sleep(1000)
        assert KEY.session in store.sql.rows
        assert await sessions.delete_expired() == 1
        assert KEY.session not in store.sql.rows
        await sessions.close()

    for cache in (None, TroubledCache()):
        run(main(cache))


def test_what_cannot_be_swept_is_left_and_told() -> None:
    """A session that is locked does not keep the others, a database that is gone ends the sweep."""

    async def main() -> None:
        store, cache = ToyStore(), TroubledCache()
        sessions = tier(store, cache)
        await append(sessions, "a")
        store.live(KEY, 0)
        locked = [SessionKey("app", "user", f"locked {n}") for n in range(4)]
        store.locked = set(locked)
        store.overdue = locked[:2]
        with pytest.raises(StoreUnavailableError):
            await sessions.delete_expired()
        assert KEY.session not in store.sql.rows
        store.statements.clear()
        store.overdue = locked
        with pytest.raises(StoreUnavailableError):
            await sessions.delete_expired()
        assert store.statements.count("delete") == 3
        await sessions.close()

    run(main())


async def _cancelled_at(step: int, work: Callable[[], Awaitable[object]]) -> bool:
    """Runs `work`, cancelling it after `step` turns of the loop; false if it was over by then."""
    task = asyncio.ensure_future(work())
    for _ in range(step):
        await asyncio.sleep(0)
        if task.done():
            await task
            return False
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return True


@pytest.mark.parametrize("operation", ["get", "append", "create", "delete", "replace", "sweep"])
@pytest.mark.parametrize("turns", [0, 3])
def test_cancellation_at_every_await_leaves_both_tiers_right(operation: str, turns: int) -> None:
    """R29: whatever is cancelled when, what SQL holds is what readers get, and nothing is left."""

    async def once(step: int) -> bool:
        store, cache = ToyStore(), TroubledCache(turns=turns)
        sessions, other = tier(store, cache), tier(store, cache)
        expires = operation in ("replace", "sweep")
        if expires:
            store.live(KEY, 1000)
        await append(sessions, "a")
        await sessions.flush()
        found = await other.get(KEY, ALL)
        assert found is not None
        await asyncio.sleep(expires)
        checkouts, released = store.statements.count("checkout"), store.released
        work: dict[str, Callable[[], Awaitable[object]]] = {
            "get": lambda: sessions.get(KEY, ALL),
            "append": lambda: sessions.append(
                Append(KEY, found.session.tag, 1, (event("b"),), user_delta=b'{"b":1}')
            ),
            "create": lambda: sessions.create(
                Create(SessionKey("app", "user", "new"), 0, b"{}", user_delta=b'{"c":1}')
            ),
            "delete": lambda: sessions.delete(KEY),
            "replace": lambda: sessions.create(Create(KEY, 0, b'{"new":1}', user_delta=b'{"c":1}')),
            "sweep": sessions.delete_expired,
        }
        cancelled = await _cancelled_at(step, work[operation])
        checkouts = store.statements.count("checkout") - checkouts
        assert store.released - released == checkouts <= 1, "a call has one connection, whatever it does"
        for reader in (other, sessions):
            truth = store.sql.load(KEY)
            seen = await reader.get(KEY, ALL)
            assert (seen and seen.session) == (truth and truth.session), f"step {step}"
            assert (seen and seen.user) == (truth and truth.user), f"step {step}"
        await asyncio.sleep(10)
        if store.sql.load(KEY) is not None:
            await append(other, "after")
        await sessions.close()
        await other.close()
        assert len(asyncio.all_tasks()) == 1, "nothing is left under way"
        return cancelled

    steps = 0
    while run(once(steps)):
        steps += 1
        assert steps < 500
    assert steps > turns
