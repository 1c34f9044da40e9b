"""Sessions and events for callers without a framework. Stored as ADK stores its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, overload

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    field_serializer,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from .records import Tag


class _Model(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_inf_nan="constants",
        # Who never uses these models does not pay for them when the service is imported.
        defer_build=True,
    )


class EventActions(_Model):
    """What an event does besides being said. Fields of ADK that are not listed are kept as they are."""

    model_config = ConfigDict(extra="allow")

    skip_summarization: bool | None = None
    state_delta: dict[str, Any] = Field(default_factory=dict)
    artifact_delta: dict[str, int] = Field(default_factory=dict)
    transfer_to_agent: str | None = None
    escalate: bool | None = None
    requested_auth_configs: dict[str, Any] = Field(default_factory=dict)
    requested_tool_confirmations: dict[str, Any] = Field(default_factory=dict)
    compaction: Any | None = None
    end_of_agent: bool | None = None
    agent_state: dict[str, Any] | None = None
    rewind_before_invocation_id: str | None = None

    @field_serializer("state_delta", mode="wrap")
    def _state_delta_as_json(
        self, value: dict[str, Any], handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        try:
            return dict(handler(value))
        except PydanticSerializationError:
            # The service has warned of this already, when it took the delta for the state.
            return dict(handler(to_jsonable_python(value, serialize_unknown=True)))


class Event(_Model):
    """One event of a conversation. Fields of ADK that are not listed are kept as they are.

    Attributes:
        id: Unique in its session; given by the service if empty when appended.
        invocation_id: The turn it belongs to.
        author: `user`, or the name of an agent.
        content: What was said, as `google.genai.types.Content` or its JSON form.
        timestamp: Seconds since 1970.
        partial: A chunk of a stream: never stored.
    """

    model_config = ConfigDict(extra="allow")

    id: str = ""
    invocation_id: str = ""
    author: str = ""
    content: Any | None = None
    actions: EventActions = Field(default_factory=EventActions)
    timestamp: float = Field(default_factory=time.time)
    branch: str | None = None
    partial: bool | None = None
    turn_complete: bool | None = None
    error_code: str | None = None
    error_message: str | None = None
    interrupted: bool | None = None
    finish_reason: Any | None = None
    usage_metadata: Any | None = None
    grounding_metadata: Any | None = None
    custom_metadata: dict[str, Any] | None = None
    long_running_tool_ids: set[str] | None = None

    @field_serializer("long_running_tool_ids")
    def _ids_in_order(self, value: set[str] | None) -> list[str] | None:
        # A set has another order in every process; the same event must be the same JSON.
        return None if value is None else sorted(value)


class Session(_Model):
    """A conversation as one caller holds it.

    Attributes:
        state: The session's own state, with the user's and the app's under `user:` and `app:`.
        events: Those that were asked for, oldest first.
        last_update_time: Seconds since 1970.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    app_name: str
    user_id: str
    state: dict[str, Any] = Field(default_factory=dict)
    events: list[Event] = Field(default_factory=list)
    last_update_time: float = 0.0

    _tag: Tag | None = PrivateAttr(default=None)


class GetSessionConfig(_Model):
    """Which events `get_session` returns.

    Attributes:
        num_recent_events: The newest so many; None: all; 0: none.
        after_timestamp: Only those of this time (seconds since 1970) or later; None and 0.0: no bound.
    """

    num_recent_events: int | None = Field(default=None, ge=0)
    after_timestamp: float | None = None


class ListSessionsResponse(_Model):
    """Sessions without their events, the one changed last at the end. Behaves as their list, too."""

    sessions: list[Session] = Field(default_factory=list)

    def __iter__(self) -> Iterator[Session]:  # type: ignore[override] # pydantic's iterates over fields
        return iter(self.sessions)

    def __len__(self) -> int:
        return len(self.sessions)

    @overload
    def __getitem__(self, index: int) -> Session: ...
    @overload
    def __getitem__(self, index: slice) -> list[Session]: ...
    def __getitem__(self, index: int | slice) -> Session | list[Session]:
        return self.sessions[index]

    def __bool__(self) -> bool:
        # An answer without sessions is still an answer: `if response:` means what it did in ADK.
        return True
