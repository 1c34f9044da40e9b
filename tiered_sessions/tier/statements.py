"""The SQL of calls: reads, so many at once, and writes on a connection of the call's own."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from .. import metrics as counters
from ..errors import StoreError
from ..metrics import Metrics
from ..records import Append, Committed, Create, Failed, Query, SessionKey, Snapshot, Tags
from ..store.base import SessionStore
from ..uncut import Uncut, uncut
from . import steps
from .call import Call
from .upkeep import OUTBOX_BATCH, SWEEP_BATCH


class Statements:
    """Sends what the protocol asks of the store.

    Attributes:
        reads: Is held while one reads.
    """

    def __init__(self, store: SessionStore, metrics: Metrics, reads: int) -> None:
        self.reads = asyncio.Semaphore(reads)
        self._store = store
        self._metrics = metrics

    async def read(self, command: steps.SqlRead) -> Any:
        """Performs one read."""
        async with self.reads:
            match command:
                case steps.Load(key, query):
                    return await self._store.load(key, query)
                case steps.LoadOlder(key, before_seq, query):
                    return await self._store.older(key, before_seq, query)
                case steps.ReadTags(key):
                    return await self._store.tags(key)
                case steps.ReadExpired():
                    return await self._store.expired(SWEEP_BATCH)
                case steps.ReadOutbox():
                    return await self._store.outbox(OUTBOX_BATCH)
                case steps.ForgetOutbox(rows):
                    await self._store.outbox_done(rows)
                    self._metrics.count(counters.OUTBOX_DRAINED, len(rows))
                    return None

    async def load(self, key: SessionKey, query: Query) -> Snapshot | None:
        """Reads a session."""
        async with self.reads:
            return await self._store.load(key, query)

    async def tags(self, key: SessionKey) -> Tags:
        """Reads the tags of a session's scopes."""
        async with self.reads:
            return await self._store.tags(key)

    async def checkout(self, command: steps.Checkout, call: Call) -> Failed | None:
        """Takes a connection for `call`, unless it has one."""
        try:
            if call.writer is None:
                call.writer = await self._store.writer(grouped=command.grouped)
        except StoreError as error:
            return Failed(error)
        return None

    def commit(self, command: steps.Write, call: Call) -> Uncut[Any]:
        """Sends a write on the connection of `call`."""
        assert call.writer is not None
        operation, outbox = command
        work: Any
        if isinstance(operation, Append):
            work = call.writer.append(operation, outbox)
        elif isinstance(operation, Create):
            work = call.writer.create(operation, outbox)
        else:
            work = call.writer.delete(operation.key, outbox, only_expired=operation.only_expired)
        outcome: Uncut[Any] = work if isinstance(work, Uncut) else uncut(work)
        if outbox:
            outcome.add_done_callback(partial(self._recorded, len(outbox)))
        return outcome

    def _recorded(self, rows: int, outcome: asyncio.Future[Any]) -> None:
        done = not outcome.cancelled() and outcome.exception() is None
        if done and isinstance(outcome.result(), Committed | Snapshot | bool):
            self._metrics.count(counters.OUTBOX_WRITTEN, rows)
