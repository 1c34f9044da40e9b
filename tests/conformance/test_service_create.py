"""The service makes sessions: items 1 - 11 of the conformance list, on every store and cache."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import pytest
from sqlalchemy import text

from tests.conformance.service_rig import Make, OnEveryStoreAndCache, event, reload
from tiered_sessions import (
    Session,
    SessionExistsError,
    TieredSessionService,
)


class TestCreate(OnEveryStoreAndCache):
    """What a create makes, and what it leaves alone."""

    async def test_new_id_is_a_uuid4(self, service: TieredSessionService, app: str) -> None:
        """1"""
        first, second = [await service.create_session(app_name=app, user_id="u") for _ in range(2)]
        assert UUID(first.id).version == 4
        assert first.id != second.id

    async def test_taken_id(self, service: TieredSessionService, app: str) -> None:
        """2"""
        await service.create_session(app, "u", {"k": 1, "app:a": 1}, "s")
        with pytest.raises(SessionExistsError, match="Session with id s already exists"):
            await service.create_session(app, "u", {"k": 2, "app:a": 2, "user:b": 3}, "s")
        kept = await service.get_session(app, "u", "s")
        assert kept is not None
        assert kept.state == {"k": 1, "app:a": 1}
        assert (await service.create_session(app, "other", session_id="s")).id == "s"
        assert (await service.create_session(app + "2", "u", session_id="s")).id == "s"

    async def test_concurrent_creates_have_one_winner(self, make: Make, app: str) -> None:
        """3"""
        services = [make(), make()]
        await asyncio.gather(*(service.prepare_tables() for service in services))
        results = await asyncio.gather(
            *(services[n % 2].create_session(app, "u", {"n": n}, "s") for n in range(10)),
            return_exceptions=True,
        )
        won = [result for result in results if isinstance(result, Session)]
        assert len(won) == 1
        assert all(isinstance(result, SessionExistsError) for result in results if result is not won[0])
        assert (await reload(services[0], won[0])).state == won[0].state

    @pytest.mark.parametrize("id_", [" s ", "   ", "", "S", "é/{}:%"])
    async def test_ids_are_kept_verbatim(self, service: TieredSessionService, app: str, id_: str) -> None:
        """4"""
        await service.create_session(app, "u", {"id": "plain"}, "s")
        session = await service.create_session(app, "u", {"id": id_}, id_)
        assert session.id == id_
        await service.append_event(session, event(seen=id_))
        assert (await reload(service, session)).state == {"id": id_, "seen": id_}
        await service.delete_session(app, "u", id_)
        assert await service.get_session(app, "u", id_) is None
        assert await service.get_session(app, "u", "s") is not None

    async def test_state_is_split_and_merged(self, service: TieredSessionService, app: str) -> None:
        """5, 6"""
        await service.create_session(app, "u", {"app:a": 1, "app:x": 0, "user:b": 1})
        await service.create_session(app, "v", {"user:b": 9})
        session = await service.create_session(app, "u", {"k": 1, "app:a": 2, "user:c": 2, "temp:t": 3})
        wanted = {"k": 1, "app:a": 2, "app:x": 0, "user:b": 1, "user:c": 2}
        assert session.state == wanted
        assert (await reload(service, session)).state == wanted

    async def test_shared_rows_are_made_without_keys(self, service: TieredSessionService, app: str) -> None:
        """7"""
        await service.create_session(app, "u")
        async with service.db_engine.connect() as connection:
            for table in ("app_states", "user_states"):
                found = await connection.execute(
                    text(f"SELECT state FROM {table} WHERE app_name = :app"), {"app": app}
                )
                assert len(found.all()) == 1

    async def test_new_session_is_empty_and_dated(self, service: TieredSessionService, app: str) -> None:
        """8"""
        before = datetime.now(UTC).timestamp()
        session = await service.create_session(app, "u")
        assert session.events == []
        assert before - 0.001 <= session.last_update_time <= datetime.now(UTC).timestamp()
        assert (await reload(service, session)).last_update_time == session.last_update_time

    async def test_values_are_made_json_and_none_is_kept(
        self, service: TieredSessionService, app: str
    ) -> None:
        """9, 10"""
        state = {"when": datetime(2026, 1, 2), "tuple": (1, (2,)), "f": print, "none": None, "app:none": None}
        session = await service.create_session(app, "u", state)
        assert session.state == {
            "when": "2026-01-02T00:00:00",
            "tuple": [1, [2]],
            "f": repr(print),
            "none": None,
            "app:none": None,
        }
        assert (await reload(service, session)).state == session.state

    async def test_objects_are_isolated(self, service: TieredSessionService, app: str) -> None:
        """11, 22"""
        given = {"list": [1]}
        session = await service.create_session(app, "u", given)
        given["list"].append(2)
        session.state["list"].append(3)
        first, second = await reload(service, session), await reload(service, session)
        assert first.state == second.state == {"list": [1]}
        first.state["list"].append(4)
        first.events.append(event())
        assert second.state == {"list": [1]}
        assert second.events == []
        assert (await reload(service, session)).state == {"list": [1]}
