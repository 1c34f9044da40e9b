"""Stock google-adk, in a process of its own, writes the tables that this process reads through Redis.

Here runs the service that stands alone, or the drop-in that ADK's users have.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import google.adk.events
import pytest
import redis

import tiered_sessions.adk
from tests import servers
from tests.conformance import stock_adk
from tests.conformance.stock_adk import StockAdk
from tiered_sessions import errors, metrics, models, service
from tiered_sessions.config import TieredConfig
from tiered_sessions.store.migrations.triggers import install_triggers, remove_triggers
from tiered_sessions.store.store import SqlSessionStore

# With the hour, nothing but a drained invalidation can make a cached read new.
HOUR = TieredConfig(max_staleness=3600, outbox_poll=0.02)
BRIEF = TieredConfig(max_staleness=0.05)
# A process that is not elected to drain looks again only after seconds.
PATIENCE = 30


@dataclass(frozen=True)
class Binding:
    """One of the two services, with its own events and its own refusal."""

    service: type[Any]
    event: type[Any]
    stale: type[Exception]


BINDINGS = {
    "standalone": Binding(service.TieredSessionService, models.Event, errors.StaleSessionError),
    "drop-in": Binding(
        tiered_sessions.adk.TieredSessionService,
        google.adk.events.Event,
        tiered_sessions.adk.StaleSessionError,
    ),
}


class Counts(Counter[str]):
    """Counters that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Event()

    def count(self, name: str, value: int = 1) -> None:
        self[name] += value
        self._changed.set()

    async def until(self, name: str, value: int) -> None:
        while self[name] < value:
            self._changed.clear()
            await self._changed.wait()


class Fleet:
    """One stock process and services of ours, over one database."""

    def __init__(self, stock: StockAdk, url: str, cache: str, binding: Binding) -> None:
        self._stock = stock
        self._binding = binding
        self.stale = binding.stale
        self._url = url
        self._cache = cache
        # The databases are shared by the tests of a module.
        self._app = f"app-{uuid.uuid4().hex}"

    def open(self, config: TieredConfig, counts: Counts | None = None) -> Any:
        return self._binding.service(self._url, cache=self._cache, config=config, metrics=counts)

    def event(self, id_: str, **delta: Any) -> Any:
        delta = {key.replace("__", ":"): value for key, value in delta.items()}
        return self._binding.event(id=id_, invocation_id="i", author="agent", actions={"state_delta": delta})

    async def stock(self, operation: str, **arguments: Any) -> Any:
        """Has the stock process do something, while ours goes on."""
        call = {"url": self._url, "app": self._app, "user": "user", "session": "s", **arguments}
        return await asyncio.to_thread(lambda: self._stock.call(operation, **call))

    async def get(self, ours: Any) -> Any:
        return await ours.get_session(app_name=self._app, user_id="user", session_id="s")

    async def ids(self, ours: Any) -> list[str] | None:
        session = await self.get(ours)
        return None if session is None else [event.id for event in session.events]

    async def append(self, ours: Any, id_: str, **delta: Any) -> None:
        session = await self.get(ours)
        assert session is not None
        await ours.append_event(session, self.event(id_, **delta))
        await ours.flush()

    async def until_cached(self, ours: Any, counts: Counts) -> None:
        """Reads until a read is answered without SQL."""
        while True:
            before = counts[metrics.READ_STORE]
            await self.get(ours)
            await ours.flush()
            if counts[metrics.READ_STORE] == before:
                return

    async def until_drained(self, ours: Any, counts: Counts) -> None:
        """Waits until every invalidation was carried to the cache."""
        store = SqlSessionStore(ours.db_engine, owns_engine=False, config=HOUR)
        while True:
            drained = counts[metrics.OUTBOX_DRAINED]
            if not await store.outbox(1):
                return
            await counts.until(metrics.OUTBOX_DRAINED, drained + 1)


@pytest.fixture(scope="module")
def stock() -> Iterator[StockAdk]:
    with stock_adk.start(servers.python_for_adk()) as running:
        yield running


@pytest.fixture(params=BINDINGS)
async def fleet(
    request: pytest.FixtureRequest, stock: StockAdk, store_url: str, redis_url: str
) -> AsyncIterator[Fleet]:
    """A session made by stock and adopted by us, without triggers; its keys in Redis are removed."""
    made = Fleet(stock, store_url, redis_url, BINDINGS[request.param])
    await made.stock("create", state={"who": "stock"})
    await made.stock("append", id="s0", delta={"s0": 0})
    async with made.open(HOUR) as ours:
        await ours.prepare_tables()
        await remove_triggers(ours.db_engine)
        await made.append(ours, "o0", o0=0, user__last="o0", app__last="o0")
        namespace = await SqlSessionStore(ours.db_engine, owns_engine=False, config=HOUR).namespace()
    try:
        async with asyncio.timeout(PATIENCE):
            yield made
    finally:
        await made.stock("close")
        with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
            keys = list(client.scan_iter(f"*{namespace}*", count=1000))
            if keys:
                client.unlink(*keys)


