"""The bounds written by hand do what they are compared for, on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from google.adk.errors._stale_session_error import StaleSessionError
from google.adk.events.event import Event
from google.adk.sessions.base_session_service import BaseSessionService, GetSessionConfig
from google.adk.sessions.session import Session

from bench.events import APP, APP_STATE, USER_STATE, fingerprint, state_after, stored_event, update_time
from bench.plan import MODES, Choice, cells, group, groups, limits, subjects
from bench.records import Cell, Family, Group, Task
from bench.subjects.base import Address, Subject
from bench.subjects.catalogue import L1, RAW, available, make
from bench.subjects.raw import RawPostgresql
from bench.worker import measure
from tests.servers import mariadb_database, postgresql_database

GROUP = Group("bound", 2, 6)
SHARED = {f"app:{key}": value for key, value in APP_STATE.items()} | {
    f"user:{key}": value for key, value in USER_STATE.items()
}


@asynccontextmanager
async def filled(
    name: str, family: Family, stored: list[Group], redis: str = "", prefix: str = ""
) -> AsyncIterator[Subject]:
    """Yields a bound with these sessions."""
    with mariadb_database() if family == "mariadb" else postgresql_database() as url:
        subject = make(name, Address(family, url, redis, prefix))
        await subject.fill(stored)
        yield subject
        await subject.close()


@pytest.fixture(
    params=[(RAW, "postgresql"), (RAW, "mariadb"), (L1, "postgresql")], ids=lambda given: "-".join(given)
)
async def bound(request: pytest.FixtureRequest) -> AsyncIterator[BaseSessionService]:
    name, family = request.param
    redis = map(request.getfixturevalue, ("redis_url", "redis_namespace")) if name == L1 else ()
    async with filled(name, family, [GROUP], *redis) as subject:
        yield subject.service


@pytest.fixture
async def kept(redis_url: str, redis_namespace: str) -> AsyncIterator[Subject]:
    async with filled(L1, "postgresql", [GROUP], redis_url, redis_namespace) as subject:
        yield subject


def right(found: Session | None, first: int, count: int) -> bool:
    """Says whether a session holds these events of the sample, and the state after them."""
    assert found is not None
    wanted = [Event.model_validate(stored_event(found.id, number)) for number in range(first, count)]
    same = [fingerprint(event) for event in found.events] == [fingerprint(event) for event in wanted]
    return same and found.state == state_after(found.id, count) | SHARED


async def test_the_bound_reads_and_refuses_what_is_stale(bound: BaseSessionService) -> None:
    user, name = GROUP.user_of(0), GROUP.id_of(0)
    session = await bound.get_session(app_name=APP, user_id=user, session_id=name)
    other = await bound.get_session(app_name=APP, user_id=user, session_id=name)
    assert right(session, 0, 6)
    assert session is not None
    assert other is not None
    for number in range(6, 10):
        await bound.append_event(session, Event.model_validate(stored_event(name, number)))
    with pytest.raises(StaleSessionError):
        await bound.append_event(other, Event.model_validate(stored_event(name, 10)))
    assert right(await bound.get_session(app_name=APP, user_id=user, session_id=name), 0, 10)
    window = GetSessionConfig(num_recent_events=3)
    assert right(await bound.get_session(app_name=APP, user_id=user, session_id=name, config=window), 7, 10)


async def test_the_bound_creates_lists_and_deletes(bound: BaseSessionService) -> None:
    user = GROUP.user_of(1)
    made = await bound.create_session(app_name=APP, user_id=user, state={"a": "ü"}, session_id="made")
    assert made.state == {"a": "ü"} | SHARED
    listed = await bound.list_sessions(app_name=APP, user_id=user)
    assert {one.id for one in listed.sessions} >= {"made", GROUP.id_of(1)}
    for name in ("made", GROUP.id_of(1)):
        await bound.delete_session(app_name=APP, user_id=user, session_id=name)
        assert await bound.get_session(app_name=APP, user_id=user, session_id=name) is None


async def test_what_is_kept_is_returned_until_another_server_appends(kept: Subject) -> None:
    user, name = GROUP.user_of(0), GROUP.id_of(0)
    other = kept.connect()

    async def get(service: BaseSessionService, window: int | None = None) -> Session:
        config = GetSessionConfig(num_recent_events=window)
        found = await service.get_session(app_name=APP, user_id=user, session_id=name, config=config)
        assert found is not None
        return found

    def same(one: Session, two: Session) -> bool:
        return all(a is b for a, b in zip(one.events, two.events, strict=True))

    first = await get(kept.service)
    first.events.clear()
    first.state.clear()
    first = await get(kept.service)
    assert right(first, 0, 6)
    assert same(await get(kept.service), first)
    # A window is served from everything, and a smaller one from a larger one; not the other way round.
    last = await get(kept.service, 2)
    assert same(last, first.model_copy(update={"events": first.events[4:]}))
    four = await get(other, 4)
    assert right(four, 2, 6)
    assert same(await get(other, 3), four.model_copy(update={"events": four.events[1:]}))
    assert right(await get(other, 5), 1, 6)

    held = await get(other)
    assert right(held, 0, 6)
    for number in range(6, 8):
        # Of more digits than the column keeps.
        event = stored_event(name, number, update_time(number + 1) + 0.123_456_7)
        await other.append_event(held, Event.model_validate(event))
    assert same(await get(other), held)
    assert right(await get(kept.service, 3), 5, 8)
    before = await get(kept.service)
    assert right(before, 0, 8)
    assert same(await get(kept.service), before)

    # Without a version nothing kept is believed; the next reader writes one.
    await kept.forget()
    found = await get(kept.service)
    assert right(found, 0, 8)
    assert not same(found, before)
    assert same(found, await get(kept.service))

    await other.delete_session(app_name=APP, user_id=user, session_id=name)
    assert await kept.service.get_session(app_name=APP, user_id=user, session_id=name) is None
    await kept.close_service(other)


async def test_an_append_here_after_one_elsewhere_leaves_nothing_out(kept: Subject) -> None:
    user, name = GROUP.user_of(0), GROUP.id_of(0)
    other = kept.connect()
    await kept.service.get_session(app_name=APP, user_id=user, session_id=name)
    held = await other.get_session(app_name=APP, user_id=user, session_id=name)
    assert held is not None
    await other.append_event(held, Event.model_validate(stored_event(name, 6)))
    await kept.service.append_event(held, Event.model_validate(stored_event(name, 7)))
    assert right(await kept.service.get_session(app_name=APP, user_id=user, session_id=name), 0, 8)
    await kept.close_service(other)


async def test_the_bound_with_events_kept_is_measured_and_checked(
    redis_url: str, redis_namespace: str
) -> None:
    mode, family = MODES["smoke"], "postgresql"
    measured = [cell for cell in cells(mode, family, Choice()) if L1 in subjects(mode, cell, [L1], Choice())]
    assert {cell.workload for cell in measured} == {"hot-all-20", "append", "turn"}
    measured.append(Cell(family, "hot-last20-200", 1))
    async with filled(L1, family, groups(mode, measured), redis_url, redis_namespace) as subject:
        for cell in measured:
            found = await measure(subject, Task(cell, group(mode, cell), 0, 0, limits(mode, cell)))
            assert found["checked"] >= found["operations"] > 0
            assert not found["failed"]
        async with subject.auditor() as service:
            assert type(service) is RawPostgresql


def test_the_bounds_stand_beside_every_row() -> None:
    for family in ("postgresql", "mariadb"):
        for cell in cells(MODES["full"], family, Choice()):
            found = subjects(MODES["full"], cell, available(family), Choice())
            assert (RAW in found) == (cell.processes == 1)
            differs = cell.workload.startswith(("hot-", "get-", "turn", "growth-get", "growth-append"))
            assert (L1 in found) == (family == "postgresql" and (differs or cell.workload == "append"))
