"""The service reads sessions: items 12 - 22 of the conformance list, on every store and cache."""

from __future__ import annotations

from typing import Any

from tests.conformance.service_rig import OnEveryStoreAndCache, authors, conversation, event, reload
from tiered_sessions import (
    Event,
    EventActions,
    TieredSessionService,
)


class TestGet(OnEveryStoreAndCache):
    """What a get returns, and which events come with it."""

    async def test_unknown_is_none_and_reading_makes_nothing(
        self, service: TieredSessionService, app: str
    ) -> None:
        """12, 21"""
        assert await service.get_session(app, "u", "s") is None
        session = await service.create_session(app, "u", session_id="s")
        assert await service.get_session(app, "v", "s") is None
        assert await service.get_session(app + "2", "u", "s") is None
        assert [found.id for found in await service.list_sessions(app)] == ["s"]
        loaded = [await reload(service, session) for _ in range(3)]
        assert loaded[0] == loaded[1] == loaded[2]
        assert loaded[0]._tag == session._tag

    async def test_windows(self, service: TieredSessionService, app: str) -> None:
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

    async def test_order_is_that_of_appending(self, service: TieredSessionService, app: str) -> None:
        """18"""
        session = await service.create_session(app, "u")
        for id_, timestamp in (("zz", 1000.0), ("aa", 1000.0), ("mm", 1000.0), ("old", 500.0)):
            await service.append_event(session, event(id_, timestamp, id_))
        for _ in range(2):
            loaded = await reload(service, session)
            assert authors(loaded) == ["zz", "aa", "mm", "old"]
            assert loaded.last_update_time == 500.0
        assert authors(await reload(service, session, num_recent_events=1)) == ["old"]

    async def test_event_comes_back_equal(self, service: TieredSessionService, app: str) -> None:
        """19, 20"""
        session = await service.create_session(app, "u")
        sent = Event(
            id="e",
            invocation_id="i",
            author="agent",
            content={
                "role": "model",
                "parts": [{"text": "é😀 'q\" \\ \n\t"}, {"inline_data": {"data": "_wA="}}],
            },
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
