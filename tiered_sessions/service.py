"""The front door without a framework: the service over this package's own models."""

from __future__ import annotations

from typing import Any

from .construction import SAMPLE, Constructor
from .core import BaseTieredSessionService
from .decoding import Decoder
from .errors import InvalidValueError
from .models import Event, ListSessionsResponse, Session
from .records import SessionKey, Tag

_decode_shared = Decoder(Event, shared=True)
_decode_own = Decoder(Event)
_make = Constructor(Session, "_tag", SAMPLE)


class TieredSessionService(BaseTieredSessionService[Session, Event]):
    """Sessions over this package's own models. Arguments as `BaseTieredSessionService`."""

    async def list_sessions(self, app_name: str, user_id: str | None = None) -> ListSessionsResponse:
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
        return _make(fields, tag)

    def _tag(self, session: Session) -> Tag | None:
        return session._tag

    def _set_tag(self, session: Session, tag: Tag) -> None:
        session._tag = tag

    def _encode(self, event: Event) -> dict[str, Any]:
        try:
            return event.model_dump(mode="json", exclude_none=True)
        except ValueError as error:
            raise InvalidValueError(f"Event {event.id} cannot be written as JSON") from error

    def _decode(self, stored: dict[str, Any], *, shared: bool) -> Event:
        return _decode_shared(stored) if shared else _decode_own(stored)
