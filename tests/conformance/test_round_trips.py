"""What a call costs, counted on the wire by relays in front of PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest

from tests.protocol.test_tier_edges import Counts
from tests.relay import Flight, Relay, is_upkeep
from tiered_sessions import (
    Event,
    EventActions,
    GetSessionConfig,
    Session,
    TieredConfig,
    TieredSessionService,
)
from tiered_sessions import metrics as counters
from tiered_sessions.cache import line
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.cache.scripts import script
from tiered_sessions.tier.breaker import Breaker

# What maintenance sends by itself, whether or not there are calls: election, drain, namespace.
MAINTENANCE = ("elect", "cache_outbox", "adk_internal_metadata")
SCRIPTS = ("intent", "release", "lease", "fill", "apply", "drop", "touch", "elect", "tail")
PATIENCE = 30.0
NAMES = {script(name).sha: name for name in SCRIPTS}


@dataclass
class Cost:
    """The round trips of one call, by what they are."""

    sql: list[Flight]
    cache: list[Flight]
    background: list[Flight]
    upkeep: list[Flight]

    def row(self, name: str) -> str:
        counts = (self.sql, self.cache, self.background, self.upkeep)
        return f"{name:<34}" + "".join(f"{len(flights):>12}" for flights in counts)


def named(command: str) -> str:
    """Returns the script's name instead of its digest."""
    word, _, argument = command.partition(" ")
    return NAMES.get(argument, argument) if word == "EVALSHA" else command


class Wires:
    """A service whose both wires are tapped."""

    def __init__(self, sql: Relay, cache: Relay, service: TieredSessionService) -> None:
        self.sql = sql
        self.cache = cache
        self.service = service

    @contextlib.contextmanager
    def counting(self, *background: str) -> Iterator[Cost]:
        """Counts what is sent in the block; `background`: scripts that nobody waits for there."""
        cost = Cost([], [], [], [])
        with self.sql.recording() as sql, self.cache.recording() as cache:
            yield cost
        for flights, kept in ((sql, cost.sql), (cache, cost.cache)):
            for flight in flights:
                commands = [named(command) for command in flight.commands if not is_upkeep(command)]
                if not commands:
                    cost.upkeep.append(flight)
                elif any(part in command for part in MAINTENANCE for command in commands):
                    continue
                elif set(commands) <= set(background):
                    cost.background.append(flight)
                else:
                    kept.append(flight)


@pytest.fixture(params=["redis", "valkey"])
async def wires(
    request: pytest.FixtureRequest, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Wires]:
    # No time-out of the cache's ends a wait here: who waits for a reply that is held back hangs.
    monkeypatch.setattr(Breaker, "timeout", PATIENCE)
    config = TieredConfig(cache_budget=PATIENCE)
    redis_url = request.getfixturevalue(f"{request.param}_url")
    async with (
        Relay(postgresql_url) as sql,
        Relay(redis_url) as relay,
        contextlib.aclosing(Closing(relay.url)) as cache,
        # One connection, so that a statement is prepared once.
        TieredSessionService(sql.url, cache=cache, config=config, pool_size=1, max_overflow=0) as service,
    ):
        yield Wires(sql, relay, service)


