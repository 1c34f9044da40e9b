"""The service's behaviour, item by item of the conformance list, on every store and cache.

A number in a docstring is the item's. Items 41 (no paging), 47 and 49 (constructors) are unit tests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers import CACHES, STORES
from tiered_sessions import (
    Event,
    EventActions,
    EventIdConflictError,
    GetSessionConfig,
    Session,
    SessionExistsError,
    SessionNotFoundError,
    StaleSessionError,
    TieredSessionService,
)

FULL = [(store, cache) for store in STORES for cache in ("none", "memory", "redis")]
FULL += [("sqlite", cache) for cache in CACHES if ("sqlite", cache) not in FULL]

pytestmark = pytest.mark.parametrize(("store_url", "cache"), FULL, indirect=True)

Make = Callable[[], TieredSessionService]


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One file for the module, as the other databases are: every test has an app of its own."""
    return f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('conformance') / 'sessions.db'}"


@pytest.fixture
async def make(store_url: str, cache: Any) -> AsyncIterator[Make]:
    """Makes services over one database and one cache, as processes of a fleet would."""
    async with contextlib.AsyncExitStack() as stack:
        made: list[TieredSessionService] = []

        def one() -> TieredSessionService:
            made.append(TieredSessionService(store_url, cache=cache, pool_size=4))
            stack.push_async_callback(made[-1].close)
            return made[-1]

        yield one


@pytest.fixture
def service(make: Make) -> TieredSessionService:
    return make()


@pytest.fixture
def app() -> str:
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


# --- create -------------------------------------------------------------------------------------


async def test_new_id_is_a_uuid4(service: TieredSessionService, app: str) -> None:
    """1"""
    first, second = [await service.create_session(app_name=app, user_id="u") for _ in range(2)]
    assert UUID(first.id).version == 4
    assert first.id != second.id


async def test_taken_id(service: TieredSessionService, app: str) -> None:
    """2"""
    await service.create_session(app, "u", {"k": 1, "app:a": 1}, "s")
    with pytest.raises(SessionExistsError, match="Session with id s already exists"):
        await service.create_session(app, "u", {"k": 2, "app:a": 2, "user:b": 3}, "s")
    kept = await service.get_session(app, "u", "s")
    assert kept is not None
    assert kept.state == {"k": 1, "app:a": 1}
    assert (await service.create_session(app, "other", session_id="s")).id == "s"
    assert (await service.create_session(app + "2", "u", session_id="s")).id == "s"


async def test_concurrent_creates_have_one_winner(make: Make, app: str) -> None:
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
async def test_ids_are_kept_verbatim(service: TieredSessionService, app: str, id_: str) -> None:
    """4"""
    await service.create_session(app, "u", {"id": "plain"}, "s")
    session = await service.create_session(app, "u", {"id": id_}, id_)
    assert session.id == id_
    await service.append_event(session, event(seen=id_))
    assert (await reload(service, session)).state == {"id": id_, "seen": id_}
    await service.delete_session(app, "u", id_)
    assert await service.get_session(app, "u", id_) is None
    assert await service.get_session(app, "u", "s") is not None


async def test_state_is_split_and_merged(service: TieredSessionService, app: str) -> None:
    """5, 6"""
    await service.create_session(app, "u", {"app:a": 1, "app:x": 0, "user:b": 1})
    await service.create_session(app, "v", {"user:b": 9})
    session = await service.create_session(app, "u", {"k": 1, "app:a": 2, "user:c": 2, "temp:t": 3})
    wanted = {"k": 1, "app:a": 2, "app:x": 0, "user:b": 1, "user:c": 2}
    assert session.state == wanted
    assert (await reload(service, session)).state == wanted


async def test_shared_rows_are_made_without_keys(service: TieredSessionService, app: str) -> None:
    """7"""
    await service.create_session(app, "u")
    async with service.db_engine.connect() as connection:
        for table in ("app_states", "user_states"):
            found = await connection.execute(
                text(f"SELECT state FROM {table} WHERE app_name = :app"), {"app": app}
            )
            assert len(found.all()) == 1


async def test_new_session_is_empty_and_dated(service: TieredSessionService, app: str) -> None:
    """8"""
    before = datetime.now(UTC).timestamp()
    session = await service.create_session(app, "u")
    assert session.events == []
    assert before - 0.001 <= session.last_update_time <= datetime.now(UTC).timestamp()
    assert (await reload(service, session)).last_update_time == session.last_update_time


async def test_values_are_made_json_and_none_is_kept(service: TieredSessionService, app: str) -> None:
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


async def test_objects_are_isolated(service: TieredSessionService, app: str) -> None:
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


# --- get ----------------------------------------------------------------------------------------


async def test_unknown_is_none_and_reading_makes_nothing(service: TieredSessionService, app: str) -> None:
    """12, 21"""
    assert await service.get_session(app, "u", "s") is None
    session = await service.create_session(app, "u", session_id="s")
    assert await service.get_session(app, "v", "s") is None
    assert await service.get_session(app + "2", "u", "s") is None
    assert [found.id for found in await service.list_sessions(app)] == ["s"]
    loaded = [await reload(service, session) for _ in range(3)]
    assert loaded[0] == loaded[1] == loaded[2]
    assert loaded[0]._tag == session._tag


