"""Hypothesis plays servers over one database and one cache, with a fault at any command.

Three servers, two sessions of one user; the product from SessionTier down, its real SQL store on SQLite
and its memory cache as the shared one. What must hold is checked at every command of the cache, every
commit and every answer (fleet.py, truth.py), and once more after everything has healed. A failure is a
list of calls, each with the faults that its commands met, by name and number.

HYPOTHESIS_PROFILE=long plays fifty times as much.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.protocol.faulty import Plan
from tests.protocol.fleet import World
from tests.protocol.fleet_server import Server
from tests.protocol.fleet_strategies import (
    KEYS,
    crowds,
    keys,
    leaves,
    meets,
    pauses,
    queries,
    races,
    scopes,
    servers,
)
from tiered_sessions.config import TieredConfig
from tiered_sessions.records import Append, Create, NewEvent, Query, ScopeKey, SessionKey

SIZES: dict[str, Any] = {
    "window_bytes": 3000,
    "event_bytes": 200,
    "state_bytes": 250,
    "idle_ttl": 20.0,
    "max_age": 60.0,
    "sweep_every": 3.0,
    "outbox_poll": 1.5,
}
Work = Callable[[Server], Coroutine[Any, Any, Any]]
ALL = Query()


class Fleet(RuleBasedStateMachine):
    """Calls of three servers, begun while others are under way."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[asyncio.Task[Any]] = []
        self.appends: list[Append] = []
        self.numbers = itertools.count(1)

    @initialize(
        staleness=st.sampled_from([30.0, 30.0, 0.0, None]),
        shared=st.sampled_from([True, True, True, False]),
        stamps=st.booleans(),
        window=st.sampled_from([200, 200, 200, 3]),
    )
    def begin(self, staleness: float | None, shared: bool, stamps: bool, window: int) -> None:
        config = TieredConfig(max_staleness=staleness, window_events=window, **SIZES)
        self.world = world = World(config, 3, shared=shared, stamps=stamps)
        for server in world.servers:
            world.run(server.start(server.tier.prepare()))
        server = world.servers[0]
        for key in KEYS:
            world.run(server.start(server.create(Create(key, 1, b"{}"))))
            self.append(0, key, 0, 4, False, {"session"}, Plan(), None)

    # --- calls ----------------------------------------------------------------------------------

    @rule(server=servers, key=keys, query=queries, meets=meets, pause=pauses)
    def read(self, server: int, key: SessionKey, query: Query, meets: Plan, pause: float | None) -> None:
        self.call(server, self.reading(key, query), meets, pause)

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.01, 1.6, 4.1, 8.0]))
    def look_around(self, seconds: float) -> None:
        """A little later every server reads every session, twice: what is filled is read."""
        self.world.plan = Plan()
        self.run(asyncio.sleep(seconds))
        for server, key in [*itertools.product(range(3), KEYS)] * 2:
            self.call(server, self.reading(key), Plan(), None)

    @rule(server=servers, key=keys, changes=scopes, meets=meets, pause=pauses)
    def turn(self, server: int, key: SessionKey, changes: set[str], meets: Plan, pause: float | None) -> None:
        self.call(server, self.reading_then_appending(key, changes), meets, pause)

    @rule(key=keys, calls=races, cold=st.booleans(), meets=meets)
    def race(self, key: SessionKey, calls: list[tuple[float, int, str]], cold: bool, meets: Plan) -> None:
        """Several calls on one session, each begun so many seconds after the first."""
        if cold:
            self.world.evict((self.world.servers[0].cache.namespace, key.session))
        work: dict[str, Work] = {
            "read": self.reading(key),
            "turn": self.reading_then_appending(key, {"user"}),
            "append": lambda s: s.append(self.write(key, self.newest(key, 0), 1, False, {"app"})),
            "delete": lambda s: s.delete(key),
        }
        self.world.plan = meets
        began = 0.0
        for after, server, name in sorted(calls):
            self.run(asyncio.sleep(after - began))
            began = after
            here = self.world.servers[server]
            self.pending.append(here.start(work[name](here)))
        for task in self.pending:
            self.wait(task)
        if self.newest(key, 0) is None:
            self.create(0, key, None, False, set(), Plan(), None)

    @rule(server=servers, calls=crowds, leaves=leaves, meets=meets)
    def crowd(
        self,
        server: int,
        calls: list[tuple[float, SessionKey, int]],
        leaves: list[tuple[float, int]],
        meets: Plan,
    ) -> None:
        """Callers of one server append at once, by statements that they share; some leave meanwhile."""
        self.world.plan = meets
        here = self.world.servers[server]

        def append(key: SessionKey, back: int) -> asyncio.Task[Any]:
            write = self.write(key, self.newest(key, back), 1, False, set())
            return here.start(here.append(write))

        self.meet([(at, partial(append, key, back)) for at, key, back in calls], leaves)

    def meet(
        self, starts: list[tuple[float, Callable[[], asyncio.Task[Any]]]], leaves: list[tuple[float, int]]
    ) -> None:
        """Starts calls, each at its time, and has some left by their callers meanwhile."""
        tasks: list[asyncio.Task[Any]] = []

        def start(one: Callable[[], asyncio.Task[Any]]) -> None:
            tasks.append(one())

        def leave(which: int) -> None:
            if tasks:
                tasks[which % len(tasks)].cancel()

        todo: list[tuple[float, Callable[[], None]]] = [
            *((at, partial(start, one)) for at, one in starts),
            *((at, partial(leave, which)) for at, which in leaves),
        ]
        began = 0.0
        for at, do in sorted(todo, key=lambda one: one[0]):
            if at > began:
                self.run(asyncio.sleep(at - began))
                began = at
            do()
        for task in tasks:
            self.pending.append(task)
            self.wait(task)

    @rule(
        server=servers,
        key=keys,
        back=st.integers(0, 2),
        events=st.integers(0, 3),
        large=st.booleans(),
        changes=scopes,
        meets=meets,
        pause=pauses,
    )
    def append(
        self,
        server: int,
        key: SessionKey,
        back: int,
        events: int,
        large: bool,
        changes: set[str],
        meets: Plan,
        pause: float | None,
    ) -> None:
        """Appends to the newest version, or to one `back` from it."""
        write = self.write(key, self.newest(key, back), events, large, changes)
        self.call(server, lambda s: s.append(write), meets, pause)

    @precondition(lambda self: self.appends)
    @rule(server=servers, back=st.integers(0, 3), changed=st.booleans(), meets=meets, pause=pauses)
    def again(self, server: int, back: int, changed: bool, meets: Plan, pause: float | None) -> None:
        """Repeats an append, or appends something else under its ids."""
        write = self.appends[-1 - min(back, len(self.appends) - 1)]
        if changed:
            events = tuple(event._replace(payload=b'{"other": 1}') for event in write.events)
            write = Append(write.key, write.expected, write.update_time, events)
        self.call(server, lambda s: s.append(write), meets, pause)

    @rule(
        server=servers,
        key=keys,
        ttl=st.sampled_from([None, None, None, 500, 5000]),
        sliding=st.booleans(),
        changes=scopes,
        meets=meets,
        pause=pauses,
    )
    def create(
        self,
        server: int,
        key: SessionKey,
        ttl: int | None,
        sliding: bool,
        changes: set[str],
        meets: Plan,
        pause: float | None,
    ) -> None:
        number = next(self.numbers)
        delta = {name: json.dumps({"k": number}).encode() for name in changes}
        create = Create(
            key,
            number,
            b'{"new": %d}' % number,
            delta.get("user"),
            delta.get("app"),
            ttl,
            sliding and ttl is not None,
        )
        self.call(server, lambda s: s.create(create), meets, pause)

    @rule(server=servers, other=servers, key=keys, meets=meets, pause=pauses)
    def replace(self, server: int, other: int, key: SessionKey, meets: Plan, pause: float | None) -> None:
        """Deletes a session; then another server creates it anew."""
        self.call(server, lambda s: s.delete(key), meets, pause)
        self.call(other, lambda s: s.create(Create(key, next(self.numbers), b"{}")), meets, pause)

    @rule(server=servers, meets=meets, pause=pauses)
    def sweep(self, server: int, meets: Plan, pause: float | None) -> None:
        self.call(server, lambda s: s.sweep(), meets, pause)

    @rule(server=servers, meets=meets)
    def flush(self, server: int, meets: Plan) -> None:
        self.call(server, lambda s: s.tier.flush(), meets, None)

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 5))
    def cancel(self, which: int) -> None:
        """Whoever called gives up."""
        task = self.pending[which % len(self.pending)]
        task.cancel()
        self.wait(task)

    # --- the world ------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.06, 0.6, 1.1, 2.1, 4.1, 6.1, 8.0, 21.0, 31.0]), meets=meets)
    def time_passes(self, seconds: float, meets: Plan) -> None:
        """Meanwhile servers drain, sweep and follow the namespace."""
        self.world.plan = meets
        self.run(asyncio.sleep(seconds))

    @rule(
        what=st.sampled_from(["evict", "flush", "fail over", "restart", "rename", "kill", "kill at once"]),
        server=servers,
        scope=st.sampled_from([KEYS[0].session, KEYS[1].session, KEYS[0].user, KEYS[0].app]),
        back=st.integers(1, 4),
    )
    def mishap(self, what: str, server: int, scope: ScopeKey, back: int) -> None:
        """Between two commands: a key goes, or all; another cache process; another namespace; a death.

        Of a process that is killed at once nothing is performed any more that it has sent.
        """
        world = self.world
        assert world is not None
        match what:
            case "evict":
                world.evict((world.servers[server].cache.namespace, scope))
            case "flush":
                world.flush()
            case "fail over":
                world.fail_over(back)
            case "restart":
                world.fail_over(0)
            case "rename":
                world.rename()
            case _:
                world.kill(server, silenced=what == "kill at once")

    @rule()
    def heal(self) -> None:
        """Without more faults all that was recorded is carried out, and readers get what is true."""
        self.world.plan = Plan()
        for task in self.pending:
            self.wait(task)
        # A breaker that has opened again and again waits 10 s before it asks; a dead drainer's turn is 3 s.
        self.run(asyncio.sleep(17))
        self.world.check_healed()
        for server in range(3):
            for key in KEYS:
                self.call(server, self.reading(key), Plan(), None)

    # --- how ------------------------------------------------------------------------------------

    def newest(self, key: SessionKey, back: int) -> Any:
        """Returns a tag that the session has, or had; None if there is no session."""
        versions = self.world.truth.versions(key.session)
        if versions[-1].tag is None:
            return None
        tags = [version.tag for version in versions if version.tag is not None]
        return tags[-1 - min(back, len(tags) - 1)]

    def reading(self, key: SessionKey, query: Query = ALL) -> Work:
        return lambda here: here.read(key, query)

    def reading_then_appending(self, key: SessionKey, changes: set[str]) -> Work:
        """Makes a call that reads, appends to what was read, and again if others came between."""

        async def turn(here: Server) -> None:
            for _ in range(3):
                found = await here.read(key, ALL)
                if found is None:
                    return
                write = self.write(key, found.session.tag, 1, False, changes)
                if await here.append(write):
                    return

        return turn

    def write(self, key: SessionKey, expected: Any, events: int, large: bool, changes: set[str]) -> Append:
        number = next(self.numbers)
        value = "x" * 300 if large else number
        delta = {name: json.dumps({"k": value}).encode() for name in changes}
        payload = json.dumps({"n": value}).encode()
        made = tuple(NewEvent(f"e{number}.{n}", "i", (number * 5 + n) % 7, payload) for n in range(events))
        write = Append(key, expected, number, made, delta.get("session"), delta.get("user"), delta.get("app"))
        self.appends.append(write)
        return write

    def call(
        self,
        server: int,
        work: Work,
        meets: Plan,
        pause: float | None,
    ) -> None:
        """Begins a call, and lets it go on for `pause` seconds, None: to its end."""
        self.world.plan = meets
        here = self.world.servers[server]
        task = here.start(work(here))
        self.pending.append(task)
        if pause is None:
            self.wait(task)
        else:
            self.run(asyncio.sleep(pause))

    def wait(self, task: asyncio.Task[Any]) -> None:
        self.run(asyncio.wait((task,), timeout=60))
        assert task.done(), "I7: a call does not end"

    def run(self, work: Awaitable[Any]) -> None:
        """Runs until `work` is done; looks at the cache and at the calls that have ended by then."""
        self.world.run(work)
        self.world.check()
        ended = [task for task in self.pending if task.done()]
        self.pending = [task for task in self.pending if not task.done()]
        for task in ended:
            if not task.cancelled():
                task.result()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if sys.exc_info()[0] is None:
                self.heal()
                for server in self.world.servers:
                    self.world.run(server.tier.close())
                    assert server.store.engine.checked_out == 0
        finally:
            for task in self.pending:
                task.cancel()
            for number in range(3):
                self.world.kill(number, silenced=True)
            self.world.close()


LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
# Ten plays at a time: from the eleventh on Hypothesis makes five of six by repeating parts of another.
SETTINGS = settings(
    max_examples=10,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("part", range(500 if LONG else 10))
def test_faults_at_every_command(part: int) -> None:
    run_state_machine_as_test(Fleet, settings=SETTINGS)