class Closing(RedisSessionCache):
    """An injected cache, which is its owner's to close."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout=PATIENCE)

    async def aclose(self) -> None:
        await self.close()


def event(**delta: int) -> Event:
    return Event(author="a", invocation_id="i", actions=EventActions(state_delta=delta))


async def test_round_trips(wires: Wires) -> None:
    """A hot get is one to Redis; an append one to SQL and one to Redis; a cold get one to SQL."""
    app = f"app-{uuid4().hex[:12]}"
    service = wires.service

    async def get(name: str) -> Session:
        session = await service.get_session(app, "u", name)
        assert session is not None
        return session

    async def warm(name: str) -> Session:
        """Uses each statement and script once, so that none is prepared while it is counted."""
        await service.create_session(app, "u", session_id=name)
        await get(name)
        await service.flush()
        session = await get(name)
        await service.append_event(session, event())
        await service.append_event(session, event(k=1))
        await service.append_event(session, event(**{"user:k": 1, "app:k": 1}))
        await service.flush()
        return await get(name)

    session = await warm("hot")
    rows: dict[str, Cost] = {}

    with wires.counting() as rows["get, hot"]:
        await get("hot")

    await warm("another")
    options = {"pool_size": 1, "max_overflow": 0}
    async with TieredSessionService(wires.sql.url, cache=wires.cache.url, **options) as other:
        # It has spoken to both servers, but has nothing of the session in the process.
        await other.get_session(app, "u", "another")
        with wires.counting() as rows["get, hot, first in this process"]:
            found = await other.get_session(app, "u", "hot")
        assert found == session
    async with TieredSessionService(wires.sql.url, cache=wires.cache.url, **options) as other:
        last = GetSessionConfig(num_recent_events=1)
        await other.get_session(app, "u", "another", last)
        with wires.counting() as rows["get, last, first in this process"]:
            found = await other.get_session(app, "u", "hot", last)
        assert found is not None
        assert found.events == session.events[-1:]

    deltas = {"append": {}, "append, state": {"k": 2}, "append, user: and app:": {"user:k": 2, "app:k": 2}}
    for name, delta in deltas.items():
        # Replies to apply are held back: whoever waited for one would hang.
        wires.cache.hold_replies(to=script("apply").sha)
        with wires.counting("apply") as rows[name]:
            async with asyncio.timeout(PATIENCE / 2):
                await service.append_event(session, event(**delta))
            await wires.cache.wait_for(lambda _: bool(wires.cache.held))
        wires.cache.heal()
        await service.flush()

    await service.create_session(app, "u", session_id="cold")
    with wires.counting("fill") as rows["get, cold"]:
        await get("cold")
        await service.flush()

    await service.create_session(app, "new", session_id="cold")
    with wires.counting("fill") as rows["get, cold, new user"]:
        await service.get_session(app, "new", "cold")
        await service.flush()

    with wires.counting() as rows["create"]:
        await service.create_session(app, "u", session_id="gone")
    await service.delete_session(app, "u", "cold")
    await service.flush()
    with wires.counting("drop") as rows["delete"]:
        await service.delete_session(app, "u", "gone")
        await service.flush()

    await service.list_sessions(app, "u")
    with wires.counting() as rows["list"]:
        assert len((await service.list_sessions(app, "u")).sessions) == 2

    print(f"\n{'call':<34}{'SQL':>12}{'cache':>12}{'background':>12}{'upkeep':>12}")
    print("\n".join(cost.row(name) for name, cost in rows.items()))
    for name in ("get, hot", "get, hot, first in this process", "get, last, first in this process"):
        assert len(rows[name].sql) == 0
        assert len(rows[name].cache) == 1
        assert len(rows[name].background) == 0
    for name in deltas:
        assert [len(flight.commands) for flight in rows[name].sql] == [1]
        # Intents of several scopes leave together, each on a connection of its own.
        intents = 3 if "user:" in name else 1
        assert [named(c) for flight in rows[name].cache for c in flight.commands] == ["intent"] * intents
        assert 1 <= len(rows[name].background) <= intents
    for name in ("get, cold", "get, cold, new user", "list", "create", "delete"):
        assert [len(flight.commands) for flight in rows[name].sql] == [1]
    _, leases = rows["get, cold, new user"].cache
    assert [named(c) for c in leases.commands] == ["lease"] * 2
    assert len(rows["list"].cache) == len(rows["create"].cache) == 0
    assert [named(c) for flight in rows["delete"].cache for c in flight.commands] == ["intent"]


async def test_who_flushes_does_not_wait_for_company(
    postgresql_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody waits for lingers, until somebody does."""
    monkeypatch.setattr(line, "LINGER", 10 * PATIENCE)
    metrics = Counts()
    # Nor does the upkeep send anything that it could leave with.
    config = TieredConfig(outbox_poll=10 * PATIENCE, sweep_every=0, sample_rate=0)
    async with TieredSessionService(
        postgresql_url, cache=redis_url, config=config, metrics=metrics
    ) as service:
        session = await service.create_session("app", "user")
        await service.append_event(session, event(n=1))
        await service.flush()
        # Not given up, either: the cache has answered.
        assert metrics.seen[counters.APPLY_ABSENT] == 1
