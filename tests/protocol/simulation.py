"""Interleaves the product's own protocol generators, step by step, over a toy SQL.

Every command is split into sent, executed and delivered; a scheduler seeded by one number picks
what happens next, so a failing seed is a trace. Cache: the product's MemoryCache, one server.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tiered_sessions.cache.base import CacheLimits, Unavailable
from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.records import (
    Already,
    Append,
    Committed,
    Conflict,
    Content,
    Create,
    EventRecord,
    Exists,
    Expired,
    Missing,
    NewEvent,
    Older,
    OutboxRow,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
    Tags,
)
from tiered_sessions.tier import protocol, steps
from tiered_sessions.tier.floors import Floors
from tiered_sessions.tier.steps import Answer, Ended, Reply, Rules

KEY = SessionKey("app", "user", "session")
RULES = Rules(
    max_staleness=30_000,
    cached=True,
    private=False,
    exclusive=False,
    window_events=200,
    event_bytes=1000,
    state_bytes=1000,
)


def done(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the memory cache must not wait")


@dataclass
class Sql:
    """A database of one session and its scopes."""

    rows: dict[ScopeKey, Content] = field(default_factory=dict)
    outbox: dict[ScopeKey, OutboxRow] = field(default_factory=dict)
    history: dict[Tag, Content] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 10**9)))
    commits: int = 0
    """Counts the commits that change the session."""
    born: dict[Tag, int] = field(default_factory=dict)
    clock: Callable[[], int] = lambda: 0
    ends: dict[int, int] = field(default_factory=dict)
    """When each incarnation of the session expires."""
    sliding: dict[int, int] = field(default_factory=dict)

    def live(self, key: SessionKey, ttl: int, *, sliding: bool) -> None:
        """Lets the session expire `ttl` from now."""
        incarnation = self.rows[key.session].tag.incarnation
        self.ends[incarnation] = self.clock() + ttl
        if sliding:
            self.sliding[incarnation] = ttl

    def left(self, key: SessionKey) -> int | None:
        row = self.rows.get(key.session)
        end = self.ends.get(row.tag.incarnation) if row else None
        return None if end is None else end - self.clock()

    def over(self, key: SessionKey) -> bool:
        left = self.left(key)
        return left is not None and left <= 0

    def expired(self) -> list[SessionKey]:
        return [KEY] if self.over(KEY) else []

    def put(self, scope: ScopeKey, content: Content) -> None:
        self.rows[scope] = content
        self.history[content.tag] = content
        if scope == KEY.session:
            self.commits += 1
            self.born[content.tag] = self.commits

    def tag(self, scope: ScopeKey) -> Tag | None:
        row = self.rows.get(scope)
        gone = scope == KEY.session and self.over(KEY)
        return row.tag if row and not gone else None

    def next_tag(self, old: Tag | None, ut: int) -> Tag:
        if old is None:
            return Tag(next(self.numbers), 1, next(self.numbers), ut)
        return Tag(old.incarnation, old.revision + 1, next(self.numbers), ut)

    def record(self, scopes: tuple[ScopeKey, ...]) -> None:
        for scope in scopes:
            self.outbox[scope] = OutboxRow(scope, self.tag(scope), next(self.numbers))

    def load(self, key: SessionKey) -> Snapshot | None:
        session = self.rows.get(key.session)
        if session is None or self.over(key):
            return None
        return Snapshot(
            key, session, self.rows.get(key.user), self.rows.get(key.app), self.left(key)
        )

    def write(self, operation: Any, outbox: tuple[ScopeKey, ...]) -> Any:
        if isinstance(operation, Append):
            outcome = self.append(operation)
            changed = isinstance(outcome, Committed)
        elif isinstance(operation, Create):
            taken = operation.key.session in self.rows
            over = self.over(operation.key)
            changed = not taken or (over and operation.replace_expired)
            if changed:
                for scope in (operation.key.user, operation.key.app):
                    if scope not in self.rows:
                        self.put(scope, Content(self.next_tag(None, 0), b"{}"))
                tag = self.next_tag(None, operation.update_time)
                self.put(operation.key.session, Content(tag, operation.state))
                if operation.ttl is not None:
                    self.live(operation.key, operation.ttl, sliding=operation.sliding)
            refused = Expired() if over else Exists()
            outcome = self.load(operation.key) if changed else refused
        elif operation.only_expired and not self.over(operation.key):
            changed = outcome = False
        else:
            changed = outcome = self.rows.pop(operation.key.session, None) is not None
            self.commits += changed
        if changed:
            self.record(outbox)
        return outcome

    def append(self, operation: Append) -> Any:
        row = self.rows.get(operation.key.session)
        if row is None or self.over(operation.key):
            return Missing()
        for event in operation.events:
            for old in row.events:
                if old.id == event.id:
                    if old.payload == event.payload:
                        return Already(row.tag, old.seq == row.tag.revision)
                    return Conflict(event.id)
        if operation.expected is not None and operation.expected != row.tag:
            return Stale(row.tag)
        tag = self.next_tag(row.tag, operation.update_time)
        events = tuple(EventRecord(tag.revision, e.id, e.timestamp, e.payload) for e in operation.events)
        self.put(operation.key.session, replace(row, tag=tag, events=row.events + events))
        user = None
        if operation.user_delta is not None:
            old_user = self.rows[operation.key.user]
            user = Content(self.next_tag(old_user.tag, operation.update_time), operation.user_delta)
            self.put(operation.key.user, user)
        ttl = self.sliding.get(tag.incarnation)
        if ttl is not None:
            self.live(operation.key, ttl, sliding=True)
        return Committed(tag, events, None, user, None, expires_in=ttl)

    def foreign_append(self, number: int) -> None:
        """What the trigger-less stock writer does, already numbered by a reader's eyes: other
        content, only `update_time` tells."""
        row = self.rows[KEY.session]
        events = (*row.events, EventRecord(row.tag.revision, f"f{number}", 1, b"{}"))
        self.put(KEY.session, replace(row, tag=row.tag._replace(update_time=-number), events=events))


@dataclass
class Process:
    """What survives between the calls of one process."""

    floors: Floors
    known: dict[SessionKey, Content] = field(default_factory=dict)


@dataclass
class Actor:
    """One call under way."""

    process: Process
    steps: Any
    began_commits: int
    finish: Callable[[Any], None]
    wait: steps.Wait | None = None
    sent: dict[int, Any] = field(default_factory=dict)
    replies: dict[int, Any] = field(default_factory=dict)
    handles: int = 0
    polls: int = 0
    stack: list[Any] = field(default_factory=list)
    writing: bool = False


class World:
    """One run. `lose` makes writers' waits for masks end without a reply sometimes."""

    def __init__(
        self,
        seed: int,
        *,
        crashes: bool = False,
        evictions: bool = False,
        lose: bool = False,
        rules: Rules = RULES,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 1_000_000
        self.cache = MemoryCache(
            CacheLimits(), clock=lambda: self.now, shared=True, namespace="n"
        )
        self.sql = Sql(clock=lambda: self.now + self.skew)
        self.skew = 0
        """How far SQL's clock is ahead of the cache's."""
        self.rules = rules
        self.crashes, self.evictions, self.lose = crashes, evictions, lose
        self.actors: list[Actor] = []
        self.planned: list[Callable[[], None]] = []
        self.later: list[Any] = []
        self.tokens = 0
        self.served: list[tuple[int, Answer]] = []
        self.outcomes: list[Any] = []
        self.processes = [
            Process(Floors(31.0, lambda: self.now / 1000)) for _ in range(2)
        ]
        self.sql.write(Create(KEY, 0, b"{}"), ())

    # --- calls --------------------------------------------------------------------------------

    def read(self, process: int, then: Callable[[Any], None] | None = None) -> None:
        """Plans a read, to begin whenever the scheduler says so."""
        self.planned.append(lambda: self._read(process, then))

    def _read(self, process: int, then: Callable[[Any], None] | None) -> None:
        began, now = self.sql.commits, self.now

        def finish(answer: Answer) -> None:
            self.check(now, answer)
            self.served.append((began, answer))
            if then is not None:
                then(answer)

        self._start(process, protocol.read(KEY, Query(), self.rules), finish)

    def turn(self, process: int, name: str, user: bool = False) -> None:
        """Reads, then appends to what was read."""

        def append(answer: Answer) -> None:
            if answer.snapshot is None:
                return
            expected = answer.snapshot.session.tag
            delta = b'{"by":"%s"}' % name.encode() if user else None
            event = NewEvent(name, "i", 1, b'{"n":"%s"}' % name.encode())
            operation = Append(KEY, expected, 1, (event,), user_delta=delta)
            self._start(process, protocol.append(operation, self.rules), self.outcomes.append)

        self.read(process, append)

    def sweep(self, process: int) -> None:
        """Plans a deletion of what has expired."""
        work = protocol.sweep(self.rules)
        self.planned.append(lambda: self._start(process, work, self.outcomes.append))

    def delete(self, process: int) -> None:
        """Plans a deletion."""
        work = protocol.delete(steps.Delete(KEY), self.rules)
        self.planned.append(lambda: self._start(process, work, self.outcomes.append))

    def create(self, process: int, ttl: int | None = None, *, sliding: bool = False) -> None:
        """Plans a creation."""
        work = protocol.create(Create(KEY, 0, b"{}", ttl=ttl, sliding=sliding), self.rules)
        self.planned.append(lambda: self._start(process, work, self.outcomes.append))

    def drain(self, process: int) -> None:
        """Plans one round of the drainer."""
        self.planned.append(lambda: self._start(process, protocol.drain(), lambda _: None))

    def _start(self, process: int, generator: Any, finish: Callable[[Any], None]) -> None:
        actor = Actor(self.processes[process], generator, self.sql.commits, finish)
        self.actors.append(actor)
        self._advance(actor, None)

    # --- the scheduler ------------------------------------------------------------------------

    def run(self, limit: int = 3000) -> None:
        """Runs until nothing is under way."""
        for _ in range(limit):
            choices = list(self._choices())
            if not choices:
                return
            self.random.choice(choices)()
        raise AssertionError("it does not end")

    def _begin(self, planned: Callable[[], None]) -> None:
        self.planned.remove(planned)
        planned()

    def _choices(self) -> Iterator[Callable[[], None]]:
        if self.planned:
            yield lambda: self._begin(self.random.choice(self.planned))
        for actor in list(self.actors):
            for handle in actor.sent:
                yield lambda a=actor, h=handle: self._execute(a, h)
            assert actor.wait is not None
            for handle in actor.wait.handles:
                if handle in actor.replies:
                    yield lambda a=actor, h=handle: self._deliver(a, h)
            if actor.wait.timer is steps.Timer.POLL:
                yield lambda a=actor: self._poll(a)
            elif actor.wait.timer is steps.Timer.CACHE and self.random.random() < 0.1:
                masks = any(isinstance(c, steps.Intent) for c in actor.sent.values())
                if actor.wait.handles and (self.lose or not masks):
                    yield lambda a=actor: self._advance(a, Ended.TIMER)
            if self.crashes and self.random.random() < 0.02:
                yield lambda a=actor: self._crash(a)
        for command in list(self.later):
            yield lambda c=command: self._execute_later(c)
        if self.evictions and self.actors and self.random.random() < 0.05:
            yield lambda: self.cache._slots.pop(("n", KEY.session), None)
        if self.actors and self.random.random() < 0.05 and not any(a.writing for a in self.actors):
            yield lambda: self._tick(5000)
        if self.actors:
            yield lambda: self._tick(1)

    def _tick(self, ms: int) -> None:
        self.now += ms

    def _crash(self, actor: Actor) -> None:
        """The process dies: what it sent to SQL has been executed or never will be."""
        self.actors.remove(actor)
        actor.steps.close()

    def _poll(self, actor: Actor) -> None:
        actor.polls += 1
        self._advance(actor, Ended.TIMER if actor.polls < 4 else Ended.SPENT)

    def _deliver(self, actor: Actor, handle: int) -> None:
        self._advance(actor, Reply(handle, actor.replies.pop(handle)))

    def _execute(self, actor: Actor, handle: int) -> None:
        command = actor.sent.pop(handle)
        actor.replies[handle] = self._perform(command)

    def _execute_later(self, command: Any) -> None:
        self.later.remove(command)
        self._perform(command)

    def _advance(self, actor: Actor, reply: Any) -> None:
        if reply is Ended.TIMER and actor.wait is not None:
            # The client gave up; the server may still get to it, or never.
            for handle in actor.wait.handles:
                command = actor.sent.pop(handle, None)
                if command is not None and self.random.random() < 0.5:
                    self.later.append(command)
        while True:
            try:
                step = actor.steps.send(reply)
            except StopIteration as stop:
                if actor.stack:
                    actor.steps, reply = actor.stack.pop(), stop.value
                    continue
                self.actors.remove(actor)
                # What nobody waits for any more may still reach the server.
                self.later += [c for c in actor.sent.values() if self.random.random() < 0.5]
                actor.finish(stop.value)
                return
            if isinstance(step, steps.Wait):
                actor.wait = step
                return
            reply = self._answer(actor, step)
            if isinstance(step, steps.Flight):
                actor.stack.append(actor.steps)
                actor.steps = protocol.fetch(step.key, step.query, step.leases, self.rules)
                reply = None

    def _answer(self, actor: Actor, step: Any) -> Any:
        if isinstance(step, steps.Send):
            actor.handles += 1
            actor.sent[actor.handles] = step.command
            actor.writing = actor.writing or isinstance(step.command, steps.Intent | steps.Write)
            return actor.handles
        if isinstance(step, steps.Later):
            self.later.append(step.command)
            return None
        if isinstance(step, steps.Flight):
            return None
        floors, known = actor.process.floors, actor.process.known
        match step.question:
            case steps.Token():
                self.tokens += 1
                return f"t{self.tokens}"
            case steps.Began():
                return floors.began()
            case steps.Judge(scope, tag):
                return floors.judge(scope, tag)
            case steps.Served(scope, tag):
                return floors.served(scope, tag)
            case steps.Observed(scope, tag, began):
                return floors.observed(scope, tag, began)
            case steps.Wrote(scope, tag):
                return floors.wrote(scope, tag)
            case steps.Known(key):
                return known.get(key)
            case steps.Keep(key, content):
                known[key] = content
                return None
            case steps.Probed():
                return 0
            case steps.Young():
                return True
            case steps.Seal():
                return None
        raise AssertionError(step)

    def _perform(self, command: Any) -> Any:
        cache, sql = self.cache, self.sql
        match command:
            case steps.LookUp(keys, header_only):
                return done(cache.lookup(keys, header_only))
            case steps.Intent(scope, token):
                return done(cache.intent(scope, token))
            case steps.Release(scope, token):
                return done(cache.release(scope, token))
            case steps.Lease(scope, token):
                return done(cache.lease(scope, token))
            case steps.Fill(scope, token, granted, content, expires):
                at, stamp = granted.granted_at, granted.stamp
                return done(cache.fill(scope, token, at, stamp, content, expires))
            case steps.Apply():
                return done(cache.apply(*command))
            case steps.Drop(scope, token, keep):
                return done(cache.drop(scope, token, keep))
            case steps.Touch(scope, tag, at, stamp):
                return done(cache.touch(scope, tag, at, stamp))
            case steps.Elect():
                return done(cache.elect("me", 1000))
            case steps.Load(key, _):
                return sql.load(key)
            case steps.LoadOlder(key, before, _):
                row = sql.rows.get(key.session)
                return row and Older(row.tag, tuple(e for e in row.events if e.seq < before), True)
            case steps.ReadTags(key):
                return Tags(*(sql.tag(scope) for scope in key.scopes))
            case steps.Checkout():
                return None
            case steps.Write(operation, outbox):
                return sql.write(operation, outbox)
            case steps.ReadExpired():
                return sql.expired()
            case steps.ReadOutbox():
                return list(sql.outbox.values())
            case steps.ForgetOutbox(rows):
                for row in rows:
                    if sql.outbox.get(row.scope) == row:
                        del sql.outbox[row.scope]
                return None
        raise AssertionError(command)

    # --- what must hold -----------------------------------------------------------------------

    def check(self, began: int, answer: Answer) -> None:
        """I1: what was served was committed with that tag, events and all, and had not expired
        when the read began."""
        if answer.snapshot is None:
            return
        session = answer.snapshot.session
        assert session == self.sql.history[session.tag], "content and tag do not belong together"
        end = self.sql.ends.get(session.tag.incarnation)
        assert end is None or self.skew or began < end, "it had expired"

    def stale(self, began: int, answer: Answer) -> bool:
        """Says whether the answer misses a commit that was done before the read began."""
        if answer.snapshot is None:
            return False
        born = self.sql.born[answer.snapshot.session.tag]
        newer = [n for n in self.sql.born.values() if born < n <= began]
        return bool(newer)


__all__ = ["KEY", "RULES", "Unavailable", "World"]
