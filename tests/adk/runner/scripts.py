"""Conversations of real agents: each has a runner do something that a session service must bear."""

from __future__ import annotations

from typing import Any

import pytest
from google.adk.agents import LlmAgent, ParallelAgent, SequentialAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.apps.app import EventsCompactionConfig, ResumabilityConfig
from google.adk.apps.llm_event_summarizer import LlmEventSummarizer
from google.adk.events.event import Event
from google.adk.plugins.base_plugin import BasePlugin
from google.adk.tools import AgentTool, LongRunningFunctionTool, ToolContext
from google.genai import types

from tests.adk.runner.stage import Stage
from tests.adk.scripted import Barrier, answer, call, calls_in, run

# --- tools of the agents -------------------------------------------------------------------------


async def weigh(item: str, tool_context: ToolContext) -> dict[str, Any]:
    """Weighs an item and remembers it in every scope."""
    state = tool_context.state
    state["temp:scale"] = "s1"
    state["last"] = {"item": item, "grams": len(item) * 100}
    state["user:weighed"] = state.get("user:weighed", 0) + 1
    state["app:items"] = [*state.get("app:items", []), item]
    note = types.Part.from_bytes(data=item.encode(), mime_type="text/plain")
    await tool_context.save_artifact("note.txt", note)
    return {"grams": len(item) * 100, "scale": state["temp:scale"]}


def approve(amount: int) -> dict[str, Any]:
    """Asks a person."""
    return {"status": "pending", "amount": amount}


def wait() -> None:
    """Gives no answer at all before a person does."""


def nest(tool_context: ToolContext) -> dict[str, Any]:
    """Writes into a dictionary that the state holds."""
    tool_context.state["basket"]["pears"] = 3
    return {"ok": True}


# --- the scripts ---------------------------------------------------------------------------------


async def tools_and_state(s: Stage) -> None:
    """Tools writing every scope and an artifact, two calls in one reply, a second session sharing state."""
    runner = s.runner(
        s.agent(
            "clerk",
            call("weigh", item="pear"),
            "A pear is 400 g.",
            [call("weigh", item="fig"), call("weigh", item="plum")],
            "Both weighed.",
            call("weigh", item="nut"),
            "Done.",
            tools=[weigh],
            instruction="Weighed so far: {user:weighed?}",
            output_key="reply",
        )
    )
    await s.create("tools", **{"user:name": "Ann", "app:items": [], "temp:gone": 1, "lang": "en"})
    await s.turn(runner, "tools", "weigh a pear")
    await s.turn(runner, "tools", "and a fig and a plum", state_delta={"lang": "de", "temp:x": 1})
    await s.create("tools-2")
    await s.turn(runner, "tools-2", "a nut")


async def sequence(s: Stage) -> None:
    """Agents one after the other, the later reading the earlier one's answer from the state."""
    root = SequentialAgent(
        name="line",
        sub_agents=[
            s.agent("draft", "a draft", "a second draft", output_key="draft"),
            s.agent("review", call("weigh", item="i"), "fine", "better", tools=[weigh], output_key="verdict"),
            s.agent("edit", "final", "final 2", instruction="Edit {draft} by {verdict}", output_key="text"),
        ],
    )
    runner = s.runner(root)
    await s.create("line")
    await s.turn(runner, "line", "write")
    await s.turn(runner, "line", "again")


async def parallel(s: Stage) -> None:
    """Three branches at the same time, each calling a tool, then an agent that collects."""
    together = Barrier(3)
    branches = [
        LlmAgent(
            name=name,
            model=s.model(call("remember", word=name), f"{name} done", before=together),
            tools=[remember],
            output_key=name,
        )
        for name in ("east", "north", "west")
    ]
    root = SequentialAgent(
        name="all",
        sub_agents=[
            ParallelAgent(name="fan", sub_agents=branches),
            # A prompt with the branches' events in it would have them in the order in which they came.
            s.agent("collect", "all", instruction="{east} {north} {west}", include_contents="none"),
        ],
    )
    await s.create("fan")
    await s.turn(s.runner(root), "fan", "go")


def remember(word: str, tool_context: ToolContext) -> dict[str, Any]:
    """Remembers a word under its own key."""
    tool_context.state[f"word-{word}"] = word
    tool_context.state[f"user:word-{word}"] = word
    return {"word": word}


async def transfer(s: Stage) -> None:
    """One agent hands the user over to another, which keeps the conversation in the next turn."""
    desk = s.agent(
        "desk",
        call("transfer_to_agent", agent_name="returns"),
        sub_agents=[s.agent("returns", "Which order?", "Refunded.", description="Takes things back")],
    )
    runner = s.runner(desk)
    await s.create("desk")
    await s.turn(runner, "desk", "I want my money back")
    await s.turn(runner, "desk", "order 7")


async def long_running(s: Stage) -> None:
    """A call that a person answers a turn later, in an app that resumes."""
    runner = s.runner(
        s.agent(
            "bank",
            call("approve", amount=7),
            "Waiting for the manager.",
            "Approved, sending.",
            tools=[LongRunningFunctionTool(func=approve)],
        ),
        resumability_config=ResumabilityConfig(is_resumable=True),
    )
    await s.create("bank")
    paused = await s.turn(runner, "bank", "send 7")
    asked = next(found for found in calls_in(paused) if found.name == "approve")
    await s.turn(runner, "bank", answer(asked, status="approved"), invocation_id=paused[0].invocation_id)