# --- with triggers ---------------------------------------------------------------------------


async def test_with_triggers_a_stock_write_is_seen_when_the_outbox_is_drained(fleet: Fleet) -> None:
    counts = Counts()
    async with fleet.open(HOUR, counts) as ours:
        await install_triggers(ours.db_engine)
        await fleet.until_cached(ours, counts)
        old = await fleet.get(ours)
        assert old is not None
        delta = {"s1": 1, "user:last": "s1", "app:last": "s1"}
        moment = (await fleet.stock("append", id="s1", delta=delta))["last_update_time"]
        await fleet.until_drained(ours, counts)
        new = await fleet.get(ours)
        assert new is not None
        assert [event.id for event in new.events] == ["s0", "o0", "s1"]
        assert new.state == {"who": "stock", "s0": 0, "o0": 0, "s1": 1, "user:last": "s1", "app:last": "s1"}
        # What stock numbered nothing of may be cached again.
        await fleet.until_cached(ours, counts)
        assert await fleet.ids(ours) == ["s0", "o0", "s1"]

        # Whoever loaded before is refused, whatever a cache says.
        with pytest.raises(fleet.stale):
            await ours.append_event(old, fleet.event("x"))
        await ours.append_event(new, fleet.event("o1"))
        await ours.flush()
        assert await fleet.ids(ours) == ["s0", "o0", "s1", "o1"]
        await fleet.until_cached(ours, counts)

        # Two events of one moment: the row of the session does not change, and only a trigger sees it.
        at = moment + 1
        await fleet.stock("append", id="s2", timestamp=at)
        await fleet.until_drained(ours, counts)
        await fleet.until_cached(ours, counts)
        before = await fleet.get(ours)
        await fleet.stock("append", id="s3", timestamp=at)
        await fleet.until_drained(ours, counts)
        assert await fleet.ids(ours) == ["s0", "o0", "s1", "o1", "s2", "s3"]
        assert before is not None
        with pytest.raises(fleet.stale):
            await ours.append_event(before, fleet.event("y"))


async def test_with_triggers_a_stock_delete_is_seen_when_the_outbox_is_drained(fleet: Fleet) -> None:
    counts = Counts()
    async with fleet.open(HOUR, counts) as ours:
        await install_triggers(ours.db_engine)
        await fleet.until_cached(ours, counts)
        await fleet.stock("delete")
        await fleet.until_drained(ours, counts)
        assert await fleet.get(ours) is None
        await fleet.stock("create", state={"again": True})
        await fleet.stock("append", id="s9")
        session = await fleet.get(ours)
        assert session is not None
        assert [event.id for event in session.events] == ["s9"]
        await fleet.append(ours, "o9")
        shown = await fleet.stock("get")
        assert sorted(shown["events"]) == ["o9", "s9"]


async def test_with_triggers_a_fleet_leaves_and_comes_back(fleet: Fleet) -> None:
    """Old entries are alive, nobody drained for a while: the first drain after the return finds all."""
    counts = Counts()
    async with fleet.open(HOUR, counts) as ours:
        await install_triggers(ours.db_engine)
        await fleet.until_cached(ours, counts)
    await fleet.stock("append", id="s1", delta={"user:last": "s1"})
    await fleet.stock("append", id="s2", delta={"app:last": "s2"})
    counts = Counts()
    async with fleet.open(HOUR, counts) as ours:
        await fleet.get(ours)
        await fleet.until_drained(ours, counts)
        session = await fleet.get(ours)
        assert session is not None
        assert [event.id for event in session.events] == ["s0", "o0", "s1", "s2"]
        assert (session.state["user:last"], session.state["app:last"]) == ("s1", "s2")
        await fleet.append(ours, "o1", user__last="o1")
    shown = await fleet.stock("get")
    assert shown["events"] == ["s0", "o0", "s1", "s2", "o1"]
    assert (shown["state"]["user:last"], shown["state"]["app:last"]) == ("o1", "s2")


# --- without triggers ------------------------------------------------------------------------


