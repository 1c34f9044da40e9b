"""A fleet leaves for stock google-adk and comes back, while its old cache entries are alive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import servers
from tests.conformance import stock_adk
from tests.conformance.stock_adk import StockAdk
from tiered_sessions.config import TieredConfig
from tiered_sessions.models import Event, EventActions
from tiered_sessions.service import TieredSessionService

WHO = {"app": "app", "user": "user"}
# A foreign write is seen within max_staleness; 0 makes that "at once".
CONFIG = TieredConfig(max_staleness=0)


@pytest.fixture(scope="module")
def stock() -> Iterator[StockAdk]:
    with stock_adk.start(servers.python_for_adk()) as running:
        yield running


def service(store_url: str, redis_url: str) -> TieredSessionService:
    return TieredSessionService(store_url, cache=redis_url, config=CONFIG)


async def turn(ours: TieredSessionService, session_id: str, id_: str) -> None:
    session = await ours.get_session(app_name="app", user_id="user", session_id=session_id)
    assert session is not None
    delta = {id_: 1, "user:last": id_}
    event = Event(id=id_, invocation_id="i", author="agent", actions=EventActions(state_delta=delta))
    await ours.append_event(session, event)
    await ours.flush()


async def seen(ours: TieredSessionService, session_id: str) -> tuple[list[str], dict[str, Any]]:
    session = await ours.get_session(app_name="app", user_id="user", session_id=session_id)
    assert session is not None
    return [event.id for event in session.events], session.state


async def test_leave_for_stock_and_return(stock: StockAdk, store_url: str, redis_url: str) -> None:
    calls = [{"url": store_url, "session": name, **WHO} for name in ("kept", "remade")]
    for call in calls:
        stock.call("create", **call)
        stock.call("append", id="s1", delta={"s1": 1}, **call)
    async with service(store_url, redis_url) as ours:
        for call in calls:
            await turn(ours, call["session"], "o2")
            assert (await seen(ours, call["session"]))[0] == ["s1", "o2"]
            assert (await seen(ours, call["session"]))[0] == ["s1", "o2"]
        await ours.flush()

    # The fleet runs stock for a while; nobody tells the cache.
    stock.call("append", id="s3", delta={"s3": 1, "user:last": "s3"}, **calls[0])
    stock.call("delete", **calls[1])
    stock.call("create", state={"new": True}, **calls[1])

    async with service(store_url, redis_url) as ours:
        kept = (["s1", "o2", "s3"], {"s1": 1, "o2": 1, "s3": 1, "user:last": "s3"})
        assert await seen(ours, "kept") == kept
        assert await seen(ours, "remade") == ([], {"new": True, "user:last": "s3"})
        for name in ("kept", "remade"):
            await turn(ours, name, "o4")
        kept = (["s1", "o2", "s3", "o4"], {"s1": 1, "o2": 1, "s3": 1, "o4": 1, "user:last": "o4"})
        assert await seen(ours, "kept") == kept
        assert await seen(ours, "remade") == (["o4"], {"new": True, "o4": 1, "user:last": "o4"})

    shown = stock.call("get", **calls[0])
    assert (shown["events"], shown["state"]) == kept
    stock.call("close", store_url)
