"""What the states of one exploration refer to: its tables, and the tiers and floors as values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.protocol.explorer.judge import Judge
from tests.protocol.explorer.machines import ENDED, Machines, Table, freeze
from tests.protocol.explorer.sql import SqlStates
from tests.protocol.explorer.state import Actor, Calls, Process, Scenario
from tests.protocol.explorer.tiers import CacheStates, FloorStates
from tiered_sessions.cache.base import CacheLimits
from tiered_sessions.records import ScopeKey
from tiered_sessions.tier import steps
from tiered_sessions.tier.flights import Flight, Flights


async def _joined() -> tuple[bool, bool]:
    """Asks the product's Flights who joins the newest flight: before it is sealed, and after."""

    async def load(flight: Flight[None]) -> None:
        await asyncio.Event().wait()

    flights: Flights[str, None] = Flights()
    newest = flights.board("key", load)
    before = flights.board("key", load) is newest
    newest.sealed = True
    return before, flights.board("key", load) is newest


class Models:
    """All tables of one exploration."""

    def __init__(self, scenario: Scenario, calls: Calls) -> None:
        limits = CacheLimits(window_events=scenario.window)
        self.scenario = scenario
        self.calls = calls
        self.replies = Table()
        self.commands = Table()
        self.actors = Table()
        self.processes = Table()
        self.machines = Machines()
        self.waits: dict[int, Any] = {}
        self.cache = CacheStates(self.replies, limits)
        self.sql = SqlStates(self.replies)
        stale = scenario.rules.max_staleness
        self.floors = FloorStates(self.replies, None if stale is None else stale / 1000 + 1)
        self.judge = Judge(scenario, self.cache, self.sql)
        self.joined = asyncio.run(_joined())
        self.over = self.actors.add(Actor(ENDED, 0, ""))

    def quiet(self, scope: ScopeKey) -> bool:
        """Says whether no program writes this scope, so that delays there change nothing."""
        return scope.kind == "app" or (scope.kind == "user" and not self.scenario.user)

    def wait(self, actor: Actor) -> Any:
        """Returns what a call waits for, a `Wait` or a `Flight`; None: it has not begun."""
        step = self.waits.get(actor.machine)
        # What it asks is what it has sent last.
        return step.wait(actor.handles) if isinstance(step, steps.Ask) else step

    def fetch(self, step: steps.Flight) -> Callable[[], Any]:
        """Returns what makes the generator of a flight."""
        return partial(self.calls.protocol.fetch, *step, self.calls.rules)

    def reply(self, value: Any) -> int:
        return self.replies.add(value, freeze(value))

    def command(self, value: Any) -> int:
        return self.commands.add(value, (type(value), value))

    def new_process(self) -> Process:
        return Process(self.floors.empty, -1, (0, 0, 0))
