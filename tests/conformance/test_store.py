"""The contract of the store (store/base.py), on every database and on the portable path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from tests.conformance.store_backends import (
    BACKENDS,
    START,
    append,
    as_stranger,
    backend_url,
    create,
    create_with,
    created,
    delete,
    event,
    new_key,
    open_store,
)
from tiered_sessions.codec import loads, same_json
from tiered_sessions.errors import InvalidValueError
from tiered_sessions.records import (
    Already,
    Append,
    Committed,
    Conflict,
    Create,
    EventRecord,
    Exists,
    Failed,
    Missing,
    NewEvent,
    Query,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
    Tags,
)
from tiered_sessions.store.store import SqlSessionStore

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
async def store(request: pytest.FixtureRequest, backend: str) -> AsyncIterator[SqlSessionStore]:
    async with open_store(backend_url(request, backend), backend) as opened:
        yield opened


def equal(document: bytes | None, value: Any) -> bool:
    assert document is not None
    return same_json(document, json.dumps(value).encode())


def values(events: tuple[EventRecord, ...]) -> list[Any]:
    """Events as JSON values: a database may store a document in other bytes."""
    return [(e.seq, e.id, e.timestamp, loads(e.payload)) for e in events]


async def committed(store: SqlSessionStore, write: Append) -> Committed:
    outcome = await append(store, write)
    assert isinstance(outcome, Committed), outcome
    return outcome


async def loaded(store: SqlSessionStore, key: SessionKey, query: Query = Query()) -> Snapshot:  # noqa: B008
    found = await store.load(key, query)
    assert found is not None
    return found


# --- create ----------------------------------------------------------------------------------


async def test_what_was_created_is_loaded(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key, b'{"a":1,"n":null}', user_delta=b'{"u":1.5}', app_delta=b'{"p":[]}')
    assert made.session.tag.adopted
    assert made.session.tag.update_time == START
    assert await loaded(store, key) == made
    assert equal(made.session.state, {"a": 1, "n": None})
    assert made.user is not None
    assert made.app is not None
    assert equal(made.user.state, {"u": 1.5})
    assert equal(made.app.state, {"p": []})


async def test_create_makes_missing_scope_rows_and_keeps_present_ones(store: SqlSessionStore) -> None:
    key = new_key()
    first = await created(store, key)
    assert first.user is not None
    assert first.app is not None
    assert equal(first.user.state, {})
    second = await created(store, key._replace(session_id="t"))
    assert (second.user, second.app) == (first.user, first.app)
    third = await created(store, key._replace(session_id="v"), app_delta=b'{"x":null}')
    assert third.user == first.user
    assert third.app is not None
    assert third.app.tag.revision == first.app.tag.revision + 1
    assert equal(third.app.state, {"x": None})


async def test_an_id_is_created_once_and_the_second_writes_nothing(store: SqlSessionStore) -> None:
    key = new_key()
    first = await created(store, key, b'{"a":1}')
    assert await create(store, key, b'{"a":2}', user_delta=b'{"u":1}', app_delta=b'{"p":1}') == Exists()
    assert await loaded(store, key) == first
    assert isinstance(await create(store, key._replace(user_id="other")), Snapshot)


async def test_of_concurrent_creates_one_wins(store: SqlSessionStore) -> None:
    key = new_key()
    outcomes = await asyncio.gather(*(create(store, key, app_delta=b'{"p":1}') for _ in range(6)))
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Exists"] * 5 + ["Snapshot"]


async def test_concurrent_creates_lose_no_shared_state(store: SqlSessionStore) -> None:
    key = new_key()
    outcomes = await asyncio.gather(
        *(
            create(store, key._replace(session_id=f"s{n}"), app_delta=b'{"k%d":1}' % n, user_delta=b"{}")
            for n in range(4)
        )
    )
    assert all(isinstance(outcome, Snapshot) for outcome in outcomes), outcomes
    app = (await loaded(store, key._replace(session_id="s0"))).app
    assert app is not None
    assert equal(app.state, {f"k{n}": 1 for n in range(4)})


# --- append ----------------------------------------------------------------------------------


async def test_what_an_append_answers_is_what_a_load_returns(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key, b'{"a":{"x":1},"b":2}', user_delta=b'{"u":1}')
    write = Append(
        key,
        made.session.tag,
        START + 7,
        (event("e1", 1), event("e2", 2, b'{"big":123456789012345678901234567890,"f":1e300}')),
        session_delta=b'{"a":{"y":1},"c":null}',
        user_delta=b'{"v":2}',
        app_delta=b'{"p":"\\u00e9"}',
    )
    done = await committed(store, write)
    now = await loaded(store, key)
    assert now.session.tag == done.tag
    assert values(now.session.events) == values(done.events)
    for ours, theirs in ((now.user, done.user), (now.app, done.app)):
        assert ours is not None
        assert theirs is not None
        assert ours.tag == theirs.tag
        assert same_json(ours.state, theirs.state)
    assert done.state is not None
    assert same_json(now.session.state, done.state)
    assert equal(done.state, {"a": {"y": 1}, "b": 2, "c": None})
    assert done.user is not None
    assert equal(done.user.state, {"u": 1, "v": 2})
    assert done.app is not None
    assert equal(done.app.state, {"p": "é"})
    assert done.tag == Tag(made.session.tag.incarnation, 2, done.tag.nonce, START + 7)
    assert [record.seq for record in done.events] == [1, 2]
    assert not done.numbered


async def test_scopes_without_a_delta_are_not_touched(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key)
    done = await committed(store, Append(key, made.session.tag, START + 1, (event("e1"),)))
    assert (done.state, done.user, done.app) == (None, None, None)
    now = await loaded(store, key)
    assert (now.user, now.app, now.session.state) == (made.user, made.app, made.session.state)


async def test_a_state_only_append_takes_one_revision(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key, b'{"a":1}')
    done = await committed(store, Append(key, made.session.tag, START, session_delta=b'{"b":2}'))
    assert done.tag.revision == 1
    done = await committed(store, Append(key, done.tag, START, (event("e1"),)))
    assert done.events[0].seq == 2
    replaced = Append(key, done.tag, START, session_delta=b'{"c":3}', replace_state=True)
    assert equal((await committed(store, replaced)).state, {"c": 3})
    assert equal((await loaded(store, key)).session.state, {"c": 3})


async def test_a_missing_scope_row_is_made_by_a_delta(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key)
    await as_stranger(store, "DELETE FROM app_states WHERE app_name = :a", a=key.app_name)
    assert (await loaded(store, key)).app is None
    done = await committed(store, Append(key, made.session.tag, START, (event("e"),), app_delta=b'{"p":1}'))
    assert done.app is not None
    assert done.app.tag.adopted
    assert (await loaded(store, key)).app == done.app


async def test_stale_and_missing_write_nothing(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key)
    tag = made.session.tag
    for wrong in (
        tag._replace(incarnation=tag.incarnation ^ 1),
        tag._replace(revision=5),
        tag._replace(nonce=tag.nonce ^ 1),
        tag._replace(update_time=START + 1),
        Tag(0, 0, 0, START),
    ):
        write = Append(key, wrong, START, (event("e"),), session_delta=b'{"x":1}', app_delta=b'{"x":1}')
        assert await append(store, write, [key.session]) == Stale(tag)
    elsewhere = Append(key._replace(session_id="none"), tag, START, (event("e"),), user_delta=b'{"x":1}')
    assert await append(store, elsewhere, [key.session]) == Missing()
    nothing = Append(key._replace(session_id="none"), None, START, (event("e"),))
    assert await append(store, nothing) == Missing()
    assert await loaded(store, key) == made
    assert not [row for row in await store.outbox(1000) if row.scope.app_name == key.app_name]


async def test_an_event_is_stored_once(store: SqlSessionStore) -> None:
    """R22: the event id is looked up before staleness is reported."""
    key = new_key()
    made = await created(store, key)
    write = Append(
        key, made.session.tag, START, (event("e1", 0, b'{"a":[1,2.0,-0.0],"b":1e17}'), event("e2"))
    )
    first = await committed(store, write)
    assert await append(store, write) == Already(first.tag, latest=True)
    for expected in (None, first.tag):
        again = Append(key, expected, START + 5, write.events, session_delta=b'{"x":1}')
        assert await append(store, again) == Already(first.tag, latest=True)
    second = await committed(store, Append(key, first.tag, START, (event("e3"),)))
    assert await append(store, write) == Already(second.tag, latest=False)
    now = await loaded(store, key)
    assert [record.id for record in now.session.events] == ["e1", "e2", "e3"]
    assert equal(now.session.state, {})


async def test_an_event_id_with_other_content_is_a_conflict(store: SqlSessionStore) -> None:
    key = new_key()
    tag = (await created(store, key)).session.tag
    tag = (await committed(store, Append(key, tag, START, (event("e1"),)))).tag
    for expected in (tag, None, tag._replace(revision=0)):
        other = Append(key, expected, START, (event("e1", 0, b'{"text":"other"}'),))
        assert await append(store, other) == Conflict("e1")
        partly = Append(key, expected, START, (event("e0"), event("e1")))
        assert await append(store, partly) == Conflict("e1")
    assert (await loaded(store, key)).session.tag == tag


async def test_an_id_twice_in_one_append(store: SqlSessionStore) -> None:
    key = new_key()
    tag = (await created(store, key)).session.tag
    twice = Append(key, tag, START, (event("e"), event("e", 0, b'{"text":"other"}')))
    assert await append(store, twice) == Conflict("e")
    done = await committed(store, Append(key, tag, START, (event("e"), event("e"))))
    assert [record.id for record in done.events] == ["e"]


async def test_of_concurrent_appends_to_one_tag_one_wins(store: SqlSessionStore) -> None:
    key = new_key()
    tag = (await created(store, key)).session.tag
    outcomes = await asyncio.gather(
        *(append(store, Append(key, tag, START + n, (event(f"e{n}"),))) for n in range(20))
    )
    winners = [outcome for outcome in outcomes if isinstance(outcome, Committed)]
    assert len(winners) == 1
    assert [outcome for outcome in outcomes if outcome != winners[0]] == [Stale(winners[0].tag)] * 19
    assert values((await loaded(store, key)).session.events) == values(winners[0].events)


async def test_concurrent_appends_without_comparison_all_succeed(store: SqlSessionStore) -> None:
    key = new_key()
    await created(store, key)
    outcomes = await asyncio.gather(
        *(
            append(store, Append(key, None, START, (event(f"e{n}"),), app_delta=b'{"k%d":1}' % n))
            for n in range(6)
        )
    )
    assert all(isinstance(outcome, Committed) for outcome in outcomes), outcomes
    now = await loaded(store, key)
    assert [record.seq for record in now.session.events] == list(range(1, 7))
    assert now.app is not None
    assert equal(now.app.state, {f"k{n}": 1 for n in range(6)})


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


# --- reads -----------------------------------------------------------------------------------


async def test_windows(store: SqlSessionStore) -> None:
    key = new_key()
    tag = (await created(store, key)).session.tag
    times = [0, 10, 20, 15, 40, 50]
    events = tuple(event(f"e{n}", at) for n, at in enumerate(times))
    await committed(store, Append(key, tag, START, events))
    everything = (await loaded(store, key)).session.events
    assert [record.timestamp - START for record in everything] == times
    for limit in (None, 0, 1, 2, 5, 6, 7):
        for after in (None, 0, 15, 16, 51):
            query = Query(limit, None if after is None else START + after)
            content = (await loaded(store, key, query)).session
            assert content.events == query.select(everything), query
            if after is not None or limit == 0:
                assert not content.complete, query
            else:
                assert content.complete == (limit is None or limit >= 6), query
                left = times[: len(times) - len(content.events)]
                assert content.before == (START + max(left) if left else None), query


async def test_older_events(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key)
    done = await committed(
        store, Append(key, made.session.tag, START, tuple(event(f"e{n}", n) for n in range(6)))
    )
    for before_seq, query, names, complete in (
        (4, Query(), ["e0", "e1", "e2"], True),
        (4, Query(2), ["e1", "e2"], False),
        (4, Query(3), ["e0", "e1", "e2"], True),
        (4, Query(None, START + 2), ["e2"], False),
        (1, Query(3), [], True),
    ):
        older = await store.older(key, before_seq, query)
        assert older is not None
        assert older.tag == done.tag
        assert [record.id for record in older.events] == names
        assert older.complete == complete
    assert await store.older(new_key(), 4, Query()) is None


async def test_tags(store: SqlSessionStore) -> None:
    key = new_key()
    assert await store.tags(key) == Tags(None, None, None)
    made = await created(store, key)
    assert made.user is not None
    assert made.app is not None
    assert await store.tags(key) == Tags(made.session.tag, made.user.tag, made.app.tag)
    assert await store.tags(key._replace(session_id="none")) == Tags(None, made.user.tag, made.app.tag)


async def test_lists_and_counts(store: SqlSessionStore) -> None:
    """Conformance 39, 40: by update time, then user, then id; "" is a real user."""
    key = new_key()
    for user, session, at in (("v", "a", 2), ("u", "c", 2), ("u", "b", 2), ("", "z", 1), ("u", "y", 3)):
        await create_with(store, Create(SessionKey(key.app_name, user, session), START + at, b'{"k":1}'))
    await create(store, SessionKey(key.app_name, "w", "x"), user_delta=b'{"mine":1}', app_delta=b'{"all":1}')
    listed = await store.sessions(key.app_name, None)
    assert [(s.key.user_id, s.key.session_id) for s in listed] == [
        ("w", "x"),
        ("", "z"),
        ("u", "b"),
        ("u", "c"),
        ("v", "a"),
        ("u", "y"),
    ]
    assert all(s.session.events == () and s.app is not None for s in listed)
    assert listed[0] == await store.load(listed[0].key, Query(0))
    assert [s.key.session_id for s in await store.sessions(key.app_name, "")] == ["z"]
    assert await store.count(key.app_name, None) == 6
    assert await store.count(key.app_name, "u") == 3
    assert not await store.sessions("unknown", None)
    assert await store.user_state(key.app_name, "unknown") == b"{}"
    assert equal(await store.user_state(key.app_name, "w"), {"mine": 1})


async def test_the_namespace_stays(store: SqlSessionStore) -> None:
    name = await store.namespace()
    assert name
    await store.prepare()
    assert await store.namespace() == name


# --- delete, outbox --------------------------------------------------------------------------


async def test_delete(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key, user_delta=b'{"u":1}')
    await committed(store, Append(key, made.session.tag, START, (event("e1"),)))
    assert await delete(store, key) is True
    assert await store.load(key, Query()) is None
    assert await delete(store, key) is False
    again = await created(store, key)
    assert again.session.tag.incarnation != made.session.tag.incarnation
    assert again.user == made.user
    assert (await loaded(store, key)).session.events == ()
    assert await append(store, Append(key, made.session.tag, START, (event("e1"),))) == Stale(
        again.session.tag
    )


async def test_invalidations_are_recorded_in_the_same_transaction(store: SqlSessionStore) -> None:
    key = new_key()
    made = await created(store, key)
    write = Append(key, made.session.tag, START, (event("e"),), user_delta=b"{}", app_delta=b"{}")
    done = await append(store, write, write.scopes)
    assert isinstance(done, Committed)
    assert done.user is not None
    assert done.app is not None

    async def mine() -> dict[str, Any]:
        return {row.scope.kind: row for row in await store.outbox(1000) if row.scope.app_name == key.app_name}

    rows = await mine()
    assert {kind: row.tag for kind, row in rows.items()} == {
        "session": done.tag,
        "user": done.user.tag,
        "app": done.app.tag,
    }
    next_ = await append(store, Append(key, done.tag, START, (event("f"),)), [key.session])
    assert isinstance(next_, Committed)
    newer = await mine()
    assert newer["session"].tag == next_.tag
    assert newer["session"].stamp != rows["session"].stamp
    await store.outbox_done(list(rows.values()))
    assert await mine() == {"session": newer["session"]}
    await delete(store, key, [key.session])
    assert (await mine())["session"].tag is None
    created_ = await create_with(store, Create(key, START, b"{}", app_delta=b'{"x":1}'), [key.app])
    assert isinstance(created_, Snapshot)
    assert created_.app is not None
    assert (await mine())["app"].tag == created_.app.tag
    await store.outbox_done(list((await mine()).values()))
    assert await mine() == {}


# --- ids and connections ---------------------------------------------------------------------


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


async def test_ids_that_look_alike_are_different(store: SqlSessionStore) -> None:
    """R34, in tables that we made."""
    key = new_key()
    for name in ("abc", "ABC", "abc ", " abc", "äbc", "a\u0308bc", ""):
        await created(store, key._replace(session_id=name), json.dumps({"name": name}).encode())
        await created(store, key._replace(user_id=name))
    for name in ("abc", "ABC", "abc ", " abc", "äbc", "a\u0308bc", ""):
        assert equal((await loaded(store, key._replace(session_id=name))).session.state, {"name": name})
    tag = (await loaded(store, key._replace(session_id="abc"))).session.tag
    assert isinstance(
        await append(store, Append(key._replace(session_id="ABC"), tag, START, (event("e"),))), Stale
    )
    done = await committed(
        store, Append(key._replace(session_id="abc"), tag, START, (event("e"), event("E"), event("e ")))
    )
    assert len(done.events) == 3


async def test_a_writer_does_several_units_and_is_released_twice(store: SqlSessionStore) -> None:
    key = new_key()
    writer = await store.writer()
    made = await writer.create(Create(key, START, b"{}"))
    assert isinstance(made, Snapshot)
    tags = [made.session.tag]
    for n in range(3):
        done = await writer.append(Append(key, tags[-1], START, (event(f"e{n}"),)))
        assert isinstance(done, Committed)
        tags.append(done.tag)
    assert await writer.delete(key) is True
    await writer.release()
    await writer.release()
    assert all(one.revision + 1 == two.revision and one.nonce != two.nonce for one, two in pairwise(tags))
