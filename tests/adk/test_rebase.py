"""`on_conflict="rebase"`: an append that only adds goes after what others appended meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.sessions.session import Session

from tests.adk.conformance import Make, conversation, event, on_ours, reload, texts
from tiered_sessions.adk import StaleSessionError, TieredSessionService
from tiered_sessions.errors import ConfigurationError

pytestmark = on_ours


@pytest.fixture
def rebasing(make: Make) -> Any:
    return make(on_conflict="rebase")


async def test_others_events_come_first_and_the_object_learns_them(
    make: Make, rebasing: Any, app: str
) -> None:
    other = make()
    session = await rebasing.create_session(app_name=app, user_id="u", state={"k": 0, "user:u": 0})
    events, state = session.events, session.state
    await rebasing.append_event(session, event("0", timestamp=1000.0, **{"temp:t": 1}))
    session.state["unsaved"] = 1
    theirs = await reload(other, session)
    for n in (1, 2):
        await other.append_event(theirs, event(str(n), timestamp=1000.0 + n, **{"k": n, "user:u": n, "a": n}))
    mine = event("3", timestamp=1003.0, k=3)
    await rebasing.append_event(session, mine)
    assert texts(session) == ["0", "1", "2", "3"]
    assert session.events is events
    assert session.state is state
    assert session.events[-1] is mine
    assert state == {"k": 3, "user:u": 2, "a": 2, "temp:t": 1, "unsaved": 1}
    loaded = await reload(other, session)
    assert loaded.events == session.events
    assert loaded.state == {"k": 3, "user:u": 2, "a": 2}
    assert loaded.last_update_time == session.last_update_time
    await rebasing.append_event(session, event("4", timestamp=1004.0))
    assert texts(await reload(other, session)) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("window", [0, 1, 3])
async def test_a_windowed_object_gets_only_what_came_after(
    make: Make, rebasing: Any, app: str, window: int
) -> None:
    session = await conversation(rebasing, app)
    part = await reload(rebasing, session, num_recent_events=window)
    for n in range(60):
        await rebasing.append_event(session, event(f"n{n}", timestamp=2000.0 + n))
    await rebasing.append_event(part, event("mine", timestamp=3000.0))
    assert texts(part) == [*"01234"[5 - window :], *(f"n{n}" for n in range(60)), "mine"]
    assert texts(await reload(make(), session))[-2:] == ["n59", "mine"]


async def test_all_of_many_succeed(make: Make, app: str) -> None:
    services = [make(on_conflict="rebase") for _ in range(2)]
    session = await services[0].create_session(app_name=app, user_id="u")

    async def load_and_append(n: int) -> Session:
        mine = await reload(services[n % 2], session)
        await services[n % 2].append_event(mine, event(str(n), **{str(n): n}))
        return mine

    objects = await asyncio.gather(*(load_and_append(n) for n in range(10)))
    loaded = await reload(services[0], session)
    assert sorted(texts(loaded)) == sorted(str(n) for n in range(10))
    assert sorted(loaded.state) == sorted(str(n) for n in range(10))
    for mine in objects:
        assert texts(mine) == texts(loaded)[: len(mine.events)]


async def test_an_object_made_by_hand_catches_up(rebasing: Any, app: str) -> None:
    session = await conversation(rebasing, app)
    for held in (session.events[:2], []):
        by_hand = Session(id=session.id, app_name=app, user_id="u", events=list(held))
        await rebasing.append_event(by_hand, event("mine"))
        assert texts(by_hand) == texts(await reload(rebasing, session))


async def test_another_history_is_refused(make: Make, rebasing: Any, app: str) -> None:
    session = await rebasing.create_session(app_name=app, user_id="u", session_id="s")
    await rebasing.append_event(session, event("old"))
    await make().delete_session(app, "u", "s")
    with pytest.raises(SessionNotFoundError):
        await rebasing.append_event(session, event("late"))
    again = await make().create_session(app_name=app, user_id="u", session_id="s")
    with pytest.raises(StaleSessionError):
        await rebasing.append_event(session, event("late"))
    by_hand = Session(id="s", app_name=app, user_id="u", events=[event("never stored")])
    await make().append_event(again, event("new"))
    with pytest.raises(StaleSessionError):
        await rebasing.append_event(by_hand, event("late"))
    assert texts(await reload(rebasing, again)) == ["new"]
    assert texts(session) == ["old"]


async def test_replacing_the_state_is_no_addition(make: Make, rebasing: Any, app: str) -> None:
    session = await rebasing.create_session(app_name=app, user_id="u", state={"k": 0})
    await make().append_event(await reload(make(), session), event("first", k=1))
    with pytest.raises(StaleSessionError):
        await rebasing.replace_state(session, {})
    await rebasing.merge_state(session, {"j": 1})
    assert session.state == {"k": 1, "j": 1}
    assert texts(session) == ["first"]


def test_only_two_words_are_known(db_url: str, cache_address: str | None) -> None:
    wrong: Any = "retry"
    with pytest.raises(ConfigurationError, match='"raise" or "rebase"'):
        TieredSessionService(db_url, cache=cache_address, on_conflict=wrong)
