"""Random sequences of operations on stock's service and on ours: the same answers, objects and errors.

Left out are the differences that docs/adk.md lists: timestamps ascend and never repeat, no event is sent
twice, no row is taken away by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import redis
from google.adk.events.event import Event
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.session import Session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.adk.conformance import event
from tests.servers import STORES
from tiered_sessions import TieredConfig
from tiered_sessions.adk import TieredSessionService

# "warm" and "cold": a Valkey of the run's own; cold is emptied before every operation.
CACHES = [(store, cache) for store in STORES for cache in ("warm", "cold", "none")] + [("sqlite", "memory")]
# Sessions are made now, events say they are of 1970: so a time is one of the test's, or "now".
NOW = 1_000_000_000.0

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text('aé😀" \\', max_size=5)
values = st.recursive(
    scalars | st.sampled_from([0.5, -2.25, 1e6]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=4,
)
keys = st.builds(str.__add__, st.sampled_from(["", "app:", "user:", "temp:"]), st.sampled_from("ab"))
states = st.dictionaries(keys, values, max_size=3)
users = st.sampled_from("uuuv")
ids = st.sampled_from("ssst")
slots = st.integers(0, 2)


class Create(NamedTuple):
    user: str
    id: str
    state: dict[str, Any]
    slot: int


class Get(NamedTuple):
    user: str
    id: str
    recent: int | None
    after: int | None
    slot: int


class Append(NamedTuple):
    slot: int
    delta: dict[str, Any]
    partial: bool
    by_hand: bool


class List(NamedTuple):
    user: str | None


class Delete(NamedTuple):
    user: str
    id: str


class UserState(NamedTuple):
    user: str


seldom = st.sampled_from([False] * 5 + [True])
appends = st.builds(Append, slots, states, seldom, seldom)
gets = st.builds(Get, users, ids, st.none() | st.integers(0, 3), st.none() | st.integers(0, 20), slots)
creates = st.builds(Create, users, ids, states, slots)
others = st.one_of(
    creates, st.builds(Delete, users, ids), st.builds(List, st.none() | users), st.builds(UserState, users)
)
# Two objects of one session to begin with, or half of what follows meets nothing.
operations = st.sampled_from([appends] * 5 + [gets] * 3 + [others] * 2).flatmap(lambda kind: kind)
histories = st.lists(operations, min_size=10, max_size=25).map(
    lambda operations: [Create("u", "s", {"a": 1}, 0), Get("u", "s", None, None, 1), *operations]
)


def seen(session: Session) -> dict[str, Any]:
    """Returns what a caller can tell of a session."""
    return {
        "key": (session.user_id, session.id),
        # As text: 1, 1.0 and True are equal to Python.
        "state": json.dumps(session.state, sort_keys=True),
        "events": session.events,
        "time": min(session.last_update_time, NOW),
    }


class Side:
    """One implementation: two services over one database, and the objects that a caller holds."""

    def __init__(self, services: list[Any], app: str) -> None:
        self._services = services
        self._app = app
        self._held: dict[int, Session] = {}

    async def perform(self, number: int, operation: Any) -> object:
        """Does one operation and returns what its caller sees."""
        service = self._services[number % 2]
        try:
            answer = await self._do(service, number, operation)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        return answer, {slot: seen(session) for slot, session in self._held.items()}

    async def _do(self, service: Any, number: int, operation: Any) -> object:
        match operation:
            case Create(user, id_, state, slot):
                session = await service.create_session(
                    app_name=self._app, user_id=user, session_id=id_, state=state
                )
                self._held[slot] = session
                return seen(session)
            case Get(user, id_, recent, after, slot):
                config = None
                if (recent, after) != (None, None):
                    config = GetSessionConfig(num_recent_events=recent, after_timestamp=after)
                session = await service.get_session(
                    app_name=self._app, user_id=user, session_id=id_, config=config
                )
                if session is None:
                    return None
                self._held[slot] = session
                return seen(session)
            case Append(slot, delta, partial, by_hand):
                return await self._append(service, number, slot, delta, partial, by_hand)
            case List(user):
                found = await service.list_sessions(app_name=self._app, user_id=user)
                return [seen(session) for session in found.sessions]
            case Delete(user, id_):
                return await service.delete_session(app_name=self._app, user_id=user, session_id=id_)
            case UserState(user):
                state = await service.get_user_state(app_name=self._app, user_id=user)
                return json.dumps(state, sort_keys=True)
        raise AssertionError(operation)

    async def _append(
        self, service: Any, number: int, slot: int, delta: dict[str, Any], partial: bool, by_hand: bool
    ) -> Event | None:
        session = self._held.get(slot)
        if session is None:
            return None
        if by_hand:
            # As a caller does that keeps sessions in a form of its own.
            session = Session.model_validate(session.model_dump())
            self._held[slot] = session
        sent = event(f"event {number}", id=f"e{number}", timestamp=1.0 + number, **delta)
        sent.partial = partial
        answer: Event = await service.append_event(session, sent)
        assert answer is sent
        return answer


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """One event loop for all examples: the services keep their connections."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def sides(
    store: str,
    cache_name: str,
    database: Callable[[str, str], str],
    loop: asyncio.Runner,
    request: pytest.FixtureRequest,
) -> Iterator[tuple[list[Any], list[Any], Callable[[], None]]]:
    """Yields two stock services, two of ours, and what is done before each operation."""
    cache: str | None = None if cache_name == "none" else cache_name
    before: Callable[[], Any] = int
    with contextlib.ExitStack() as stack:
        if cache_name in ("warm", "cold"):
            cache = str(request.getfixturevalue("valkey_url"))
            client = stack.enter_context(contextlib.closing(redis.Redis.from_url(cache)))
            before = client.flushall if cache_name == "cold" else before
        stock = [DatabaseSessionService(database("stock", store)) for _ in range(2)]
        checked = TieredConfig(shared_events="check")
        ours = [TieredSessionService(database("ours", store), cache=cache, config=checked) for _ in range(2)]
        for service in (*stock, *ours):
            stack.callback(lambda service=service: loop.run(service.close()))
        yield stock, ours, before


@pytest.mark.parametrize(("store", "cache_name"), CACHES)
def test_any_sequence_of_operations(
    sides: tuple[list[Any], list[Any], Callable[[], None]], loop: asyncio.Runner
) -> None:
    stock, ours, before = sides

    @settings(max_examples=12, suppress_health_check=list(HealthCheck))
    @given(histories)
    def compare(history: list[Any]) -> None:
        loop.run(_compare(history, stock, ours, before))

    compare()


async def _compare(history: list[Any], stock: list[Any], ours: list[Any], before: Callable[[], None]) -> None:
    app = f"app-{uuid4().hex[:12]}"
    theirs, mine = Side(stock, app), Side(ours, app)
    for number, operation in enumerate(history):
        before()
        wanted: Awaitable[object] = theirs.perform(number, operation)
        assert await mine.perform(number, operation) == await wanted, operation
