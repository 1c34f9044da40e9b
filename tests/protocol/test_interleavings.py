"""The product's generators under thousands of random interleavings (I1-I6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.protocol.simulation import KEY, RULES, World
from tiered_sessions.cache import base
from tiered_sessions.cache.memory import Entry, Lease, MemoryCache
from tiered_sessions.records import Committed, Create
from tiered_sessions.tier import protocol, steps

SEEDS = range(400)


def writers(world: World) -> None:
    world.turn(0, "a")
    world.turn(1, "b", user=True)
    world.read(0)
    world.read(1)
    world.read(1)


def recreated(world: World) -> None:
    world.read(0)
    world.turn(0, "a")
    world.delete(1)
    world.create(0)
    world.read(1)
    world.read(0)


def warm(world: World) -> None:
    """Fills first, so that there is an entry to be stale."""
    world.read(0)
    world.run()
    for number in range(2):
        world.turn(number, f"w{number}", user=True)
        world.read(0)
        world.read(1)


def alone(world: World) -> None:
    """One writer beside a filled entry: nobody else repairs what it leaves behind."""
    world.read(0)
    world.run()
    world.turn(1, "w", user=True)


def expiring(world: World) -> None:
    """A session that expires among readers, a writer, a sweep and who wants its id."""
    world.sql.live(KEY, 4000, sliding=False)
    world.read(0)
    world.turn(0, "a")
    world.read(1)
    world.create(1, 4000)
    world.sweep(0)
    world.read(0)
    world.turn(1, "b", user=True)
    world.read(1)


def brief(world: World) -> None:
    """Readers all around the moment a session expires."""
    world.sql.live(KEY, 8, sliding=False)
    for number in range(8):
        world.read(number % 2)


def sliding(world: World) -> None:
    """Appends keep a session alive; without them it ends."""
    world.sql.live(KEY, 4000, sliding=True)
    world.read(0)
    world.run()
    world.turn(0, "a")
    world.read(1)
    world.sweep(1)
    world.turn(0, "b")
    world.create(1, 4000, sliding=True)
    world.read(0)
    world.read(1)


SCENARIOS = [writers, recreated, warm, alone, expiring, brief, sliding]


def quiesce(world: World) -> None:
    """Lets what is left happen: masks expire, the outbox is drained, a reader comes by."""
    world.run()
    world.now += 5000
    for _ in range(20):
        world.drain(0)
        world.run()
        if not world.sql.outbox:
            return


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("staleness", [30_000, 0, None])
def test_never_stale_without_faults(scenario: Callable[[World], None], staleness: int | None) -> None:
    """I1, I4, I5: whatever the order, delays of readers and lost replies included."""
    for seed in SEEDS:
        world = World(seed, rules=replace(RULES, max_staleness=staleness))
        scenario(world)
        world.run()
        assert not any(world.stale(*read) for read in world.served), f"seed {seed}"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_never_stale_when_processes_die(scenario: Callable[[World], None]) -> None:
    """I4 with R4: a dead writer's mask takes the entry with it."""
    for seed in SEEDS:
        world = World(seed, crashes=True)
        scenario(world)
        quiesce(world)
        world.read(1)
        world.run()
        assert not any(world.stale(*read) for read in world.served), f"seed {seed}"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_cut_off_writer_is_repaired_by_the_outbox(scenario: Callable[[World], None]) -> None:
    """R11: what could not be masked is dropped by the drain, and stays right after it."""
    for seed in SEEDS:
        world = World(seed, lose=True)
        scenario(world)
        quiesce(world)
        world.served.clear()
        world.read(0)
        world.read(1)
        world.run()
        assert not any(world.stale(*read) for read in world.served), f"seed {seed}"
        assert not world.sql.outbox


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_evictions_are_repaired_by_the_apply(scenario: Callable[[World], None]) -> None:
    """R8, R9: an evicted mask costs at most until its apply; contents are never torn."""
    for seed in SEEDS:
        world = World(seed, evictions=True)
        scenario(world)
        quiesce(world)
        world.served.clear()
        world.read(0)
        world.run()
        assert not any(world.stale(*read) for read in world.served), f"seed {seed}"


def test_a_foreign_write_is_seen_after_max_staleness() -> None:
    """R28: only `update_time` tells, and validation compares it."""
    for seed in SEEDS:
        world = World(seed)
        world.read(0)
        world.run()
        world.sql.foreign_append(seed + 1)
        world.turn(0, "a")
        world.now += 31_000
        world.read(1)
        world.run()
        assert world.stale(*world.served[-1]) is False, f"seed {seed}"


