"""Stock google-adk and our store append to one session by turns."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests import servers
from tests.conformance import stock_adk
from tests.conformance.stock_adk import StockAdk
from tiered_sessions.config import TieredConfig
from tiered_sessions.records import (
    Append,
    AppendOutcome,
    Committed,
    NewEvent,
    Query,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
)
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.store import SqlSessionStore

WHO = {"app": "app", "user": "user"}


@pytest.fixture(scope="module")
def stock() -> Iterator[StockAdk]:
    with stock_adk.start(servers.python_for_adk()) as running:
        yield running


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[SqlSessionStore]:
    config = TieredConfig()
    made = SqlSessionStore(build_engine(store_url, config), owns_engine=True, config=config)
    yield made
    await made.close()


async def load(store: SqlSessionStore, key: SessionKey) -> Snapshot:
    found = await store.load(key, Query())
    assert found is not None
    return found


async def append(
    store: SqlSessionStore, key: SessionKey, expected: Tag, id_: str, seconds: float
) -> AppendOutcome:
    payload = {"id": id_, "timestamp": seconds, "author": "user", "invocation_id": "i"}
    event = NewEvent(id_, "i", round(seconds * 1e6), json.dumps(payload).encode())
    writer = await store.writer()
    try:
        return await writer.append(
            Append(key, expected, event.timestamp, (event,), session_delta=json.dumps({id_: 1}).encode())
        )
    finally:
        await writer.release()


def ids(snapshot: Snapshot) -> list[tuple[int, str]]:
    return [(event.seq, event.id) for event in snapshot.session.events]


async def test_appends_by_turns(stock: StockAdk, store_url: str, store: SqlSessionStore) -> None:
    call: dict[str, Any] = {"url": store_url, "session": "turns", **WHO}
    key = SessionKey("app", "user", "turns")
    stock.call("create", **call)
    stock.call("append", id="z1", timestamp=1000.5, **call)
    stock.call("append", id="a2", timestamp=1000.5, **call)
    await store.prepare()

    # Not adopted: the tag is the update time alone.
    first = await load(store, key)
    assert first.session.tag == Tag(0, 0, 0, 1_000_500_000)
    assert {event.id for event in first.session.events} == {"z1", "a2"}

    # A stale writer is refused, and the refusal adopts nothing.
    assert isinstance(await append(store, key, Tag(0, 0, 0, 1), "x", 1001.0), Stale)
    assert (await load(store, key)).session.tag == first.session.tag

    # Our first append numbers what is there.
    ours = await append(store, key, first.session.tag, "o3", 1002.0)
    assert isinstance(ours, Committed)
    assert ours.numbered
    second = await load(store, key)
    assert ids(second) == [(1, "a2"), (2, "z1"), (3, "o3")]
    assert second.session.tag.adopted

    # Stock reads it, and appends to it.
    shown = stock.call("get", **call)
    assert shown["events"] == ["a2", "z1", "o3"]
    assert shown["state"] == {"o3": 1}
    stock.call("append", id="s4", timestamp=1003.0, delta={"s4": 2}, **call)

    # Whoever holds what was there before is stale, and a reader sees the new event last.
    assert isinstance(await append(store, key, second.session.tag, "x", 1004.0), Stale)
    third = await load(store, key)
    assert third.session.tag.adopted is False
    assert [event.id for event in third.session.events] == ["a2", "z1", "o3", "s4"]
    again = await append(store, key, third.session.tag, "o5", 1005.0)
    assert isinstance(again, Committed)
    assert again.numbered
    fourth = await load(store, key)
    assert ids(fourth) == [(1, "a2"), (2, "z1"), (3, "o3"), (4, "s4"), (5, "o5")]
    assert json.loads(fourth.session.state) == {"o3": 1, "s4": 2, "o5": 1}

    # A stock turn under way since before our append is refused by stock's own check.
    with pytest.raises(RuntimeError, match="StaleSessionError"):
        stock.call("append", id="s6", timestamp=1006.0, reuse=True, **call)
    stock.call("append", id="s6", timestamp=1006.0, **call)
    stock.call("delete", **call)
    assert await store.load(key, Query()) is None
    stock.call("close", store_url)


async def test_a_session_deleted_and_made_again_by_stock_is_another_one(
    stock: StockAdk, store_url: str, store: SqlSessionStore
) -> None:
    call: dict[str, Any] = {"url": store_url, "session": "again", **WHO}
    key = SessionKey("app", "user", "again")
    await store.prepare()
    stock.call("create", **call)
    before = (await load(store, key)).session.tag
    assert isinstance(await append(store, key, before, "o1", 1000.0), Committed)
    adopted = (await load(store, key)).session.tag
    stock.call("delete", **call)
    stock.call("create", **call)
    assert isinstance(await append(store, key, adopted, "o2", 1001.0), Stale)
    fresh = await load(store, key)
    assert fresh.session.events == ()
    assert isinstance(await append(store, key, fresh.session.tag, "o2", 1001.0), Committed)
    assert (await load(store, key)).session.tag.incarnation not in (0, adopted.incarnation)
    stock.call("close", store_url)
