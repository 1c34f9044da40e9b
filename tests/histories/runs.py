"""One run: a fleet, a fault made over and over for some seconds, and the verdict on the history."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import redis.asyncio

from tests.histories.checker import check
from tests.histories.fleet import CONFIG, Fault, Fleet, shares
from tests.histories.history import History, elle, load
from tests.histories.verdict import Bounds, Final, Verdict
from tests.histories.workload import USERS
from tiered_sessions import TieredConfig, TieredSessionService

# Enough for outbox, masks and leases of whoever died to be over, and for an open breaker to be tried again.
SETTLED = 20.0
LAST = "last"
# The documented bound of what went through the outbox, on a machine that is busy with the test itself.
GRACE = 1.5
ROUNDS = 1000
# Whatever it is, the row says so, and the next one begins.
BROKEN = Exception
# Seconds a command to the cache may take where a busy machine is no fault.
PATIENCE = 0.9


@dataclass
class Row:
    """One row of the matrix.

    Attributes:
        faults: How often the fault was made.
        seconds: How long the clients worked.
        counters: Those of the services that lived to the end.
    """

    name: str
    bounds: Bounds
    verdict: Verdict
    history: Path
    faults: int = 0
    seconds: float = 0.0
    counters: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Whether all is as it should be."""
        return not self.verdict.anomalies

    @property
    def hits(self) -> float:
        """What part of the reads needed no load from SQL."""
        reads = [self.counters[f"reads.{name}"] for name in ("process", "cache", "store")]
        return sum(reads[:2]) / max(1, sum(reads))


class NoFault:
    """Nothing is done to the fleet; a machine that is busy with the test itself is no fault either."""

    name = "no fault"
    staleness = 0.0
    store_fails = False
    config: dict[str, Any] = {}  # noqa: RUF012 - part of the protocol of faults

    async def run(self, fleet: Fleet) -> None:
        """Lets the clients work."""
        await fleet.progress(50)


async def run(fault: Fault, folder: Path, seconds: float, **options: Any) -> Row:
    """Runs one fault on a fleet of its own; `options` are those of `Fleet`."""
    [row] = [row async for row in rows([fault], folder, seconds, **options)]
    return row


async def rows(
    faults: Sequence[Fault],
    folder: Path,
    seconds: float,
    *,
    say: Callable[[str, float], None] = lambda *_: None,
    **options: Any,
) -> AsyncIterator[Row]:
    """Runs one fault after the other, as many on the same fleet as can share one.

    Args:
        faults: Each is made at least once.
        folder: Empty; holds the histories afterwards.
        seconds: How long each is made over and over.
        say: Told the fault's name, and how many of its seconds have gone by.
        **options: For `Fleet`.
    """
    waiting = list(faults)
    for number in range(len(faults)):
        if not waiting:
            return
        place = folder / str(number)
        place.mkdir()
        group = [one for one in waiting if shares(one)] if shares(waiting[0]) else waiting[:1]
        settings = options.get("settings", {})
        if isinstance(group[0], NoFault):
            settings = {"patience": PATIENCE, **settings}
        async with Fleet(group[0], place, **{**options, "settings": settings}) as fleet:
            for fault in group:
                if fault is not group[0]:
                    await fleet.again(fault)
                waiting.remove(fault)
                row = await _row(fleet, fault, seconds, partial(say, fault.name))
                yield row
                if "broken" in row.verdict.anomalies:
                    # Whatever state the fleet is in now, the next fault shall not suffer from it.
                    break


