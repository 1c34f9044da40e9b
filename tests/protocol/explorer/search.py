"""Explores every interleaving of the product's own protocol generators, to the end.

`explore(scenario)` visits each state that the scenario's programs, delays and faults can reach:
every command is sent, executed at any later moment, and its reply delivered at any moment after
that. What runs is the product: the generators of tier/protocol.py and tier/chores.py, the cache of
cache/memory.py, the floors of tier/floors.py, and the rule of tier/flights.py who joins which. Not
the product's: the toy SQL (sql.py), and the queue of flights (draft.py).

    result = explore(Scenario("two turns", ((0, turn("a")), (1, turn("b")))))
    assert result.violation is None, result.violation

`protocol` and `chores` take a mutant's place; `mutant()` makes one of a module's source. The search
is breadth first: a violation comes with a shortest trace. A result without violation proves its
scenario only if it is `complete`.

A delivery that is nobody else's business is made at once, instead of before and after each step of
the others (`World.alone` says when that hides nothing); `reduce=False` interleaves it too.

Parts: state.py (scenarios and states), programs.py (the calls), world.py (which steps are
possible), draft.py (what a step does), judge.py (what must hold), machines.py (generators as
values), tiers.py (cache and floors as values), sql.py (the toy), models.py (their tables).
The scenarios are in mixes.py, what must be noticed in teeth.py; explorer_mixes.py runs both.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from tests.protocol.explorer.judge import Violated
from tests.protocol.explorer.models import Models
from tests.protocol.explorer.state import Calls, Scenario, State
from tests.protocol.explorer.world import World
from tiered_sessions.tier import chores as chores_module
from tiered_sessions.tier import protocol as protocol_module


class Violation(NamedTuple):
    """What does not hold, and the shortest way there."""

    reason: str
    trace: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((self.reason, *(f"{at:3} {step}" for at, step in enumerate(self.trace, 1))))


class Result(NamedTuple):
    """What an exploration found. `complete`: every reachable state was visited (or made needless)."""

    states: int
    transitions: int
    seconds: float
    complete: bool
    violation: Violation | None
    ends: int
    """In how many states nothing is left to do."""


def explore(
    scenario: Scenario,
    *,
    protocol: ModuleType = protocol_module,
    chores: ModuleType = chores_module,
    reduce: bool = True,
    limit: int = 5_000_000,
    seen: Callable[[int], bool] | None = None,
) -> Result:
    """Visits every state, or `limit` of them, or those up to the first violation.

    `seen` is told now and then how many states there are; it returns false to stop there.
    """
    models = Models(scenario, Calls(protocol, chores, scenario.rules))
    world = World(scenario, models)
    started = time.perf_counter()
    # Millions of tuples that are all alive: looking for garbage among them takes most of the time.
    gc.disable()
    try:
        return _search(world, reduce, limit, seen, started)
    finally:
        gc.enable()


def _search(
    world: World, reduce: bool, limit: int, seen: Callable[[int], bool] | None, started: float
) -> Result:
    first = world.first()
    came: dict[State, State | None] = {first: None}
    queue = deque((first,))
    transitions, looked, ends = 0, 0, 0
    violation: Violation | None = None
    stopped = False
    while queue and violation is None and not stopped:
        state = queue.popleft()
        steps = world.steps(state)
        if not steps and any(number != world.models.over for number in state.actors):
            violation = Violation("I7: a call does not end", _trace(world, came, state))
            break
        ends += not steps
        alone = world.alone(state, steps) if reduce else None
        for step in (*(() if alone is None else (alone,)), *steps, *world.faults(state)):
            transitions += 1
            try:
                after = world.after(state, step)
            except Exception as error:
                # A violation, or what one of the product's generators raised (I7).
                reason = str(error) if isinstance(error, Violated) else f"I7: {error!r}"
                violation = Violation(reason, (*_trace(world, came, state), world.text(state, step)))
                break
            if after not in came:
                came[after] = state
                queue.append(after)
            if step is alone and not world.shared:
                break
        looked += 1
        stopped = len(came) >= limit or (seen is not None and looked % 4096 == 0 and not seen(len(came)))
    seconds = time.perf_counter() - started
    return Result(len(came), transitions, seconds, violation is None and not stopped, violation, ends)


def _trace(world: World, came: dict[State, State | None], state: State) -> tuple[str, ...]:
    """Returns the steps from the first state to this one, each looked for among those possible."""
    steps: list[str] = []
    while (before := came[state]) is not None:
        for step in (*world.steps(before), *world.faults(before)):
            try:
                found = world.after(before, step) == state
            except Violated:
                continue
            if found:
                steps.append(world.text(before, step))
                break
        state = before
    return tuple(reversed(steps))


def mutant(module: ModuleType, *changes: tuple[str, str]) -> ModuleType:
    """Returns `module` with pieces of its source replaced. Each must stand there exactly once."""
    assert module.__file__ is not None
    source = Path(module.__file__).read_text()
    for old, new in changes:
        assert source.count(old) == 1, f"{source.count(old)} times in {module.__name__}: {old!r}"
        source = source.replace(old, new)
    made = ModuleType(module.__name__)
    made.__dict__.update(__package__=module.__package__, __file__=module.__file__)
    exec(compile(source, f"<mutant of {module.__name__}>", "exec"), made.__dict__)
    return made
