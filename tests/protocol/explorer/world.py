"""The explored world: which steps are possible in a state, and what one makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.protocol.explorer.draft import Draft
from tests.protocol.explorer.judge import Violated
from tests.protocol.explorer.machines import ENDED
from tests.protocol.explorer.models import Models
from tests.protocol.explorer.sql import KEY
from tests.protocol.explorer.state import Actor, Calls, Promise, Scenario, State
from tiered_sessions.records import Failed, Query, Unknown
from tiered_sessions.tier import steps

Step = tuple[Any, ...]
"""One possible step: its kind, and whom or what it concerns."""


class World:
    """One scenario."""

    def __init__(self, scenario: Scenario, models: Models) -> None:
        self.scenario = scenario
        self.models = models
        self.shared = False
        """Whether the last step touched what other processes can."""
        self._settled: set[tuple[int, int, int]] = set()

    def first(self) -> State:
        """Returns the state in which nothing has begun."""
        draft = Draft(self.models)
        if not self.scenario.cold:
            for process in range(len(draft.processes)):
                draft.run_alone(process, self._reading())
        for process in self.scenario.cut:
            draft.processes[process] = draft.processes[process]._replace(cut=True)
        draft.backup = draft.cache
        return draft.state()

    # --- what can happen ----------------------------------------------------------------------

    def steps(self, state: State) -> list[Step]:
        """Returns what calls and servers can do; nothing is under way if there is none."""
        found: list[Step] = []
        running: set[tuple[int, Query | None]] = set()
        for at, actor in self._actors(state, "flights"):
            if actor.private or (actor.process, actor.query) not in running:
                found += self._of(state, "flights", at, actor)
            if not actor.private:
                running.add((actor.process, actor.query))
        for at, actor in self._actors(state, "actors"):
            if actor.machine != ENDED:
                found += self._of(state, "actors", at, actor)
        found += [("late", number) for number in dict.fromkeys(state.bag)]
        if state.faults.copies:
            commands = self.models.commands.values
            twice = [n for n in dict.fromkeys(state.bag) if isinstance(commands[n], steps.ScopedCommand)]
            found += [("again", number) for number in twice]
        return found

    def alone(self, state: State, steps: list[Step]) -> Step | None:
        """Returns a delivery that does the same, and allows the same, whatever comes before it.

        So it may come first, alone, if it turns out not to touch what others share (`shared`): no
        crash, no jump of the clock and nobody of its process can come between, and it is the first
        handle of its wait, so that no other reply can overtake it.
        """
        scenario = self.scenario
        if state.faults.crashes or state.jumps < len(scenario.jumps) or scenario.faults.copies:
            return None
        if scenario.calm and state.faults.failovers:
            return None
        values = self.models.processes.values
        if any(values[number].cut for number in state.processes):
            return None
        by_process: dict[int, list[Step]] = {}
        for step in steps:
            if step[0] not in ("late", "again"):
                actor = self.models.actors.values[getattr(state, step[1])[step[2]]]
                by_process.setdefault(actor.process, []).append(step)
        for mine in by_process.values():
            found = [step for step in mine if step[0] == "deliver"]
            others = {step[:3] for step in mine if step[0] != "deliver"}
            if len(found) != 1 or not others <= {("execute", *found[0][1:3])}:
                continue
            _, kind, at, handle = found[0]
            actor = self.models.actors.values[getattr(state, kind)[at]]
            if handle == 0 or handle == self.models.wait(actor).handles[0]:
                return found[0]
        return None

    def faults(self, state: State) -> Iterator[Step]:
        """Yields what can go wrong, and the jumps of the clock."""
        faults, scenario = state.faults, self.scenario
        actors = [*self._actors(state, "actors"), *self._actors(state, "flights")]
        pending = any(self._write(actor) is not None for _, actor in actors)
        if state.jumps < len(scenario.jumps) and (self._outlives(state.jumps) or not pending):
            short = scenario.jumps[state.jumps] <= _STALL
            if short or not any(self._asks(actor) for _, actor in actors):
                yield ("jump",)
        if faults.crashes:
            for process in sorted({actor.process for _, actor in actors if actor.machine != ENDED}):
                yield "crash", process, True
                if any(actor.sent for _, actor in actors if actor.process == process):
                    yield "crash", process, False
        if faults.strays:
            for number in dict.fromkeys(state.bag):
                if isinstance(self.models.commands.values[number], steps.ScopedCommand):
                    yield "stray", number
        if faults.evictions:
            for scope, slot in self.models.cache.slots(state.cache).items():
                if not self.models.quiet(scope) and not (scenario.calm and slot.masks):
                    yield "evict", scope
        writing = pending or any(actor.writing == 1 for _, actor in actors)
        if faults.failovers and not (scenario.calm and writing):
            yield ("failover",)
        if faults.saves and state.backup != state.cache:
            yield ("save",)
        database = self.models.sql.table.values[state.sql]
        if faults.losses and len(database.versions[0]) > 1:
            yield ("lose",)
        if faults.expiries and database.ends is not None:
            yield ("expire",)
        for at, number in enumerate(state.processes):
            if self.models.processes.values[number].cut:
                yield "heal", at

    def _outlives(self, jumps: int) -> bool:
        """Says whether a statement may last as long as the next jump."""
        return self.scenario.late or self.scenario.jumps[jumps] <= _STATEMENT

    def _actors(self, state: State, kind: str) -> list[tuple[int, Actor]]:
        values = self.models.actors.values
        return [(at, values[number]) for at, number in enumerate(getattr(state, kind))]

    def _write(self, actor: Actor) -> int | None:
        """Returns the number of the statement that is under way."""
        for _, number in actor.sent:
            if isinstance(self.models.commands.values[number], steps.Write):
                return number
        return None

    def _asks(self, actor: Actor) -> bool:
        """Says whether a call waits for the cache, which it does for 50 ms, however the process stalls."""
        return getattr(self.models.wait(actor), "timer", None) is not None

    def _of(self, state: State, kind: str, at: int, actor: Actor) -> Iterator[Step]:
        faults, commands = state.faults, self.models.commands.values
        for handle, number in actor.sent:
            command = commands[number]
            yield "execute", kind, at, handle
            if isinstance(command, steps.Write) and faults.unknowns:
                yield from (("outcome", kind, at, handle, told) for told in ("done", "not done", "failed"))
            if faults.copies and isinstance(command, steps.ScopedCommand):
                yield "copy", kind, at, handle
        wait = self.models.wait(actor)
        if wait is None:
            yield "begin", kind, at
            return
        ready = dict(actor.replies)
        if isinstance(wait, steps.Flight):
            if 0 in ready:
                yield "deliver", kind, at, 0
            elif faults.alone and self._waits_for_cache(state, actor):
                yield "alone", kind, at
            return
        # As call.py: of several replies the first in the order of the handles.
        first = next((handle for handle in wait.handles if handle in ready), None)
        if first is not None:
            yield "deliver", kind, at, first
        if actor.writing == 1 and faults.cancels:
            yield "cancel", kind, at
        if wait.timer is steps.Timer.POLL:
            yield "poll", kind, at, False
            if actor.polls < faults.polls:
                yield "poll", kind, at, True
        elif wait.timer is steps.Timer.CACHE:
            masks = actor.writing == 1
            if faults.cutoffs if masks else faults.timers:
                yield "timer", kind, at, True
                if any(handle in wait.handles for handle, _ in actor.sent):
                    yield "timer", kind, at, False

    def _waits_for_cache(self, state: State, caller: Actor) -> bool:
        """Says whether the flight a caller joined, or the one ahead of it, may still take its time."""
        flights = [f for _, f in self._actors(state, "flights") if f.process == caller.process]
        own = next(f for f in flights if f.name == caller.flight)
        ahead = next(f for f in flights if not f.private and f.query == own.query)
        return not own.private and not ahead.left

    # --- doing it -----------------------------------------------------------------------------

    def after(self, state: State, step: Step) -> State:
        """Returns the state after one step. Raises `Violated` if something untrue was seen."""
        draft = Draft(self.models, state)
        getattr(self, f"_{step[0]}")(draft, *step[1:])
        self.shared = draft.shared
        result = draft.state()
        self.check(result)
        return result

    def _begin(self, draft: Draft, kind: str, at: int) -> None:
        draft.advance(kind, at, "none", None)

    def _execute(self, draft: Draft, kind: str, at: int, handle: int) -> None:
        draft.execute(kind, at, handle)

    def _copy(self, draft: Draft, kind: str, at: int, handle: int) -> None:
        draft.faults = draft.faults.less("copies")
        draft.bag.append(dict(draft.actor(kind, at).sent)[handle])
        draft.execute(kind, at, handle)

    def _outcome(self, draft: Draft, kind: str, at: int, handle: int, told: str) -> None:
        draft.faults = draft.faults.less("unknowns")
        outcome = Failed(_BROKEN) if told == "failed" else Unknown(_BROKEN)
        draft.execute(kind, at, handle, told=outcome, done=told == "done")

    def _deliver(self, draft: Draft, kind: str, at: int, handle: int) -> None:
        draft.deliver(kind, at, handle)

    def _late(self, draft: Draft, number: int) -> None:
        draft.late(number)

    def _stray(self, draft: Draft, number: int) -> None:
        draft.faults = draft.faults.less("strays")
        draft.bag.remove(number)

    def _timer(self, draft: Draft, kind: str, at: int, arrives: bool) -> None:
        draft.faults = draft.faults.less("cutoffs" if draft.actor(kind, at).writing == 1 else "timers")
        draft.give_up(kind, at, arrives)

    def _poll(self, draft: Draft, kind: str, at: int, again: bool) -> None:
        actor = draft.actor(kind, at)
        draft.put(kind, at, actor._replace(polls=actor.polls + 1))
        ended = steps.Ended.TIMER if again else steps.Ended.SPENT
        draft.advance(kind, at, ended, ended)

    def _cancel(self, draft: Draft, kind: str, at: int) -> None:
        draft.faults = draft.faults.less("cancels")
        draft.advance(kind, at, steps.Ended.CANCELLED, steps.Ended.CANCELLED)

    def _alone(self, draft: Draft, kind: str, at: int) -> None:
        draft.faults = draft.faults.less("alone")
        draft.fly_alone(at)

    def _jump(self, draft: Draft) -> None:
        draft.jump(self.scenario.jumps[draft.jumps], late=self._outlives(draft.jumps))

    def _crash(self, draft: Draft, process: int, arrives: bool) -> None:
        draft.faults = draft.faults.less("crashes")
        draft.crash(process, arrives)

    def _evict(self, draft: Draft, scope: Any) -> None:
        draft.faults = draft.faults.less("evictions")
        draft.cache = self.models.cache.without(draft.cache, scope)

    def _failover(self, draft: Draft) -> None:
        draft.faults = draft.faults.less("failovers")
        draft.cache = draft.backup
        if self.scenario.stamps:
            draft.stamp += "'"

    def _save(self, draft: Draft) -> None:
        draft.faults = draft.faults.less("saves")
        draft.backup = draft.cache

    def _lose(self, draft: Draft) -> None:
        draft.faults = draft.faults.less("losses")
        draft.change(lambda sql: sql.lose())

    def _expire(self, draft: Draft) -> None:
        draft.faults = draft.faults.less("expiries")
        draft.change(lambda sql: sql.expire())

    def _again(self, draft: Draft, number: int) -> None:
        draft.faults = draft.faults.less("copies")
        draft.late(number)
        draft.bag.append(number)

    def _heal(self, draft: Draft, process: int) -> None:
        draft.processes[process] = draft.processes[process]._replace(cut=False, probed=draft.now)
        # What is filled from now on is newer than the probe.
        draft.now += 1

    # --- what must hold -----------------------------------------------------------------------

    def check(self, state: State) -> None:
        """Judges the cache, and if nothing is under way what a reader would be told."""
        self.models.judge.cache(state)
        over = all(number == self.models.over for number in state.actors) and not state.flights
        if over and (self.scenario.promise is not Promise.TRANSIENT or not state.bag):
            self._settle(state)

    def _settle(self, state: State) -> None:
        """Lets masks expire, drains the outbox, reads: that must be what SQL says (not stuck)."""
        name = state.cache, state.sql, state.now
        if name in self._settled:
            return
        self._settled.add(name)
        draft = Draft(self.models, state)
        draft.now += 5_000
        if self.scenario.promise is Promise.BOUNDED:
            draft.now += 1 + (self.scenario.rules.max_staleness or 0)
        draft.processes = [self.models.new_process()]
        for _ in range(3):
            draft.run_alone(0, self.models.calls.chores.drain())
        if self.models.sql.table.values[draft.sql].outbox:
            raise Violated("stuck: the outbox is not emptied")
        answer = draft.run_alone(0, self._reading())
        self.models.judge.latest(draft.sql, answer, "stuck: ")

    def _reading(self) -> Any:
        calls: Calls = self.models.calls
        return calls.protocol.read(KEY, Query(), calls.rules)

    def text(self, state: State, step: Step) -> str:
        """Says what a step is."""
        kind, *what = step
        if kind in ("late", "again", "stray"):
            return f"{kind}: {self.models.commands.values[what[0]]}"
        if kind in ("jump", "failover", "save", "crash", "evict", "heal", "lose", "expire"):
            return " ".join((kind, *map(str, what)))
        actor = self.models.actors.values[getattr(state, what[0])[what[1]]]
        who = f"{what[0][:-1]} {actor.name} (process {actor.process})"
        if kind in ("execute", "copy", "outcome"):
            command = self.models.commands.values[dict(actor.sent)[what[2]]]
            return f"{who}: {kind} {' '.join(map(str, what[3:]))} {command}"
        if kind == "deliver":
            return f"{who}: is told {self.models.replies.values[dict(actor.replies)[what[2]]]}"
        return f"{who}: {kind} {' '.join(map(str, what[2:]))}"


_STALL = 5_000
"""For how long, in ms, a process may stand still with a reply of the cache in its hands."""
_STATEMENT = 2_500
"""For how long, in ms, a statement may be under way: less than its masks live (section 5)."""
_BROKEN = ConnectionError("the connection broke")
