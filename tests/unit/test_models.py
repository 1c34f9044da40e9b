"""models: ADK's JSON comes in and goes out whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tiered_sessions.codec import dumps, loads
from tiered_sessions.models import Event, EventActions, GetSessionConfig, ListSessionsResponse, Session


def stored(event: Event) -> Any:
    return loads(dumps(event.model_dump(mode="json", exclude_none=True)))


def test_unknown_fields_survive() -> None:
    document = {
        "id": "e",
        "invocation_id": "i",
        "author": "agent",
        "timestamp": 1.25,
        "content": {
            "role": "model",
            "parts": [{"text": "a", "thought": None}, {"inline_data": {"data": "_wA="}}],
        },
        "usage_metadata": {"total_token_count": 3},
        "long_running_tool_ids": ["a", "b"],
        "node_info": {"path": ""},
        "avg_logprobs": -0.5,
        "actions": {
            "state_delta": {"a": None},
            "artifact_delta": {"f": 1},
            "requested_auth_configs": {},
            "requested_tool_confirmations": {},
            "route": "next",
        },
    }
    event = Event.model_validate(document)
    assert event.long_running_tool_ids == {"a", "b"}
    assert stored(event) == document
    assert Event.model_validate(stored(event)) == event


def test_camel_case_is_accepted_and_snake_case_stored() -> None:
    event = Event.model_validate({"invocationId": "i", "actions": {"stateDelta": {"camelKey": 1}}})
    assert event.invocation_id == "i"
    assert stored(event)["actions"]["state_delta"] == {"camelKey": 1}


def test_no_field_is_stored_as_null_but_values_of_the_delta_are() -> None:
    event = Event(actions=EventActions(state_delta={"gone": None}))
    assert set(stored(event)) == {"id", "invocation_id", "author", "actions", "timestamp"}
    assert stored(event)["actions"]["state_delta"] == {"gone": None}


def test_numbers_and_bytes_survive() -> None:
    delta = {"big": 2**70, "nan": math.nan, "inf": -math.inf, "half": "\ud800"}
    event = Event(content={"x": math.inf, "data": b"\xff\x00"}, actions=EventActions(state_delta=delta))
    assert repr(stored(event)["actions"]["state_delta"]) == repr(delta)
    assert stored(event)["content"] == {"x": math.inf, "data": "_wA="}


def test_models_of_a_framework_are_stored_as_they_say() -> None:
    class Part(BaseModel):
        text: str
        thought: bool | None = None

    event = Event(content={"parts": [Part(text="a")]})
    assert stored(event)["content"] == {"parts": [{"text": "a"}]}


def test_functions_in_a_delta_become_their_repr() -> None:
    event = Event(actions=EventActions(state_delta={"f": print}))
    assert stored(event)["actions"]["state_delta"] == {"f": repr(print)}


def test_negative_window_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        GetSessionConfig(num_recent_events=-1)


def test_sessions_forbid_unknown_fields_as_in_adk() -> None:
    with pytest.raises(ValidationError, match="extra"):
        Session.model_validate({"id": "s", "app_name": "a", "user_id": "u", "created_at": 1})


def test_list_answer_behaves_as_a_list() -> None:
    sessions = [Session(id=name, app_name="a", user_id="u") for name in "xyz"]
    answer = ListSessionsResponse(sessions=sessions)
    assert list(answer) == sessions
    assert len(answer) == 3
    assert answer[0].id == "x"
    assert answer[-1].id == "z"
    assert [s.id for s in answer[1:]] == ["y", "z"]
    assert ListSessionsResponse()