async def _row(fleet: Fleet, fault: Fault, seconds: float, say: Callable[[float], None]) -> Row:
    """Has clients work while the fault is made again and again, then checks."""
    bounds = bounds_of(fault)
    began = time.monotonic()
    rounds = 0
    found: list[tuple[str, str]] = []
    final: Final | None = None
    counters: Counter[str] = Counter()
    before: dict[tuple[int, int], Counter[str]] = {}
    try:
        before = await _counters(fleet)
        await fleet.progress(20)
        while rounds < ROUNDS and (rounds == 0 or time.monotonic() - began < seconds):
            await fault.run(fleet)
            rounds += 1
            say(time.monotonic() - began)
            for relay in (*fleet.cache_relays, *fleet.sql_relays):
                # Of what passed long ago nothing is needed, and a long run has much of it.
                relay.flights.clear()
    except BROKEN as error:
        found.append(("broken", _told(error)))
    elapsed = time.monotonic() - began
    try:
        for server in fleet.servers:
            await server.ask("pause")
        final, stuck = await _settle(fleet, bounds)
        found += [("stuck", text) for text in stuck]
        found += [("no TTL", text) for text in await _keys_without_ttl(fleet)]
        for life, counted in (await _counters(fleet)).items():
            counters.update(counted - before.get(life, Counter()))
    except BROKEN as error:
        found.append(("broken", _told(error)))
    fleet.flush()
    verdict = Verdict()
    if final is not None:
        verdict = check(load(fleet.history).operations, final, bounds)
    for kind, text in found:
        verdict.found(kind, text)
    return Row(fault.name, bounds, verdict, fleet.history, rounds, elapsed, counters)


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


async def _counters(fleet: Fleet) -> dict[tuple[int, int], Counter[str]]:
    """Returns those of each life of each server."""
    return {(server.number, server.life): Counter(await server.ask("counters")) for server in fleet.servers}


def bounds_of(fault: Fault) -> Bounds:
    """Returns what docs/consistency.md allows under the fault."""
    config = TieredConfig(**{**CONFIG, **getattr(fault, "config", {})})
    cut_off = 3 * config.outbox_poll + GRACE
    if fault.store_fails and config.max_staleness is not None:
        # While the database is away nobody can drain.
        cut_off = config.max_staleness
    return Bounds(fault.staleness, cut_off, fault.store_fails, getattr(fault, "loses_commits", False))


def save_elle(history: History, path: Path) -> None:
    """Writes the history in Elle's form."""
    path.write_bytes(orjson.dumps(elle(history.operations)))


async def _settle(fleet: Fleet, bounds: Bounds) -> tuple[Final, list[str]]:
    """Reads SQL, and has every server read all sessions until they agree with it.

    Returns:
        What SQL holds, and what a server still saw otherwise when it no longer may.
    """
    deadline = time.monotonic() + SETTLED + bounds.staleness
    fleet.flush()
    names = sorted({one.session for one in load(fleet.history).operations if "/" in one.session})
    async with TieredSessionService(fleet.database_url, cache=None) as truth:
        # A session that no server knows shows the app's state, even if there is no other.
        await truth.create_session(fleet.app, LAST, session_id=LAST)
        while True:
            final = await _final(truth, fleet.app)
            differing = await _differing(fleet, final, names)
            undrained = await fleet.sql("SELECT kind, app_name, user_id, session_id FROM cache_outbox")
            differing += [f"{row} is still in the outbox" for row in undrained]
            if not differing or time.monotonic() > deadline:
                return final, differing


async def _differing(fleet: Fleet, final: Final, names: Sequence[str]) -> list[str]:
    differing = []
    for server in fleet.servers:
        for name, have in zip(names, await server.ask("read", names), strict=True):
            want = list(final.sessions.get(name, (None, None)))
            if have != want:
                differing.append(f"{name} on server {server.number}: {have} instead of {want}")
    return differing


async def _final(truth: TieredSessionService, app: str) -> Final:
    final = Final()
    for listed in (await truth.list_sessions(app)).sessions:
        session = await truth.get_session(app, listed.user_id, listed.id)
        assert session is not None
        if session.id == LAST:
            final.app = {key[4:]: value for key, value in session.state.items() if key.startswith("app:")}
        else:
            log = [int(event.id) for event in session.events]
            final.sessions[f"{session.user_id}/{session.id}"] = (session.state["made"], log)
    for user in USERS:
        final.users[user] = await truth.get_user_state(app, user)
    return final


async def _keys_without_ttl(fleet: Fleet) -> list[str]:
    found = []
    for node in getattr(fleet.cache, "nodes", [fleet.cache]):
        with contextlib.suppress(redis.exceptions.ConnectionError):
            async with redis.asyncio.Redis.from_url(node.url) as client:
                async for key in client.scan_iter(count=1000):
                    # -2: it has gone meanwhile.
                    if await client.pttl(key) == -1:
                        found.append(f"{key!r}")
    return found
