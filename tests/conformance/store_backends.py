"""The stores that the store's contract is tested on."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tiered_sessions.config import TieredConfig
from tiered_sessions.records import (
    Append,
    AppendOutcome,
    Create,
    CreateOutcome,
    DeleteOutcome,
    NewEvent,
    ScopeKey,
    SessionKey,
    Snapshot,
)
from tiered_sessions.store.dialects.portable import PortableDialect
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.store import SqlSessionStore
from tiered_sessions.urls import normalise_database_url

BACKENDS = (
    "sqlite",
    "memory",
    "postgresql",
    "postgresql-psycopg",
    "mariadb",
    "mariadb-asyncmy",
    "portable-sqlite",
    "portable-postgresql",
    "portable-mariadb",
)
START = 1_700_000_000_000_000
CONFIG = TieredConfig()


def backend_url(request: pytest.FixtureRequest, backend: str) -> str:
    """The URL of a backend's database, which the tests of a module share (SQLite: one each)."""
    if backend == "memory":
        return "sqlite+aiosqlite:///:memory:"
    if "sqlite" in backend:
        return str(request.getfixturevalue("sqlite_url"))
    if "postgresql" in backend:
        url = str(request.getfixturevalue("postgresql_url"))
        return url.replace("asyncpg", "psycopg") if "psycopg" in backend else url
    url = str(request.getfixturevalue("mysql_url"))
    return url.replace("aiomysql", "asyncmy") if "asyncmy" in backend else url


def make_store(url: str, backend: str, config: TieredConfig = CONFIG, **options: Any) -> SqlSessionStore:
    """Makes the store of a backend."""
    if not backend.startswith("portable"):
        return SqlSessionStore(build_engine(url, config, **options), owns_engine=True, config=config)
    # As for a database that the package does not know: nothing but what SQLAlchemy does by itself.
    engine = create_async_engine(normalise_database_url(url).url, **options)
    store = SqlSessionStore(engine, owns_engine=True, config=config)
    store._dialect = PortableDialect(engine, config)
    return store


@contextlib.asynccontextmanager
async def open_store(
    url: str, backend: str, config: TieredConfig = CONFIG, **options: Any
) -> AsyncIterator[SqlSessionStore]:
    """Opens a store with its tables made, and closes it."""
    store = make_store(url, backend, config, **options)
    try:
        await store.prepare()
        yield store
    finally:
        await store.close()


def new_key(session_id: str = "s") -> SessionKey:
    """A key under an app that no other test uses."""
    return SessionKey(f"app-{uuid.uuid4().hex}", "user", session_id)


def event(name: str, at: int = 0, payload: bytes = b'{"text":"hello"}') -> NewEvent:
    """An event `at` microseconds after the start."""
    return NewEvent(name, "invocation", START + at, payload)


async def create(
    store: SqlSessionStore, key: SessionKey, state: bytes = b"{}", **deltas: bytes
) -> CreateOutcome:
    """Creates a session on a connection of its own."""
    return await create_with(store, Create(key, START, state, **deltas))


async def create_with(
    store: SqlSessionStore, write: Create, outbox: Sequence[ScopeKey] = ()
) -> CreateOutcome:
    """Performs a create on a connection of its own."""
    writer = await store.writer()
    try:
        return await writer.create(write, outbox)
    finally:
        await writer.release()


async def created(store: SqlSessionStore, key: SessionKey, state: bytes = b"{}", **deltas: bytes) -> Snapshot:
    """Creates a session that is not there."""
    outcome = await create(store, key, state, **deltas)
    assert isinstance(outcome, Snapshot), outcome
    return outcome


async def append(store: SqlSessionStore, write: Append, outbox: Sequence[ScopeKey] = ()) -> AppendOutcome:
    """Performs an append on a connection of its own."""
    writer = await store.writer()
    try:
        return await writer.append(write, outbox)
    finally:
        await writer.release()


async def delete(store: SqlSessionStore, key: SessionKey, outbox: Sequence[ScopeKey] = ()) -> DeleteOutcome:
    """Performs a delete on a connection of its own."""
    writer = await store.writer()
    try:
        return await writer.delete(key, outbox)
    finally:
        await writer.release()


async def as_stranger(store: SqlSessionStore, *statements: str, **params: Any) -> None:
    """Executes SQL as another program would."""
    async with store.engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement), params)
