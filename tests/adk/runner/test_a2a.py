"""Item 53: an agent that other agents speak to, through ADK's A2A executor and a client of the protocol."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from a2a.client import Client, ClientCallContext, ClientConfig, create_client
from a2a.client.service_parameters import ServiceParametersFactory, with_a2a_extensions
from a2a.types import Message, Part, Role, SendMessageRequest
from google.adk.a2a.agent.interceptors.new_integration_extension import _NEW_A2A_ADK_INTEGRATION_EXTENSION
from google.adk.a2a.converters.part_converter import convert_genai_part_to_a2a_part
from google.adk.a2a.utils.agent_to_a2a import to_a2a
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.tools import LongRunningFunctionTool
from google.protobuf.json_format import MessageToDict

from tests.adk.runner.scripts import approve, weigh
from tests.adk.runner.stage import QUIET, Maker, Stage, both, stage
from tests.adk.scripted import Normaliser, answer, as_text, call, calls_in

pytestmark = QUIET

# Whoever is not logged in is known by the conversation.
USER = "A2A_USER_talk"
# What a client made of ADK asks for, and any other does not: it selects another executor.
EXTENSIONS = {"plain": [], "extension": [_NEW_A2A_ADK_INTEGRATION_EXTENSION]}
extension = pytest.mark.parametrize("extension", EXTENSIONS)


class Caller:
    """A client of the protocol in the conversation `talk`."""

    def __init__(self, client: Client, extension: str) -> None:
        self._client = client
        parameters = ServiceParametersFactory.create([with_a2a_extensions(EXTENSIONS[extension])])
        self._context = ClientCallContext(service_parameters=parameters)
        self.heard: list[dict[str, Any]] = []

    async def say(self, *parts: Part, task: str | None = None) -> str:
        """Sends a message, about a task under way if given; returns what became of the task."""
        message = Message(
            message_id=str(uuid4()), context_id="talk", task_id=task, role=Role.ROLE_USER, parts=parts
        )
        answers = self._client.send_message(SendMessageRequest(message=message), context=self._context)
        self.heard += [MessageToDict(answer) async for answer in answers]
        state: str = self.heard[-1]["statusUpdate"]["status"]["state"]
        return state.removeprefix("TASK_STATE_")


@contextlib.asynccontextmanager
async def talking(s: Stage, agent: Any, extension: str) -> AsyncIterator[Caller]:
    """Serves an agent of the stage by ADK's A2A application, without a socket."""
    app = to_a2a(agent, runner=s.runner(agent), host="agent.test", port=80)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as http,
        await create_client("http://agent.test:80/", ClientConfig(httpx_client=http)) as client,
    ):
        yield Caller(client, extension)


@both
@extension
async def test_item_53_what_the_executor_asks_of_the_service(
    make: Maker, implementation: str, extension: str
) -> None:
    """Is there a session? That read asks for no events with the extension, for all without it."""
    s = stage(make, implementation, user=USER)
    agent = s.agent("clerk", call("weigh", item="fig"), "200 g", "bye", tools=[weigh])
    exists = GetSessionConfig(num_recent_events=0) if extension == "extension" else None
    async with talking(s, agent, extension) as caller:
        assert await caller.say(Part(text="weigh a fig")) == "COMPLETED"
        calls = s.service.taken()
        assert calls[:3] == [("get", exists), ("create", "talk"), ("get", None)]
        assert [name for name, _ in calls[3:]] == ["append"] * 4
        assert await caller.say(Part(text="bye")) == "COMPLETED"
        calls = s.service.taken()
        assert calls[:2] == [("get", exists), ("get", None)]
        assert [name for name, _ in calls[2:]] == ["append"] * 2
    stored = await s.load("talk")
    assert len(stored.events) == 6
    assert len(s.models[0].asked[-1]) == 5, "the prompt holds the whole conversation"


@extension
async def test_item_53_the_same_talk_leaves_the_same(make: Maker, extension: str) -> None:
    """Every scope of the state, a failing model and an answer to a long-running call, task by task."""
    left = {}
    app = f"app_{uuid4().hex}"
    for who in ("stock", "ours"):
        s = stage(make, who, app, USER)
        agent = s.agent(
            "bank",
            call("weigh", item="pear"),
            "400 g",
            RuntimeError("no model"),
            call("approve", amount=7),
            "Waiting.",
            "Sent.",
            tools=[weigh, LongRunningFunctionTool(func=approve)],
        )
        async with talking(s, agent, extension) as caller:
            assert await caller.say(Part(text="weigh a pear")) == "COMPLETED"
            assert await caller.say(Part(text="and now?")) == "FAILED"
            assert await caller.say(Part(text="send 7")) == "INPUT_REQUIRED"
            task = caller.heard[-1]["statusUpdate"]["taskId"]
            asked = next(c for c in calls_in((await s.load("talk")).events) if c.name == "approve")
            (reply,) = answer(asked, status="approved").parts or []
            part = convert_genai_part_to_a2a_part(reply)
            assert isinstance(part, Part)
            assert await caller.say(part, task=task) == "COMPLETED"
        assert (await s.load("talk")).state["user:weighed"] == 1
        left[who] = as_text([await s.left(), Normaliser()(caller.heard)])
    assert left["ours"] == left["stock"]
