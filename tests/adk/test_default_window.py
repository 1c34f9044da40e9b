"""`default_window`: what a read without a configuration shows, and that an explicit one is never touched."""

from __future__ import annotations

from typing import Any

import pytest
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions, EventCompaction
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.session import Session
from google.genai import types

from tests.adk.conformance import Make, event, on_ours, reload
from tiered_sessions import TieredConfig
from tiered_sessions.errors import InvalidValueError

pytestmark = on_ours

WINDOW = TieredConfig(default_window=4)


def tool(text: str, timestamp: float) -> Event:
    """Returns an event that calls a tool, or what the tool said."""
    made = event(text, timestamp=timestamp)
    id_, response = text[1:], text[0] == "r"
    part = types.Part(
        function_response=types.FunctionResponse(id=id_, name="f", response={}) if response else None,
        function_call=None if response else types.FunctionCall(id=id_, name="f", args={}),
    )
    assert made.content is not None
    assert made.content.parts is not None
    made.content.parts.append(part)
    return made


def compaction(text: str, timestamp: float, end: float) -> Event:
    """Returns the summary of everything until `end`."""
    made = event(text, timestamp=timestamp)
    summary = types.Content(role="model", parts=[types.Part(text="summary")])
    made.actions.compaction = EventCompaction(
        start_timestamp=0.0, end_timestamp=end, compacted_content=summary
    )
    return made


async def held(service: Any, app: str, *said: str) -> Session:
    """Holds a conversation: `c1` calls, `r1` responds, `s3` sums up until second 3, all else is text."""
    session: Session = await service.create_session(app_name=app, user_id="u", state={"first": 1})
    for second, text in enumerate(said, start=1):
        if text[0] in "cr":
            sent = tool(text, second)
        elif text[0] == "s":
            sent = compaction(text, second, float(text[1:]))
        else:
            sent = event(text, timestamp=second)
        await service.append_event(session, sent)
    return session


def shown(session: Session) -> str:
    return " ".join(e.content.parts[0].text or "" for e in session.events if e.content and e.content.parts)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("a b c", "a b c"),
        ("a b c d e f", "c d e f"),
        ("a c1 b r1 d e f", "c1 b r1 d e f"),
        ("a b s1 c d e f g", "b s1 c d e f g"),
        (" ".join(["c9", *"ab" * 20, "r9", *"xyz"]), " ".join(["c9", *"ab" * 20, "r9", *"xyz"])),
    ],
)
async def test_the_window_makes_sense(make: Make, app: str, said: str, wanted: str) -> None:
    writer, reader = make(), make(config=WINDOW)
    session = await held(writer, app, *said.split())
    for _ in range(2):
        loaded = await reload(reader, session)
        assert shown(loaded) == wanted
        assert loaded.state == {"first": 1}
    assert shown(await reload(writer, session)) == said
    await reader.append_event(loaded, event("more", timestamp=100.0))
    assert shown(await reload(writer, session)) == f"{said} more"


async def test_what_is_asked_for_is_given_exactly(make: Make, app: str) -> None:
    reader = make(config=WINDOW)
    session = await held(reader, app, "a", "c1", "r1", "s1", "b", "c", "d", "e")
    everything = GetSessionConfig()
    who = {"app_name": app, "user_id": "u", "session_id": session.id}
    assert shown(await reader.get_session(**who, config=everything)) == "a c1 r1 s1 b c d e"
    assert shown(await reload(reader, session, num_recent_events=6)) == "r1 s1 b c d e"
    assert shown(await reload(reader, session, num_recent_events=0)) == ""
    assert shown(await reload(reader, session, after_timestamp=7.0)) == "d e"
    assert shown(await reload(reader, session, after_timestamp=1.0)) == "a c1 r1 s1 b c d e"
    assert await reader.get_session(app_name=app, user_id="u", session_id="nobody") is None


async def test_a_rewind_from_part_of_the_history_is_refused(make: Make, app: str) -> None:
    reader = make(config=WINDOW)
    session = await held(reader, app, *"abcdef")
    rewind = Event(
        author="user", actions=EventActions(rewind_before_invocation_id="i", state_delta={"first": None})
    )
    part = await reload(reader, session)
    with pytest.raises(InvalidValueError, match="whole history"):
        await reader.append_event(part, rewind)
    assert (await reload(reader, session)).state == {"first": 1}
    whole = await reload(reader, session, after_timestamp=0.5)
    await reader.append_event(whole, rewind)
    assert (await reload(reader, session)).state == {"first": None}
