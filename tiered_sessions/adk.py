"""The front door for Google ADK: the same service over `google.adk`'s own sessions, events and errors."""

from __future__ import annotations

from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, Literal

try:
    from google.adk.errors.already_exists_error import AlreadyExistsError
    from google.adk.errors.session_not_found_error import SessionNotFoundError
    from google.adk.events.event import Event
    from google.adk.sessions.base_session_service import BaseSessionService, ListSessionsResponse
    from google.adk.sessions.session import Session
except ModuleNotFoundError as missing:
    raise ImportError(
        f"tiered_sessions.adk needs google-adk ({missing}); install tiered-sessions[adk]"
    ) from missing

from . import errors
from .adk_registry import create_session_service, register
from .config import TieredConfig
from .construction import SAMPLE, Constructor
from .core import BaseTieredSessionService
from .decoding import Decoder
from .metrics import Metrics
from .records import SessionKey, Tag
from .wiring import database_named

if TYPE_CHECKING:
    from google.adk.errors._stale_session_error import StaleSessionError
    from sqlalchemy.ext.asyncio import AsyncEngine

    from .cache.base import SessionCache
else:
    try:
        from google.adk.errors._stale_session_error import StaleSessionError
    except ModuleNotFoundError:
        # Releases without the class raise a bare ValueError; ours is one, too.
        from .errors import StaleSessionError

__all__ = [
    "AlreadyExistsError",
    "SessionNotFoundError",
    "StaleSessionError",
    "TieredSessionService",
    "create_session_service",
    "register",
]

# Before the class existed its text was all a caller had to tell it by.
_STALE: Final = (
    "The session has been modified in storage since it was loaded. "
    "Please reload the session before appending more events."
)
_MARK: Final = "tiered"
_MARKED: Final = f"{_MARK}:%s:%s:%s:%s"
_MARKER: Final = "_storage_update_marker"
# They look for what stored events never have: other keys than names of fields, or objects.
_HARMLESS: Final = {
    "google.adk.events.event.Event._accept_convenience_kwargs",
    "google.genai._common.BaseModel._check_field_type_mismatches",
    "google.genai.types.Part.__init__",
}
_decode_shared: Final = Decoder(Event, _HARMLESS, shared=True)
_decode_own: Final = Decoder(Event, _HARMLESS)

_make: Final = Constructor(Session, _MARKER, SAMPLE)


def _marker(tag: Tag) -> str:
    return _MARKED % tag


class TieredSessionService(BaseTieredSessionService[Session, Event], BaseSessionService):
    """Drop-in for ADK's `DatabaseSessionService`: the same tables and answers, with a cache in front.

    Args:
        db_url: Address of the database, in ADK's spelling or without a driver; default:
            `TIERED_SESSIONS_DB_URL`, else `DATABASE_URL`.
        db_engine: An `AsyncEngine` of the caller instead; `close()` leaves it open.
        cache: Address of a Redis or Valkey, a `redis.asyncio` client, a `SessionCache`, "memory", or None
            for no cache; default: `TIERED_SESSIONS_REDIS_URL`, else `REDIS_URL`, else "memory".
        config: The numbers that may be tuned.
        metrics: Receives the counters.
        create_tables: Whether missing tables are made on first use.
        on_conflict: What an append does when others appended since the session was loaded: "raise"
            `StaleSessionError`, or "rebase": bring the caller's object up to date and append after them.
        **engine_options: For `create_async_engine` (`pool_size`, `max_overflow`, `echo`, ...).

    Raises:
        ValueError: Not exactly one database is named, or something cannot be used.
    """

    def __init__(
        self,
        db_url: str | None = None,
        db_engine: AsyncEngine | None = None,
        *,
        cache: str | SessionCache | object | EllipsisType | None = ...,
        config: TieredConfig | None = None,
        metrics: Metrics | None = None,
        create_tables: bool = True,
        on_conflict: Literal["raise", "rebase"] = "raise",
        **engine_options: Any,
    ) -> None:
        if db_url is None and db_engine is None and not database_named():
            raise errors.ConfigurationError(
                "Exactly one of db_url and db_engine must be given, or a database named in the environment"
            )
        super().__init__(
            db_url,
            db_engine,
            cache=cache,
            config=config,
            metrics=metrics,
            create_tables=create_tables,
            on_conflict=on_conflict,
            **engine_options,
        )

    async def list_sessions(self, *, app_name: str, user_id: str | None = None) -> ListSessionsResponse:
        """Lists the sessions of one user, or of all, without events; the one changed last at the end."""
        return ListSessionsResponse(sessions=await self._sessions(app_name, user_id))

    def _session(
        self, key: SessionKey, state: dict[str, Any], events: list[Event], updated: float, tag: Tag
    ) -> Session:
        app_name, user_id, session_id = key
        fields = {
            "id": session_id,
            "app_name": app_name,
            "user_id": user_id,
            "state": state,
            "events": events,
            "last_update_time": updated,
        }
        return _make(fields, _marker(tag))

    def _tag(self, session: Session) -> Tag | None:
        mark, *numbers = ((session.__pydantic_private__ or {}).get(_MARKER) or "").split(":")
        # Another service's marker says nothing here: such an object counts as made by hand.
        return Tag(*map(int, numbers)) if mark == _MARK else None

    def _set_tag(self, session: Session, tag: Tag) -> None:
        if session.__pydantic_private__ is None:
            session._storage_update_marker = _marker(tag)
        else:
            # As pydantic's `__setattr__` would, at a tenth of its cost.
            session.__pydantic_private__[_MARKER] = _marker(tag)

    def _encode(self, event: Event) -> dict[str, Any]:
        try:
            stored = event.model_dump(exclude_none=True, mode="json")
        except ValueError as error:
            raise errors.InvalidValueError(f"Event {event.id} cannot be written as JSON") from error
        if event.long_running_tool_ids:
            # A set has another order in every process; the same event must be the same JSON.
            stored["long_running_tool_ids"] = sorted(event.long_running_tool_ids)
        return stored

    def _decode(self, stored: dict[str, Any], *, shared: bool) -> Event:
        return _decode_shared(stored) if shared else _decode_own(stored)

    def _translated(self, error: errors.TieredSessionsError) -> Exception:
        match error:
            case errors.SessionExistsError():
                return AlreadyExistsError(str(error))
            case errors.SessionNotFoundError():
                return SessionNotFoundError(str(error))
            case errors.StaleSessionError():
                return StaleSessionError(_STALE)
        return error