def _stale_seeds(scenario: Callable[[World], None], **faults: Any) -> int:
    found = 0
    for seed in SEEDS:
        world = World(seed, **faults)
        try:
            scenario(world)
            quiesce(world)
            world.read(0)
            world.read(1)
            world.run()
        except AssertionError:
            found += 1
            continue
        found += any(world.stale(*read) for read in world.served)
    return found


def test_without_the_mask_it_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite has teeth: R3."""

    async def unmasked(self: MemoryCache, key: object, token: str) -> int:
        return self._clock()

    monkeypatch.setattr(MemoryCache, "intent", unmasked)
    assert _stale_seeds(warm) > 0


def test_without_the_lease_it_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite has teeth: R1."""

    async def always(self: MemoryCache, key: object, token: str) -> object:
        return base.Granted(self._clock(), "")

    original = MemoryCache.fill

    async def fill(
        self: Any, key: Any, token: str, at: int, stamp: str, content: Any, expires: Any
    ) -> Any:
        slot = self._get(key, self._clock())
        self._put(key, replace(slot, lease=Lease(token, at, 10**12)).living(10**12))
        return await original(self, key, token, at, stamp, content, expires)

    monkeypatch.setattr(MemoryCache, "lease", always)
    monkeypatch.setattr(MemoryCache, "fill", fill)

    def slow_reader(world: World) -> None:
        world.read(0)
        world.turn(1, "w")
        world.read(0)

    assert _stale_seeds(slow_reader) > 0


def replaced(world: World) -> None:
    """SQL's clock is set ahead: to it a cached session has expired, and its id is taken again."""
    world.read(0)
    world.run()
    world.sql.live(KEY, 60_000, sliding=False)
    world.cache._slots.clear()
    world.read(0)
    world.run()
    world.skew = 100_000
    world.create(1)
    world.read(0)
    world.read(0)


def test_what_replaces_an_expired_session_is_seen_whatever_the_clocks_say() -> None:
    """I5: the cache would have shown the old one for a minute."""
    assert _stale_seeds(replaced) == 0


def test_a_replacement_without_the_sessions_intent_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite has teeth: section 5.2, as a delete does."""
    whole = Create.scopes.fget
    assert whole is not None
    shared = property(lambda self: tuple(s for s in whole(self) if s.kind != "session"))
    monkeypatch.setattr(Create, "scopes", shared)
    assert _stale_seeds(replaced) > 0


def test_a_cache_that_ignores_the_expiry_serves_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite has teeth: section 7."""
    monkeypatch.setattr(Entry, "expired", lambda self, now: False)
    assert _stale_seeds(expiring) > 0


def test_an_expiry_counted_from_the_fill_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite has teeth: the grant precedes the read of SQL, the fill follows it."""
    original = MemoryCache.fill

    async def late(self: MemoryCache, *command: Any) -> Any:
        *rest, expires = command
        granted_at = command[2]
        if expires is not None:
            expires += self._clock() - granted_at
        return await original(self, *rest, expires)

    monkeypatch.setattr(MemoryCache, "fill", late)
    assert _stale_seeds(brief) > 0


def test_without_the_outbox_it_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite has teeth: R11."""
    original = protocol._commit

    def forgetful(operation: Any, scopes: Any, marked: Any, rules: Any) -> Any:
        marked = marked._replace(acknowledged=dict.fromkeys(scopes, 0))
        return original(operation, scopes, marked, rules)

    monkeypatch.setattr(protocol, "_commit", forgetful)
    assert _stale_seeds(alone, lose=True) > 0


def test_writers_of_one_revision_have_one_winner() -> None:
    """I3: of two appends to what both have read, one is stored."""
    wins = 0
    for seed in SEEDS:
        world = World(seed)
        world.turn(0, "a")
        world.turn(1, "b")
        world.run()
        committed = [o for o in world.outcomes if isinstance(o, Committed)]
        assert len(committed) == len(world.sql.rows[KEY.session].events)
        wins += len(committed)
    assert len(SEEDS) < wins < 2 * len(SEEDS)


def test_a_masked_entry_is_not_served() -> None:
    """R3: between intent and apply a read is answered by SQL."""
    world = World(0)
    world.read(0)
    world.run()
    world.later.clear()
    world.cache._slots.pop(("n", KEY.session), None)
    world.read(0)
    world.run()
    scope = KEY.session
    intent = steps.Intent(scope, "writer")
    world._perform(intent)
    world.read(1)
    world.run()
    assert world.served[-1][1].source == "store"