async def test_without_triggers_a_stock_write_is_seen_after_max_staleness(fleet: Fleet) -> None:
    counts = Counts()
    async with fleet.open(HOUR, counts) as patient, fleet.open(BRIEF) as brief:
        await fleet.until_cached(patient, counts)
        old = await fleet.get(patient)
        await fleet.stock("append", id="s1", delta={"s1": 1, "user:last": "s1"})
        # This is the bound: what was validated within max_staleness is served as it was.
        assert await fleet.ids(patient) == ["s0", "o0"]
        # An append is refused at once, and the reload that follows is fresh.
        assert old is not None
        with pytest.raises(fleet.stale):
            await patient.append_event(old, fleet.event("x"))
        assert await fleet.ids(patient) == ["s0", "o0", "s1"]
        await fleet.append(patient, "o1")
        await fleet.until_cached(patient, counts)

        await fleet.stock("append", id="s2", delta={"user:last": "s2"})
        while await fleet.ids(brief) == ["s0", "o0", "s1", "o1"]:
            pass
        assert await fleet.ids(brief) == ["s0", "o0", "s1", "o1", "s2"]
        # It has dropped the entry for everybody.
        assert await fleet.ids(patient) == ["s0", "o0", "s1", "o1", "s2"]
        session = await fleet.get(brief)
        while session is not None and session.state["user:last"] != "s2":
            session = await fleet.get(brief)
        assert session is not None


# --- both ways -------------------------------------------------------------------------------

TURNS = 12


def delta(who: str, turn: int) -> dict[str, int]:
    return {f"{scope}{who}{turn}": turn for scope in ("", "user:", "app:")}


@pytest.mark.parametrize("triggers", [True, False], ids=["triggers", "plain"])
async def test_both_write_at_once_and_nothing_is_lost(fleet: Fleet, store_url: str, triggers: bool) -> None:
    reads: list[list[str]] = []
    # Refusals of a full turn, by cause; on SQLite stock may also find the file locked.
    refused: Counter[str] = Counter()

    async def stock_turns() -> None:
        for turn in range(1, TURNS + 1):
            done = False
            while not done:
                try:
                    await fleet.stock("append", id=f"s{turn}", delta=delta("s", turn))
                    done = True
                except RuntimeError as error:
                    refused[f"stock: {str(error).partition(':')[0]}"] += 1

    async def our_turns(ours: Any) -> None:
        for turn in range(1, TURNS + 1):
            done = False
            while not done:
                session = await fleet.get(ours)
                assert session is not None
                reads.append([event.id for event in session.events])
                try:
                    await ours.append_event(session, fleet.event(f"o{turn}", **delta("o", turn)))
                    done = True
                except (fleet.stale, errors.StoreUnavailableError) as error:
                    refused[f"ours: {type(error).__name__}"] += 1

    config = TieredConfig(max_staleness=0.05, outbox_poll=0.02)
    counts = Counts()
    async with fleet.open(config, counts) as ours:
        await (install_triggers if triggers else remove_triggers)(ours.db_engine)
        async with asyncio.TaskGroup() as group:
            group.create_task(stock_turns())
            group.create_task(our_turns(ours))
        # Whatever stock wrote last is numbered by an append of ours.
        session = await fleet.get(ours)
        while session is not None and not any(event.id == f"s{TURNS}" for event in session.events):
            session = await fleet.get(ours)
        assert session is not None
        while "end" not in (await fleet.ids(ours) or ()):
            with contextlib.suppress(fleet.stale):
                await fleet.append(ours, "end")
        final = await fleet.ids(ours)
    assert final is not None
    turns = range(TURNS + 1)
    # Nothing lost, nothing twice; each side's turns in their order.
    assert Counter(final) == Counter([f"{who}{turn}" for who in "so" for turn in turns] + ["end"])
    for who in "so":
        assert [id_ for id_ in final if id_.startswith(who)] == [f"{who}{turn}" for turn in turns]
    # One order for everybody: what was ever read is where the log begins.
    for read in reads:
        assert read == final[: len(read)]
    async with service.TieredSessionService(store_url, cache=None) as plain:
        session = await fleet.get(plain)
    assert session is not None
    assert [event.id for event in session.events] == final
    shown = await fleet.stock("get")
    assert Counter(shown["events"]) == Counter(final)
    assert shown["state"] == session.state
    if not store_url.startswith("sqlite"):
        # On SQLite stock reads a state, then writes it, without a lock in between.
        for who in "so":
            for turn in turns[1:]:
                assert delta(who, turn).items() <= session.state.items()
    assert set(refused) <= {
        "ours: StaleSessionError",
        "ours: StoreUnavailableError",
        "stock: StaleSessionError",
        "stock: ValueError",  # how releases before 2.5 refuse a stale session
        "stock: OperationalError",
    }
