"""Performs what the protocol yields: the only place that awaits both tiers.

It decides nothing about consistency; it owns deadlines (I7), handles and cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..cache.base import Unavailable
from ..errors import StoreUnavailableError
from ..records import Query, SessionKey
from . import protocol, steps
from .breaker import Breaker
from .cache_calls import CacheCalls
from .call import Call
from .flights import Flight, Flights
from .knowledge import Knowledge
from .patience import HELD_UP, Patience
from .statements import Statements
from .steps import Answer, Ended, Reply, Rules, Steps, Timer, Wait

T = TypeVar("T")

CLOSED = "The service was closed while this call was under way, or before it"
_POLL = 0.005


class Performer:
    """Performs steps, for one tier.

    Args:
        statements: Where those of the store go.
        calls: Where those of the cache go.
        knowledge: What answers those that ask neither.
        rules: What a flight reads by.
        breaker: Is told of waits that were in vain.
        budget: How long one call may wait for the cache in all, in seconds.
        clock: Seconds, monotonic, the same as the event loop's.

    Attributes:
        flights: The loads under way that callers share.
        closed: Whether the tier has been closed: whoever waits for a flight then is told so.
    """

    def __init__(
        self,
        statements: Statements,
        calls: CacheCalls,
        knowledge: Knowledge,
        rules: Rules,
        breaker: Breaker,
        budget: float,
        clock: Callable[[], float],
    ) -> None:
        self.flights: Flights[tuple[SessionKey, Query], Answer] = Flights()
        self.closed = False
        self._statements = statements
        self._calls = calls
        self._answers = knowledge.answers
        self._rules = rules
        self._breaker = breaker
        self._budget = budget
        self._clock = clock
        self._patience = Patience()

    async def perform(self, generator: Steps[T], call: Call) -> T:
        """Performs the steps of a generator, or what is left of them after the wait in which it was cut."""
        cut, call.cut = call.cut, None
        answers = self._answers
        try:
            reply: Any = None
            if cut is not None:
                reply = await self._wait(cut, call)
                reply = steps.Ask.told(reply) if call.asking else reply
            while True:
                try:
                    step = generator.send(reply)
                except StopIteration as done:
                    return done.value  # type: ignore[no-any-return]
                if isinstance(step, steps.Ask):
                    of_store = type(step.command) in steps.STORE_COMMANDS
                    reply = await (self._ask_store(step.command, call) if of_store else self._ask(step, call))
                elif isinstance(step, Wait):
                    call.asking = False
                    reply = await self._wait(step, call)
                elif isinstance(step, steps.Send):
                    reply = self._send(step.command, call)
                elif isinstance(step, steps.Later):
                    self._calls.later(*step)
                    reply = None
                elif isinstance(step, steps.Flight):
                    reply = await self._board(step, call)
                else:
                    reply = answers[type(step)](step, call)
        finally:
            if call.cut is None:
                generator.close()
                if not call.idle:
                    await call.end()

    async def _ask_store(self, command: Any, call: Call) -> Any:
        """Performs one command of the store, unless the call was cut before it."""
        if call.stopped:
            return Unavailable(Ended.CANCELLED.value)
        work = self._begin(command, call)
        try:
            return await work
        except asyncio.CancelledError:
            call.interrupt(work)
            raise

    async def _ask(self, ask: steps.Ask, call: Call) -> Any:
        """Performs one command of the cache, within the call's budget."""
        command: Any = ask.command
        if call.stoppable or call.budget <= 0:
            # With a handle, as one that is cut is waited for again.
            call.asking = True
            wait = ask.wait(self._send(command, call))
            return steps.Ask.told(await self._wait(wait, call))
        reply = self._calls.refused(command)
        if reply is not None:
            return reply
        begun = self._calls.begin(command)
        self._calls.hurry()
        if call.meanwhile is not None:
            self._make_ahead(call)
        limit = self._breaker.timeout
        allowed = min(limit, call.budget)
        began = self._clock()
        try:
            return await self._patience.within(begun, allowed)
        except TimeoutError:
            self._timed_out(call, began, limit, allowed)
            return Unavailable(Ended.TIMER.value)
        finally:
            call.budget -= self._clock() - began

    def _send(self, command: Any, call: Call) -> int:
        # By its type a set finds it ten times as fast as `isinstance`.
        if type(command) in steps.STORE_COMMANDS:
            return call.start(self._begin(command, call))
        refused = self._calls.refused(command)
        if refused is not None:
            return call.reply(refused)
        return call.start(self._calls.begin(command), sent=self._clock())

    def _begin(self, command: Any, call: Call) -> Coroutine[Any, Any, Any] | asyncio.Future[Any]:
        """Begins a command of the store."""
        if isinstance(command, steps.Checkout):
            call.writing = False
            return self._statements.checkout(command, call)
        if isinstance(command, steps.Write):
            call.writing = True
            return self._statements.commit(command, call)
        if call.flight is not None and isinstance(command, steps.Load):
            call.flight.leave_cache()
        return self._statements.read(command)

    async def _wait(self, wait: Wait, call: Call) -> Reply | Ended:
        timer = wait.timer
        if timer is None:
            return await call.wait(wait, None, self._patience)
        self._calls.hurry()
        if call.meanwhile is not None:
            self._make_ahead(call)
        limit = _POLL if timer is Timer.POLL else self._breaker.timeout
        began = self._clock()
        allowed = min(limit, call.budget)
        ended = await call.wait(wait, allowed, self._patience)
        if ended is Ended.TIMER and timer is Timer.CACHE:
            self._timed_out(call, began, limit, allowed)
        call.budget -= self._clock() - began
        if ended is Ended.TIMER and timer is Timer.POLL:
            # Something is left over, so that whoever shares the flight still gets its load.
            return Ended.TIMER if call.budget >= 2 * _POLL else Ended.SPENT
        return ended

    def _make_ahead(self, call: Call) -> None:
        """Does, at the first wait for the cache, what the caller has to do meanwhile: never a second time.

        It would be done in any case, so it is not time that the cache took.
        """
        meanwhile, call.meanwhile = call.meanwhile, None
        if meanwhile is not None and self._patience.idle:
            began = self._clock()
            meanwhile()
            self._calls.elsewhere += self._clock() - began

    def _timed_out(self, call: Call, began: float, limit: float, allowed: float) -> None:
        """Tells the breaker of a wait that has ended without a reply.

        A wait cut short by the rest of the budget says nothing about the cache, nor does one that
        ended late: then this process was held up, and the reply may lie there unread.
        """
        took = self._clock() - began
        whole = took < call.budget or limit >= self._budget
        if whole and took <= allowed + HELD_UP:
            self._calls.failed(began)

    async def _board(self, step: steps.Flight, call: Call) -> Answer:
        key, query, leases = step

        async def fly(flight: Flight[Answer]) -> Answer:
            inner = Call(max(call.budget, 0.0), flight=flight)
            return await self.perform(protocol.fetch(key, query, leases, self._rules), inner)

        flight = self.flights.board((key, query), fly, cached=bool(leases))
        # Each caller has a budget of its own for the time a flight, or the one it starts after,
        # spends on the cache; whoever has spent it reads SQL by itself (I7).
        for stage in (flight.ahead, flight):
            if stage is None:
                continue
            began = self._clock()
            left = stage.left_cache.done() or await stage.wait_for_cache(call.budget)
            call.budget -= self._clock() - began
            if not left:
                alone = protocol.fetch(key, query, (), self._rules)
                return await self.perform(alone, Call(0.0))
            if stage is not flight:
                await asyncio.wait((stage.task,))
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if flight.task.cancelled() and self.closed:
                raise StoreUnavailableError(CLOSED) from None
            raise
