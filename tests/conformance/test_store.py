"""The contract of the store (store/base.py), on every database and on the portable path.

What every store must do is `StoreSuite`; the rest is what only tables can be made to hold.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.conformance.store_backends import (
    BACKENDS,
    START,
    append,
    as_stranger,
    backend_url,
    committed,
    create,
    created,
    delete,
    equal,
    event,
    loaded,
    new_key,
    open_store,
)
from tiered_sessions.errors import InvalidValueError
from tiered_sessions.records import (
    Already,
    Append,
    Failed,
    NewEvent,
    Query,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
    Tags,
)
from tiered_sessions.store.store import SqlSessionStore
from tiered_sessions.testing import StoreSuite

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
async def store(request: pytest.FixtureRequest, backend: str) -> AsyncIterator[SqlSessionStore]:
    async with open_store(backend_url(request, backend), backend) as opened:
        yield opened


class TestStore(StoreSuite):
    """What every store must do."""

    @pytest.fixture
    def store(self, store: SqlSessionStore) -> SqlSessionStore:
        return store


# --- what only tables hold -------------------------------------------------------------------


async def test_a_missing_scope_row_is_made_by_a_delta(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key)
    await as_stranger(store, "DELETE FROM app_states WHERE app_name = :a", a=key.app_name)
    assert (await loaded(store, key)).app is None
    done = await committed(store, Append(key, made.session.tag, START, (event("e"),), app_delta=b'{"p":1}'))
    assert done.app is not None
    assert done.app.tag.adopted
    assert (await loaded(store, key)).app == done.app


async def test_a_stored_state_that_is_no_object_counts_as_empty(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key)
    await as_stranger(
        store,
        "UPDATE app_states SET state = '[1]' WHERE app_name = :a",
        "UPDATE sessions SET state = '3' WHERE app_name = :a",
        a=key.app_name,
    )
    write = Append(key, made.session.tag, START, session_delta=b'{"x":1}', app_delta=b'{"y":2}')
    done = await committed(store, write)
    assert equal(done.state, {"x": 1})
    assert done.app is not None
    assert equal(done.app.state, {"y": 2})


@pytest.mark.parametrize("field", SessionKey._fields)
async def test_ids_that_no_column_holds(store: SqlSessionStore, field: str) -> None:
    for bad in ("x" * 129, "a\0b", "\ud800"):
        key = new_key()._replace(**{field: bad})
        for outcome in (
            await create(store, key),
            await append(store, Append(key, None, START, (event("e"),))),
        ):
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, InvalidValueError)
            assert field in str(outcome.error)
        assert await store.load(key, Query()) is None
        assert await delete(store, key) is False
        assert await store.tags(key) == Tags(None, None, None)
    longest = new_key()._replace(
        **{field: "é" * 128 if field != "app_name" else new_key().app_name.ljust(128)}
    )
    assert isinstance(await create(store, longest), Snapshot)
    assert (await loaded(store, longest)).key == longest


async def test_event_and_invocation_ids_that_no_column_holds(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key)
    for bad, field in (
        (NewEvent("x" * 129, "i", START, b"{}"), "event id"),
        (NewEvent("x", "i" * 257, START, b"{}"), "invocation_id"),
    ):
        outcome = await append(store, Append(key, None, START, (event("e"), bad)))
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, InvalidValueError)
        assert field in str(outcome.error)
    assert await loaded(store, key) == made
    long = NewEvent("x" * 128, "i" * 256, START, b"{}")
    await committed(store, Append(key, made.session.tag, START, (long,)))


# --- rows of other programs ------------------------------------------------------------------

_FOREIGN_EVENT = (
    "INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, event_data) "
    "VALUES ('{0}', :a, :u, :s, 'i', '{1}', '{{\"id\": \"{0}\", \"timestamp\": {2}}}')"
)


def foreign_event(name: str, seconds: int, *, column: int | None = None) -> str:
    at = datetime.fromtimestamp(START / 1e6, UTC) + timedelta(seconds=seconds if column is None else column)
    return _FOREIGN_EVENT.format(name, at.strftime("%Y-%m-%d %H:%M:%S.%f"), float(seconds))


async def foreign_append(store: SqlSessionStore, key: SessionKey, *names: str) -> None:
    """Appends as stock ADK does: an event without a number, and another update_time."""
    statements = [foreign_event(name, 100 + number) for number, name in enumerate(names)]
    await as_stranger(
        store,
        *statements,
        "UPDATE sessions SET update_time = '2024-01-01 00:00:00.000001' "
        "WHERE app_name = :a AND user_id = :u AND id = :s",
        a=key.app_name,
        u=key.user_id,
        s=key.session_id,
    )


async def test_a_foreign_event_is_numbered_by_the_next_append(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key)
    ours = await committed(store, Append(key, made.session.tag, START, (event("z1"),)))
    await foreign_append(store, key, "b", "a")
    seen = await loaded(store, key)
    assert not seen.session.tag.adopted
    assert [record.id for record in seen.session.events] == ["z1", "b", "a"]
    assert (await loaded(store, key, Query(2))).session.tag == seen.session.tag
    assert (await loaded(store, key, Query(0))).session.tag == seen.session.tag
    stale = Append(key, ours.tag, START, (event("e"),))
    assert await append(store, stale) == Stale(seen.session.tag)
    done = await committed(store, Append(key, seen.session.tag, START + 9, (event("e"),)))
    assert done.numbered
    assert done.tag.incarnation == ours.tag.incarnation
    now = await loaded(store, key)
    assert now.session.tag == done.tag
    assert [(record.seq, record.id) for record in now.session.events] == [
        (1, "z1"),
        (2, "b"),
        (3, "a"),
        (4, "e"),
    ]


async def test_an_append_without_comparison_numbers_too(store: SqlSessionStore) -> None:
    key = new_key()
    await created(store, key)
    await foreign_append(store, key, "f")
    done = await committed(store, Append(key, None, START, (event("e"),)))
    assert done.numbered
    now = await loaded(store, key)
    assert [(record.seq, record.id) for record in now.session.events] == [(1, "f"), (2, "e")]


async def test_a_session_of_another_program_is_adopted_by_an_append(store: SqlSessionStore) -> None:
    key = new_key()
    await as_stranger(
        store,
        "INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time) VALUES "
        "(:a, :u, :s, '{\"x\": 1}', '2023-11-14 22:13:20.000001', '2023-11-14 22:13:20.000001')",
        # The column is off (local time); the order within the JSON is b, a, c.
        foreign_event("a", 2, column=1),
        foreign_event("b", 1, column=2),
        foreign_event("c", 2, column=3),
        a=key.app_name,
        u=key.user_id,
        s=key.session_id,
    )
    seen = await loaded(store, key)
    assert seen.session.tag == Tag(0, 0, 0, START + 1)
    assert (seen.user, seen.app) == (None, None)
    assert [record.id for record in seen.session.events] == ["a", "b", "c"]
    tags = await store.tags(key)
    assert tags == Tags(seen.session.tag, None, None)
    wrong = Append(key, Tag(0, 0, 0, START), START, (event("e"),))
    assert await append(store, wrong) == Stale(seen.session.tag)
    write = Append(key, seen.session.tag, START + 5, (event("e"),), session_delta=b'{"y":2}')
    done = await committed(store, write)
    assert done.numbered
    assert done.tag.adopted
    now = await loaded(store, key)
    assert [record.id for record in now.session.events] == ["b", "a", "c", "e"]
    assert now.session.tag == done.tag
    assert equal(now.session.state, {"x": 1, "y": 2})
    assert await append(store, write) == Already(done.tag, latest=True)


_FOREIGN_SCOPES = (
    "INSERT INTO user_states (app_name, user_id, state, update_time) VALUES "
    "(:a, :u, '{\"x\": 1}', '2023-11-14 22:13:20')",
    "INSERT INTO app_states (app_name, state, update_time) VALUES (:a, '{\"z\": 1}', '2023-11-14 22:13:20')",
)


async def test_scopes_of_another_program_are_adopted_by_a_create(store: SqlSessionStore) -> None:
    key = new_key()
    await as_stranger(store, *_FOREIGN_SCOPES, a=key.app_name, u=key.user_id)
    made = await created(store, key)
    assert made.user is not None
    assert made.app is not None
    assert made.user.tag.adopted
    assert made.app.tag.adopted
    assert made.user.tag.update_time == made.app.tag.update_time == START
    assert equal(made.user.state, {"x": 1})
    now = await loaded(store, key)
    assert (now.user and now.user.tag, now.app and now.app.tag) == (made.user.tag, made.app.tag)


async def test_scopes_of_another_program_are_adopted_with_the_session(store: SqlSessionStore) -> None:
    key = new_key()
    await as_stranger(
        store,
        *_FOREIGN_SCOPES,
        "INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time) VALUES "
        "(:a, :u, :s, '{}', '2023-11-14 22:13:20.000001', '2023-11-14 22:13:20.000001')",
        a=key.app_name,
        u=key.user_id,
        s=key.session_id,
    )
    seen = await loaded(store, key)
    assert seen.user is not None
    assert not seen.user.tag.adopted
    write = Append(key, seen.session.tag, START + 5, (event("e"),), app_delta=b'{"y":2}')
    done = await committed(store, write)
    assert done.app is not None
    now = await loaded(store, key)
    assert now.user is not None
    assert now.app is not None
    assert now.user.tag.adopted
    assert now.app.tag == done.app.tag
    assert equal(now.app.state, {"z": 1, "y": 2})
    assert equal(now.user.state, {"x": 1})


async def test_a_scope_of_another_program_is_merged_by_a_delta(store: SqlSessionStore) -> None:
    key = new_key()
    await as_stranger(store, *_FOREIGN_SCOPES, a=key.app_name, u=key.user_id)
    made = await created(store, key)
    done = await committed(store, Append(key, made.session.tag, START, user_delta=b'{"y":2}'))
    assert done.user is not None
    assert done.user.tag.adopted
    assert equal(done.user.state, {"x": 1, "y": 2})