async def conversation(service: TieredSessionService, app: str) -> Session:
    session = await service.create_session(app, "u", {"k": 0, "user:u": 1})
    for n in range(5):
        await service.append_event(session, event(str(n), 1000.0 + n, k=n))
    return session


async def test_windows(service: TieredSessionService, app: str) -> None:
    """13 - 17"""
    session = await conversation(service, app)
    wanted: list[tuple[dict[str, Any], str]] = [
        ({}, "01234"),
        ({"num_recent_events": 2}, "34"),
        ({"num_recent_events": 9}, "01234"),
        ({"num_recent_events": 0}, ""),
        ({"after_timestamp": 1002.0}, "234"),
        ({"after_timestamp": 1002.5}, "34"),
        ({"after_timestamp": 0.0}, "01234"),
        ({"after_timestamp": 2000.0}, ""),
        ({"after_timestamp": 1001.0, "num_recent_events": 2}, "34"),
        ({"after_timestamp": 1004.0, "num_recent_events": 3}, "4"),
    ]
    for _ in range(2):
        for window, found in wanted:
            loaded = await reload(service, session, **window)
            assert "".join(authors(loaded)) == found, window
            assert loaded.state == {"k": 4, "user:u": 1}


async def test_order_is_that_of_appending(service: TieredSessionService, app: str) -> None:
    """18"""
    session = await service.create_session(app, "u")
    for id_, timestamp in (("zz", 1000.0), ("aa", 1000.0), ("mm", 1000.0), ("old", 500.0)):
        await service.append_event(session, event(id_, timestamp, id_))
    for _ in range(2):
        loaded = await reload(service, session)
        assert authors(loaded) == ["zz", "aa", "mm", "old"]
        assert loaded.last_update_time == 500.0
    assert authors(await reload(service, session, num_recent_events=1)) == ["old"]


async def test_event_comes_back_equal(service: TieredSessionService, app: str) -> None:
    """19, 20"""
    session = await service.create_session(app, "u")
    sent = Event(
        id="e",
        invocation_id="i",
        author="agent",
        content={"role": "model", "parts": [{"text": "é😀 'q\" \\ \n\t"}, {"inline_data": {"data": "_wA="}}]},
        timestamp=1700000000.1234567,
        branch="a.b",
        long_running_tool_ids={"y", "x"},
        custom_metadata={"deep": [{"f": 1.5, "i": 2**70, "n": None, "zero": 0.0}]},
        actions=EventActions(
            state_delta={"a": {"b": [1, 2.0]}}, artifact_delta={"f": 3}, transfer_to_agent="b"
        ),
        avg_logprobs=-0.25,  # type: ignore[call-arg]
    )
    returned = await service.append_event(session, sent)
    assert returned is sent
    for _ in range(3):
        (found,) = (await reload(service, session)).events
        assert found == sent
        assert repr(found.custom_metadata) == repr(sent.custom_metadata)
        assert repr(found.timestamp) == repr(sent.timestamp)


# --- append -------------------------------------------------------------------------------------


async def test_partial_event_is_returned_untouched(service: TieredSessionService, app: str) -> None:
    """23"""
    session = Session(id="nowhere", app_name=app, user_id="u", state={"k": 1}, last_update_time=5.0)
    chunk = event(**{"temp:t": 1, "k": 2})
    chunk.partial = True
    assert await service.append_event(session, chunk) is chunk
    assert chunk.actions.state_delta == {"temp:t": 1, "k": 2}
    assert (session.state, session.events, session.last_update_time) == ({"k": 1}, [], 5.0)
    assert chunk.id == ""


async def test_temp_goes_to_the_object_and_out_of_the_delta(service: TieredSessionService, app: str) -> None:
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


async def test_temp_stays_when_storing_fails(service: TieredSessionService, app: str) -> None:
    """24, 25"""
    session = Session(id="nowhere", app_name=app, user_id="u")
    sent = event(**{"temp:t": 1, "k": 2})
    with pytest.raises(SessionNotFoundError, match="Session nowhere not found"):
        await service.append_event(session, sent)
    assert session.state == {"temp:t": 1}
    assert sent.actions.state_delta == {"k": 2}
    assert session.events == []


async def test_deleted_session_is_not_found(make: Make, app: str) -> None:
    """25"""
    ours, theirs = make(), make()
    session = await ours.create_session(app, "u")
    await ours.append_event(session, event())
    await theirs.delete_session(app, "u", session.id)
    with pytest.raises(SessionNotFoundError):
        await ours.append_event(session, event())
    assert len(session.events) == 1


async def test_stale_append_leaves_nothing(make: Make, app: str) -> None:
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


