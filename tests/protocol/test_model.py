"""Every interleaving of small scenarios, run to the end on the product's own code (I1-I8).

Larger ones: `make model`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.protocol.explorer import models
from tests.protocol.explorer.machines import Machines, Move, freeze, identity
from tests.protocol.explorer.mixes import SMALL
from tests.protocol.explorer.search import explore
from tests.protocol.explorer.state import Promise, Scenario
from tests.protocol.explorer.teeth import NAMED, TEETH, Tooth

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scenario", SMALL, ids=lambda scenario: scenario.name)
def test_every_interleaving_keeps_its_promise(scenario: Scenario) -> None:
    result = explore(scenario)
    assert result.violation is None, result.violation
    assert result.complete
    print(f"{scenario.name}: {result.states:,} states, {result.transitions:,} transitions")


@pytest.mark.parametrize(
    ("name", "promise"),
    [
        ("evicted while written", Promise.NEVER),
        ("a late commit", Promise.NEVER),
        ("failover while written", Promise.NEVER),
        ("a writer cut off", Promise.NEVER),
        ("masks lost", Promise.NEVER),
        ("evicted, then dead", Promise.TRANSIENT),
        ("a late commit of the dead", Promise.TRANSIENT),
        ("failover without stamps", Promise.TRANSIENT),
        ("SQL loses a commit", Promise.TRANSIENT),
        ("foreign state", Promise.TRANSIENT),
    ],
)
def test_no_stronger_promise_would_hold(name: str, promise: Promise) -> None:
    """Table 5.5 is exact: each fault that it lists does what it says."""
    assert explore(replace(NAMED[name], promise=promise)).violation is not None


@pytest.mark.parametrize("tooth", TEETH, ids=lambda tooth: tooth.name)
def test_a_change_is_noticed(tooth: Tooth) -> None:
    """The model has teeth: without a step, or with two of them swapped, a promise is broken."""
    found = tooth.explore()
    assert found.violation is not None
    print(
        f"{tooth.name}: {found.states:,} states, {len(found.violation.trace)} steps: {found.violation.reason}"
    )


# --- what the explorer itself stands on ----------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a shared flight", "a window too short", "masks lost", "failover while written"]
)
def test_the_reduction_hides_no_end(name: str) -> None:
    """Fewer states lead to the same ends: all that the calls and the servers can leave behind."""
    reduced, whole = explore(NAMED[name]), explore(NAMED[name], reduce=False)
    assert reduced.states < whole.states
    assert reduced.ends == whole.ends > 0


class Audited(Machines):
    """Remembers several ways to each state, and gives a reply to all that stand there."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: dict[int, list[tuple[Any, tuple[Any, ...]]]] = {}
        self.compared = 0

    def _name(self, identity: Any, make: Any, replies: tuple[Any, ...]) -> int:
        number = super()._name(identity, make, replies)
        self.ways.setdefault(number, []).append((make, replies))
        return number

    def _advance(self, machine: int, reply: Any) -> Move:
        move = super()._advance(machine, reply)
        for make, replies in self.ways[machine][1:4]:
            generator = make()
            for earlier in replies:
                generator.send(earlier)
            try:
                step = generator.send(reply)
                name = identity(generator)
            except StopIteration as stop:
                step, name = stop.value, "ended"
            assert freeze(step) == freeze(move.step)
            assert super()._name(name, make, ()) == move.machine
            self.compared += 1
        return move


@pytest.mark.parametrize("name", ["a window too short", "masks lost"])
def test_generators_in_one_state_do_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code, position and locals say all of a generator, whichever replies led there."""
    made: list[Audited] = []

    def audited() -> Audited:
        made.append(Audited())
        return made[-1]

    monkeypatch.setattr(models, "Machines", audited)
    assert explore(NAMED[name]).complete
    assert made[0].compared > 0
