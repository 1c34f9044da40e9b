"""What the service needs of any framework's models."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar


class ActionsLike(Protocol):
    """What the service reads of an event's actions."""

    state_delta: dict[str, Any]


class EventLike(Protocol):
    """What the service reads of an event."""

    id: str
    invocation_id: str
    timestamp: float
    partial: bool | None

    @property
    def actions(self) -> ActionsLike: ...

    def model_dump_json(self) -> str: ...


class SessionLike(Protocol):
    """What the service reads and writes of a session."""

    id: str
    app_name: str
    user_id: str
    state: dict[str, Any]
    events: list[Any]
    last_update_time: float


class WindowLike(Protocol):
    """What the service reads of a `get_session` configuration."""

    num_recent_events: int | None
    after_timestamp: float | None


SessionT = TypeVar("SessionT", bound=SessionLike)
EventT = TypeVar("EventT", bound=EventLike)
