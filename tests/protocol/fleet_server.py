"""One server of a fleet: a tier of its own, its calls, each judged, and what it has promised its callers."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from tests.protocol.faulty import FaultyCache, FaultyStore
from tiered_sessions.cache.base import SessionCache
from tiered_sessions.errors import (
    CommitOutcomeUnknownError,
    StaleSessionError,
    StoreError,
    StoreUnavailableError,
)
from tiered_sessions.records import Append, Create, Query, ScopeKey, SessionKey, Snapshot
from tiered_sessions.store.base import SessionStore
from tiered_sessions.tier.tier import SessionTier

if TYPE_CHECKING:
    from tests.protocol.fleet import World


@dataclass
class Errand:
    """What one call has sent: the newest mask it asked for, by scope."""

    tokens: dict[ScopeKey, str] = field(default_factory=dict)


SERVER: contextvars.ContextVar[Server] = contextvars.ContextVar("server")
ERRAND: contextvars.ContextVar[Errand] = contextvars.ContextVar("errand")


@dataclass(frozen=True)
class Moment:
    """When a call began: its time, the commits before it, what its server had promised by then."""

    at: float
    commits: int
    namespace: str
    floor: dict[ScopeKey, int]


class Server:
    """One process: a tier of its own, and what it has promised its callers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.inner = world.cache if world.shared else world.new_cache()
        self.cache = FaultyCache(self, self.inner)
        self.store = FaultyStore(self)
        self.tier = SessionTier(
            cast("SessionStore", self.store),
            cast("SessionCache", self.cache),
            world.config,
            clock=world.loop.time,
        )
        self.tasks: set[asyncio.Task[Any]] = set()
        self.floor: dict[ScopeKey, int] = {}
        """What it has shown or written: the version number by scope."""
        self.dead = self.silenced = False

    def errand(self) -> Errand:
        """Returns what the running call has sent."""
        return ERRAND.get()

    async def alive(self) -> None:
        """Returns only if this process lives."""
        if self.dead:
            await asyncio.Event().wait()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts a call."""
        context = contextvars.Context()
        context.run(SERVER.set, self)
        context.run(ERRAND.set, Errand())
        return self.world.loop.create_task(work, context=context)

    def kill(self, *, silenced: bool) -> None:
        """Ends this process; `silenced`: what it has sent and is not performed yet never will be."""
        self.dead, self.silenced = True, silenced
        for _ in range(100):
            if not self.tasks:
                return
            for task in [*self.tasks]:
                task.cancel()
            self.world.run(asyncio.sleep(0))
        raise AssertionError(f"a dead process goes on: {self.tasks}")

    # --- calls, judged ----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _judged(self) -> AsyncIterator[Moment]:
        """I7: a call waits for the cache within its budget, and fails for the database's sake only."""
        world = self.world
        began = Moment(world.loop.time(), world.truth.commits, self.cache.namespace, dict(self.floor))
        try:
            yield began
        except (StoreUnavailableError, CommitOutcomeUnknownError):
            assert any(at >= began.at for at in self.store.failed_at), "I7: it failed, the database did not"
        waited = world.loop.time() - began.at - self._busy(began.at)
        assert waited <= world.config.cache_budget + 1e-6, f"I7: waited {waited} s for the cache"

    def _busy(self, since: float) -> float:
        """Returns how many seconds since then some statement was under way."""
        total, covered = 0.0, since
        for begin, end in sorted(self.store.busy):
            if end > covered:
                total += end - max(begin, covered)
                covered = end
        return total

    def _promise(self, scope: ScopeKey, number: int) -> None:
        self.floor[scope] = max(number, self.floor.get(scope, 0))

    def _promise_tag(self, scope: ScopeKey, tag: Any) -> None:
        self._promise(scope, self.world.truth.find(scope, tag).number)

    async def read(self, key: SessionKey, query: Query) -> Snapshot | None:
        """Reads, and checks the answer: I1, I4, I5, I6."""
        snapshot = None
        async with self._judged() as began:
            snapshot = await self.tier.get(key, query)
            truth = self.world.truth
            began_ms = int(began.at * 1000)
            if snapshot is None:
                truth.check_absent(key.session, began_ms, self.world.now())
                return None
            for scope, version in truth.check_served(snapshot, query, began_ms).items():
                self.world.check_fresh(self, scope, version, began)
                floor = began.floor.get(scope, 0)
                assert version.number >= floor, f"I6: {scope.kind} {version.number} after {floor}"
                self._promise(scope, version.number)
        return snapshot

    async def append(self, append: Append) -> bool:
        """Appends; false if others have appended before."""
        session = append.key.session
        async with self._judged():
            try:
                done = await self.tier.append(append)
            except StaleSessionError:
                # R23: whoever reads again finds something newer.
                assert append.expected is not None
                refused = self.world.truth.find(session, append.expected).number
                self._promise(session, refused + 1)
                return False
            except StoreUnavailableError:
                raise
            except CommitOutcomeUnknownError:
                raise
            except StoreError:
                return True
            self._promise_tag(session, done.tag)
            for scope in append.scopes[1:]:
                content = getattr(done, scope.kind, None)
                if content is not None:
                    self._promise_tag(scope, content.tag)
        return True

    async def create(self, create: Create) -> None:
        """Creates."""
        async with self._judged():
            try:
                made = await self.tier.create(create)
            except (StoreUnavailableError, CommitOutcomeUnknownError):
                raise
            except StoreError:
                return
            for scope in create.key.scopes:
                content = made.content(scope)
                assert content is not None
                self._promise_tag(scope, content.tag)

    async def sweep(self) -> None:
        """Deletes what has expired; however many there are, each may wait for the cache."""
        with contextlib.suppress(StoreUnavailableError, CommitOutcomeUnknownError):
            await self.tier.delete_expired()

    async def delete(self, key: SessionKey) -> None:
        """Deletes. I5: from then on its history has ended for this server's readers."""
        async with self._judged():
            commits = self.world.truth.commits
            if await self.tier.delete(key):
                versions = self.world.truth.versions(key.session)
                number = min(v.number for v in versions if v.tag is None and v.order > commits)
                self._promise(key.session, number)


def make_task(loop: Any, work: Any, **options: Any) -> Any:
    """Makes a task, which is its server's: it ends when the server dies."""
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
    context = options.get("context")
    server = SERVER.get(None) if context is None else context.get(SERVER)
    if server is not None:
        server.tasks.add(task)
        task.add_done_callback(server.tasks.discard)
        if server.dead:
            # A timer does not know that its process has died.
            task.cancel()
    return task
