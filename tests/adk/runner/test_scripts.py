"""A real Runner, end to end: the same scripts on stock's service and on ours, equal in all they leave."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest
from google.adk.sessions import DatabaseSessionService
from google.adk.version import __version__

from tests.adk.runner.scripts import SCRIPTS
from tests.adk.runner.stage import QUIET, Maker, Stage, stage
from tests.adk.scripted import Recorder, as_text, run

pytestmark = QUIET

# What a release itself cannot do: on ours it must fail in the same words and leave the same.
FAILURES = {
    ("1.39.1", "paused_in_a_sequence"): "No function call event found for function responses ids",
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
async def test_the_same_script_leaves_the_same(
    script: Callable[[Stage], Awaitable[None]], make: Maker
) -> None:
    """Events yielded, prompts, calls of the service, stored histories and states: all equal."""
    failure = FAILURES.get((__version__, script.__name__))
    left = {}
    app = f"app_{uuid4().hex}"
    for who in ("stock", "ours"):
        here = stage(make, who, app)
        with pytest.raises(ValueError, match=failure) if failure else contextlib.nullcontext():
            await script(here)
        left[who] = as_text(await here.left())
    assert left["ours"] == left["stock"]


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
