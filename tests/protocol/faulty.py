"""A cache and a store each of whose commands may meet a fault.

Between a server and both of them lies a wire of the test's (fleet.py): a command is sent, performed
a little later, and its reply arrives a little after that, whatever became of who sent it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tests.protocol.inline import InlineEngine, store_over
from tiered_sessions.cache.base import Unavailable
from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.errors import CommitOutcomeUnknownError, StoreUnavailableError
from tiered_sessions.records import (
    Append,
    Create,
    Failed,
    Kind,
    Older,
    OutboxRow,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Tags,
    Unknown,
)
from tiered_sessions.store.base import StoreWriter
from tiered_sessions.store.groups import Grouped, Groups, GroupWriter
from tiered_sessions.testing.faulty import STEPS

if TYPE_CHECKING:
    from tests.protocol.fleet_server import Errand, Server

_KINDS: tuple[Kind, ...] = ("append", "create", "delete")

DISTANCE = 0.0005
"""How long a command travels, and its reply, in seconds."""


class Fault(NamedTuple):
    """What becomes of one command. `amount`: seconds, or how many steps back a failover goes.

    Of the cache: refused (not performed), lost (performed, then an error), silent (performed, no reply),
    never (neither), slow (performed late), twice (again later), evict (its keys go first), flush, failover.
    Of the database: down, cut (performed, then the connection breaks), vanish (it breaks before), later (it
    breaks, and the statement is performed all the same, later), slow, after (the reply is slow), locked (a
    statement of several appends passes over the first of them).
    """

    kind: str
    amount: float = 0

    def __repr__(self) -> str:
        return f"<{self.kind} {self.amount}>" if self.amount else f"<{self.kind}>"


FINE = Fault("fine")


@dataclass
class Plan:
    """The faults of the commands to come, by name and by how many of that name come before.

    `lags` slow whatever travels, in turn.
    """

    faults: dict[tuple[str, int], Fault] = field(default_factory=dict)
    lags: tuple[float, ...] = (0.0,)
    _sent: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    def next(self, name: str) -> Fault:
        """Returns what becomes of a command that is sent now."""
        number = self._sent[name]
        self._sent[name] += 1
        return self.faults.get((name, number), FINE)

    def lag(self) -> float:
        """Returns how much longer than usual something is on its way."""
        self._sent["lag"] += 1
        return self.lags[self._sent["lag"] % len(self.lags)]


class FaultyCache:
    """One server's way to the cache that all share, or to its own (`shared` False)."""

    def __init__(self, server: Server, inner: MemoryCache) -> None:
        self._server = server
        self._inner = inner
        self._namespace = ""
        self.shared = inner.shared
        self.renamed_at = float("inf")
        """Since when this server uses another namespace than the one it began with."""

    @property
    def namespace(self) -> str:
        return self._namespace

    @namespace.setter
    def namespace(self, name: str) -> None:
        if self._namespace:
            self.renamed_at = self._server.world.loop.time()
        self._namespace = name

    async def perform(self, name: str, arguments: tuple[Any, ...]) -> Any:
        server, world = self._server, self._server.world
        await server.alive()
        fault = world.plan.next(name)
        scopes: tuple[ScopeKey, ...] = ()
        if name == "lookup":
            scopes = tuple(arguments[0])
        elif isinstance(arguments[0] if arguments else None, ScopeKey):
            scopes = (arguments[0],)
        if name == "intent":
            server.errand().tokens[scopes[0]] = arguments[1]
        down: Any = Unavailable(fault.kind)
        if name == "lookup":
            down = tuple(down for _ in scopes)
        if fault.kind == "refused":
            return down
        if fault.kind == "never":
            await asyncio.Event().wait()
        namespace = self._namespace

        async def execute() -> Any:
            if fault.kind == "evict":
                for scope in scopes:
                    world.evict((namespace, scope))
            elif fault.kind == "flush":
                world.flush()
            elif fault.kind == "failover":
                world.fail_over(int(fault.amount))
            return await world.execute(self._inner, namespace, name, scopes, arguments)

        out = DISTANCE + (fault.amount if fault.kind == "slow" else 0)
        reply = world.carry(server, execute, out, DISTANCE)
        if fault.kind == "twice":
            world.carry(server, execute, out + fault.amount, DISTANCE)
        if fault.kind == "silent":
            await asyncio.Event().wait()
        answer = await asyncio.shield(reply)
        return down if fault.kind == "lost" else answer

    async def close(self) -> None: ...


def _command(name: str) -> Any:
    async def command(self: FaultyCache, *arguments: Any) -> Any:
        return await self.perform(name, arguments)

    return command


for _name in STEPS:
    setattr(FaultyCache, _name, _command(_name))


