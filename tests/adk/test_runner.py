"""A real Runner, end to end: the same scripts on stock's service and on ours, equal in all they leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from google.adk.agents import LlmAgent, ParallelAgent, SequentialAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.apps.app import App, EventsCompactionConfig, ResumabilityConfig
from google.adk.apps.llm_event_summarizer import LlmEventSummarizer
from google.adk.artifacts import InMemoryArtifactService
from google.adk.events.event import Event
from google.adk.plugins.base_plugin import BasePlugin
from google.adk.runners import Runner
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.tools import AgentTool, LongRunningFunctionTool, ToolContext
from google.genai import types

from tests import servers
from tests.adk.scripted import (
    Barrier,
    Normaliser,
    Recorder,
    ScriptedLlm,
    answer,
    as_text,
    call,
    calls_in,
    databases,
    ordered,
    run,
)
from tiered_sessions.adk import StaleSessionError, TieredSessionService

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*EXPERIMENTAL.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Agent is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `plugins` argument is deprecated:DeprecationWarning"),
]


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


# --- a stage: one service, its models and what was seen of them ----------------------------------


@dataclass
class Stage:
    """One service with a script playing on it."""

    service: Recorder
    fresh: Callable[[], Any]
    app: str
    artifacts: InMemoryArtifactService = field(default_factory=InMemoryArtifactService)
    models: list[ScriptedLlm] = field(default_factory=list)
    yielded: list[list[Event]] = field(default_factory=list)

    def model(self, *replies: Any, **options: Any) -> ScriptedLlm:
        self.models.append(ScriptedLlm(*replies, **options))
        return self.models[-1]

    def agent(self, name: str, *replies: Any, **options: Any) -> LlmAgent:
        return LlmAgent(name=name, model=self.model(*replies), **options)

    def runner(self, root: Any, *, auto_create_session: bool = False, **options: Any) -> Runner:
        app = App(name=self.app, root_agent=root, **options)
        return Runner(
            app=app,
            session_service=self.service,
            artifact_service=self.artifacts,
            auto_create_session=auto_create_session,
        )

    async def create(self, session: str, **state: Any) -> None:
        await self.service.create_session(app_name=self.app, user_id="ann", session_id=session, state=state)

    async def load(self, session: str) -> Any:
        found = await self.service.inner.get_session(app_name=self.app, user_id="ann", session_id=session)
        assert found is not None
        return found

    async def turn(self, runner: Runner, session: str, said: Any, **options: Any) -> list[Event]:
        events = await run(runner, session, said, **options)
        self.yielded.append(events)
        return events

    async def left(self) -> dict[str, Any]:
        """Returns all that the script left behind, read by a service that was not there."""
        normal = Normaliser()
        reader = self.fresh()
        listed = await reader.list_sessions(app_name=self.app, user_id="ann")
        sessions = []
        for name in sorted(session.id for session in listed.sessions):
            session = await reader.get_session(app_name=self.app, user_id="ann", session_id=name)
            # The column has microseconds, the event a float's worth.
            assert session.last_update_time == pytest.approx(session.events[-1].timestamp, abs=1e-6, rel=0)
            sessions.append({"state": session.state, "events": ordered(session.events)})
        left = {
            "yielded": normal([ordered(events) for events in self.yielded]),
            "asked": normal([model.asked for model in self.models]),
            "sessions": normal(sessions),
            "calls": [name for name, _ in self.service.calls],
        }
        await reader.close()
        return left


# --- databases -----------------------------------------------------------------------------------

Maker = Callable[[str], Any]


@pytest.fixture(scope="module", params=servers.STORES)
def store(request: pytest.FixtureRequest) -> str:
    """A kind of database."""
    return str(request.param)


@pytest.fixture(scope="module")
def urls(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An empty database for stock and one for ours."""
    with databases(store, tmp_path_factory.mktemp("adk")) as found:
        yield found


