"""What a front door says of its framework's sessions, events and errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic

from .errors import TieredSessionsError
from .likes import EventT, SessionT
from .records import SessionKey, Tag


class Binding(ABC, Generic[SessionT, EventT]):
    """What the service asks of a front door. Names are private because the front door inherits them."""

    @abstractmethod
    def _session(
        self, key: SessionKey, state: dict[str, Any], events: list[EventT], updated: float, tag: Tag
    ) -> SessionT:
        """Makes the caller's session object."""

    @abstractmethod
    def _tag(self, session: SessionT) -> Tag | None:
        """Returns the tag the object carries, None if it was made by hand."""

    @abstractmethod
    def _set_tag(self, session: SessionT, tag: Tag) -> None:
        """Makes the object carry `tag`."""

    @abstractmethod
    def _encode(self, event: EventT) -> dict[str, Any]:
        """Returns the JSON object that is stored of an event."""

    @abstractmethod
    def _decode(self, stored: dict[str, Any], *, shared: bool) -> EventT:
        """Makes the caller's event object, or one for many callers (`Decoder`)."""

    def _translated(self, error: TieredSessionsError) -> Exception:
        """Returns what the binding's callers catch instead of `error`."""
        return error


class Translating:
    """Raises a binding's errors instead of this package's."""

    def __init__(self, binding: Binding[Any, Any]) -> None:
        self._binding = binding

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, TieredSessionsError):
            translated = self._binding._translated(error)
            if translated is not error:
                raise translated from error
