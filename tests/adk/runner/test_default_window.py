"""A runner over `default_window`: what a rewind through it does, and what puts it right."""

from __future__ import annotations

import pytest

from tests.adk.runner.scripts import weigh
from tests.adk.runner.stage import QUIET, Maker, Stage, stage
from tests.adk.scripted import Recorder, call, run
from tiered_sessions import TieredConfig
from tiered_sessions.adk import TieredSessionService
from tiered_sessions.errors import InvalidValueError

pytestmark = QUIET

# One turn of `weigh`: message, call, response, text.
TURN = 4


async def note(s: Stage) -> str | None:
    """Returns what the artifact says, if it is there."""
    found = await s.artifacts.load_artifact(
        app_name=s.app, user_id="ann", session_id="s", filename="note.txt"
    )
    return found and found.inline_data and (found.inline_data.data or b"").decode()


@pytest.mark.differs(stock="rewinds", ours="refused through `default_window`, else rewinds")
async def test_item_55_a_rewind_through_a_window_is_refused(make: Maker, urls: dict[str, str]) -> None:
    """The runner writes artifacts before the event that is refused: a whole rewind brings them back."""
    s = stage(make, "ours")
    config = TieredConfig(default_window=TURN)
    async with TieredSessionService(urls["ours"], cache=None, config=config) as windowed:
        replies = (reply for item in ("pear", "fig") for reply in (call("weigh", item=item), item))
        agent = s.agent("clerk", *replies, tools=[weigh])
        await s.create("s")
        turns = [await run(s.runner(agent), "s", text, state_delta={text: 1}) for text in ("one", "two")]
        before = await s.load("s")
        assert len(before.events) == 2 * TURN
        first, second = (turn[0].invocation_id for turn in turns)

        whole, s.service = s.service, Recorder(windowed)
        rewind = {"user_id": "ann", "session_id": "s", "rewind_before_invocation_id": second}
        with pytest.raises(ValueError, match=first):
            await s.runner(agent).rewind_async(**{**rewind, "rewind_before_invocation_id": first})
        assert await note(s) == "fig", "nothing is written for a turn that the window does not show"
        with pytest.raises(InvalidValueError, match="whole history"):
            await s.runner(agent).rewind_async(**rewind)
        assert s.service.taken() == [("get", None), ("get", None), ("append", None)]
        s.service = whole
        after = await s.load("s")
        assert (after.state, after.events) == (before.state, before.events)
        assert await note(s) is None, "the tombstone was written before the event"

        await s.runner(agent).rewind_async(**rewind)
        after = await s.load("s")
        assert len(after.events) == 2 * TURN + 1
        assert (after.state["one"], after.state["two"], after.state["last"]["item"]) == (1, None, "pear")
        assert await note(s) == "pear"
