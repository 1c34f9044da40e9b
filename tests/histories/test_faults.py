"""Each fault shows that it happened: where it is kept from happening, it says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.conformance import stock_adk
from tests.histories import (
    faults_cache,
    faults_common,
    faults_network,
    faults_process,
    faults_sql,
    faults_stock,
    faults_topology,
)
from tests.histories.faults import all_faults
from tests.histories.faults_common import Injection
from tests.histories.faults_topology import (
    Clock,
    ClockMoved,
    DebugSleep,
    FailedOver,
    SlotMoved,
    Topology,
    call,
)
from tests.histories.fleet import Fleet
from tests.histories.server import Server
from tests.processes import OwnServer
from tests.relay import Relay
from tiered_sessions.cache.keys import FORMAT
from tiered_sessions.store.store import SqlSessionStore

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """A small one, under load."""
    async with Fleet(None, tmp_path_factory.mktemp("fleet"), processes=1, clients=2) as fleet:
        await fleet.progress(5)
        yield fleet


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has what never happens given up soon, but no answer that is only late be taken for none."""
    monkeypatch.setattr(faults_common, "PATIENCE", 1.0)
    monkeypatch.setattr(faults_cache, "SILENCE", 30.0)


def nothing(*_: Any, **__: Any) -> None:
    """Does nothing."""


async def nothing_async(*_: Any, **__: Any) -> None:
    """Does nothing, in its own time."""


def deaf_to(word: str) -> Callable[..., Awaitable[Any]]:
    """Returns `Fleet.admin`, but deaf to commands with this word."""
    admin = Fleet.admin

    async def deaf(self: Fleet, *command: object) -> Any:
        return None if word in command else await admin(self, *command)

    return deaf


def without(words: str) -> Callable[..., Awaitable[Any]]:
    """Returns `Fleet.sql`, but deaf to statements with these words."""
    sql = Fleet.sql

    async def deaf(self: Fleet, *statements: str) -> list[Any]:
        return await sql(self, *(one for one in statements if words not in one))

    return deaf


async def start_without_its_environment(server: Server) -> None:
    """Starts it without the environment it should have."""
    server.environment = {}
    await START(server)


START = Server.start


@contextlib.asynccontextmanager
async def no_transaction(*_: Any) -> AsyncIterator[None]:
    """Locks nothing."""
    yield


SABOTAGE: list[tuple[Injection, Any, str, Any]] = [
    (faults_network.Slow(0.05), Relay, "_pass", nothing_async),
    (faults_network.Cut(), Relay, "refuse", nothing),
    (faults_network.OneCut(0), Relay, "refuse", nothing),
    (faults_network.HalfOpen(requests=True, replies=True), Relay, "black_hole", nothing),
    (faults_network.HalfOpen(requests=True, replies=False), Relay, "black_hole", nothing),
    (faults_network.RepliesSwallowed(), Relay, "swallow_next_reply", nothing),
    (faults_network.Resets(), Relay, "reset_all", nothing),
    (faults_network.HeldBack("the reads", FORMAT), Relay, "hold_requests", nothing),
    (faults_cache.Paused(), OwnServer, "pause", nothing),
    (faults_cache.ClientPause("ALL"), faults_cache, "pause", lambda _: ("PING",)),
    (faults_cache.ClientPause("WRITE"), faults_cache, "pause", lambda _: ("PING",)),
    (faults_cache.RestartedAtOnce(), OwnServer, "restart", nothing),
    (faults_cache.OldSnapshot(), Fleet, "admin", deaf_to("SAVE")),
    (faults_cache.Flushed(), Fleet, "admin", deaf_to("FLUSHALL")),
    (faults_cache.ScriptsFlushed(), Fleet, "admin", deaf_to("SCRIPT")),
    (faults_cache.Full("allkeys-lru"), Fleet, "admin", deaf_to("maxmemory")),
    (faults_cache.Full("noeviction"), Fleet, "admin", deaf_to("maxmemory")),
    (faults_process.steps()[0], Relay, "hold_requests", nothing),
    (faults_process.steps()[1], Relay, "hold_replies", nothing),
    (faults_process.steps()[3], faults_process, "transaction", no_transaction),
    (faults_process.steps()[5], Server, "kill", nothing_async),
    (faults_process.WrongClocks(), Server, "start", start_without_its_environment),
    (faults_process.RollingUpgrade(), Server, "start", start_without_its_environment),
    (faults_cache.NamespaceChanged(), SqlSessionStore, "reset_namespace", nothing_async),
    (faults_sql.RowsLocked(), faults_sql, "transaction", no_transaction),
    (faults_sql.Slow(), Relay, "_pass", nothing_async),
    (faults_sql.Stalled(), Relay, "hold_requests", nothing),
    (faults_sql.AcknowledgementLost(), Relay, "hold_replies", nothing),
    (faults_sql.Terminated(), Fleet, "sql", without("pg_terminate_backend")),
    (faults_sql.Serialization(), Fleet, "sql", without("CREATE TRIGGER")),
]


