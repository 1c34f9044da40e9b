"""Holds conversations through an old google-adk's own DatabaseSessionService, and prints what it reads back.

Run by `make_dumps.py` under the interpreter of that release: `python old_release.py URL`. Prints one
line of JSON for each session.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

SUMMER = datetime(2025, 7, 1, 12, 0, 0, 250_001, UTC).timestamp()
WINTER = datetime(2025, 12, 31, 23, 30, 0, 999_999, UTC).timestamp()


def known(model: Any, **fields: Any) -> dict[str, Any]:
    """Returns those fields that this release has."""
    return {name: value for name, value in fields.items() if name in model.model_fields}


def conversation(release: str) -> list[Any]:
    """Returns one event of every kind that the release can store."""
    from fastapi.openapi import models
    from google.adk.auth.auth_credential import AuthCredential, AuthCredentialTypes, OAuth2Auth
    from google.adk.auth.auth_tool import AuthConfig
    from google.adk.events import Event, EventActions
    from google.genai import types

    def event(number: int, author: str, parts: list[Any], actions: Any = None, **more: Any) -> Any:
        return Event(
            id=f"e{number}",
            invocation_id=f"i{number // 3}",
            author=author,
            timestamp=SUMMER + number,
            content=types.Content(role="user" if author == "user" else "model", parts=parts),
            actions=actions or EventActions(),
            **known(Event, **more),
        )

    flow = models.OAuthFlowAuthorizationCode(
        authorizationUrl="https://auth.example/a", tokenUrl="https://auth.example/t", scopes={"read": "all"}
    )
    auth = AuthConfig(
        auth_scheme=models.OAuth2(flows=models.OAuthFlows(authorizationCode=flow)),
        raw_auth_credential=AuthCredential(
            auth_type=AuthCredentialTypes.OAUTH2, oauth2=OAuth2Auth(client_id="id", client_secret="no secret")
        ),
    )
    call = types.FunctionCall(id="c1", name="look_up", args={"city": "Zürich", "deep": {"n": [1, 2.5, None]}})
    answer = types.FunctionResponse(id="c1", name="look_up", response={"result": "☀ 21°"})
    later: dict[str, Any] = {}
    if "requested_tool_confirmations" in EventActions.model_fields:
        from google.adk.events.event_actions import EventCompaction
        from google.adk.tools.tool_confirmation import ToolConfirmation

        later = {
            "requested_tool_confirmations": {"c1": ToolConfirmation(hint="sure?", payload={"k": [1]})},
            "compaction": EventCompaction(
                start_timestamp=SUMMER,
                end_timestamp=SUMMER + 1,
                compacted_content=types.Content(role="model", parts=[types.Part(text="in short")]),
            ),
            "end_of_agent": True,
            "agent_state": {"step": 3},
            "rewind_before_invocation_id": "i0",
        }
    # 1.0.0 hands the objects themselves to its JSON column, which fails.
    metadata: dict[str, Any] = {}
    if release != "1.0.0":
        metadata = {"grounding_metadata": types.GroundingMetadata(web_search_queries=["weather"])}
    return [
        event(
            0,
            "user",
            [types.Part(text="Wie ist das Wetter? \U0001f324"), types.Part(text="'; DROP TABLE--\n\\")],
        ),
        event(
            1,
            "agent",
            [types.Part(text="thinking", thought=True), types.Part(function_call=call)],
            EventActions(
                state_delta={
                    "count": 2**70,
                    "half": 0.1,
                    "nested": {"list": [1, {"x": None}], "true": True},
                    "user:name": "Ada",
                    "app:motd": "hi",
                    "gone": None,
                },
                artifact_delta={"map.png": 2},
            ),
            long_running_tool_ids={"c1"},
            branch="root.weather",
        ),
        event(2, "agent", [types.Part(function_response=answer)], EventActions(skip_summarization=True)),
        event(
            3,
            "agent",
            [types.Part(inline_data=types.Blob(data=bytes(range(250, 256)) * 3, mime_type="image/png"))],
            EventActions(transfer_to_agent="other", escalate=True, requested_auth_configs={"c1": auth}),
            partial=False,
            turn_complete=True,
            interrupted=True,
            error_code="429",
            error_message="slow down " * 20,
            custom_metadata={"score": 0.5},
            usage_metadata=types.GenerateContentResponseUsageMetadata(total_token_count=12),
            citation_metadata=types.CitationMetadata(citations=[types.Citation(uri="https://c.example")]),
            input_transcription=types.Transcription(text="spoken", finished=True),
            output_transcription=types.Transcription(text="said"),
            **metadata,
        ),
        event(
            4,
            "agent",
            [types.Part(text="done")],
            EventActions(
                # Old releases leave `temp:` in the event, whatever it holds.
                state_delta={
                    "temp:when": datetime(2025, 1, 2, 3, 4, 5),
                    "temp:id": uuid.UUID(int=7),
                    "temp:set": {"one"},
                    "temp:raw": b"\xff\xfb",
                    "count": 1,
                },
                **later,
            ),
        ),
    ]


async def main(url: str) -> None:
    """Writes, reads back and prints."""
    from google.adk import version
    from google.adk.events import Event, EventActions
    from google.adk.sessions import DatabaseSessionService

    service = DatabaseSessionService(db_url=url)

    async def create(app: str, user: str, session: str, state: dict[str, Any]) -> None:
        await service.create_session(app_name=app, user_id=user, session_id=session, state=state)

    async def append(app: str, user: str, session: str, event: Any) -> None:
        # Loaded anew each time: some releases lose the thread of their own object.
        found = await service.get_session(app_name=app, user_id=user, session_id=session)
        await service.append_event(found, event)

    await create("weather", "ada", "talk", {"start": 1, "app:motd": "old", "user:lang": "de"})
    for event in conversation(version.__version__):
        await append("weather", "ada", "talk", event)
    await create("weather", "ada", "empty", {"only": "state"})
    await create("weather", "bea", "talk2", {})
    await append(
        "weather", "bea", "talk2", Event(id="e0", invocation_id="i", author="user", timestamp=WINTER)
    )
    # Several in one second: their order is in the fractions, where the column keeps them.
    await create("other", "ada", "fast", {})
    for number in range(5):
        event = Event(
            id=f"f{9 - number}",
            invocation_id="i",
            author="agent",
            timestamp=WINTER + number / 1_000_000,
            actions=EventActions(state_delta={f"k{number}": number}),
        )
        await append("other", "ada", "fast", event)
    await create("other", "ada", "deleted", {"user:kept": True})
    await append("other", "ada", "deleted", Event(id="lost", invocation_id="i", author="user"))
    await service.delete_session(app_name="other", user_id="ada", session_id="deleted")

    for app, user, session in (
        ("weather", "ada", "talk"),
        ("weather", "ada", "empty"),
        ("weather", "bea", "talk2"),
        ("other", "ada", "fast"),
    ):
        found = await service.get_session(app_name=app, user_id=user, session_id=session)
        print(
            json.dumps(
                {
                    "app_name": app,
                    "user_id": user,
                    "id": session,
                    "state": found.state,
                    "last_update_time": found.last_update_time,
                    "events": [event.model_dump(mode="json", exclude_none=True) for event in found.events],
                }
            ),
            flush=True,
        )
    disposed = service.db_engine.dispose()
    if inspect.isawaitable(disposed):
        await disposed


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
