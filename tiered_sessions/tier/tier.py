"""SessionTier: sessions in two tiers, and the life of what they need.

A write runs in its caller's task. When that is cancelled, the rest of the write becomes a task of its
own: before the statement was sent it stops and takes its masks away, after that it completes (R29).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from .. import metrics as counters
from ..cache.base import SessionCache
from ..config import TieredConfig
from ..errors import (
    CommitOutcomeUnknownError,
    EventIdConflictError,
    SessionExistsError,
    SessionNotFoundError,
    StaleSessionError,
    StoreUnavailableError,
)
from ..metrics import Metrics, NullMetrics
from ..records import (
    Already,
    Append,
    AppendOutcome,
    Committed,
    Conflict,
    Create,
    CreateOutcome,
    DeleteOutcome,
    EventRecord,
    Exists,
    Expired,
    Failed,
    Listing,
    Missing,
    Query,
    SessionKey,
    Snapshot,
    Stale,
    Unknown,
)
from ..shared_events import SharedEvents
from ..store.base import SessionStore
from ..uncut import uncut
from . import chores, protocol, steps
from .ahead import Ahead
from .breaker import Breaker
from .cache_calls import CacheCalls
from .call import Call
from .floors import Floors
from .knowledge import Knowledge
from .namespace import Namespace
from .performer import CLOSED, Performer
from .sampler import Sampler
from .statements import Statements
from .steps import Rules, Steps, Swept
from .upkeep import SWEEP_BATCH, Upkeep

logger = logging.getLogger("tiered_sessions")

_SOURCES = {
    "process": counters.READ_PROCESS,
    "cache": counters.READ_CACHE,
    "store": counters.READ_STORE,
}


class SessionTier:
    """Sessions in two tiers. Bound to the event loop that first uses it.

    Args:
        store: The record.
        cache: The copy, or None: everything works without it, more slowly.
        config: The numbers.
        metrics: Receives the counters.
        owns_cache: Whether `close()` closes the cache.
        kept: The sessions read last, by whatever tier of this database; None: some of its own.
        clock: Seconds, monotonic, the same as the event loop's.
    """

    def __init__(
        self,
        store: SessionStore,
        cache: SessionCache | None,
        config: TieredConfig,
        metrics: Metrics | None = None,
        *,
        owns_cache: bool = True,
        kept: SharedEvents[Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._cache = cache
        self._owns_cache = owns_cache
        self._config = config
        self._metrics = NullMetrics() if metrics is None else metrics
        self._clock = clock
        staleness = config.max_staleness
        self._rules = Rules(
            max_staleness=None if staleness is None else round(staleness * 1000),
            cached=cache is not None,
            private=cache is not None and not cache.shared,
            exclusive=store.exclusive,
            window_events=config.window_events,
            event_bytes=config.event_bytes,
            state_bytes=config.state_bytes,
            wait_apply=config.wait_apply,
        )
        self._breaker = Breaker(clock)
        # Two rounds long: when the drainer is cut off, the next one takes over in the third.
        self._calls = CacheCalls(
            cache, self._breaker, self._metrics, clock, elected_for=2 * config.outbox_poll
        )
        self._floors = Floors(None if staleness is None else staleness + 1, clock)
        if kept is None:
            kept = SharedEvents(_undecoded, config.decoded_bytes, shared=False)
        self._kept = kept
        self._knowledge = Knowledge(self._floors, kept, self._breaker, clock, config.mask_age)
        self._statements = Statements(store, self._metrics, config.store_reads)
        self._performer = Performer(
            self._statements,
            self._calls,
            self._knowledge,
            self._rules,
            self._breaker,
            config.cache_budget,
            clock,
        )
        self._preparing: asyncio.Task[None] | None = None
        self._prepared = False
        self._closed = False
        self._namespace: Namespace | None = None
        if cache is not None:
            self._namespace = Namespace(store, cache, self._breaker, clock, self._knowledge.forget)
            self._knowledge.namespace = self._namespace
        self._sampler: Sampler | None = None
        # A private cache is checked at every hit anyway.
        if cache is not None and cache.shared and config.sample_rate:
            self._sampler = Sampler(
                cache,
                self._statements.load,
                self._statements.tags,
                config,
                self._breaker,
                self._metrics,
                clock,
            )
        self._upkeep = Upkeep(self._drain, self._sweep, config, clock)
        self._writes = 0
        self._written = asyncio.Event()

    # --- what callers use --------------------------------------------------------------------

    async def prepare(self) -> None:
        """Makes the tables ready and learns the cache namespace. Safe to repeat."""
        if self._closed:
            raise StoreUnavailableError(CLOSED)
        if self._prepared:
            return
        if self._preparing is None:
            self._preparing = asyncio.create_task(self._prepare())
        # A task of its own: a connection whose opening is cancelled is one that nobody closes.
        await asyncio.shield(self._preparing)

    async def _prepare(self) -> None:
        try:
            await self._store.prepare()
            if self._namespace is not None:
                await self._namespace.read()
            shared = self._cache is not None and self._cache.shared
            if not self._closed:
                self._upkeep.start(self._namespace if shared else None)
            self._prepared = True
        finally:
            self._preparing = None

    async def get(
        self, key: SessionKey, query: Query, ahead: Ahead[Any] | None = None
    ) -> Snapshot | None:
        """Reads one session with the events `query` asks for; None if there is none.

        `ahead`: is told, while the cache is asked, what the answer is going to be if nothing has changed.
        """
        if self._closed or not self._prepared:
            await self.prepare()
        call = Call(self._config.cache_budget)
        if ahead is not None:
            call.meanwhile = lambda: ahead.begin(self._kept.expected(key, query))
        answer = await self._performer.perform(protocol.read(key, query, self._rules), call)
        self._metrics.count(_SOURCES[answer.source])
        self._sample(key)
        snapshot = answer.snapshot
        if ahead is not None and ahead.tried and snapshot is not None and not ahead.confirm(snapshot):
            self._kept.answered(snapshot)
        return snapshot

    async def append(self, append: Append) -> Committed | Already:
        """Stores events and state changes atomically.

        Raises:
            StaleSessionError: The session changed since `append.expected` was read.
            SessionNotFoundError: There is no such session.
            EventIdConflictError: An event of this id with other content is stored.
            CommitOutcomeUnknownError: It may be stored; the same append may be repeated.
        """
        outcome: AppendOutcome = await self._write(protocol.append(append, self._rules))
        if isinstance(outcome, Committed | Already):
            self._sample(append.key)
            return outcome
        if isinstance(outcome, Stale):
            raise StaleSessionError
        if isinstance(outcome, Missing):
            raise SessionNotFoundError(f"Session {append.key.session_id} not found.")
        if isinstance(outcome, Conflict):
            raise EventIdConflictError(
                f"Event {outcome.event_id} is already stored in session {append.key.session_id}"
                " with other content; give the new event an id of its own."
            )
        raise _error(outcome)

    async def create(self, create: Create) -> Snapshot:
        """Stores a new session.

        Raises:
            SessionExistsError: The id is taken.
            CommitOutcomeUnknownError: It may be stored.
        """
        outcome: CreateOutcome = await self._write(protocol.create(create, self._rules))
        if isinstance(outcome, Snapshot):
            self._sample(create.key)
            return outcome
        if isinstance(outcome, Exists | Expired):
            raise SessionExistsError(f"Session with id {create.key.session_id} already exists.")
        raise _error(outcome)

    async def delete(self, key: SessionKey) -> bool:
        """Deletes a session and its events; false if there was none.

        Raises:
            CommitOutcomeUnknownError: It may be deleted.
        """
        outcome: DeleteOutcome = await self._write(protocol.delete(steps.Delete(key), self._rules))
        if isinstance(outcome, bool):
            self._sample(key)
            return outcome
        raise _error(outcome)

    async def sessions(self, app_name: str, user_id: str | None) -> Listing:
        """Lists sessions without their events, always from SQL."""
        await self.prepare()
        began = self._floors.began()
        async with self._statements.reads:
            found = await self._store.sessions(app_name, user_id)
        # A later read shows no less than the list did (I6).
        self._floors.listed(found, began)
        return found

    async def count(self, app_name: str, user_id: str | None) -> int:
        """Counts sessions, always in SQL."""
        await self.prepare()
        async with self._statements.reads:
            return await self._store.count(app_name, user_id)

    async def user_state(self, app_name: str, user_id: str) -> bytes:
        """Reads one user's state, always from SQL."""
        await self.prepare()
        async with self._statements.reads:
            return await self._store.user_state(app_name, user_id)

    async def delete_expired(self) -> int:
        """Deletes every session that has expired; returns how many this call has deleted.

        Raises:
            StoreError: What kept one from being deleted; others are.
        """
        deleted = 0
        while True:
            swept = await self._sweep()
            deleted += swept.deleted
            if swept.failed is not None:
                raise _error(swept.failed)
            if swept.found < SWEEP_BATCH or not swept.deleted:
                return deleted

    async def flush(self) -> None:
        """Waits until the cache has been told of every write that returned."""
        await self._calls.flush()

    async def close(self) -> None:
        """Waits within `close_timeout` for writes under way and the cache; ends and closes the rest."""
        self._closed = self._performer.closed = True
        self._upkeep.stop()
        if self._sampler is not None:
            self._sampler.stop()
        try:
            async with asyncio.timeout(self._config.close_timeout):
                # A connection that is checked out now would never be closed.
                if self._preparing is not None:
                    await asyncio.wait((self._preparing,))
                while self._writes:
                    self._written.clear()
                    await self._written.wait()
                await self.flush()
        except TimeoutError:
            logger.warning("closed before the cache was told of every write; masks will expire")
        tasks: list[asyncio.Future[Any]] = [*self._performer.flights.tasks, *self._calls.tasks]
        if self._preparing is not None:
            tasks.append(self._preparing)
        if self._sampler is not None:
            tasks += self._sampler.tasks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._upkeep.cancel()
        if self._cache is not None and self._owns_cache:
            await self._cache.close()
        await self._store.close()

    # --- performing --------------------------------------------------------------------------

    async def _write(self, generator: Steps[Any], budget: float | None = None) -> Any:
        if self._closed or not self._prepared:
            await self.prepare()
        call = Call(self._config.cache_budget if budget is None else budget, stoppable=True)
        self._writes += 1
        try:
            outcome = await self._performer.perform(generator, call)
        except asyncio.CancelledError:
            if call.cut is not None:
                # Before its statement was sent it stops; a started commit is completed, then the
                # cancellation goes on. Statement time-outs bound the wait.
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    await uncut(self._performer.perform(generator, call))
            raise
        finally:
            self._writes -= 1
            if not self._writes:
                self._written.set()
        assert outcome is not None, "only a cancelled call ends without an outcome"
        return outcome

    # --- in the background -------------------------------------------------------------------

    async def _drain(self) -> int | None:
        return await self._performer.perform(chores.drain(), Call(float("inf")))

    async def _sweep(self) -> Swept:
        # Each deletion may wait for the cache as long as any, together longer than one call may.
        swept: Swept = await self._write(chores.sweep(self._rules), float("inf"))
        return swept

    def _sample(self, key: SessionKey) -> None:
        if self._sampler is not None:
            self._sampler.offer(key)


def _undecoded(records: Sequence[EventRecord]) -> list[Any]:
    raise AssertionError("who wants events gives what decodes them")


def _error(outcome: Failed | Unknown) -> Exception:
    """Returns the error of a write that failed, or that may have."""
    if isinstance(outcome, Failed):
        return outcome.error
    error = CommitOutcomeUnknownError()
    error.__cause__ = outcome.error
    return error
