"""Appends that meet in a batch on purpose."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from tests.conformance.store_backends import START, created, event, new_key
from tiered_sessions.records import Append, AppendOutcome, Kind, NewEvent, ScopeKey, SessionKey
from tiered_sessions.store.base import SessionStore, StoreWriter
from tiered_sessions.store.groups import Groups
from tiered_sessions.store.store import SqlSessionStore

Write = tuple[Append, Sequence[ScopeKey]]


class Journal:
    """What was stored how: the size of every batch, and how many appends went alone."""

    def __init__(self, store: SqlSessionStore, monkeypatch: Any) -> None:
        self.batches: list[int] = []
        self.alone = 0
        dialect: Any = store._dialect
        group, single = dialect.append_group, dialect.append

        async def append_group(connection: Any, writes: Any) -> Any:
            self.batches.append(len(writes))
            return await group(connection, writes)

        async def append(*arguments: Any) -> Any:
            self.alone += 1
            return await single(*arguments)

        monkeypatch.setattr(dialect, "append_group", append_group)
        monkeypatch.setattr(dialect, "append", append)


def groups(store: SqlSessionStore, kind: Kind = "append") -> Groups:
    """A queue of a store that has some."""
    return store._groups[kind]


async def until(condition: Any) -> None:
    """Gives others their turn until `condition` holds."""
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


async def all_free(store: SqlSessionStore, *kinds: Kind) -> None:
    """However a test ended, every connection is there for the next."""
    for kind in kinds:
        queue = groups(store, kind)
        await until(lambda queue=queue: queue._free == store._dialect.group_connections)
        assert not queue._waiting


async def share(store: SessionStore, write: Append, outbox: Sequence[ScopeKey] = ()) -> AppendOutcome:
    """Performs an append as a caller who is willing to share."""
    writer = await store.writer(grouped="append")
    try:
        return await writer.append(write, outbox)
    finally:
        await writer.release()


@contextlib.asynccontextmanager
async def gathering(store: SqlSessionStore, kind: Kind = "append") -> AsyncIterator[None]:
    """Every connection is in use; when the block ends one comes free, and all who wait meet in a batch."""
    every = groups(store, kind)
    held, every._free = every._free, 0
    try:
        yield
    finally:
        # The first takes all who wait, so nobody is left for the others.
        every._pass_on()
        await until(lambda: not every._waiting)
        for _ in range(held - 1):
            every._pass_on()


async def seated(store: SqlSessionStore, count: int) -> list[StoreWriter]:
    """Returns so many seats of one batch, which waits for what they bring."""
    async with gathering(store):
        writers = [asyncio.create_task(store.writer(grouped="append")) for _ in range(count)]
        await until(lambda: len(groups(store)._waiting) == count)
    return [await writer for writer in writers]


async def together(store: SqlSessionStore, writes: Sequence[Write]) -> list[AppendOutcome]:
    """Performs appends in one batch, in this order."""
    async with gathering(store):
        tasks = [asyncio.create_task(share(store, *write)) for write in writes]
        await until(lambda: len(groups(store)._waiting) == len(writes))
    return await asyncio.gather(*tasks)


async def sessions(store: SessionStore, count: int) -> list[Append]:
    """Makes sessions of one app; returns an append to each."""
    app = new_key().app_name
    writes = []
    for number in range(count):
        key = SessionKey(app, "user", f"s{number}")
        made = await created(store, key)
        writes.append(Append(key, made.session.tag, START, (event(f"e{number}"),)))
    return writes


def with_event(write: Append, new: NewEvent) -> Append:
    """The same append with another event."""
    return Append(write.key, write.expected, write.update_time, (new,))
