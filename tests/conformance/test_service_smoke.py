"""Every other pair of store, driver and cache: one conversation through two services."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.servers import CACHES, STORES
from tiered_sessions import (
    Event,
    EventActions,
    GetSessionConfig,
    SessionExistsError,
    StaleSessionError,
    TieredSessionService,
)

OTHERS = [(store, cache) for store in STORES[1:] for cache in CACHES if cache in ("valkey", "fakeredis")]
DRIVERS = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+asyncmy"}


async def conversation(url: str, cache: Any) -> None:
    app = f"app-{uuid4().hex[:12]}"
    async with (
        TieredSessionService(url, cache=cache) as ours,
        TieredSessionService(url, cache=cache) as theirs,
    ):
        session = await ours.create_session(app, "u", {"k": 0, "user:u": 1, "app:a": 1, "temp:t": 1}, "s")
        with pytest.raises(SessionExistsError):
            await theirs.create_session(app, "u", session_id="s")
        for n in range(6):
            delta = {"k": n, "user:u": n, "temp:t": n}
            sent = Event(author=str(n), timestamp=1000.0 + n, actions=EventActions(state_delta=delta))
            await (ours, theirs)[n % 2].append_event(session, sent)
            for service in (theirs, ours):
                found = await service.get_session(app, "u", "s")
                assert found is not None
                assert found.events == session.events
                assert found.state == {"k": n, "user:u": n, "app:a": 1}
        window = GetSessionConfig(num_recent_events=2, after_timestamp=1004.0)
        old = await theirs.get_session(app, "u", "s", window)
        assert old is not None
        assert [event.author for event in old.events] == ["4", "5"]
        await ours.merge_state(session, {"app:a": None})
        with pytest.raises(StaleSessionError):
            await theirs.append_event(old, Event(author="late"))
        (listed,) = await theirs.list_sessions(app)
        assert listed.state == {"k": 5, "user:u": 5, "app:a": None}
        assert await theirs.get_user_state(app, "u") == {"u": 5}
        await theirs.delete_session(app, "u", "s")
        assert await ours.get_session(app, "u", "s") is None
        assert await ours.count_sessions(app) == 0


@pytest.mark.parametrize(("store_url", "cache"), OTHERS, indirect=True)
async def test_other_pairs(store_url: str, cache: Any) -> None:
    await conversation(store_url, cache)


@pytest.mark.parametrize("cache", ["none", "redis"], indirect=True)
@pytest.mark.parametrize(
    ("store_url", "driver"), DRIVERS.items(), indirect=["store_url"], ids=list(DRIVERS.values())
)
async def test_other_drivers(store_url: str, driver: str, cache: Any) -> None:
    await conversation(f"{driver}://{store_url.partition('://')[2]}", cache)


@pytest.mark.parametrize("cache", ["none", "memory", "redis", "valkey", "fakeredis"], indirect=True)
async def test_one_service_in_memory(cache: Any) -> None:
    app = f"app-{uuid4().hex[:12]}"
    async with TieredSessionService("sqlite://", cache=cache) as service:
        session = await service.create_session(app, "u", {"k": 1})
        for n in range(3):
            await service.append_event(
                session, Event(author=str(n), actions=EventActions(state_delta={"k": n}))
            )
            assert await service.get_session(app, "u", session.id) == session
