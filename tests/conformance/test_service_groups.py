"""Callers at once: what shares a statement in SQL is shown to each of them, and to the cache."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from tests.conformance.grouping import Journal
from tests.conformance.service_rig import event
from tests.patience import PATIENT
from tiered_sessions import Session, TieredSessionService
from tiered_sessions.errors import StaleSessionError

CALLERS = 24


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def service(url: str, redis_url: str) -> AsyncIterator[TieredSessionService]:
    async with TieredSessionService(url, cache=redis_url, config=PATIENT) as made:
        yield made


@pytest.fixture
async def truth(url: str) -> AsyncIterator[TieredSessionService]:
    async with TieredSessionService(url, cache=None) as made:
        yield made


async def opened(service: TieredSessionService, count: int) -> list[Session]:
    app = f"app-{uuid4().hex[:12]}"
    made = [await service.create_session(app, "u", session_id=f"s{number}") for number in range(count)]
    # Read, so that there are entries that the appends have to hide.
    for session in made:
        await service.get_session(app, "u", session.id)
    return made


async def compare(service: TieredSessionService, truth: TieredSessionService, session: Session) -> Session:
    """Reads with the cache what SQL has."""
    found = await service.get_session(session.app_name, session.user_id, session.id)
    stored = await truth.get_session(session.app_name, session.user_id, session.id)
    assert found is not None
    assert found == stored
    return found


async def test_callers_at_once(
    service: TieredSessionService, truth: TieredSessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its own outcome: who held an old copy is refused, all others go on."""
    sessions = await opened(service, CALLERS)
    journal = Journal(service._wiring.tier()._store, monkeypatch)
    old = await service.get_session(sessions[0].app_name, "u", "s0")
    assert old is not None
    await service.append_event(sessions[0], event("earlier"))

    async def turn(session: Session) -> None:
        for number in range(5):
            await service.append_event(session, event(f"{number}", k=number, **{"temp:t": 1}))
            await compare(service, truth, session)

    outcomes = await asyncio.gather(
        *map(turn, sessions), service.append_event(old, event("stale")), return_exceptions=True
    )
    assert isinstance(outcomes.pop(), StaleSessionError)
    assert outcomes == [None] * CALLERS
    assert journal.batches, "they did meet"
    for session in sessions:
        found = await compare(service, truth, session)
        assert [e.author for e in found.events][-5:] == [str(number) for number in range(5)]
        assert found.state["k"] == 4


async def test_callers_who_leave(service: TieredSessionService, truth: TieredSessionService) -> None:
    """Cancelled at any moment: an append is stored whole or not at all, and no mask or seat stays."""
    sessions = await opened(service, CALLERS)
    chance = random.Random(7)
    for number in range(8):
        tasks = [
            asyncio.create_task(service.append_event(session, event(f"{number}", k=number)))
            for session in sessions
        ]
        for task in chance.sample(tasks, CALLERS // 2):
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, asyncio.CancelledError), outcome
            found = await compare(service, truth, sessions[place])
            if not isinstance(outcome, BaseException):
                assert found.events[-1].author == str(number)
            assert len(found.events) == len({e.id for e in found.events})
            sessions[place] = found
    await asyncio.gather(*(service.append_event(session, event("last")) for session in sessions))
    for session in sessions:
        assert (await compare(service, truth, session)).events[-1].author == "last"
