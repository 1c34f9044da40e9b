"""Items 23-37 of the conformance list: appending, on stock's service and on ours."""

from __future__ import annotations

import asyncio
import copy
from typing import Any
from uuid import UUID

import pytest
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.sessions.session import Session
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from tests.adk.conformance import Make, conversation, event, on_both, reload, texts
from tiered_sessions.adk import StaleSessionError
from tiered_sessions.errors import EventIdConflictError

pytestmark = on_both


async def test_item_23_partial_event_is_returned_untouched(service: Any, app: str) -> None:
    session = Session(id="nowhere", app_name=app, user_id="u", state={"k": 1}, last_update_time=5.0)
    chunk = event(**{"temp:t": 1, "k": 2})
    chunk.partial = True
    assert await service.append_event(session, chunk) is chunk
    assert chunk.actions.state_delta == {"temp:t": 1, "k": 2}
    assert (session.state, session.events, session.last_update_time) == ({"k": 1}, [], 5.0)
    assert await service.get_session(app_name=app, user_id="u", session_id="nowhere") is None


async def test_item_24_temp_goes_to_the_object_and_out_of_the_delta(service: Any, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    sent = event(**{"temp:t": 1, "k": 2, "user:u": 3, "app:a": 4})
    delta = sent.actions.state_delta
    await service.append_event(session, sent)
    assert sent.actions.state_delta == {"k": 2, "user:u": 3, "app:a": 4}
    assert sent.actions.state_delta is not delta
    assert session.state == {"temp:t": 1, "k": 2, "user:u": 3, "app:a": 4}
    loaded = await reload(service, session)
    assert loaded.state == {"k": 2, "user:u": 3, "app:a": 4}
    assert loaded.events[0].actions.state_delta == sent.actions.state_delta


async def test_item_24_25_temp_stays_when_storing_fails(service: Any, app: str) -> None:
    session = Session(id="nowhere", app_name=app, user_id="u")
    sent = event(**{"temp:t": 1, "k": 2})
    with pytest.raises(SessionNotFoundError, match=r"^Session nowhere not found\.$"):
        await service.append_event(session, sent)
    assert session.state == {"temp:t": 1}
    assert sent.actions.state_delta == {"k": 2}
    assert session.events == []


async def test_item_25_deleted_session_is_not_found(make: Make, app: str) -> None:
    ours, theirs = make(), make()
    session = await ours.create_session(app_name=app, user_id="u")
    await ours.append_event(session, event())
    await theirs.delete_session(app_name=app, user_id="u", session_id=session.id)
    with pytest.raises(SessionNotFoundError):
        await ours.append_event(session, event())
    assert len(session.events) == 1


async def test_item_26_27_stale_append_leaves_nothing(make: Make, app: str) -> None:
    ours, theirs = make(), make()
    session = await ours.create_session(app_name=app, user_id="u", state={"k": 0})
    old = await reload(theirs, session)
    await ours.append_event(session, event("first", k=1))
    with pytest.raises(StaleSessionError, match="has been modified in storage since it was loaded") as raised:
        await theirs.append_event(old, event("late", k=2, **{"user:u": 1, "app:a": 1}))
    assert isinstance(raised.value, ValueError)
    assert (old.events, old.state) == ([], {"k": 0})
    fresh = await reload(theirs, session)
    assert texts(fresh) == ["first"]
    assert fresh.state == {"k": 1}
    await theirs.append_event(fresh, event("again", k=3))
    assert (await reload(ours, session)).state == {"k": 3}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda session: session.model_copy(deep=True)])
async def test_item_26_a_copy_keeps_the_marker(service: Any, app: str, copied: Any) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    old = copied(session)
    await service.append_event(copied(session), event("first"))
    with pytest.raises(StaleSessionError):
        await service.append_event(old, event("late"))
    assert texts(await reload(service, session)) == ["first"]


async def test_item_26_session_made_by_hand(service: Any, app: str) -> None:
    session = await conversation(service, app)

    def by_hand(**fields: Any) -> Session:
        return Session(id=session.id, app_name=app, user_id="u", **fields)

    for stale in (by_hand(), by_hand(last_update_time=1003.0), by_hand(events=session.events[:2])):
        with pytest.raises(StaleSessionError):
            await service.append_event(stale, event("stale"))
    await service.append_event(by_hand(last_update_time=1004.0), event("timed", timestamp=1005.0))
    held = (await reload(service, session)).events
    await service.append_event(by_hand(events=held), event("held", timestamp=1006.0))
    assert texts(await reload(service, session))[5:] == ["timed", "held"]


