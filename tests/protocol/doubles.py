"""A loop whose time is only what is waited for, a store that takes none, a cache that is slow."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from tests.protocol.simulation import KEY, Sql
from tiered_sessions.cache.base import Unavailable
from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.config import TieredConfig
from tiered_sessions.errors import StoreUnavailableError
from tiered_sessions.metrics import Metrics
from tiered_sessions.records import (
    Append,
    Create,
    Failed,
    Kind,
    Listing,
    Older,
    OutboxRow,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Tags,
)
from tiered_sessions.tier.steps import Delete
from tiered_sessions.tier.tier import SessionTier

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to the next timer when there is nothing else to do."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        scheduled: list[Any] = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        if not self._ready and scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` on a loop of virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


class ToyStore:
    """The toy database as a `SessionStore`. `gate`, when set, holds every statement back."""

    exclusive = False

    def __init__(self) -> None:
        self.sql = Sql()
        self.sql.write(Create(KEY, 0, b"{}"), ())
        self.name = "n"
        self.statements: list[str] = []
        self.gate: asyncio.Event | None = None
        self.asked = asyncio.Event()
        self.released = 0
        self.overdue: list[SessionKey] = []
        self.locked: set[SessionKey] = set()

    def live(self, key: SessionKey, ttl: int) -> None:
        """Lets the session expire `ttl` ms from now."""
        self.sql.clock = _milliseconds
        self.sql.live(key, ttl, sliding=False)

    async def _statement(self, name: str) -> None:
        self.statements.append(name)
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()

    async def prepare(self) -> None: ...

    async def namespace(self) -> str:
        return self.name

    async def reset_namespace(self) -> str:
        self.name += "'"
        return self.name

    async def keys(
        self, after: SessionKey | None, limit: int, app_name: str | None = None, user_id: str | None = None
    ) -> Sequence[SessionKey]:
        raise NotImplementedError

    async def load(self, key: SessionKey, query: Query) -> Snapshot | None:
        snapshot = self.sql.load(key)
        await self._statement("load")
        return snapshot

    async def older(self, key: SessionKey, before_seq: int, query: Query) -> Older | None:
        row = self.sql.rows.get(key.session)
        await self._statement("older")
        if row is None:
            return None
        return Older(row.tag, tuple(e for e in row.events if e.seq < before_seq), True)

    async def tags(self, key: SessionKey) -> Tags:
        tags = Tags(*(self.sql.tag(scope) for scope in key.scopes))
        await self._statement("tags")
        return tags

    async def sessions(self, app_name: str, user_id: str | None) -> Listing:
        snapshot = self.sql.load(KEY)
        await self._statement("sessions")
        if snapshot is None:
            return Listing(app_name, (), (), (), (), {}, None)
        users = {} if snapshot.user is None else {KEY.user_id: snapshot.user}
        tag, state = snapshot.session.tag, snapshot.session.state.decode()
        return Listing(app_name, (KEY.user_id,), (KEY.session_id,), (tag,), (state,), users, snapshot.app)

    async def count(self, app_name: str, user_id: str | None) -> int:
        raise NotImplementedError

    async def expired(self, limit: int) -> Sequence[SessionKey]:
        return [*self.overdue, *self.sql.expired()][:limit]

    async def user_state(self, app_name: str, user_id: str) -> bytes:
        raise NotImplementedError

    async def writer(self, *, grouped: Kind | None = None) -> ToyStore:
        await self._statement("checkout")
        return self

    async def append(self, append: Append, outbox: Sequence[ScopeKey] = ()) -> Any:
        outcome = self.sql.write(append, tuple(outbox))
        await self._statement("append")
        return outcome

    async def create(self, create: Create, outbox: Sequence[ScopeKey] = ()) -> Any:
        outcome = self.sql.write(create, tuple(outbox))
        await self._statement("create")
        return outcome

    async def delete(
        self, key: SessionKey, outbox: Sequence[ScopeKey] = (), *, only_expired: bool = False
    ) -> Any:
        outcome: Any = Failed(StoreUnavailableError())
        if key not in self.locked:
            outcome = self.sql.write(Delete(key, only_expired), tuple(outbox))
        await self._statement("delete")
        return outcome

    async def release(self) -> None:
        self.released += 1

    async def outbox(self, limit: int) -> Sequence[OutboxRow]:
        return list(self.sql.outbox.values())

    async def outbox_done(self, rows: Sequence[OutboxRow]) -> None:
        for row in rows:
            self.sql.outbox.pop(row.scope)

    async def close(self) -> None: ...


def _milliseconds() -> int:
    return int(asyncio.get_running_loop().time() * 1000)


class TroubledCache(MemoryCache):
    """A shared cache whose replies take `delay` seconds (None: for ever) and `turns` of the loop.

    Or one that refuses, or raises.
    """

    def __init__(self, delay: float | None = 0.0, turns: int = 0) -> None:
        super().__init__(clock=_milliseconds, shared=True)
        self.delay = delay
        self.turns = turns
        self.refusing = False
        self.refusal: type[Unavailable] = Unavailable
        self.raising = False
        self.commands: list[str] = []


def _troubled(name: str) -> Any:
    original = getattr(MemoryCache, name)

    async def command(self: TroubledCache, *arguments: Any) -> Any:
        self.commands.append(name)
        if self.raising:
            raise RuntimeError("not what the contract says")
        if self.refusing:
            down = self.refusal("refused")
            return tuple(down for _ in arguments[0]) if name == "lookup" else down
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if self.delay is None:
            await asyncio.Event().wait()
        elif self.delay:
            await asyncio.sleep(self.delay)
        return await original(self, *arguments)

    return command


_COMMANDS = "lookup intent release lease fill apply drop touch elect probe"

for _name in _COMMANDS.split():
    setattr(TroubledCache, _name, _troubled(_name))


def tier(
    store: ToyStore,
    cache: MemoryCache | None,
    config: TieredConfig | None = None,
    metrics: Metrics | None = None,
) -> SessionTier:
    """Returns a tier on the running loop's time."""
    loop = asyncio.get_running_loop()
    return SessionTier(store, cache, config or TieredConfig(), metrics, clock=loop.time)
