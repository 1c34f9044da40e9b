"""Between what callers say and what is stored: times, windows, JSON documents."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from .codec import dumps, loads
from .errors import InvalidValueError
from .likes import EventLike, WindowLike
from .records import Content, EventRecord, Listing, Query, Snapshot
from .state import APP, USER

T = TypeVar("T")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_ALL: Final = Query()


def microseconds(seconds: float) -> int:
    """Returns a time in seconds as stock ADK stores it."""
    # As stock ADK rounds, so that equal timestamps stay equal.
    try:
        return (datetime.fromtimestamp(seconds, UTC) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidValueError(f"{seconds!r} is not a time in seconds since 1970") from error


def milliseconds(ttl: float | str | None) -> int | None:
    """Reads a time to live: seconds, or text as Vertex AI's options spell it ("3600s")."""
    if ttl is None:
        return None
    if isinstance(ttl, str):
        found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)s", ttl)
        seconds = float(found[1]) if found else 0.0
    else:
        seconds = ttl
    if isinstance(ttl, bool) or not 0.001 <= seconds < 1e12:
        raise InvalidValueError(f'ttl must be seconds, as in 3600 or "3600s", not {ttl!r}')
    return round(seconds * 1000)


def now() -> int:
    """Returns the wall clock: microseconds since 1970."""
    return time.time_ns() // 1000


def query_of(window: WindowLike | None) -> Query:
    """Returns what a window asks for."""
    if window is None:
        return _ALL
    limit, after = window.num_recent_events, window.after_timestamp
    # Releases of google-adk before 2.13 let it pass.
    if limit is not None and limit < 0:
        raise InvalidValueError("num_recent_events must not be negative")
    return Query(limit, microseconds(after) if after else None)


def document(value: Mapping[str, Any]) -> bytes:
    """Writes a JSON object."""
    try:
        return dumps(value)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(f"The value cannot be written as JSON: {error}") from error


def object_of(stored: bytes) -> dict[str, Any]:
    """Reads a JSON object; anything else is none."""
    value = loads(stored)
    return value if isinstance(value, dict) else {}


def delta_of(scope: Mapping[str, Any]) -> bytes | None:
    """Writes what changes in one scope; None: nothing."""
    return document(scope) if scope else None


def rewinds(event: EventLike) -> bool:
    """Says whether the event takes the session back."""
    return bool(getattr(event.actions, "rewind_before_invocation_id", None))


def whole_state(snapshot: Snapshot) -> dict[str, Any]:
    """Reads the state of all scopes, as `merge` joins them: a new one for each caller."""
    state = object_of(snapshot.session.state)
    _share(state, snapshot.app, snapshot.user)
    return state


def _share(state: dict[str, Any], app: Content | None, user: Content | None) -> None:
    for prefix, shared in ((APP, app), (USER, user)):
        if shared is not None and shared.state != b"{}":
            for key, value in object_of(shared.state).items():
                state[prefix + key] = value


def whole_states(listing: Listing) -> list[dict[str, Any]]:
    """Reads the state of each, as `whole_state` does: the sessions' own at once, what they share once."""
    states: list[dict[str, Any]]
    try:
        states = loads(f"[{','.join(listing.states)}]")
    except ValueError:
        states = []
    # One may be no object, or no JSON; what was read of it says nothing of the others.
    if len(states) != len(listing) or not set(map(type, states)) <= {dict}:
        states = [object_of(state.encode()) for state in listing.states]
    read: dict[str, tuple[dict[str, Any], list[tuple[str, Callable[[], Any]]]]] = {}
    for state, user in zip(states, listing.user_ids, strict=True):
        if user not in read:
            shared: dict[str, Any] = {}
            _share(shared, listing.app, listing.users.get(user))
            read[user] = shared, _copiers(shared.items())
        shared, copiers = read[user]
        state.update(shared)
        for name, copy in copiers:
            state[name] = copy()
    return states


def _copiers(parts: Iterable[tuple[T, Any]]) -> list[tuple[T, Callable[[], Any]]]:
    """Returns what copies each list and object among `parts`, with all that is in it."""
    found = []
    for name, part in parts:
        if type(part) in (dict, list):
            found.append((name, _copier(part)))
    return found


def _copier(value: Any) -> Callable[[], Any]:
    copiers = _copiers(value.items() if type(value) is dict else enumerate(value))
    if not copiers:
        return value.copy  # type: ignore[no-any-return]

    def copy() -> Any:
        made = value.copy()
        for name, of_part in copiers:
            made[name] = of_part()
        return made

    return copy


def stored_event(record: EventRecord) -> dict[str, Any]:
    """Returns the JSON object of an event, whole."""
    # The exact time is in the document; the column has microseconds, and foreign rows may lack the rest.
    stored = object_of(record.payload)
    if "timestamp" not in stored:
        stored["timestamp"] = record.timestamp / 1_000_000
    # The reader of JSON keeps short texts for a while: if one of the two is kept, it is that one.
    if stored.get("id") != record.id:
        stored["id"] = record.id
    return stored