class FaultyStore:
    """One server's way to the database. Notes when it keeps a call waiting, and when it fails one."""

    exclusive = False

    def __init__(self, server: Server) -> None:
        self._server = server
        self.engine = InlineEngine(server.world.raw)
        self._inner = store_over(self.engine, server.world.config)
        # The product's queues, with one connection each: whoever comes while it is in use shares it.
        self.groups: dict[Kind, Groups] = {kind: self._queue(kind) for kind in _KINDS}
        self.busy: list[tuple[float, float]] = []
        self.failed_at: list[float] = []
        self.errands: dict[int, Errand] = {}
        """Whose the writes are that wait in a batch, by their identity."""

    def _queue(self, kind: Kind) -> Groups:
        age = self._server.world.config.mask_age
        return Groups(self._checkout_noted, kind, lambda _: True, 1, age)

    async def prepare(self) -> None: ...

    async def namespace(self) -> str:
        return await self._read("namespace", self._inner.namespace)  # type: ignore[no-any-return]

    async def load(self, key: SessionKey, query: Query) -> Snapshot | None:
        return await self._read("load", lambda: self._inner.load(key, query))  # type: ignore[no-any-return]

    async def older(self, key: SessionKey, before_seq: int, query: Query) -> Older | None:
        return await self._read("older", lambda: self._inner.older(key, before_seq, query))  # type: ignore[no-any-return]

    async def tags(self, key: SessionKey) -> Tags:
        return await self._read("tags", lambda: self._inner.tags(key))  # type: ignore[no-any-return]

    async def expired(self, limit: int) -> Sequence[SessionKey]:
        return await self._read("expired", lambda: self._inner.expired(limit))  # type: ignore[no-any-return]

    async def outbox(self, limit: int) -> Sequence[OutboxRow]:
        return await self._read("outbox", lambda: self._inner.outbox(limit))  # type: ignore[no-any-return]

    async def outbox_done(self, rows: Sequence[OutboxRow]) -> None:
        await self._read("outbox done", lambda: self._inner.outbox_done(rows))

    async def writer(self, *, grouped: Kind | None = None) -> StoreWriter:
        if not grouped:
            return await self._checkout()
        # Whoever waits for a connection waits for the database.
        async with self.waiting():
            return cast("StoreWriter", _Seated(self._server, await self.groups[grouped].writer()))

    async def _checkout_noted(self) -> _Writer:
        try:
            return await self._checkout()
        except asyncio.CancelledError:
            # Whoever masked too long ago gives up.
            self.failure(StoreUnavailableError())
            raise

    async def _checkout(self) -> _Writer:
        fault = self._server.world.plan.next("writer")
        async with self.waiting():
            if fault.kind in ("down", "vanish", "cut"):
                raise self.failure(StoreUnavailableError())
            # Not on a wire: nobody would give back what arrives there for a caller that is gone.
            await asyncio.sleep(DISTANCE + fault.amount)
            return _Writer(self, await self._inner.writer())

    async def close(self) -> None:
        tasks = set().union(*(groups.tasks for groups in self.groups.values()))
        if tasks:
            await asyncio.wait(tasks)
        await self._inner.close()

    async def _read(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        fault = self._server.world.plan.next(name)
        async with self.waiting():
            if fault.kind in ("down", "vanish"):
                raise self.failure(StoreUnavailableError())
            answer = await self.carry(fault, work)
            if fault.kind == "cut":
                raise self.failure(StoreUnavailableError())
            return answer

    def failure(self, error: Exception) -> Exception:
        """Notes that a call fails now for the database's sake."""
        self.failed_at.append(self._server.world.loop.time())
        return error

    async def carry(self, fault: Fault, work: Callable[[], Awaitable[Any]]) -> Any:
        """Performs `work` on the wire and waits for its reply."""
        out = DISTANCE + (fault.amount if fault.kind == "slow" else 0)
        back = DISTANCE + (fault.amount if fault.kind == "after" else 0)
        return await asyncio.shield(self._server.world.carry(self._server, work, out, back))

    def waiting(self) -> _Waiting:
        """Notes how long the database keeps a call waiting."""
        return _Waiting(self._server, self.busy)

    async def write(
        self,
        operation: Append | Create | SessionKey,
        outbox: Sequence[ScopeKey],
        work: Callable[[], Awaitable[Any]],
        *,
        only_expired: bool = False,
    ) -> Any:
        """Performs a write, tells the model of it as soon as it is done, and answers."""
        # A batch of one is sent by the queue, too, not by whose it is.
        errand = self.errands.get(id(operation)) or self._server.errand()

        async def execute() -> Any:
            outcome = await work()
            self._done(operation, outcome, outbox, errand, only_expired=only_expired)
            return outcome

        return await self._perform(self._server.world.plan.next("write"), execute)

    async def write_together(self, kind: Kind, writes: Sequence[Grouped[Any]], inner: GroupWriter) -> Any:
        """Performs writes by one statement."""
        fault = self._server.world.plan.next("write")
        passed = 1 if fault.kind == "locked" else 0
        errands = [self.errands[id(operation)] for operation, _ in writes]

        async def execute() -> Any:
            outcomes = [None] * passed
            outcomes += await inner.group(kind, writes[passed:]) if writes[passed:] else []
            for (operation, outbox), outcome, errand in zip(writes, outcomes, errands, strict=True):
                if outcome is not None:
                    self._done(operation, outcome, outbox, errand)
            return outcomes

        outcome = await self._perform(fault, execute)
        if isinstance(outcome, Failed):
            # As the product's own: nothing was written, each tries it alone.
            return [None] * len(writes)
        return [outcome] * len(writes) if isinstance(outcome, Unknown) else outcome

    def _done(
        self,
        operation: Append | Create | SessionKey,
        outcome: Any,
        outbox: Sequence[ScopeKey],
        errand: Errand,
        *,
        only_expired: bool = False,
    ) -> None:
        truth = self._server.world.truth
        assert not isinstance(outcome, Failed | Unknown), outcome
        if isinstance(operation, Append):
            made = truth.appended(operation, outcome)
        elif isinstance(operation, Create):
            made = truth.created(operation, outcome)
        else:
            made = truth.deleted(operation, only_expired, outcome)
        self._server.world.committed(made, errand, outbox)

    async def _perform(self, fault: Fault, execute: Callable[[], Awaitable[Any]]) -> Any:
        async with self.waiting():
            if fault.kind == "down":
                return Failed(self.failure(StoreUnavailableError()))
            if fault.kind == "later":
                self._server.world.carry(self._server, execute, fault.amount, DISTANCE)
            if fault.kind in ("vanish", "later"):
                return Unknown(self.failure(CommitOutcomeUnknownError()))
            outcome = await self.carry(fault, execute)
            if fault.kind == "cut":
                return Unknown(self.failure(CommitOutcomeUnknownError()))
            return outcome


class _Waiting:
    def __init__(self, server: Server, busy: list[tuple[float, float]]) -> None:
        self._server = server
        self._busy = busy
        self._since = 0.0

    async def __aenter__(self) -> None:
        self._since = self._server.world.loop.time()
        await self._server.alive()

    async def __aexit__(self, *_: object) -> None:
        self._busy.append((self._since, self._server.world.loop.time()))


class _Seated:
    """What the queue gave to one caller, who is remembered: others send for all."""

    def __init__(self, server: Server, inner: StoreWriter) -> None:
        self._server = server
        self._inner = inner

    async def append(self, append: Append, outbox: Sequence[ScopeKey] = ()) -> Any:
        # One object for each call, though two may repeat one append.
        own = replace(append)
        return await self._remembered(own, lambda: self._inner.append(own, outbox))

    async def create(self, create: Create, outbox: Sequence[ScopeKey] = ()) -> Any:
        own = replace(create)
        return await self._remembered(own, lambda: self._inner.create(own, outbox))

    async def delete(
        self, key: SessionKey, outbox: Sequence[ScopeKey] = (), *, only_expired: bool = False
    ) -> Any:
        own = SessionKey(*key)
        return await self._remembered(
            own, lambda: self._inner.delete(own, outbox, only_expired=only_expired)
        )

    async def _remembered(self, own: Any, perform: Callable[[], Awaitable[Any]]) -> Any:
        errands = self._server.store.errands
        errands[id(own)] = self._server.errand()
        try:
            return await perform()
        finally:
            del errands[id(own)]

    async def release(self) -> None:
        await self._inner.release()


class _Writer:
    """A checked-out connection."""

    def __init__(self, store: FaultyStore, inner: StoreWriter) -> None:
        self._store = store
        self._inner = inner
        self.on_release: Callable[[], None] | None = None

    async def group(self, kind: Kind, writes: Sequence[Grouped[Any]]) -> Any:
        return await self._store.write_together(kind, writes, cast("GroupWriter", self._inner))

    async def append(self, append: Append, outbox: Sequence[ScopeKey] = ()) -> Any:
        return await self._store.write(append, outbox, lambda: self._inner.append(append, outbox))

    async def create(self, create: Create, outbox: Sequence[ScopeKey] = ()) -> Any:
        return await self._store.write(create, outbox, lambda: self._inner.create(create, outbox))

    async def delete(
        self, key: SessionKey, outbox: Sequence[ScopeKey] = (), *, only_expired: bool = False
    ) -> Any:
        return await self._store.write(
            key,
            outbox,
            lambda: self._inner.delete(key, outbox, only_expired=only_expired),
            only_expired=only_expired,
        )

    async def release(self) -> None:
        # Whoever is cancelled meanwhile gives it back all the same.
        try:
            await self._inner.release()
        finally:
            called, self.on_release = self.on_release, None
            if called is not None:
                called()