@pytest.mark.parametrize(
    ("fault", "owner", "name", "instead"),
    SABOTAGE,
    ids=[f"{type(one[0]).__name__}-{number}" for number, one in enumerate(SABOTAGE)],
)
async def test_what_does_not_happen_is_noticed(
    fleet: Fleet,
    monkeypatch: pytest.MonkeyPatch,
    impatient: None,
    fault: Injection,
    owner: Any,
    name: str,
    instead: Any,
) -> None:
    with monkeypatch.context() as sabotage:
        sabotage.setattr(owner, name, instead)
        with pytest.raises(AssertionError, match="the fault did not happen"):
            async with fault.inject(fleet):
                pass
    await fleet.progress(1, any_outcome=True)


# --- what needs servers of its own ---------------------------------------------------------------


class Idle:
    """A fleet of cache servers without clients."""

    def __init__(self, cache: Topology) -> None:
        self.cache = cache

    async def progress(self, operations: int, **_: Any) -> None:
        await asyncio.sleep(0)


async def test_every_row_has_a_name_of_its_own() -> None:
    names = [fault.name for fault in all_faults()]
    assert len(set(names)) == len(names)


async def test_a_servers_clock_is_moved_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = ClockMoved(-60)
    async with fault.topology() as topology:
        server = topology.nodes[0]
        call(server, "SET", "key", "value", "PX", 5000)
        async with fault.inject(Idle(topology)):
            assert call(server, "PTTL", "key") > 60_000
        assert call(server, "PTTL", "key") <= 5000
        monkeypatch.setattr(Clock, "shift", nothing)
        with pytest.raises(AssertionError, match="the server's time is wrong"):
            async with fault.inject(Idle(topology)):
                pass


async def test_a_server_that_does_not_sleep_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = DebugSleep()
    async with fault.topology() as topology:
        monkeypatch.setattr(faults_topology, "told", nothing_async)
        with pytest.raises(AssertionError, match="the server slept"):
            async with fault.inject(Idle(topology)):
                pass


async def test_a_failover_without_loss_is_noticed() -> None:
    fault = FailedOver()
    async with fault.topology() as topology:
        with pytest.raises(AssertionError, match="writes that the replica has not got"):
            async with fault.inject(Idle(topology)):
                pass


async def test_a_cluster_without_entries_to_move_is_noticed() -> None:
    fault = SlotMoved()
    async with fault.topology() as topology:
        with pytest.raises(AssertionError, match="a slot with sessions to move"):
            async with fault.inject(Idle(topology)):
                pass


async def test_a_database_server_that_stays_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = faults_sql.LostCommits(reset=False)
    async with Fleet(fault, tmp_path, processes=1, clients=2) as fleet:
        await fleet.progress(5)
        monkeypatch.setattr(faults_sql, "_replace", nothing)
        with pytest.raises(AssertionError, match="commits were lost"):
            async with fault.inject(fleet):
                pass
        monkeypatch.setattr(OwnServer, "kill", nothing)
        monkeypatch.setattr(OwnServer, "restart", nothing)
        with pytest.raises(AssertionError, match="it was restarted"):
            async with faults_sql.Restarted().inject(fleet):
                pass
        monkeypatch.undo()


async def test_a_stock_process_that_stores_nothing_is_noticed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused:
        def call(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no")

    monkeypatch.setattr(faults_stock, "python_for_adk", nothing)
    monkeypatch.setattr(stock_adk, "start", lambda _: contextlib.nullcontext(Refused()))
    monkeypatch.setattr(faults_stock, "remove_triggers", nothing_async)
    with pytest.raises(AssertionError, match="stock stored an event"):
        async with faults_stock.StockBeside(triggers=False).inject(fleet):
            pass
