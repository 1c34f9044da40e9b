"""Picks what happens next among calls, commands, replies and faults, seeded by one number.

Every command is split into sent, executed and delivered. Floors and flights are the product's; of
performer.py there is only what `_answer`, `_board` and commands.py show. A commit takes a millisecond of
the cache's clock, at least.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.protocol.actors import RULES, Actor, Faults, Left, Planned, Process
from tests.protocol.commands import answer, perform
from tests.protocol.still_loop import StillLoop
from tests.protocol.toy_sql import KEY, Backup, Sql
from tiered_sessions.cache.base import CacheLimits
from tiered_sessions.cache.memory import MemoryCache, State
from tiered_sessions.errors import CommitOutcomeUnknownError
from tiered_sessions.records import Unknown
from tiered_sessions.tier import protocol, steps
from tiered_sessions.tier.flights import Flight
from tiered_sessions.tier.steps import Answer, Ended, Reply, Rules

PROCESSES = 3
NONE = Faults()
Choice = tuple[float, Callable[[], Any]]


class Scheduler:
    """The calls under way in a few processes, and what is left of those that have ended.

    Every choice has a pace, drawn anew now and then: who stalls at the wrong place stalls for long.
    """

    def __init__(self, seed: int, faults: Faults = NONE, rules: Rules = RULES, window: int = 200) -> None:
        self.random = random.Random(seed)
        self.faults, self.rules = faults, rules
        self.now = 1_000_000
        self.skew = 0
        """How far SQL's clock is ahead of the cache's."""
        self.sql = Sql(clock=lambda: self.now + self.skew)
        self.loop = StillLoop()
        limits = CacheLimits(window_events=window)
        caches = [
            MemoryCache(limits, clock=lambda: self.now, shared=not rules.private, namespace="n")
            for _ in range(PROCESSES)
        ]
        self.caches = caches if rules.private else [caches[0]] * PROCESSES
        self.processes = [Process(cache, rules, lambda: self.now) for cache in self.caches]
        self.actors: list[Actor] = []
        self.planned: list[Planned] = []
        self.later: list[Left] = []
        self.saved: State | None = None
        self.standby: Backup | None = None
        self.failed_over = False
        self.tokens = 0

    @property
    def cache(self) -> MemoryCache:
        """The cache all share."""
        return self.caches[0]

    def _plan(self, begin: Callable[[], Any]) -> None:
        self.planned.append(Planned(self._pace(), begin))

    def _start(
        self,
        process: int,
        generator: Any,
        finish: Callable[[Actor, Any], None],
        flight: Flight[Answer] | None = None,
    ) -> None:
        actor = Actor(self.processes[process], process, self._pace(), generator, finish, flight)
        self.actors.append(actor)
        self._advance(actor, None)

    def run(self, limit: int = 3000) -> None:
        """Runs until nothing is under way."""
        for _ in range(limit):
            choices = list(self._choices())
            if not choices:
                return
            total = sum(weight for weight, _ in choices)
            choices += [(share * total, action) for share, action in self._strokes()]
            (_, action), *_ = self.random.choices(choices, [weight for weight, _ in choices])
            action()
        raise AssertionError("it does not end")

    def _pace(self, command: Any = None) -> float:
        """Draws how fast somebody is: the slowest sees all others come and go."""
        if self._slow(command) and self._chance(0.7):
            return 0.001
        return float(10 ** -self.random.uniform(0, 2))

    def _slow(self, command: Any) -> bool:
        return isinstance(command, self.faults.slow)

    def _begin(self, planned: Planned) -> None:
        self.planned.remove(planned)
        planned.begin()

    def _choices(self) -> Iterator[Choice]:
        for planned in self.planned:
            yield planned.pace, partial(self._begin, planned)
        for actor in self.actors:
            for action in self._of(actor):
                yield actor.pace, action
        for left in self.later:
            yield left.pace, partial(self._execute_later, left)

    def _of(self, actor: Actor) -> Iterator[Callable[[], None]]:
        """What may happen to one call."""
        if actor.boarded is not None:
            if actor.boarded.task.done():
                yield partial(self._land, actor)
            elif not actor.boarded.left_cache.done() and self._chance(0.05):
                yield partial(self._alone, actor)
            return
        for handle in actor.sent:
            yield partial(self._execute, actor, handle)
        assert actor.wait is not None
        for handle in actor.wait.handles:
            if handle in actor.replies:
                yield partial(self._deliver, actor, handle)
        if actor.wait.timer is steps.Timer.POLL:
            yield partial(self._poll, actor)
        elif actor.wait.timer is steps.Timer.CACHE and actor.wait.handles:
            masks = any(isinstance(c, steps.Intent) for c in actor.sent.values())
            if self.faults.cut_off if masks else self._chance(self.faults.impatience):
                yield partial(self._advance, actor, Ended.TIMER)

    def _strokes(self) -> Iterator[Choice]:
        """What may happen to servers and processes, and which share of all that happens it is."""
        faults = self.faults
        yield 0.1, partial(self._tick, 1)
        # A mask outlives its statement (R7), so no such pause comes between the two.
        left = [each.command for each in self.later]
        writes = any(a.writing for a in self.actors) or any(isinstance(c, steps.Write) for c in left)
        if faults.pauses and not writes:
            yield faults.pauses, partial(self._tick, 5000)
        if faults.crashes and self.actors:
            yield 0.05, partial(self._crash, self.random.choice(self.actors).number)
        if faults.evictions:
            yield 0.03, partial(self.cache._slots.pop, ("n", KEY.session), None)
        if (faults.failover or faults.unstamped) and self.saved and not writes and not self.failed_over:
            yield 0.5, self._fail_over
        if faults.lost_commits:
            if self.standby is None:
                yield 0.05, self._fall_behind
            elif not self.failed_over:
                yield 0.05, self._fail_over_sql

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _tick(self, ms: int) -> None:
        self.now += ms

    def save(self) -> None:
        """Makes the copy of the cache that may take over."""
        self.saved = self.cache.snapshot()

    def _fail_over(self) -> None:
        """An older copy of the cache takes over. Without a write under way no mask is lost."""
        assert self.saved is not None
        self.cache.restore(self.saved)
        self.cache.stamp = "" if self.faults.unstamped else "next"
        self.failed_over = True

    def _fall_behind(self) -> None:
        self.standby = self.sql.backup()

    def _fail_over_sql(self) -> None:
        assert self.standby is not None
        self.sql.fail_over(self.standby)
        self.failed_over = True

    def _crash(self, number: int) -> None:
        """A process dies: what it sent is executed some time or never, and nobody remembers."""
        for actor in [a for a in self.actors if a.number == number]:
            self.actors.remove(actor)
            actor.steps.close()
            self._leave(actor, actor.sent.values())
            for flight in (actor.flight, actor.boarded):
                if flight is not None:
                    flight.task.cancel()
        self.loop.turn()
        self.processes[number] = Process(self.caches[number], self.rules, lambda: self.now)

    def close(self) -> None:
        """Ends what a violation has left under way."""
        for number in range(PROCESSES):
            self._crash(number)

    def _leave(self, actor: Actor, commands: Any) -> None:
        """Nobody waits for these any more; they may still reach their servers."""
        for command in commands:
            if self._chance(0.2 if self.faults.cut_off else 0.5):
                self._later(actor, command)

    def _later(self, actor: Actor, command: Any) -> None:
        self.later.append(Left(self._pace(command), actor, command))

    def _poll(self, actor: Actor) -> None:
        actor.polls += 1
        self._advance(actor, Ended.TIMER if actor.polls < 4 else Ended.SPENT)

    def _deliver(self, actor: Actor, handle: int) -> None:
        self._advance(actor, Reply(handle, actor.replies.pop(handle)))

    def _execute(self, actor: Actor, handle: int) -> None:
        command = actor.sent.pop(handle)
        if isinstance(command, steps.Write) and self.faults.unknown and self._chance(0.3):
            self._leave(actor, [command])
            actor.replies[handle] = Unknown(CommitOutcomeUnknownError())
            return
        if isinstance(command, steps.Intent) and not self.failed_over and self._chance(0.5):
            self.save()
        if self.faults.duplicates and isinstance(command, steps.ScopedCommand) and self._chance(0.3):
            self._later(actor, command)
        actor.replies[handle] = self._perform(actor, command)
        if self._slow(command) and not isinstance(command, steps.ScopedCommand):
            actor.pace = self._pace(command)

    def _execute_later(self, left: Left) -> None:
        self.later.remove(left)
        self._perform(left.actor, left.command)

    def _perform(self, actor: Actor, command: Any) -> Any:
        before = len(self.sql.log)
        reply = perform(command, actor.process.cache, self.sql)
        if isinstance(command, steps.Write):
            self._tick(1)
            for position in range(before, len(self.sql.log)):
                actor.written[self.sql.log[position][0]] = position + 1
        return reply

    def _advance(self, actor: Actor, reply: Any) -> None:
        if self._chance(0.15):
            actor.pace = self._pace()
        if reply is Ended.TIMER and actor.wait is not None:
            # The client gave up; the server may still get to it, or never.
            self._leave(actor, [actor.sent.pop(h) for h in actor.wait.handles if h in actor.sent])
        if actor.asking:
            reply = steps.Ask.told(reply)
        while True:
            try:
                step = actor.steps.send(reply)
            except StopIteration as stop:
                if actor.outer is not None:
                    actor.steps, actor.outer, reply = actor.outer, None, stop.value
                    continue
                self.actors.remove(actor)
                self._leave(actor, actor.sent.values())
                actor.finish(actor, stop.value)
                return
            actor.asking = isinstance(step, steps.Ask)
            if isinstance(step, steps.Wait):
                actor.wait = step
                return
            if isinstance(step, steps.Ask):
                actor.wait = step.wait(self._answer(actor, step))
                return
            if isinstance(step, steps.Flight):
                self._board(actor, step)
                return
            reply = self._answer(actor, step)

    def _answer(self, actor: Actor, step: Any) -> Any:
        if isinstance(step, steps.Later):
            if not (actor.writing and self.faults.cut_off and self._chance(0.8)):
                self._later(actor, step.command)
            return None
        if not isinstance(step, steps.Send | steps.Ask):
            if isinstance(step, steps.Token):
                self.tokens += 1
                return f"t{self.tokens}"
            return answer(step, actor)
        actor.handles += 1
        actor.sent[actor.handles] = step.command
        actor.writing = actor.writing or isinstance(step.command, steps.Intent | steps.Write)
        if actor.flight is not None and isinstance(step.command, steps.Load):
            actor.flight.leave_cache()
        return actor.handles

    # --- flights ------------------------------------------------------------------------------

    def _board(self, actor: Actor, step: steps.Flight) -> None:
        async def fly(flight: Flight[Answer]) -> Answer:
            landed = self.loop.create_future()
            work = protocol.fetch(step.key, step.query, step.leases, self.rules)

            def land(_: Actor, answer: Answer) -> None:
                landed.set_result(answer)
                self.loop.turn()

            self._start(actor.number, work, land, flight)
            found: Answer = await landed
            return found

        actor.asked = step
        actor.boarded = self.loop.here(lambda: actor.process.flights.board((step.key, step.query), fly))
        self.loop.turn()

    def _land(self, actor: Actor) -> None:
        assert actor.boarded is not None
        flight, actor.boarded = actor.boarded, None
        self._advance(actor, flight.task.result())

    def _alone(self, actor: Actor) -> None:
        """Its budget is spent on somebody else's flight: it reads SQL by itself."""
        assert actor.asked is not None
        actor.boarded, actor.outer = None, actor.steps
        actor.steps = protocol.fetch(actor.asked.key, actor.asked.query, (), self.rules)
        self._advance(actor, None)
