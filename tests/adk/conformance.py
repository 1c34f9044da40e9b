"""What the conformance tests share: which services they run on, and how they speak to them.

A test named `test_item_07_...` (or `test_item_13_14_...`) is the evidence for those numbers of the
conformance list; `matrix.py` reads the names. It runs on stock's `DatabaseSessionService` and on ours, with
the same assertions, unless the mark `differs` says in a word what each does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.adk.events.event import Event
from google.adk.events.event_actions import EventActions
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.session import Session
from google.genai import types

from tests.servers import STORES

Make = Callable[..., Any]

STOCK = [("stock", store, "none") for store in STORES]
OURS = [("ours", store, "redis") for store in STORES] + [
    ("ours", "sqlite", "none"),
    ("ours", "sqlite", "memory"),
]
on_both = pytest.mark.parametrize(("implementation", "store", "cache_name"), STOCK + OURS)
on_ours = pytest.mark.parametrize(("implementation", "store", "cache_name"), OURS)


def event(text: str = "", *, id: str = "", timestamp: float | None = None, **delta: Any) -> Event:
    """Returns an event that says `text` and changes the state by `delta`."""
    made = Event(
        id=id,
        author="user",
        invocation_id="i",
        content=types.Content(role="user", parts=[types.Part(text=text)]),
        actions=EventActions(state_delta=delta),
    )
    if timestamp is not None:
        made.timestamp = timestamp
    return made


async def reload(service: Any, session: Session, **window: Any) -> Session:
    """Reads a session again, with the events that `window` asks for."""
    found = await service.get_session(
        app_name=session.app_name,
        user_id=session.user_id,
        session_id=session.id,
        config=GetSessionConfig(**window) if window else None,
    )
    assert isinstance(found, Session)
    return found


def texts(session: Session) -> list[str]:
    """Returns what was said."""
    return [said(event) for event in session.events]


def said(event: Event) -> str:
    """Returns the text of an event."""
    assert event.content is not None
    assert event.content.parts
    return event.content.parts[0].text or ""


async def conversation(service: Any, app: str) -> Session:
    """Makes a session of five events, one a second from 1000 on."""
    session: Session = await service.create_session(app_name=app, user_id="u", state={"k": 0, "user:u": 1})
    for n in range(5):
        await service.append_event(session, event(str(n), timestamp=1000.0 + n, k=n))
    return session
