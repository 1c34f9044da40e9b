"""The service lists, deletes and closes: items 38 - 48 of the conformance list, on every store and cache."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.conformance.service_rig import Make, OnEveryStoreAndCache, event, reload
from tiered_sessions import (
    StaleSessionError,
    TieredSessionService,
)


class TestLifecycle(OnEveryStoreAndCache):
    """Lists, deletes, user state, and the life of a service."""

    async def test_list(self, service: TieredSessionService, app: str) -> None:
        """38 - 40"""
        for user, id_ in (("u", "c"), ("v", "b"), ("u", "a"), ("u", "b")):
            session = await service.create_session(app, user, {"id": id_, "user:u": user, "app:a": 1}, id_)
            await service.append_event(session, event(timestamp=1000.0 if id_ != "c" else 2000.0))
        listed = await service.list_sessions(app_name=app)
        assert [(s.user_id, s.id) for s in listed.sessions] == [
            ("u", "a"),
            ("u", "b"),
            ("v", "b"),
            ("u", "c"),
        ]
        assert all(s.events == [] for s in listed)
        assert listed[0].state == {"id": "a", "user:u": "u", "app:a": 1}
        assert listed[2].state == {"id": "b", "user:u": "v", "app:a": 1}
        assert [s.id for s in await service.list_sessions(app, "u")] == ["a", "b", "c"]
        assert len(await service.list_sessions(app, "")) == 0
        assert len(await service.list_sessions(app + "2")) == 0
        assert await service.count_sessions(app) == 4
        assert await service.count_sessions(app, "v") == 1
        assert await service.count_sessions(app, "") == 0
        await service.append_event(listed[0], event("onto a listed session"))
        assert len((await reload(service, listed[0])).events) == 2

    async def test_delete(self, make: Make, app: str) -> None:
        """42, 43"""
        service, other = make(), make()
        session = await service.create_session(app, "u", {"k": 1, "user:u": 1, "app:a": 1}, "s")
        await service.append_event(session, event())
        assert len((await reload(other, session)).events) == 1
        await service.delete_session(app, "u", "s")
        await service.delete_session(app_name=app, user_id="u", session_id="s")
        assert await other.get_session(app, "u", "s") is None
        assert len(await other.list_sessions(app)) == 0
        again = await other.create_session(app, "u", session_id="s")
        assert again.state == {"user:u": 1, "app:a": 1}
        for reader in (service, other):
            assert (await reload(reader, again)).events == []
        with pytest.raises(StaleSessionError):
            await service.append_event(session, event("of the deleted one"))

    async def test_user_state(self, service: TieredSessionService, app: str) -> None:
        """44"""
        assert await service.get_user_state(app, "u") == {}
        await service.create_session(app, "u", {"user:a": [1], "app:b": 2, "c": 3})
        state = await service.get_user_state(app_name=app, user_id="u")
        state["a"].append(2)
        assert await service.get_user_state(app, "u") == {"a": [1]}
        assert await service.get_user_state(app, "v") == {}

    async def test_flush_and_prepare_may_be_repeated(self, make: Make, app: str) -> None:
        """45, 48"""
        services = [make() for _ in range(3)]
        await services[0].flush()
        await asyncio.gather(*(service.prepare_tables() for service in services))
        await services[0].prepare_tables()
        session = await services[0].create_session(app, "u")
        await services[0].append_event(session, event())
        await services[0].flush()
        assert len((await reload(services[1], session)).events) == 1

    async def test_close_leaves_a_given_engine_open(self, store_url: str, cache: Any, app: str) -> None:
        """46"""
        engine = create_async_engine(store_url)
        try:
            async with TieredSessionService(db_engine=engine, cache=cache) as service:
                assert service.db_engine is engine
                session = await service.create_session(app, "u")
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
            async with TieredSessionService(db_engine=engine, cache=cache) as service:
                assert await reload(service, session) == session
        finally:
            await engine.dispose()

    async def test_close_leaves_no_task(self, store_url: str, cache: Any, app: str, tmp_path: Path) -> None:
        """46"""
        before = asyncio.all_tasks()
        service = TieredSessionService(store_url, cache=cache)
        session = await service.create_session(app, "u")
        await service.append_event(session, event(k=1))
        await service.close()
        assert asyncio.all_tasks() == before
        await service.close()
        assert (await reload(service, session)).state == {"k": 1}
        await service.close()
        assert asyncio.all_tasks() == before