@pytest.fixture
async def make(urls: dict[str, str], request: pytest.FixtureRequest) -> AsyncIterator[Maker]:
    """Makes a service, stock or ours; databases on a server get Redis in front of ours."""
    on_server = not urls["ours"].startswith("sqlite")
    cache = request.getfixturevalue("redis_url") if on_server else "memory"
    made: list[Any] = []

    def build(who: str) -> Any:
        made.append(
            DatabaseSessionService(db_url=urls[who])
            if who == "stock"
            else TieredSessionService(urls[who], cache=cache)
        )
        return made[-1]

    yield build
    for service in made:
        await service.close()


def stage(make: Maker, who: str, app: str | None = None) -> Stage:
    # The shared states of an app outlive its sessions: no two tests have the same app.
    return Stage(Recorder(make(who)), lambda: make(who), app or f"app_{uuid4().hex}")


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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
async def test_the_same_script_leaves_the_same(
    script: Callable[[Stage], Awaitable[None]], make: Maker
) -> None:
    """Events yielded, prompts, calls of the service, stored histories and states: all equal."""
    left = {}
    app = f"app_{uuid4().hex}"
    for who in ("stock", "ours"):
        here = stage(make, who, app)
        await script(here)
        left[who] = as_text(await here.left())
    assert left["ours"] == left["stock"]


# --- conformance items 50 to 60 ------------------------------------------------------------------

both = pytest.mark.parametrize("implementation", ["stock", "ours"])


@both
async def test_item_50_a_turn_is_one_read_and_an_append_an_event(make: Maker, implementation: str) -> None:
    """Message, call, response, text: one get and four appends; partial chunks are not even sent."""
    s = stage(make, implementation)
    runner = s.runner(
        s.agent("clerk", call("weigh", item="fig"), "200 g", "well now then", "hi", tools=[weigh]),
        auto_create_session=True,
    )
    await run(runner, "s", "weigh")
    assert names(s) == ["get", "create", *["append"] * 4]
    window = GetSessionConfig(num_recent_events=1)
    config = RunConfig(streaming_mode=StreamingMode.SSE, get_session_config=window)
    chunks = await run(runner, "s", "and?", run_config=config)
    assert sum(bool(event.partial) for event in chunks) == 3
    calls = s.service.taken()
    assert calls[0] == ("get", window)
    assert [name for name, _ in calls[1:]] == ["append", "append"]
    assert not any(partial for name, partial in calls if name == "append")
    assert len(s.models[0].asked[-1]) == 2, "the prompt holds the window and the message"
    await run(runner, "s", "plain")
    assert s.service.calls[0] == ("get", None)


def names(s: Stage) -> list[str]:
    return [name for name, _ in s.service.taken()]


@both
async def test_item_51_the_runner_never_lists_or_deletes(make: Maker, implementation: str) -> None:
    s = stage(make, implementation)
    for script in (tools_and_state, rewound, compacted, long_running):
        await script(s)
    assert set(names(s)) == {"create", "get", "append"}


@both
async def test_item_53_existence_reads_and_child_sessions(make: Maker, implementation: str) -> None:
    """A read of no events answers whether there is a session; an agent as a tool stores no session."""
    s = stage(make, implementation)
    await child(s)
    assert names(s).count("create") == 1
    listed = await s.service.inner.list_sessions(app_name=s.app, user_id="ann")
    assert [session.id for session in listed.sessions] == ["boss"]
    none = GetSessionConfig(num_recent_events=0)
    found = await s.service.inner.get_session(app_name=s.app, user_id="ann", session_id="boss", config=none)
    assert found.events == []
    assert found.state["word-x"] == "x"
    get = s.service.inner.get_session
    assert await get(app_name=s.app, user_id="ann", session_id="no", config=none) is None


