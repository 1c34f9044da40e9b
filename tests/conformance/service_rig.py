"""The service on every store and cache: what its conformance tests are given."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.servers import CACHES, STORES
from tiered_sessions import Event, EventActions, GetSessionConfig, Session, TieredSessionService

FULL = [(store, cache) for store in STORES for cache in ("none", "memory", "redis")]
FULL += [("sqlite", cache) for cache in CACHES if ("sqlite", cache) not in FULL]

Make = Callable[[], TieredSessionService]


@pytest.mark.parametrize(("store_url", "cache"), FULL, indirect=True)
class OnEveryStoreAndCache:
    """Services over each store with each cache. A number in a test's docstring is the conformance list's.

    Items 41 (no paging), 47 and 49 (constructors) are unit tests.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def sqlite_url(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        """One file for the class, as the other databases are: every test has an app of its own."""
        return f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('conformance') / 'sessions.db'}"

    @pytest.fixture
    async def make(self, store_url: str, cache: Any) -> AsyncIterator[Make]:
        """Makes services over one database and one cache, as processes of a fleet would."""
        async with contextlib.AsyncExitStack() as stack:
            made: list[TieredSessionService] = []

            def one() -> TieredSessionService:
                made.append(TieredSessionService(store_url, cache=cache, pool_size=4))
                stack.push_async_callback(made[-1].close)
                return made[-1]

            yield one

    @pytest.fixture
    def service(self, make: Make) -> TieredSessionService:
        return make()

    @pytest.fixture
    def app(self) -> str:
        return f"app-{uuid4().hex[:12]}"


def event(author: str = "user", timestamp: float | None = None, id: str = "", **delta: Any) -> Event:
    made = Event(id=id, author=author, invocation_id="i", actions=EventActions(state_delta=delta))
    if timestamp is not None:
        made.timestamp = timestamp
    return made


async def reload(service: TieredSessionService, session: Session, **window: Any) -> Session:
    config = GetSessionConfig(**window) if window else None
    loaded = await service.get_session(session.app_name, session.user_id, session.id, config)
    assert loaded is not None
    return loaded


def authors(session: Session) -> list[str]:
    return [event.author for event in session.events]


async def conversation(service: TieredSessionService, app: str) -> Session:
    session = await service.create_session(app, "u", {"k": 0, "user:u": 1})
    for n in range(5):
        await service.append_event(session, event(str(n), 1000.0 + n, k=n))
    return session
