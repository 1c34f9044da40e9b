"""The bound written by hand does what it is compared for, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from google.adk.errors._stale_session_error import StaleSessionError
from google.adk.events.event import Event
from google.adk.sessions.base_session_service import BaseSessionService, GetSessionConfig
from google.adk.sessions.session import Session

from bench.events import APP, APP_STATE, USER_STATE, fingerprint, state_after, stored_event
from bench.plan import MODES, Choice, cells, subjects
from bench.records import Family, Group
from bench.subjects.base import Address
from bench.subjects.catalogue import available, make
from tests.servers import mariadb_database, postgresql_database

GROUP = Group("bound", 2, 6)
SHARED = {f"app:{key}": value for key, value in APP_STATE.items()} | {
    f"user:{key}": value for key, value in USER_STATE.items()
}


@pytest.fixture(params=["postgresql", "mariadb"])
async def bound(request: pytest.FixtureRequest) -> AsyncIterator[BaseSessionService]:
    family: Family = request.param
    with mariadb_database() if family == "mariadb" else postgresql_database() as url:
        subject = make("raw", Address(family, url, "", ""))
        await subject.fill([GROUP])
        yield subject.service
        await subject.close_service(subject.service)


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


def test_the_bound_stands_beside_every_row() -> None:
    for family in ("postgresql", "mariadb"):
        for cell in cells(MODES["full"], family, Choice()):
            if cell.processes == 1:
                assert "raw" in subjects(MODES["full"], cell, available(family), Choice())