async def test_item_26_empty_session_made_by_hand(service: Any, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    by_hand = Session(id=session.id, app_name=app, user_id="u")
    await service.append_event(by_hand, event("first"))
    assert texts(await reload(service, session)) == texts(by_hand) == ["first"]


async def test_item_28_29_34_success_updates_store_and_object(service: Any, app: str) -> None:
    state = {"a": {"x": 1}, "b": 1, "user:c": 1}
    session = await service.create_session(app_name=app, user_id="u", state=state)
    sent = event(timestamp=1000.25, **{"a": {"y": 2}, "b": None, "user:c": 3, "app:d": 4})
    sent.invocation_id = ""
    marker = session._storage_update_marker
    assert await service.append_event(session=session, event=sent) is session.events[-1]
    wanted = {"a": {"y": 2}, "b": None, "user:c": 3, "app:d": 4}
    assert session.state == wanted
    assert session.last_update_time == 1000.25
    assert session._storage_update_marker != marker
    loaded = await reload(service, session)
    assert loaded.state == wanted
    assert loaded == session
    assert loaded._storage_update_marker == session._storage_update_marker
    assert UUID(loaded.events[0].id).version == 4


async def test_item_28_time_may_move_backwards(service: Any, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    for timestamp in (2000.0, 1000.0):
        await service.append_event(session, event(timestamp=timestamp))
        assert session.last_update_time == timestamp
        assert (await reload(service, session)).last_update_time == timestamp


async def test_item_30_concurrent_appends_on_one_object(service: Any, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    events = [event(str(n), timestamp=1000.0 + n, **{f"k{n}": n}) for n in range(10)]
    await asyncio.gather(*(service.append_event(session, sent) for sent in events))
    loaded = await reload(service, session)
    assert sorted(texts(loaded)) == sorted(texts(session)) == [str(n) for n in range(10)]
    assert loaded.state == session.state == {f"k{n}": n for n in range(10)}


async def test_item_31_concurrent_load_and_append(service: Any, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")

    async def load_and_append(n: int) -> str:
        mine = await reload(service, session)
        await service.append_event(mine, event(str(n), **{str(n): n}))
        return str(n)

    results = await asyncio.gather(*(load_and_append(n) for n in range(10)), return_exceptions=True)
    won = [result for result in results if isinstance(result, str)]
    assert won
    assert all(isinstance(result, StaleSessionError) for result in results if result not in won)
    loaded = await reload(service, session)
    assert sorted(texts(loaded)) == sorted(won)
    assert sorted(loaded.state) == sorted(won)


@pytest.mark.differs(
    stock="the driver's IntegrityError, whatever the event holds",
    ours="an equal event is stored once; another of its id is an EventIdConflictError, a ValueError",
)
async def test_item_32_same_event_twice(make: Make, app: str, implementation: str) -> None:
    service, other = make(), make()
    session = await service.create_session(app_name=app, user_id="u")
    first = event("first", id="e1", timestamp=1000.0, k=1)
    await service.append_event(session, first)
    if implementation == "stock":
        with pytest.raises(IntegrityError):
            await service.append_event(session, first)
        return
    await service.append_event(session, first)
    await service.append_event(session, event("second", id="e2", timestamp=1001.0, k=2))
    await service.append_event(session, first.model_copy(deep=True))
    assert texts(session) == ["first", "second"]
    assert session.state == {"k": 2}
    loaded = await reload(other, session)
    assert texts(loaded) == ["first", "second"]
    with pytest.raises(EventIdConflictError, match="e1") as raised:
        await other.append_event(loaded, event("different", id="e1", timestamp=1000.0))
    assert isinstance(raised.value, ValueError)


async def test_item_33_windowed_object_may_be_appended_to(service: Any, app: str) -> None:
    session = await conversation(service, app)
    for window in (1, 0):
        part = await reload(service, session, num_recent_events=window)
        await service.append_event(part, event(f"w{window}", timestamp=1009.0 - window))
        assert texts(part) == [*["4"][:window], f"w{window}"]
    assert sorted(texts(await reload(service, session))) == ["0", "1", "2", "3", "4", "w0", "w1"]


@pytest.mark.differs(stock="ValueError: App state missing, User state missing", ours="the row is made again")
@pytest.mark.parametrize(("table", "message"), [("app_states", "App"), ("user_states", "User")])
async def test_item_35_shared_row_lost_by_hand(
    service: Any, app: str, implementation: str, table: str, message: str
) -> None:
    session = await service.create_session(app_name=app, user_id="u", state={"k": 1})
    async with service.db_engine.connect() as connection:
        await connection.execute(text(f"DELETE FROM {table} WHERE app_name = :app"), {"app": app})
        await connection.commit()
    sent = event(**{"k": 2, "app:a": 1, "user:b": 2})
    if implementation == "stock":
        with pytest.raises(ValueError, match=f"{message} state missing"):
            await service.append_event(session, sent)
        return
    await service.append_event(session, sent)
    assert session.state == {"k": 2, "app:a": 1, "user:b": 2}
    assert (await reload(service, session)).state == session.state


@pytest.mark.differs(
    stock="the marker is a time: an append between two of one timestamp goes unseen",
    ours="the marker is the tag of the row: it is stale",
)
async def test_item_36_equal_timestamps(make: Make, app: str, implementation: str) -> None:
    service, other = make(), make()
    session = await service.create_session(app_name=app, user_id="u")
    await service.append_event(session, event("a", timestamp=1000.0))
    old = await reload(other, session)
    await service.append_event(session, event("b", timestamp=1000.0))
    if implementation == "stock":
        await other.append_event(old, event("c", timestamp=1000.0))
        return
    with pytest.raises(StaleSessionError):
        await other.append_event(old, event("c", timestamp=1000.0))
    assert texts(await reload(service, session)) == ["a", "b"]


async def test_item_37_session_of_another_service(make: Make, app: str) -> None:
    session = await make().create_session(app_name=app, user_id="u")
    for n in range(3):
        await make().append_event(session, event(str(n), timestamp=1000.0 + n))
    assert texts(await reload(make(), session)) == ["0", "1", "2"]
