"""The service appends: items 23 - 37 of the conformance list, on every store and cache."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from tests.conformance.service_rig import Make, OnEveryStoreAndCache, authors, conversation, event, reload
from tiered_sessions import (
    EventIdConflictError,
    Session,
    SessionNotFoundError,
    StaleSessionError,
    TieredSessionService,
)


class TestAppend(OnEveryStoreAndCache):
    """What an append changes, in the store and on the object."""

    async def test_partial_event_is_returned_untouched(self, service: TieredSessionService, app: str) -> None:
        """23"""
        session = Session(id="nowhere", app_name=app, user_id="u", state={"k": 1}, last_update_time=5.0)
        chunk = event(**{"temp:t": 1, "k": 2})
        chunk.partial = True
        assert await service.append_event(session, chunk) is chunk
        assert chunk.actions.state_delta == {"temp:t": 1, "k": 2}
        assert (session.state, session.events, session.last_update_time) == ({"k": 1}, [], 5.0)
        assert chunk.id == ""

    async def test_temp_goes_to_the_object_and_out_of_the_delta(
        self, service: TieredSessionService, app: str
    ) -> None:
        """24"""
        session = await service.create_session(app, "u")
        sent = event(**{"temp:t": 1, "k": 2, "user:u": 3, "app:a": 4})
        delta = sent.actions.state_delta
        await service.append_event(session, sent)
        assert sent.actions.state_delta == {"k": 2, "user:u": 3, "app:a": 4}
        assert sent.actions.state_delta is not delta
        assert session.state == {"temp:t": 1, "k": 2, "user:u": 3, "app:a": 4}
        loaded = await reload(service, session)
        assert loaded.state == {"k": 2, "user:u": 3, "app:a": 4}
        assert loaded.events[0].actions.state_delta == sent.actions.state_delta

    async def test_temp_stays_when_storing_fails(self, service: TieredSessionService, app: str) -> None:
        """24, 25"""
        session = Session(id="nowhere", app_name=app, user_id="u")
        sent = event(**{"temp:t": 1, "k": 2})
        with pytest.raises(SessionNotFoundError, match="Session nowhere not found"):
            await service.append_event(session, sent)
        assert session.state == {"temp:t": 1}
        assert sent.actions.state_delta == {"k": 2}
        assert session.events == []

    async def test_deleted_session_is_not_found(self, make: Make, app: str) -> None:
        """25"""
        ours, theirs = make(), make()
        session = await ours.create_session(app, "u")
        await ours.append_event(session, event())
        await theirs.delete_session(app, "u", session.id)
        with pytest.raises(SessionNotFoundError):
            await ours.append_event(session, event())
        assert len(session.events) == 1

    async def test_stale_append_leaves_nothing(self, make: Make, app: str) -> None:
        """26, 27"""
        ours, theirs = make(), make()
        session = await ours.create_session(app, "u", {"k": 0})
        old = await reload(theirs, session)
        await ours.append_event(session, event("first", k=1))
        with pytest.raises(StaleSessionError):
            await theirs.append_event(old, event("late", k=2, **{"user:u": 1, "app:a": 1}))
        assert (old.events, old.state) == ([], {"k": 0})
        fresh = await reload(theirs, session)
        assert authors(fresh) == ["first"]
        assert fresh.state == {"k": 1}
        await theirs.append_event(fresh, event("again", k=3))
        assert (await reload(ours, session)).state == {"k": 3}

    async def test_session_made_by_hand(self, service: TieredSessionService, app: str) -> None:
        """26"""
        session = await conversation(service, app)

        def by_hand(**fields: Any) -> Session:
            return Session(id=session.id, app_name=app, user_id="u", **fields)

        with pytest.raises(StaleSessionError):
            await service.append_event(by_hand(last_update_time=1003.0), event("stale"))
        with pytest.raises(StaleSessionError):
            await service.append_event(by_hand(events=session.events[:2]), event("stale"))
        await service.append_event(by_hand(last_update_time=1004.0), event("timed", 1005.0))
        await service.append_event(
            by_hand(events=(await reload(service, session)).events), event("held", 1006.0)
        )
        assert authors(await reload(service, session))[5:] == ["timed", "held"]

    async def test_success_updates_store_and_object(self, service: TieredSessionService, app: str) -> None:
        """28, 29, 34"""
        session = await service.create_session(app, "u", {"a": {"x": 1}, "b": 1, "user:c": 1})
        sent = event(timestamp=1000.25, **{"a": {"y": 2}, "b": None, "user:c": 3, "app:d": 4})
        sent.invocation_id = ""
        tag = session._tag
        assert await service.append_event(session, sent) is session.events[-1]
        wanted = {"a": {"y": 2}, "b": None, "user:c": 3, "app:d": 4}
        assert session.state == wanted
        assert session.last_update_time == 1000.25
        assert session._tag != tag
        loaded = await reload(service, session)
        assert loaded.state == wanted
        assert loaded == session
        assert loaded._tag == session._tag
        assert UUID(loaded.events[0].id).version == 4

    async def test_concurrent_appends_on_one_object(self, service: TieredSessionService, app: str) -> None:
        """30"""
        session = await service.create_session(app, "u")
        await asyncio.gather(
            *(service.append_event(session, event(str(n), **{f"k{n}": n})) for n in range(10))
        )
        loaded = await reload(service, session)
        assert sorted(authors(loaded), key=int) == [str(n) for n in range(10)]
        assert authors(loaded) == authors(session)
        assert loaded.state == session.state == {f"k{n}": n for n in range(10)}

    async def test_concurrent_load_and_append(self, make: Make, app: str) -> None:
        """31"""
        services = [make(), make()]
        session = await services[0].create_session(app, "u")

        async def load_and_append(n: int) -> str:
            mine = await reload(services[n % 2], session)
            await services[n % 2].append_event(mine, event(str(n), **{str(n): n}))
            return str(n)

        results = await asyncio.gather(*(load_and_append(n) for n in range(10)), return_exceptions=True)
        won = [result for result in results if isinstance(result, str)]
        assert won
        assert all(isinstance(result, StaleSessionError) for result in results if result not in won)
        loaded = await reload(services[0], session)
        assert sorted(authors(loaded)) == sorted(won)
        assert sorted(loaded.state) == sorted(won)

    async def test_same_event_twice(self, make: Make, app: str) -> None:
        """32"""
        service, other = make(), make()
        session = await service.create_session(app, "u")
        first = event("first", 1000.0, "e1", k=1)
        await service.append_event(session, first)
        await service.append_event(session, first)
        await service.append_event(session, event("second", 1001.0, "e2", k=2))
        await service.append_event(session, first.model_copy(deep=True))
        assert authors(session) == ["first", "second"]
        assert session.state == {"k": 2}
        loaded = await reload(other, session)
        assert authors(loaded) == ["first", "second"]
        with pytest.raises(EventIdConflictError, match="e1"):
            await other.append_event(loaded, event("different", 1000.0, "e1"))
        await service.append_event(session, event("third"))
        assert authors(await reload(service, session)) == ["first", "second", "third"]

    async def test_retry_on_an_object_that_never_learned(self, make: Make, app: str) -> None:
        """32: the answer to the first try was lost; the object is as it was before."""
        service = make()
        session = await service.create_session(app, "u")
        before = await reload(service, session)
        sent = event("first", 1000.0, "e1", k=1)
        await service.append_event(session, sent)
        await service.append_event(before, sent.model_copy(deep=True))
        assert before == session
        await service.append_event(before, event("second"))
        old = await reload(make(), session, num_recent_events=0)
        old._tag = session._tag
        await service.append_event(old, sent.model_copy(deep=True))
        # It missed `second`: what it says next would be said without having seen that.
        with pytest.raises(StaleSessionError):
            await service.append_event(old, event("third"))

    async def test_windowed_object_may_be_appended_to(self, service: TieredSessionService, app: str) -> None:
        """33"""
        session = await conversation(service, app)
        for window in (1, 0):
            await service.append_event(
                await reload(service, session, num_recent_events=window), event(f"w{window}")
            )
        assert authors(await reload(service, session)) == ["0", "1", "2", "3", "4", "w1", "w0"]

    async def test_shared_rows_lost_by_hand(self, service: TieredSessionService, app: str) -> None:
        """35, but mended instead of refused."""
        session = await service.create_session(app, "u", {"k": 1})
        async with service.db_engine.connect() as connection:
            for table in ("app_states", "user_states"):
                await connection.execute(text(f"DELETE FROM {table} WHERE app_name = :app"), {"app": app})
            await connection.commit()
        await service.append_event(session, event(**{"k": 2, "app:a": 1, "user:b": 2}))
        assert session.state == {"k": 2, "app:a": 1, "user:b": 2}
        assert await service.get_user_state(app, "u") == {"b": 2}

    async def test_equal_timestamps_are_no_marker(self, make: Make, app: str) -> None:
        """36"""
        service, other = make(), make()
        session = await service.create_session(app, "u")
        await service.append_event(session, event("a", 1000.0))
        old = await reload(other, session)
        await service.append_event(session, event("b", 1000.0))
        with pytest.raises(StaleSessionError):
            await other.append_event(old, event("c", 1000.0))

    async def test_session_of_another_service(self, make: Make, app: str) -> None:
        """37"""
        session = await make().create_session(app, "u")
        for n in range(3):
            await make().append_event(session, event(str(n)))
        assert authors(await reload(make(), session)) == ["0", "1", "2"]

    async def test_events_together(self, service: TieredSessionService, app: str) -> None:
        session = await service.create_session(app, "u")
        chunk = event("chunk")
        chunk.partial = True
        events = [event("a", 1000.0, k=1, x=1), chunk, event("b", 999.0, k=2, **{"temp:t": 1})]
        assert await service.append_events(session, events) == events
        assert await service.append_events(session, []) == []
        assert session.state == {"k": 2, "x": 1, "temp:t": 1}
        assert session.last_update_time == 999.0
        loaded = await reload(service, session)
        assert authors(loaded) == authors(session) == ["a", "b"]
        assert loaded.state == {"k": 2, "x": 1}
        taken = event("other", id=events[0].id)
        with pytest.raises(EventIdConflictError):
            await service.append_events(session, [event("new", k=9), taken])
        assert await reload(service, session) == loaded

    async def test_state_without_an_event(self, make: Make, app: str) -> None:
        service, other = make(), make()
        session = await service.create_session(app, "u", {"a": 1, "b": 2, "app:x": 1})
        old = await reload(other, session)
        await service.merge_state(session, {"b": None, "user:y": {1}, "temp:t": 1})
        assert session.state == {"a": 1, "b": None, "app:x": 1, "user:y": [1], "temp:t": 1}
        await service.replace_state(session, {"c": 3, "app:x": 2})
        wanted = {"c": 3, "app:x": 2, "user:y": [1]}
        assert session.state == wanted
        loaded = await reload(other, session)
        assert loaded == session
        assert loaded.state == wanted
        with pytest.raises(StaleSessionError):
            await other.merge_state(old, {"b": 3})
        await service.replace_state(session, {})
        assert (await reload(other, session)).state == {"app:x": 2, "user:y": [1]}
