"""Items 1-22 of the conformance list: creating and reading sessions, on stock's service and on ours."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.session import Session
from google.genai import types
from pydantic import ValidationError
from sqlalchemy import text

from tests.adk.conformance import Make, conversation, event, on_both, reload, texts

pytestmark = on_both


async def test_item_01_new_id_is_a_uuid4(service: Any, app: str) -> None:
    first, second = [await service.create_session(app_name=app, user_id="u") for _ in range(2)]
    assert UUID(first.id).version == 4
    assert first.id != second.id


async def test_item_02_taken_id(service: Any, app: str) -> None:
    await service.create_session(app_name=app, user_id="u", state={"k": 1, "app:a": 1}, session_id="s")
    with pytest.raises(AlreadyExistsError, match=r"^Session with id s already exists\.$"):
        await service.create_session(app_name=app, user_id="u", state={"k": 2, "app:a": 2}, session_id="s")
    kept = await service.get_session(app_name=app, user_id="u", session_id="s")
    assert kept.state == {"k": 1, "app:a": 1}
    assert (await service.create_session(app_name=app, user_id="v", session_id="s")).id == "s"
    assert (await service.create_session(app_name=app + "2", user_id="u", session_id="s")).id == "s"


async def test_item_03_concurrent_creates_have_one_winner(make: Make, app: str) -> None:
    services = [make(), make()]
    for service in services:
        await service.prepare_tables()
    # Stock's savepoints for the shared rows deadlock on some servers; that is not what is asked here.
    await services[0].create_session(app_name=app, user_id="u")
    results = await asyncio.gather(
        *(
            services[n % 2].create_session(app_name=app, user_id="u", state={"n": n}, session_id="s")
            for n in range(6)
        ),
        return_exceptions=True,
    )
    won = [result for result in results if isinstance(result, Session)]
    assert len(won) == 1
    assert all(isinstance(result, AlreadyExistsError) for result in results if result is not won[0])
    assert (await reload(services[0], won[0])).state == won[0].state


@pytest.mark.parametrize("id_", [" s ", "   ", ""])
async def test_item_04_ids_are_kept_verbatim(service: Any, app: str, id_: str) -> None:
    await service.create_session(app_name=app, user_id="u", state={"id": "plain"}, session_id="s")
    session = await service.create_session(app_name=app, user_id="u", state={"id": id_}, session_id=id_)
    assert session.id == id_
    await service.append_event(session, event(seen=id_))
    assert (await reload(service, session)).state == {"id": id_, "seen": id_}
    await service.delete_session(app_name=app, user_id="u", session_id=id_)
    assert await service.get_session(app_name=app, user_id="u", session_id=id_) is None
    assert await service.get_session(app_name=app, user_id="u", session_id="s") is not None


@pytest.mark.differs(
    stock="on MySQL and MariaDB, ids that differ by case or accents are one id", ours="always two ids"
)
async def test_item_04_ids_that_look_alike(service: Any, app: str, implementation: str, store: str) -> None:
    await service.create_session(app_name=app, user_id="u", state={"id": "s"}, session_id="s")
    other = service.create_session(app_name=app, user_id="u", state={"id": "S"}, session_id="S")
    if (implementation, store) == ("stock", "mariadb"):
        with pytest.raises(AlreadyExistsError):
            await other
        return
    assert (await reload(service, await other)).state == {"id": "S"}


async def test_item_05_06_state_is_split_and_merged(service: Any, app: str) -> None:
    await service.create_session(app_name=app, user_id="u", state={"app:a": 1, "app:x": 0, "user:b": 1})
    await service.create_session(app_name=app, user_id="v", state={"user:b": 9})
    state = {"k": 1, "app:a": 2, "user:c": 2, "temp:t": 3}
    session = await service.create_session(app_name=app, user_id="u", state=state)
    wanted = {"k": 1, "app:a": 2, "app:x": 0, "user:b": 1, "user:c": 2}
    assert session.state == wanted
    assert (await reload(service, session)).state == wanted


async def test_item_07_shared_rows_are_made_without_keys(service: Any, app: str) -> None:
    await service.create_session(app_name=app, user_id="u")
    async with service.db_engine.connect() as connection:
        for table in ("app_states", "user_states"):
            found = await connection.execute(
                text(f"SELECT state FROM {table} WHERE app_name = :app"), {"app": app}
            )
            assert len(found.all()) == 1


async def test_item_08_new_session_is_empty_dated_and_marked(service: Any, app: str) -> None:
    before = datetime.now(UTC).timestamp()
    session = await service.create_session(app_name=app, user_id="u")
    assert session.events == []
    assert before - 0.001 <= session.last_update_time <= datetime.now(UTC).timestamp()
    assert isinstance(session._storage_update_marker, str)
    loaded = await reload(service, session)
    assert loaded.last_update_time == session.last_update_time
    assert loaded._storage_update_marker == session._storage_update_marker


async def test_item_09_10_values_are_made_json_and_none_is_kept(service: Any, app: str) -> None:
    state = {
        "when": datetime(2026, 1, 2),
        "tuple": (1, (2,)),
        "set": {1},
        "keys": {1: "one"},
        "f": print,
        "none": None,
        "app:none": None,
    }
    session = await service.create_session(app_name=app, user_id="u", state=state)
    assert session.state == {
        "when": "2026-01-02T00:00:00",
        "tuple": [1, [2]],
        "set": [1],
        "keys": {"1": "one"},
        "f": repr(print),
        "none": None,
        "app:none": None,
    }
    assert (await reload(service, session)).state == session.state


async def test_item_11_22_objects_are_isolated(service: Any, app: str) -> None:
    given = {"list": [1]}
    session = await service.create_session(app_name=app, user_id="u", state=given)
    given["list"].append(2)
    session.state["list"].append(3)
    first, second = await reload(service, session), await reload(service, session)
    assert first.state == second.state == {"list": [1]}
    first.state["list"].append(4)
    first.events.append(event())
    assert second.state == {"list": [1]}
    assert second.events == []
    assert (await reload(service, session)).state == {"list": [1]}


async def test_item_12_21_unknown_is_none_and_reading_makes_nothing(service: Any, app: str) -> None:
    assert await service.get_session(app_name=app, user_id="u", session_id="s") is None
    session = await service.create_session(app_name=app, user_id="u", session_id="s")
    assert await service.get_session(app_name=app, user_id="v", session_id="s") is None
    assert await service.get_session(app_name=app + "2", user_id="u", session_id="s") is None
    assert [found.id for found in (await service.list_sessions(app_name=app)).sessions] == ["s"]
    assert (await service.list_sessions(app_name=app + "2")).sessions == []
    loaded = [await reload(service, session) for _ in range(3)]
    assert loaded[0] == loaded[1] == loaded[2]
    assert loaded[0]._storage_update_marker == session._storage_update_marker


async def test_item_13_14_15_16_17_windows(service: Any, app: str) -> None:
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
            assert "".join(texts(loaded)) == found, window
            assert loaded.state == {"k": 4, "user:u": 1}


async def test_item_15_negative_window(service: Any, app: str) -> None:
    try:
        config = GetSessionConfig(num_recent_events=-1)
    except ValidationError:
        return
    # Releases of google-adk before 2.13 build it: what follows is ours alone.
    with pytest.raises(ValueError, match="num_recent_events"):
        await service.get_session(app_name=app, user_id="u", session_id="s", config=config)


@pytest.mark.differs(stock="by timestamp, then by id", ours="in the order of appending")
async def test_item_18_order(service: Any, app: str, implementation: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    for id_, timestamp in (("zz", 1000.0), ("aa", 1000.0), ("mm", 1000.0), ("old", 500.0)):
        await service.append_event(session, event(id_, id=id_, timestamp=timestamp))
    sorted_, appended = ["old", "aa", "mm", "zz"], ["zz", "aa", "mm", "old"]
    for _ in range(2):
        loaded = await reload(service, session)
        assert texts(loaded) == (sorted_ if implementation == "stock" else appended)
        assert loaded.last_update_time == 500.0
    newest = await reload(service, session, num_recent_events=1)
    assert texts(newest) == (["zz"] if implementation == "stock" else ["old"])


async def test_item_18_ascending_timestamps_give_one_order(service: Any, app: str) -> None:
    session = await conversation(service, app)
    assert texts(session) == texts(await reload(service, session)) == list("01234")


async def test_item_19_20_event_comes_back_equal(service: Any, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    sent = Event(
        id="e",
        invocation_id="i",
        author="agent",
        content=types.Content(
            role="model",
            parts=[
                types.Part(text="é😀 'q\" \\ \n\t"),
                types.Part(inline_data=types.Blob(data=b"\xff\x00", mime_type="image/png")),
                types.Part(function_call=types.FunctionCall(id="c", name="f", args={"a": [1, 2.5, None]})),
            ],
        ),
        timestamp=1700000000.1234567,
        branch="a.b",
        long_running_tool_ids={"y", "x", "c"},
        custom_metadata={"deep": [{"f": 1.5, "n": None, "zero": 0.0}]},
        turn_complete=True,
        usage_metadata=types.GenerateContentResponseUsageMetadata(total_token_count=7),
        actions=EventActions(
            state_delta={"a": {"b": [1, 2.0]}}, artifact_delta={"f": 3}, transfer_to_agent="b"
        ),
    )
    assert await service.append_event(session, sent) is sent
    for _ in range(3):
        (found,) = (await reload(service, session)).events
        assert found == sent
        assert repr(found.timestamp) == repr(sent.timestamp)
        assert found.long_running_tool_ids == {"y", "x", "c"}


async def test_item_20_stored_json_is_what_stock_stores(service: Any, app: str) -> None:
    session = await service.create_session(app_name=app, user_id="u")
    sent = event("hello", id="e", timestamp=1700000000.5, k=[1])
    await service.append_event(session, sent)
    async with service.db_engine.connect() as connection:
        found = await connection.execute(
            text("SELECT invocation_id, event_data FROM events WHERE app_name = :app"), {"app": app}
        )
        ((invocation, data),) = found.all()
    document = data if isinstance(data, dict) else json.loads(data)
    assert invocation == "i"
    assert document == sent.model_dump(exclude_none=True, mode="json")