async def test_session_made_by_hand(service: TieredSessionService, app: str) -> None:
    """26"""
    session = await conversation(service, app)

    def by_hand(**fields: Any) -> Session:
        return Session(id=session.id, app_name=app, user_id="u", **fields)

    with pytest.raises(StaleSessionError):
        await service.append_event(by_hand(last_update_time=1003.0), event("stale"))
    with pytest.raises(StaleSessionError):
        await service.append_event(by_hand(events=session.events[:2]), event("stale"))
    await service.append_event(by_hand(last_update_time=1004.0), event("timed", 1005.0))
    await service.append_event(by_hand(events=(await reload(service, session)).events), event("held", 1006.0))
    assert authors(await reload(service, session))[5:] == ["timed", "held"]


async def test_success_updates_store_and_object(service: TieredSessionService, app: str) -> None:
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


async def test_concurrent_appends_on_one_object(service: TieredSessionService, app: str) -> None:
    """30"""
    session = await service.create_session(app, "u")
    await asyncio.gather(*(service.append_event(session, event(str(n), **{f"k{n}": n})) for n in range(10)))
    loaded = await reload(service, session)
    assert sorted(authors(loaded), key=int) == [str(n) for n in range(10)]
    assert authors(loaded) == authors(session)
    assert loaded.state == session.state == {f"k{n}": n for n in range(10)}


async def test_concurrent_load_and_append(make: Make, app: str) -> None:
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


async def test_same_event_twice(make: Make, app: str) -> None:
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


async def test_retry_on_an_object_that_never_learned(make: Make, app: str) -> None:
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


async def test_windowed_object_may_be_appended_to(service: TieredSessionService, app: str) -> None:
    """33"""
    session = await conversation(service, app)
    for window in (1, 0):
        await service.append_event(
            await reload(service, session, num_recent_events=window), event(f"w{window}")
        )
    assert authors(await reload(service, session)) == ["0", "1", "2", "3", "4", "w1", "w0"]


async def test_shared_rows_lost_by_hand(service: TieredSessionService, app: str) -> None:
    """35, but mended instead of refused."""
    session = await service.create_session(app, "u", {"k": 1})
    async with service.db_engine.connect() as connection:
        for table in ("app_states", "user_states"):
            await connection.execute(text(f"DELETE FROM {table} WHERE app_name = :app"), {"app": app})
        await connection.commit()
    await service.append_event(session, event(**{"k": 2, "app:a": 1, "user:b": 2}))
    assert session.state == {"k": 2, "app:a": 1, "user:b": 2}
    assert await service.get_user_state(app, "u") == {"b": 2}


async def test_equal_timestamps_are_no_marker(make: Make, app: str) -> None:
    """36"""
    service, other = make(), make()
    session = await service.create_session(app, "u")
    await service.append_event(session, event("a", 1000.0))
    old = await reload(other, session)
    await service.append_event(session, event("b", 1000.0))
    with pytest.raises(StaleSessionError):
        await other.append_event(old, event("c", 1000.0))


async def test_session_of_another_service(make: Make, app: str) -> None:
    """37"""
    session = await make().create_session(app, "u")
    for n in range(3):
        await make().append_event(session, event(str(n)))
    assert authors(await reload(make(), session)) == ["0", "1", "2"]


async def test_events_together(service: TieredSessionService, app: str) -> None:
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


async def test_state_without_an_event(make: Make, app: str) -> None:
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


# --- list, delete, user state, life cycle ---------------------------------------------------------


async def test_list(service: TieredSessionService, app: str) -> None:
    """38 - 40"""
    for user, id_ in (("u", "c"), ("v", "b"), ("u", "a"), ("u", "b")):
        session = await service.create_session(app, user, {"id": id_, "user:u": user, "app:a": 1}, id_)
        await service.append_event(session, event(timestamp=1000.0 if id_ != "c" else 2000.0))
    listed = await service.list_sessions(app_name=app)
    assert [(s.user_id, s.id) for s in listed.sessions] == [("u", "a"), ("u", "b"), ("v", "b"), ("u", "c")]
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


async def test_delete(make: Make, app: str) -> None:
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


async def test_user_state(service: TieredSessionService, app: str) -> None:
    """44"""
    assert await service.get_user_state(app, "u") == {}
    await service.create_session(app, "u", {"user:a": [1], "app:b": 2, "c": 3})
    state = await service.get_user_state(app_name=app, user_id="u")
    state["a"].append(2)
    assert await service.get_user_state(app, "u") == {"a": [1]}
    assert await service.get_user_state(app, "v") == {}


async def test_flush_and_prepare_may_be_repeated(make: Make, app: str) -> None:
    """45, 48"""
    services = [make() for _ in range(3)]
    await services[0].flush()
    await asyncio.gather(*(service.prepare_tables() for service in services))
    await services[0].prepare_tables()
    session = await services[0].create_session(app, "u")
    await services[0].append_event(session, event())
    await services[0].flush()
    assert len((await reload(services[1], session)).events) == 1


async def test_close_leaves_a_given_engine_open(store_url: str, cache: Any, app: str) -> None:
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


async def test_close_leaves_no_task(store_url: str, cache: Any, app: str, tmp_path: Path) -> None:
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
