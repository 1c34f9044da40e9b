"""The product's generators under thousands of random interleavings (I1-I6)."""

from __future__ import annotations

import pytest

from tests.protocol import scenarios
from tests.protocol.actors import RULES, Faults
from tests.protocol.commands import done
from tests.protocol.mutations import PRIVATE
from tests.protocol.scenarios import Scenario, always, for_itself, in_time, settled, violations, within
from tests.protocol.simulation import NONE, World
from tests.protocol.toy_sql import KEY
from tiered_sessions.records import Committed
from tiered_sessions.tier.steps import Rules

SEEDS = range(100)
SCENARIOS = [
    scenarios.writers,
    scenarios.recreated,
    scenarios.warm,
    scenarios.alone,
    scenarios.expiring,
    scenarios.brief,
    scenarios.sliding,
    scenarios.chained,
]
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS)


@every_scenario
@pytest.mark.parametrize("staleness", [30_000, 0, None])
def test_never_stale_without_faults(scenario: Scenario, staleness: int | None) -> None:
    """I1, I4, I5, I6: whatever the order, delays of readers and lost replies included."""
    assert violations(scenario, always, SEEDS, NONE, within(staleness)) == []


@every_scenario
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(crashes=True), id="processes die"),
        pytest.param(Faults(duplicates=True), id="commands arrive twice"),
        pytest.param(Faults(unknown=True), id="commits end without a word"),
        pytest.param(Faults(unknown=True, crashes=True, duplicates=True), id="all three"),
        pytest.param(Faults(failover=True), id="an older copy of the cache takes over"),
    ],
)
def test_never_stale_under_faults(scenario: Scenario, faults: Faults) -> None:
    """I4 with R4, R5, R6 and R10: these faults cost misses."""
    assert violations(scenario, always, SEEDS, faults) == []


@every_scenario
def test_never_stale_with_a_cache_for_each_process(scenario: Scenario) -> None:
    """R33: nobody hears of the others' masks."""
    assert violations(scenario, always, SEEDS, NONE, PRIVATE) == []


@every_scenario
def test_a_cut_off_writer_is_repaired_by_the_outbox(scenario: Scenario) -> None:
    """R11: what could not be masked is dropped by the drain, and stays right after it."""
    assert violations(scenario, settled, SEEDS, Faults(cut_off=True)) == []


@every_scenario
def test_evictions_are_repaired_by_the_apply(scenario: Scenario) -> None:
    """R8, R9: an evicted mask costs at most until its apply; contents are never torn."""
    assert violations(scenario, settled, SEEDS, Faults(evictions=True)) == []


@every_scenario
@pytest.mark.parametrize("staleness", [30_000, None])
def test_nobody_goes_back_when_a_cache_without_stamps_fails_over(
    scenario: Scenario, staleness: int | None
) -> None:
    """I6 with R10: others may be behind, but no process behind itself."""
    assert violations(scenario, for_itself, SEEDS, Faults(unstamped=True), within(staleness)) == []


@every_scenario
def test_commits_that_sql_lost_are_forgotten_in_time(scenario: Scenario) -> None:
    """R18: revision numbers are used twice; after `max_staleness` nobody sees what was lost."""
    assert violations(scenario, in_time, SEEDS, Faults(lost_commits=True)) == []


@pytest.mark.parametrize("rules", [RULES, within(0)], ids=["in time", "at once"])
def test_a_foreign_write_is_seen(rules: Rules) -> None:
    """R28: only `update_time` tells, and validation compares it."""
    verdict = always if rules.max_staleness == 0 else in_time
    assert violations(scenarios.foreign, verdict, SEEDS, NONE, rules) == []


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
    done(world.cache.intent(scope, "writer"))
    world.read(1)
    world.run()
    assert world.served[-1].answer.source == "store"
