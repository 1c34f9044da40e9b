"""Keys and writes to try a store with, and the fixture of its rules."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from ..codec import loads, same_json
from ..records import (
    Append,
    AppendOutcome,
    Committed,
    Create,
    CreateOutcome,
    DeleteOutcome,
    EventRecord,
    NewEvent,
    OutboxRow,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
)
from ..store.base import SessionStore

START = 1_700_000_000_000_000
"""The first moment of the samples, in microseconds."""


class StoreFixtures:
    """What the rules are given. `store` is yours."""

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def store(self) -> Any:
        """A prepared store. It may hold what other tests left: every rule uses an app of its own."""
        raise NotImplementedError("give your subclass of the suite a fixture `store`")


def new_key(session_id: str = "s") -> SessionKey:
    """Returns a key under an app that no other test uses."""
    return SessionKey(f"app-{uuid.uuid4().hex}", "user", session_id)


def event(name: str, at: int = 0, payload: bytes = b'{"text":"hello"}') -> NewEvent:
    """Returns an event `at` microseconds after the start."""
    return NewEvent(name, "invocation", START + at, payload)


async def create(
    store: SessionStore,
    key: SessionKey,
    state: bytes = b"{}",
    *,
    user_delta: bytes | None = None,
    app_delta: bytes | None = None,
) -> CreateOutcome:
    """Creates a session on a connection of its own."""
    return await create_with(store, Create(key, START, state, user_delta, app_delta))


async def create_with(store: SessionStore, write: Create, outbox: Sequence[ScopeKey] = ()) -> CreateOutcome:
    """Performs a create on a connection of its own."""
    writer = await store.writer()
    try:
        return await writer.create(write, outbox)
    finally:
        await writer.release()


async def created(
    store: SessionStore,
    key: SessionKey,
    state: bytes = b"{}",
    *,
    user_delta: bytes | None = None,
    app_delta: bytes | None = None,
) -> Snapshot:
    """Creates a session that is not there."""
    outcome = await create(store, key, state, user_delta=user_delta, app_delta=app_delta)
    assert isinstance(outcome, Snapshot), outcome
    return outcome


async def append(store: SessionStore, write: Append, outbox: Sequence[ScopeKey] = ()) -> AppendOutcome:
    """Performs an append on a connection of its own."""
    writer = await store.writer()
    try:
        return await writer.append(write, outbox)
    finally:
        await writer.release()


async def committed(store: SessionStore, write: Append) -> Committed:
    """Performs an append that succeeds."""
    outcome = await append(store, write)
    assert isinstance(outcome, Committed), outcome
    return outcome


async def delete(
    store: SessionStore, key: SessionKey, outbox: Sequence[ScopeKey] = (), *, only_expired: bool = False
) -> DeleteOutcome:
    """Performs a delete on a connection of its own."""
    writer = await store.writer()
    try:
        return await writer.delete(key, outbox, only_expired=only_expired)
    finally:
        await writer.release()


async def loaded(store: SessionStore, key: SessionKey, query: Query = Query()) -> Snapshot:  # noqa: B008
    """Loads a session that is there."""
    found = await store.load(key, query)
    assert found is not None
    return found


async def outbox(store: SessionStore, key: SessionKey) -> dict[str, OutboxRow]:
    """Reads the invalidations recorded for an app, by kind of scope."""
    return {row.scope.kind: row for row in await store.outbox(1_000) if row.scope.app_name == key.app_name}


async def ended(store: SessionStore, write: Create) -> Snapshot:
    """Creates a session and waits until it has expired."""
    outcome = await create_with(store, write)
    assert isinstance(outcome, Snapshot), outcome
    for _ in range(1_000):
        if (await store.tags(write.key)).session is None:
            return outcome
        await asyncio.sleep(0.001)
    raise AssertionError(f"{write.key} has not expired")


def equal(document: bytes | None, value: Any) -> bool:
    """Says whether a stored document is this value."""
    assert document is not None
    return same_json(document, json.dumps(value).encode())


def values(events: tuple[EventRecord, ...]) -> list[Any]:
    """Returns events as JSON values: a database may store a document in other bytes."""
    return [(e.seq, e.id, e.timestamp, loads(e.payload)) for e in events]