async def paused_in_a_sequence(s: Stage) -> None:
    """The middle one of three agents waits for a person; the answer goes to it, and the third one runs."""
    waits = LongRunningFunctionTool(func=wait)
    root = SequentialAgent(
        name="line",
        sub_agents=[
            s.agent("before", "ready"),
            s.agent("waiter", call("wait"), "got it", tools=[waits]),
            s.agent("after", "sent"),
        ],
    )
    runner = s.runner(root, resumability_config=ResumabilityConfig(is_resumable=True))
    await s.create("pause")
    paused = await s.turn(runner, "pause", "begin")
    assert [event.author for event in paused if event.content] == ["before", "waiter"]
    reply = answer(calls_in(paused)[0], go="on")
    await s.turn(runner, "pause", reply, invocation_id=paused[0].invocation_id)
    stored = await s.load("pause")
    assert "sent" in [part.text for event in stored.events if event.content for part in event.content.parts]


async def rewound(s: Stage) -> None:
    """Back to before the second turn: state and artifacts as they were, nothing deleted."""
    runner = s.runner(
        s.agent(
            "clerk",
            call("weigh", item="pear"),
            "one",
            call("weigh", item="fig"),
            "two",
            "three",
            tools=[weigh],
        )
    )
    await s.create("back", mood="calm")
    await s.turn(runner, "back", "first", state_delta={"a": 1})
    second = await s.turn(runner, "back", "second", state_delta={"a": 2, "b": 2})
    await runner.rewind_async(
        user_id="ann", session_id="back", rewind_before_invocation_id=second[0].invocation_id
    )
    await s.turn(runner, "back", "third")
    note = await s.artifacts.load_artifact(
        app_name=s.app, user_id="ann", session_id="back", filename="note.txt"
    )
    assert note is not None
    assert note.inline_data is not None
    assert note.inline_data.data == b"pear"


async def compacted(s: Stage) -> None:
    """Every two turns the older events become a summary, which later prompts hold instead of them."""
    talk = "word " * 200
    runner = s.runner(
        s.agent("talker", *(f"reply {n} {talk}" for n in range(5))),
        events_compaction_config=EventsCompactionConfig(
            summarizer=LlmEventSummarizer(llm=s.model("summary one", "summary two")),
            compaction_interval=2,
            overlap_size=1,
        ),
    )
    await s.create("long")
    for number in range(5):
        await s.turn(runner, "long", f"say {number} {talk}")


class Stamp(BasePlugin):
    """Changes what the user says and what the agents answer, and counts turns in the state."""

    async def on_user_message_callback(
        self, *, invocation_context: Any, user_message: types.Content
    ) -> types.Content:
        assert user_message.parts
        return types.Content(role="user", parts=[types.Part(text=f"<{user_message.parts[0].text}>")])

    async def before_agent_callback(self, *, agent: Any, callback_context: Any) -> None:
        callback_context.state["turns"] = callback_context.state.get("turns", 0) + 1

    async def on_event_callback(self, *, invocation_context: Any, event: Event) -> Event | None:
        return event.model_copy(update={"custom_metadata": {"stamped": True}})


async def plugged(s: Stage) -> None:
    """A plugin rewrites the user's message, counts in the state and stamps each event."""
    runner = s.runner(s.agent("echo", "one", "two"), plugins=[Stamp(name="stamp")])
    await s.create("plug")
    await s.turn(runner, "plug", "hello")
    await s.turn(runner, "plug", "again")
    stored = await s.load("plug")
    assert stored.state["turns"] == 2
    assert stored.events[0].content.parts[0].text == "<hello>"


async def created_on_demand(s: Stage) -> None:
    """A turn in a session that nobody made."""
    runner = s.runner(s.agent("greeter", "hi", "hi again"), auto_create_session=True)
    await s.turn(runner, "new", "hello", state_delta={"user:lang": "en"})
    await s.turn(runner, "new", "hello")


async def streamed(s: Stage) -> None:
    """The model streams: chunks reach the caller, the whole text reaches the store."""
    runner = s.runner(s.agent("poet", "roses are red", call("weigh", item="rose"), "so", tools=[weigh]))
    await s.create("sse")
    config = RunConfig(streaming_mode=StreamingMode.SSE)
    chunks = await s.turn(runner, "sse", "rhyme", run_config=config)
    assert [event.partial for event in chunks] == [True, True, True, False]
    await s.turn(runner, "sse", "weigh it", run_config=config)


async def failing(s: Stage) -> None:
    """The model fails in the middle of a turn; the next turn goes on from what was stored."""
    runner = s.runner(
        s.agent("frail", call("weigh", item="pear"), RuntimeError("no model"), "better now", tools=[weigh])
    )
    await s.create("frail")
    with pytest.raises(RuntimeError, match="no model"):
        await run(runner, "frail", "weigh")
    await s.turn(runner, "frail", "and now?")


async def child(s: Stage) -> None:
    """An agent as another's tool: its own session is in memory, its state comes back."""
    helper = s.agent("helper", call("remember", word="x"), "found x", tools=[remember], description="Finds")
    runner = s.runner(s.agent("boss", call("helper", request="find"), "done", tools=[AgentTool(helper)]))
    await s.create("boss")
    await s.turn(runner, "boss", "find x")


SCRIPTS = (
    tools_and_state,
    sequence,
    parallel,
    transfer,
    long_running,
    paused_in_a_sequence,
    rewound,
    compacted,
    plugged,
    created_on_demand,
    streamed,
    failing,
    child,
)