@both
async def test_item_54_all_branches_append_through_one_object(make: Maker, implementation: str) -> None:
    s = stage(make, implementation)
    await parallel(s)
    assert len(s.service.objects) == 1 + 3 * 3 + 1
    assert len({id(session) for session in s.service.objects}) == 1
    stored = await s.load("fan")
    appended = list(s.service.objects[0].events)
    if implementation == "stock":
        # Sibling branches make events before it is their turn to be appended: stock sorts by time.
        appended.sort(key=lambda event: (event.timestamp, event.id))
    assert [event.id for event in stored.events] == [event.id for event in appended]
    assert stored.state == s.service.objects[0].state


@both
async def test_item_55_a_rewind_reads_all_and_appends_one_event(make: Maker, implementation: str) -> None:
    s = stage(make, implementation)
    runner = s.runner(s.agent("clerk", "one", "two", "three", output_key="reply"))
    await s.create("s")
    await run(runner, "s", "first", state_delta={"kept": 1})
    second = await run(runner, "s", "second", state_delta={"kept": 2, "new": 1, "user:kept": 1})
    s.service.taken()
    await runner.rewind_async(
        user_id="ann",
        session_id="s",
        rewind_before_invocation_id=second[0].invocation_id,
        run_config=RunConfig(get_session_config=GetSessionConfig(num_recent_events=1)),
    )
    assert [(name, given) for name, given in s.service.taken() if name == "get"] == [("get", None)]
    stored = await s.load("s")
    assert len(stored.events) == 5
    rewind = stored.events[-1].actions
    assert rewind.rewind_before_invocation_id == second[0].invocation_id
    assert rewind.state_delta == {"kept": 1, "reply": "one", "new": None}
    assert stored.state == {"kept": 1, "reply": "one", "new": None, "user:kept": 1}
    await run(runner, "s", "third")
    assert "second" not in as_text([content.model_dump() for content in s.models[0].asked[-1]])


@both
async def test_item_56_answers_find_their_calls_through_the_events(make: Maker, implementation: str) -> None:
    """A person's answer goes to the turn that asked, also after other turns and through a new service."""
    s = stage(make, implementation)
    agent = s.agent(
        "bank",
        call("approve", amount=7),
        "Waiting.",
        "Nice weather.",
        "Sent.",
        tools=[LongRunningFunctionTool(func=approve)],
    )
    options = {"resumability_config": ResumabilityConfig(is_resumable=True)}
    await s.create("s")
    paused = await run(s.runner(agent, **options), "s", "send 7")
    await run(s.runner(agent, **options), "s", "how are you?")
    s.service.inner = make(implementation)
    resumed = await run(s.runner(agent, **options), "s", answer(calls_in(paused)[0], status="approved"))
    assert {event.invocation_id for event in resumed} == {paused[0].invocation_id}
    texts = [part.text for event in resumed if event.content for part in event.content.parts or []]
    assert texts == ["Sent."]
    stored = await s.load("s")
    assert stored.events[1].long_running_tool_ids == {calls_in(paused)[0].id}


@both
async def test_item_57_a_summary_that_comes_too_late_is_discarded(make: Maker, implementation: str) -> None:
    """While one turn summarises, another one appends: the answered turn does not fail."""
    s = stage(make, implementation)
    await s.create("s")

    async def overtake() -> None:
        other = await s.load("s")
        await s.service.inner.append_event(other, Event(author="user", invocation_id="later"))

    runner = s.runner(
        s.agent("talker", "reply " * 300),
        events_compaction_config=EventsCompactionConfig(
            summarizer=LlmEventSummarizer(llm=s.model("too late", before=overtake)),
            compaction_interval=1,
            overlap_size=0,
        ),
    )
    assert await run(runner, "s", "hello")
    assert len(s.models[1].asked) == 1
    stored = await s.load("s")
    assert [event.invocation_id for event in stored.events][-1] == "later"
    assert not any(event.actions.compaction for event in stored.events)


