"""The conversations: the same events for everybody, made from their names, and how they are recognised.

An event is about 0.9 kB of JSON; every fifth is a function's response with a state delta.
"""

from __future__ import annotations

import hashlib
import random
import uuid
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import orjson
from google.adk.events.event import Event
from google.adk.sessions.session import Session

from .records import Group

APP: Final = "bench"
APP_STATE: Final[dict[str, Any]] = {"locale": "en", "limits": {"tokens": 8000, "tools": ["search", "book"]}}
USER_STATE: Final[dict[str, Any]] = {"name": "Zoë", "seats": ["aisle", "front"]}
_BEGAN: Final = 1_780_000_000.0
_TEXT: Final = 500
_SPEECH: Final = (
    "the flight to Zürich leaves at noon, seat 14A; this hotel, the “Krone”, has some rooms with a view "
    "of lake and hill; say if you want one, or else another day and town will do as well for us"
)


def _prose() -> str:
    chance = random.Random(7)
    return " ".join(chance.choices(_SPEECH.split(), k=8000))


_PROSE: Final = _prose()


class WrongResultError(Exception):
    """What was returned is not what was written."""


def stored_event(session: str, number: int, timestamp: float | None = None) -> dict[str, Any]:
    """Returns the JSON of the event with that number in a session."""
    digest = hashlib.md5(f"{session}/{number}".encode()).digest()
    start = int.from_bytes(digest[:4], "big") % (len(_PROSE) - _TEXT)
    text = f"{session} {number}: {_PROSE[start : start + _TEXT]}"
    delta: dict[str, Any] = {}
    part: dict[str, Any] = {"text": text}
    author, role = ("user", "user") if number % 2 else ("concierge", "model")
    if number % 5 == 4:
        author, role = "concierge", "user"
        delta = {"step": number, "found": {"session": session, "offers": number % 7}}
        offer = {"price": number * 1.25, "note": text[:200]}
        response = {"status": "ok", "offers": [offer], "note": text[200:]}
        part = {"function_response": {"id": f"call-{number}", "name": "search", "response": response}}
    event = {
        "content": {"parts": [part], "role": role},
        "invocation_id": f"e-{session}-{number // 5}",
        "author": author,
        "actions": {
            "state_delta": delta,
            "artifact_delta": {},
            "requested_auth_configs": {},
            "requested_tool_confirmations": {},
        },
        "node_info": {"path": ""},
        "id": str(uuid.UUID(bytes=digest)),
        "timestamp": _BEGAN + number if timestamp is None else timestamp,
    }
    if "node_info" not in Event.model_fields:  # releases before 2.0
        del event["node_info"]
    return event


def first_state(session: str) -> dict[str, Any]:
    """Returns what a session begins with."""
    return {"topic": f"journey {session}", "step": -1}


def state_after(session: str, events: int) -> dict[str, Any]:
    """Returns a session's own state after so many events."""
    state = first_state(session)
    last = (events // 5) * 5 - 1
    if last > 0:
        state |= stored_event(session, last)["actions"]["state_delta"]
    return state


def update_time(events: int) -> float:
    """Returns when a session with so many stored events was last changed."""
    return _BEGAN + max(events - 1, 0)


def fingerprint(event: Event) -> int:
    """Returns a checksum of an event's content and state delta."""
    content = event.content
    if content is None or not content.parts:
        raise WrongResultError(f"event {event.id} came without content")
    part = content.parts[0]
    response = None if part.function_response is None else part.function_response.response
    return _sum(content.role, len(content.parts), part.text, response, event.actions.state_delta)


def _sum(role: str | None, parts: int, text: str | None, response: Any, delta: dict[str, Any]) -> int:
    # JSONB stores keys in an order of its own.
    found = zlib.crc32(f"{role}/{parts}/{text}".encode())
    for value in (response, delta):
        if value:
            found = zlib.crc32(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), found)
    return found


@lru_cache(maxsize=400_000)
def expected(session: str, number: int) -> tuple[str, str, int]:
    """Returns id, author and checksum of an event."""
    event = stored_event(session, number)
    content = event["content"]
    part = content["parts"][0]
    response = part.get("function_response", {}).get("response")
    delta = event["actions"]["state_delta"]
    return event["id"], event["author"], _sum(content["role"], 1, part.get("text"), response, delta)


class Checker:
    """Compares returned sessions with what was written.

    Every event is compared by id, author and checksum; objects shared by several results that are
    held at the same time are summed once. The first result of each session is compared in full.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._whole: set[str] = set()
        self.checked = 0

    def check(self, results: Sequence[tuple[int, Session | None]], count: int, window: int | None) -> None:
        """Checks results as (number of the session in its group, session), each of `count` stored events.

        Raises:
            WrongResultError: One of them is not what was written.
        """
        sums: dict[tuple[int, int], int] = {}
        for number, session in results:
            first = 0 if window is None else max(0, count - window)
            self.session(number, session, count, first, sums)

    def session(
        self,
        number: int,
        session: Session | None,
        count: int,
        first: int = 0,
        sums: dict[tuple[int, int], int] | None = None,
    ) -> None:
        """Checks one session that must hold the events from `first` up to `count`."""
        name = self._group.id_of(number)
        sums = {} if sums is None else sums
        if session is None or session.id != name or session.user_id != self._group.user_of(number):
            raise WrongResultError(f"asked for {name}, got {session}")
        if len(session.events) != count - first:
            raise WrongResultError(f"{name}: {len(session.events)} events instead of {count - first}")
        for event, index in zip(session.events, range(first, count), strict=True):
            shared = (id(event.content), id(event.actions))
            seen = sums.get(shared)
            if seen is None:
                seen = sums[shared] = fingerprint(event)
            if (event.id, event.author, seen) != expected(name, index):
                raise WrongResultError(f"{name}: event {index} is not what was written")
        self.checked += count - first
        if name not in self._whole:
            self._whole.add(name)
            self._in_full(name, session, count, first)

    def _in_full(self, name: str, session: Session, count: int, first: int) -> None:
        for event, index in zip(session.events, range(first, count), strict=True):
            returned = event.model_dump(mode="json", exclude_none=True)
            written = stored_event(name, index, event.timestamp)
            if returned != written:
                raise WrongResultError(f"{name}: event {index} differs: {returned} instead of {written}")
        state = state_after(name, count)
        state |= {f"app:{key}": value for key, value in APP_STATE.items()}
        state |= {f"user:{key}": value for key, value in USER_STATE.items()}
        if session.state != state:
            raise WrongResultError(f"{name}: state {session.state} instead of {state}")
