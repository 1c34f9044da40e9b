"""The stores that the store's contract is tested on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.patience import PATIENT
from tiered_sessions.config import TieredConfig
from tiered_sessions.store.dialects.portable import PortableDialect
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.store import SqlSessionStore
from tiered_sessions.testing.store_samples import (
    START,
    append,
    committed,
    create,
    create_with,
    created,
    delete,
    equal,
    event,
    loaded,
    new_key,
    outbox,
    values,
)
from tiered_sessions.urls import normalise_database_url

__all__ = [
    "BACKENDS",
    "CONFIG",
    "START",
    "append",
    "as_stranger",
    "backend_url",
    "committed",
    "create",
    "create_with",
    "created",
    "delete",
    "equal",
    "event",
    "loaded",
    "make_store",
    "new_key",
    "open_store",
    "outbox",
    "values",
]

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
CONFIG = PATIENT


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


async def as_stranger(store: SqlSessionStore, *statements: str, **params: Any) -> None:
    """Executes SQL as another program would."""
    async with store.engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement), params)
