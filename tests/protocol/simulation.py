"""Interleaves the product's own protocol generators, step by step, over a toy SQL.

The scheduler picks what happens next; here is what the processes call, and what must hold of the
answers. Cache: the product's MemoryCache, one server, or one a process. A failing seed is a trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.protocol.actors import RULES, Actor, Faults, Served, Violation
from tests.protocol.scheduler import NONE, Scheduler
from tests.protocol.toy_sql import KEY, Sql
from tiered_sessions.records import Append, Create, NewEvent, Query, Tag, Unknown
from tiered_sessions.tier import chores, protocol, steps
from tiered_sessions.tier.steps import Answer, Rules

Then = Callable[[], Any]

__all__ = ["KEY", "NONE", "RULES", "Sql", "World"]


def nothing() -> None: ...


class World(Scheduler):
    """One run over a session that exists."""

    def __init__(self, seed: int, faults: Faults = NONE, rules: Rules = RULES, window: int = 200) -> None:
        super().__init__(seed, faults, rules, window)
        self.served: list[Served] = []
        self.outcomes: list[Any] = []
        self.sql.write(Create(KEY, 0, b"{}"), ())

    # --- calls --------------------------------------------------------------------------------

    def read(self, process: int, then: Callable[[Any], None] | None = None) -> None:
        """Plans a read, to begin whenever the scheduler says so."""
        self._plan(lambda: self._read(process, then))

    def _read(self, process: int, then: Callable[[Any], None] | None) -> None:
        began, now = len(self.sql.log), self.now
        floors = dict(self.processes[process].seen)

        def finish(actor: Actor, answer: Answer) -> None:
            self.check(now, answer)
            self.served.append(Served(began, floors, answer))
            if answer.snapshot is not None:
                for scope in KEY.scopes:
                    content = answer.snapshot.content(scope)
                    if content is not None:
                        actor.process.saw(scope, self.sql.born[scope, tuple(content.tag)])
            if then is not None:
                then(answer)

        self._start(process, protocol.read(KEY, Query(), self.rules), finish)

    def reads(self, process: int, times: int) -> None:
        """Plans reads, one after the other."""
        self.read(process, lambda _: self.reads(process, times - 1) if times > 1 else None)

    def turn(self, process: int, name: str, user: bool = False) -> None:
        """Reads, then appends to what was read."""

        def append(answer: Answer) -> None:
            if answer.snapshot is not None:
                self.append(process, self._event(name, answer.snapshot.session.tag, user), nothing)

        self.read(process, append)

    def write(self, process: int, name: str, *, user: bool = False, then: Then = nothing) -> None:
        """Plans an append to what the session is by then."""

        def append() -> None:
            tag = self.sql.tag(KEY.session)
            if tag is not None:
                self.append(process, self._event(name, tag, user), then)

        self._plan(append)

    def _event(self, name: str, expected: Tag, user: bool) -> Append:
        payload = b'{"n":"%s"}' % name.encode()
        event = NewEvent(name, "i", 1, payload)
        return Append(KEY, expected, 1, (event,), user_delta=payload if user else None)

    def append(self, process: int, operation: Append, then: Then = nothing, again: int = 1) -> None:
        """Begins an append; once more if nobody knows what became of it."""

        def finish(actor: Actor, outcome: Any) -> None:
            self._wrote(actor, outcome)
            if isinstance(outcome, Unknown) and again:
                self._plan(lambda: self.append(process, operation, then, again - 1))
            else:
                then()

        self._start(process, protocol.append(operation, self.rules), finish)

    def sweep(self, process: int) -> None:
        """Plans a deletion of what has expired."""
        self._change(process, chores.sweep(self.rules), nothing)

    def delete(self, process: int, then: Then = nothing) -> None:
        """Plans a deletion."""
        self._change(process, protocol.delete(steps.Delete(KEY), self.rules), then)

    def create(
        self, process: int, ttl: int | None = None, *, sliding: bool = False, then: Then = nothing
    ) -> None:
        """Plans a creation."""
        operation = Create(KEY, 0, b"{}", ttl=ttl, sliding=sliding)
        self._change(process, protocol.create(operation, self.rules), then)

    def drain(self, process: int, then: Then = nothing) -> None:
        """Plans one round of the drainer."""
        self._plan(lambda: self._start(process, chores.drain(), lambda *_: then()))

    def foreign(self, change: Callable[[], Any]) -> None:
        """Plans what another program does to the database, at once."""
        self._plan(change)

    def _change(self, process: int, work: Any, then: Then) -> None:
        def finish(actor: Actor, outcome: Any) -> None:
            self._wrote(actor, outcome)
            then()

        self._plan(lambda: self._start(process, work, finish))

    def _wrote(self, actor: Actor, outcome: Any) -> None:
        self.outcomes.append(outcome)
        for scope, position in actor.written.items():
            if not isinstance(outcome, Unknown):
                actor.process.saw(scope, position)

    # --- what must hold -----------------------------------------------------------------------

    def check(self, began: int, answer: Answer) -> None:
        """I1: what was served was committed with its tags, and had not expired when the read began."""
        if answer.snapshot is None:
            return
        for scope in KEY.scopes:
            content = answer.snapshot.content(scope)
            if content is not None and not self.sql.authentic(content):
                raise Violation(f"content and tag of {scope.kind} do not belong together")
        end = self.sql.ends.get(answer.snapshot.session.tag.incarnation)
        if end is not None and not self.skew and began >= end:
            raise Violation("it had expired")

    def stale(self, served: Served) -> bool:
        """I4, I5: says whether the answer misses a commit that was done before the read began."""
        snapshot = served.answer.snapshot
        if snapshot is None:
            return self.sql.missed(served.began)
        contents = [(scope, snapshot.content(scope)) for scope in KEY.scopes]
        return any(c is not None and self.sql.superseded(s, c, served.began) for s, c in contents)

    def backwards(self, served: Served) -> bool:
        """I6: says whether the answer is older than what its process had written or served by then."""
        snapshot = served.answer.snapshot
        if snapshot is None:
            return False
        for scope in KEY.scopes:
            content = snapshot.content(scope)
            if content and self.sql.born[scope, tuple(content.tag)] < served.floors.get(scope, 0):
                return True
        return False
