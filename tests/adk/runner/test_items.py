"""Items 50 to 60 of the conformance list: what ADK's runner asks of a session service."""

from __future__ import annotations

import pytest
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.apps.app import EventsCompactionConfig, ResumabilityConfig
from google.adk.apps.llm_event_summarizer import LlmEventSummarizer
from google.adk.events.event import Event
from google.adk.runners import Runner
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.tools import LongRunningFunctionTool, ToolContext

from tests.adk.runner.scripts import (
    approve,
    child,
    compacted,
    long_running,
    nest,
    parallel,
    rewound,
    tools_and_state,
    weigh,
)
from tests.adk.runner.stage import QUIET, Maker, Stage, both, names, stage
from tests.adk.scripted import Recorder, answer, as_text, call, calls_in, run
from tiered_sessions.adk import StaleSessionError, TieredSessionService

pytestmark = QUIET


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
