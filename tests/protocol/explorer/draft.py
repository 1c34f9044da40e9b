"""One step of the explored world under way: a state that can be changed, and the models it uses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.protocol.explorer.machines import ENDED
from tests.protocol.explorer.models import Models
from tests.protocol.explorer.programs import Answered, Begins, Returned
from tests.protocol.explorer.sql import FIRST, KEY, Foreign, Sql
from tests.protocol.explorer.state import Actor, Process, Promise, State
from tests.protocol.explorer.tiers import Elected, Rest
from tiered_sessions.tier import steps

_NOW = 1_000_000
_SQL = (steps.SqlRead, steps.Write, Foreign)
_SCOPED = steps.ScopedCommand
_DOWN = steps.Unsent("cut off")


class Draft:
    """A state that is being changed."""

    def __init__(self, models: Models, state: State | None = None) -> None:
        self.models = models
        self.shared = False
        """Whether anything was touched that another process can."""
        if state is not None:
            self.now, self.stamp, self.cache, self.backup, self.sql = state[:5]
            self.processes: list[Process] = [models.processes.values[n] for n in state.processes]
            self.actors = list(state.actors)
            self.flights = list(state.flights)
            self.bag = list(state.bag)
            self.jumps, self.faults = state.jumps, state.faults
            return
        scenario = models.scenario
        self.now, self.stamp, self.cache = _NOW, "s", models.cache.empty
        ends = None if scenario.ends is None else _NOW + scenario.ends
        self.backup, self.sql = self.cache, models.sql.table.add(FIRST._replace(ends=ends))
        count = 1 + max(process for process, _ in scenario.programs)
        self.processes = [models.new_process() for _ in range(count)]
        self.actors = []
        for at, (process, program) in enumerate(scenario.programs):
            machine = models.machines.new(("program", at), partial(program, models.calls))
            self.actors.append(models.actors.add(Actor(machine, process, str(at))))
        self.flights, self.bag = [], []
        self.jumps, self.faults = 0, scenario.faults

    def state(self) -> State:
        """Returns the state as a value."""
        add = self.models.processes.add
        return State(
            self.now,
            self.stamp,
            self.cache,
            self.backup if self.faults.failovers else 0,
            self.sql,
            tuple([add(process) for process in self.processes]),
            tuple(self.actors),
            tuple(self.flights),
            tuple(sorted(self.bag)),
            self.jumps,
            self.faults,
        )

    # --- actors -------------------------------------------------------------------------------

    def actor(self, kind: str, at: int) -> Actor:
        """Returns one program or flight."""
        found: Actor = self.models.actors.values[getattr(self, kind)[at]]
        return found

    def put(self, kind: str, at: int, actor: Actor) -> None:
        """Changes one program or flight."""
        getattr(self, kind)[at] = self.models.actors.add(actor)

    def execute(self, kind: str, at: int, handle: int, *, told: Any = None, done: bool = True) -> None:
        """Executes a command; its reply is there, not delivered. `told`: instead of the outcome."""
        actor = self.actor(kind, at)
        sent = dict(actor.sent)
        number = sent.pop(handle)
        command = self.models.commands.values[number]
        reply = self.perform(number) if done else self.models.reply(None)
        value = self.models.replies.values[reply]
        own = actor.own
        if isinstance(command, steps.Write):
            written = {KEY.session, *getattr(command.operation, "scopes", ())}
            now = self.models.judge.now(self.sql)
            own = tuple(n if scope in written else 0 for n, scope in zip(now, KEY.scopes, strict=True))
        if isinstance(value, Rest):
            sent[handle] = self.models.command(value)
            actor = actor._replace(sent=tuple(sorted(sent.items())))
        else:
            if told is not None:
                reply = self.models.replies.add(told)
            replies = tuple(sorted((*actor.replies, (handle, reply))))
            actor = actor._replace(sent=tuple(sent.items()), replies=replies, own=own)
        self.put(kind, at, actor)

    def deliver(self, kind: str, at: int, handle: int) -> None:
        """Hands in a reply that is there."""
        actor = self.actor(kind, at)
        replies = dict(actor.replies)
        number = replies.pop(handle)
        self.put(kind, at, actor._replace(replies=tuple(replies.items()), flight=""))
        value = self.models.replies.values[number]
        if handle == 0 or isinstance(self.models.waits[actor.machine], steps.Ask):
            self.advance(kind, at, ("told", number), value)
        else:
            self.advance(kind, at, (handle, number), steps.Reply(handle, value))

    def give_up(self, kind: str, at: int, arrives: bool) -> None:
        """Ends a wait for the cache; what was sent reaches the server later, or never."""
        actor = self.actor(kind, at)
        step = self.models.waits[actor.machine]
        waited = self.models.wait(actor).handles
        if arrives:
            self._abandon(n for h, n in actor.sent if h in waited)
        sent = tuple(pair for pair in actor.sent if pair[0] not in waited)
        replies = tuple(pair for pair in actor.replies if pair[0] not in waited)
        self.put(kind, at, actor._replace(sent=sent, replies=replies))
        told = steps.Ended.TIMER
        self.advance(kind, at, told, step.told(told) if isinstance(step, steps.Ask) else told)

    def fly_alone(self, at: int) -> None:
        """Lets a caller read SQL by itself."""
        actor = self.actor("actors", at)
        wait = self.models.wait(actor)
        name = f"{actor.name}.alone{actor.tokens}"
        self._start_flight(actor, wait._replace(leases=()), name, private=True)
        self.put("actors", at, actor._replace(flight=name, tokens=actor.tokens + 1))

    def crash(self, process: int, arrives: bool) -> None:
        """Ends a process; what it sent is executed later, or never."""
        models = self.models
        for kind in ("actors", "flights"):
            for at in range(len(getattr(self, kind))):
                actor = self.actor(kind, at)
                if actor.process == process:
                    if arrives:
                        self._abandon((n for _, n in actor.sent), dead=True)
                    getattr(self, kind)[at] = models.over
        self.flights = [number for number in self.flights if number != models.over]
        self.processes[process] = models.new_process()

    def jump(self, ms: int, *, late: bool) -> None:
        """Lets time pass. A dead writer's statement is executed before, or never, unless `late`."""
        self.jumps += 1
        self.now += ms
        ends = self.models.sql.table.values[self.sql].ends
        if ends is not None and ends <= self.now:
            self.change(lambda sql: sql.expire())
        for kind in ("actors", "flights"):
            for at in range(len(getattr(self, kind))):
                actor = self.actor(kind, at)
                if actor.machine != ENDED and actor.handles:
                    self.put(kind, at, actor._replace(aged=actor.handles))
        if not late:
            commands = self.models.commands.values
            self.bag = [n for n in self.bag if not isinstance(commands[n], steps.Write)]

    def change(self, how: Callable[[Sql], Sql]) -> None:
        """Does something to the database that nobody asked it for."""
        table = self.models.sql.table
        self.sql = table.add(how(table.values[self.sql]._replace(now=self.now))._replace(now=0))

    # --- commands -----------------------------------------------------------------------------

    def perform(self, number: int) -> int:
        """Executes a command; returns the number of its reply."""
        self.shared = True
        models = self.models
        command = models.commands.values[number]
        if isinstance(command, _SQL):
            self.sql, reply = models.sql.perform(self.sql, self.now, number, command)
            return reply
        if isinstance(command, steps.LookUp | Rest):
            return self._look(command)
        before = self.cache
        self.cache, reply = models.cache.perform(before, self.now, self.stamp, number, command)
        if self.cache != before and isinstance(command, _SCOPED):
            models.judge.moved(before, self.cache, self.sql, command)
        return reply

    def _look(self, command: Any) -> int:
        """Looks up one key, or all that are left if nobody writes them: each is read atomically."""
        models = self.models
        seen = command.seen if isinstance(command, Rest) else ()
        loud = [key for key in command.keys if not models.quiet(key)]
        keys = command.keys if len(loud) < 2 else command.keys[:1]
        part = models.command(steps.LookUp(keys, command.newest))
        what = models.commands.values[part]
        self.cache, reply = models.cache.perform(self.cache, self.now, self.stamp, part, what)
        seen = (*seen, *models.replies.values[reply])
        if keys == command.keys:
            return models.reply(seen)
        return models.reply(Rest(seen, command.keys[1:], command.newest))

    def late(self, number: int) -> None:
        """Executes a command that nobody waits for."""
        self.bag.remove(number)
        lease = isinstance(self.models.commands.values[number], steps.Lease)
        if lease and self.models.scenario.faults.copies:
            # A lease that is granted twice is granted at two times.
            self.now += 1
        self.perform(number)

    def _abandon(self, numbers: Any, *, dead: bool = False) -> None:
        for number in numbers:
            command = self.models.commands.values[number]
            if isinstance(command, _SCOPED) or (dead and isinstance(command, steps.Write)):
                self.bag.append(number)

    # --- the protocol's steps -----------------------------------------------------------------

    def advance(self, kind: str, at: int, name: Any, reply: Any) -> None:
        """Runs a call from one wait to the next: nothing of its process can come between."""
        models = self.models
        actor = self.actor(kind, at)
        instant: dict[int, int] = {}
        while True:
            machine, step = models.machines.move(actor.machine, name, reply)
            actor = actor._replace(machine=machine)
            if machine == ENDED:
                self._end(kind, at, actor, step)
                return
            if isinstance(step, steps.Wait):
                ready = next((h for h in step.handles if h in instant), None)
                if ready is None:
                    break
                number = instant.pop(ready)
                name, reply = (ready, number), steps.Reply(ready, models.replies.values[number])
                continue
            if isinstance(step, steps.Ask):
                actor, handle = self._send(actor, step.command, instant)
                if handle not in instant:
                    break
                number = instant.pop(handle)
                name, reply = ("told", number), models.replies.values[number]
                continue
            if isinstance(step, steps.Flight):
                self.put(kind, at, actor)
                self._board(kind, at, step)
                actor = self.actor(kind, at)
                break
            if isinstance(step, steps.Send):
                actor, reply = self._send(actor, step.command, instant)
                name = ("handle", reply)
                continue
            if isinstance(step, steps.Later):
                self._later(actor, step.command)
                name, reply = "none", None
                continue
            actor, number = self._local(actor, step)
            name, reply = ("value", number), models.replies.values[number]
        models.waits[machine] = step
        if not isinstance(step, steps.Flight):
            sent, wait = dict(actor.sent), models.wait(actor)
            waited = [models.commands.values[sent[h]] for h in wait.handles if h in sent]
            models.judge.waits(wait, waited)
        if instant:
            actor = actor._replace(replies=tuple(sorted((*actor.replies, *instant.items()))))
        self.put(kind, at, actor)

    def _send(self, actor: Actor, command: Any, instant: dict[int, int]) -> tuple[Actor, int]:
        models = self.models
        handle = actor.handles + 1
        actor = actor._replace(handles=handle)
        if isinstance(command, steps.Checkout):
            instant[handle] = models.reply(None)
            return actor._replace(writing=1), handle
        if isinstance(command, _SQL):
            if isinstance(command, steps.Write):
                actor = actor._replace(writing=2)
            elif isinstance(command, steps.Load) and actor.sealed:
                actor = actor._replace(left=True)
        elif self.processes[actor.process].cut:
            down = tuple(_DOWN for _ in command.keys) if isinstance(command, steps.LookUp) else _DOWN
            instant[handle] = models.reply(down)
            return actor, handle
        if isinstance(command, steps.Elect):
            command = Elected(str(actor.process))
        number = models.command(command)
        if isinstance(command, _SCOPED) and models.quiet(command.scope):
            instant[handle] = self.perform(number)
            return actor, handle
        return actor._replace(sent=(*actor.sent, (handle, number))), handle

    def _later(self, actor: Actor, command: Any) -> None:
        if self.processes[actor.process].cut:
            return
        number = self.models.command(command)
        if self.models.quiet(command.scope):
            self.perform(number)
        else:
            self.bag.append(number)

    def _local(self, actor: Actor, step: Any) -> tuple[Actor, int]:
        """Answers a question, or notes where a program's call begins and ends."""
        models = self.models
        process = self.processes[actor.process]
        judge = models.judge
        weak = models.scenario.promise is not Promise.NEVER
        if isinstance(step, Begins):
            self.shared |= models.scenario.promise is not Promise.TRANSIENT
            bound = judge.due(self.sql, self.now, process.seen)
            self._abandon(n for _, n in actor.sent)
            actor = Actor(actor.machine, actor.process, actor.name, bound=bound, tokens=actor.tokens)
            return actor, models.reply(None)
        if isinstance(step, Answered | Returned):
            if isinstance(step, Answered):
                seen = judge.answer(self.sql, step.answer, actor.bound, step.query)
            else:
                seen = judge.written(step.outcome, actor.own)
            if weak:
                seen = tuple(map(max, process.seen, seen))
                self.processes[actor.process] = process._replace(seen=seen)
            return actor._replace(bound=(), own=()), models.reply(None)
        match step:
            case steps.Token():
                token = f"{actor.name}.{actor.tokens}"
                return actor._replace(tokens=actor.tokens + 1), models.reply(token)
            case steps.Seal():
                return actor._replace(sealed=bool(actor.name)), models.reply(None)
            case steps.Young(handles):
                return actor, models.reply(all(handle > actor.aged for handle in handles))
            case steps.Known():
                return actor, models.reply(None) if process.known < 0 else process.known
            case steps.Keep(_, content):
                if process.known < 0 or not content.part_of(models.replies.values[process.known]):
                    self.processes[actor.process] = process._replace(known=models.reply(content))
                return actor, models.reply(None)
        floors, number = models.floors.ask(process.floors, self.now, step)
        if floors != process.floors:
            self.processes[actor.process] = process._replace(floors=floors)
        if isinstance(step, steps.Judge):
            number = models.reply((process.probed, models.replies.values[number]))
        return actor, number

    # --- flights ------------------------------------------------------------------------------

    def _board(self, kind: str, at: int, step: steps.Flight) -> None:
        """Joins the newest flight of the process if Flights lets it (`joined`), else starts one,
        which runs when those before it have ended."""
        actor = self.actor(kind, at)
        values = self.models.actors.values
        mine = [values[number] for number in self.flights if values[number].process == actor.process]
        shared = [flight for flight in mine if not flight.private and flight.query == step.query]
        if shared and self.models.joined[shared[-1].sealed]:
            self.put(kind, at, actor._replace(flight=shared[-1].name))
            return
        name = f"{actor.name}.f{actor.tokens}"
        self._start_flight(actor, step, name, private=False)
        self.put(kind, at, actor._replace(flight=name, tokens=actor.tokens + 1))

    def _start_flight(self, actor: Actor, step: steps.Flight, name: str, *, private: bool) -> None:
        machine = self.models.machines.new(("fetch", step), self.models.fetch(step))
        flight = Actor(machine, actor.process, name, private=private, sealed=private, query=step.query)
        self.flights.append(self.models.actors.add(flight))

    def _end(self, kind: str, at: int, actor: Actor, value: Any) -> None:
        self._abandon(number for _, number in actor.sent)
        if kind == "actors":
            self.actors[at] = self.models.over
            return
        del self.flights[at]
        answer = self.models.reply(value)
        for other in range(len(self.actors)):
            waiting = self.actor("actors", other)
            if waiting.flight == actor.name:
                self.put("actors", other, waiting._replace(replies=((0, answer),)))

    def run_alone(self, process: int, generator: Any) -> Any:
        """Runs a call to its end, with nobody else about."""
        models = self.models
        actor = Actor(ENDED, process, "alone", sealed=True)
        replies: dict[int, int] = {}
        reply: Any = None
        while True:
            try:
                step = generator.send(reply)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, steps.Send | steps.Ask):
                actor, reply = self._send(actor, step.command, replies)
                for handle, number in actor.sent:
                    replies[handle] = self._finish(number)
                actor = actor._replace(sent=())
                if isinstance(step, steps.Ask):
                    reply = models.replies.values[replies.pop(reply)]
            elif isinstance(step, steps.Wait):
                ready = next((h for h in step.handles if h in replies), None)
                reply = steps.Ended.SPENT
                if ready is not None:
                    reply = steps.Reply(ready, models.replies.values[replies.pop(ready)])
            elif isinstance(step, steps.Later):
                self.perform(models.command(step.command))
                reply = None
            elif isinstance(step, steps.Flight):
                reply = self.run_alone(process, models.fetch(step)())
            else:
                actor, number = self._local(actor, step)
                reply = models.replies.values[number]

    def _finish(self, number: int) -> int:
        reply = self.perform(number)
        while isinstance(rest := self.models.replies.values[reply], Rest):
            reply = self.perform(self.models.command(rest))
        return reply