@both
async def test_item_57_a_summary_is_an_event_with_a_range_of_times(make: Maker, implementation: str) -> None:
    s = stage(make, implementation)
    await compacted(s)
    stored = await s.load("long")
    first, second = (event.actions.compaction for event in stored.events if event.actions.compaction)
    assert first.compacted_content.parts[0].text == "summary one"
    assert first.start_timestamp == stored.events[0].timestamp
    assert first.start_timestamp < second.start_timestamp <= first.end_timestamp < second.end_timestamp


@both
async def test_item_58_closing_the_runner_flushes(make: Maker, implementation: str) -> None:
    s = stage(make, implementation)
    await s.runner(s.agent("a")).close()
    assert names(s) == ["flush"]


async def overtaken(s: Stage) -> Runner:
    """Returns a runner whose tool, in the middle of the turn, lets somebody else append."""

    async def overtake() -> str:
        """Appends through another object."""
        other = await s.load("s")
        event = Event(author="user", invocation_id="other", id="other")
        await s.service.inner.append_event(other, event)
        return "done"

    await s.create("s")
    return s.runner(s.agent("slow", call("overtake"), "never said", tools=[overtake]))


@both
async def test_item_59_the_runner_does_not_retry_a_stale_session(make: Maker, implementation: str) -> None:
    s = stage(make, implementation)
    runner = await overtaken(s)
    with pytest.raises(StaleSessionError):
        await run(runner, "s", "go")
    assert names(s) == ["create", "get", *["append"] * 3]
    stored = await s.load("s")
    assert [event.id for event in stored.events][2:] == ["other"]


async def test_item_59_rebase_finishes_the_turn_that_stock_breaks_off(urls: dict[str, str]) -> None:
    """`on_conflict="rebase"` is ours alone: the turn goes on after what came between."""
    async with TieredSessionService(urls["ours"], cache=None, on_conflict="rebase") as service:
        s = Stage(Recorder(service), lambda: service, "rebase")
        await run(await overtaken(s), "s", "go")
        stored = await s.load("s")
        assert [event.author for event in stored.events] == ["user", "slow", "user", "slow", "slow"]
        assert stored.events[2].id == "other"
        assert [event.id for event in s.service.objects[0].events] == [event.id for event in stored.events]


@both
async def test_item_60_only_deltas_reach_storage(make: Maker, implementation: str) -> None:
    """A write into a nested dictionary travels as the whole container; one beside the delta is lost."""

    def sneak(tool_context: ToolContext) -> str:
        """Writes past the delta."""
        tool_context._invocation_context.session.state["sneaked"] = 1
        return "done"

    s = stage(make, implementation)
    runner = s.runner(s.agent("a", [call("nest"), call("sneak")], "done", tools=[nest, sneak]))
    await s.create("s", basket={"figs": 2})
    events = await run(runner, "s", "go")
    deltas = [event.actions.state_delta for event in events if event.actions.state_delta]
    assert deltas == [{"basket": {"figs": 2, "pears": 3}}]
    stored = await s.load("s")
    assert stored.state["basket"] == {"figs": 2, "pears": 3}
    assert "sneaked" not in stored.state


# --- leaving and coming back ---------------------------------------------------------------------


async def test_stock_goes_on_where_ours_stopped_and_back(make: Maker, urls: dict[str, str]) -> None:
    """One conversation, turn by turn on the one and the other, over one database."""
    ours = make("ours")
    stock = DatabaseSessionService(db_url=urls["ours"])
    s = Stage(Recorder(ours), lambda: ours, "both")
    agent = s.agent("talker", *(f"reply {n}" for n in range(6)), output_key="last")
    await s.create("s")
    for number in range(6):
        s.service.inner = (stock, make("ours"))[number % 2]
        await run(s.runner(agent), "s", f"say {number}")
        assert len(s.models[0].asked[-1]) == 2 * number + 1, "the prompt holds the whole conversation"
    left = [
        (await service.get_session(app_name=s.app, user_id="ann", session_id="s")).model_dump()
        for service in (stock, make("ours"))
    ]
    assert left[0] == left[1]
    await stock.close()
