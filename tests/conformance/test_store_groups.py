"""Group commit: appends that share a statement, each with an outcome of its own (consistency.md 5.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.conformance.grouping import (
    Journal,
    all_free,
    gathering,
    groups,
    seated,
    sessions,
    share,
    together,
    until,
    with_event,
)
from tests.conformance.store_backends import (
    START,
    append,
    as_stranger,
    backend_url,
    committed,
    create_with,
    created,
    event,
    loaded,
    new_key,
    open_store,
    values,
)
from tests.patience import PATIENCE
from tiered_sessions.config import TieredConfig
from tiered_sessions.errors import PoolTimeoutError, StoreUnavailableError
from tiered_sessions.records import (
    Already,
    Append,
    AppendOutcome,
    Committed,
    Conflict,
    Create,
    Failed,
    Missing,
    Query,
    SessionKey,
    Stale,
)
from tiered_sessions.store.groups import GRACE, LARGEST, Seat
from tiered_sessions.store.store import SqlSessionStore

ALL = Query()
BACKENDS = ("sqlite", "memory", "postgresql", "postgresql-psycopg")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store(request: pytest.FixtureRequest, backend: str) -> AsyncIterator[SqlSessionStore]:
    async with open_store(backend_url(request, backend), backend) as opened:
        yield opened
        await all_free(opened, "append")


@pytest.fixture
def journal(store: SqlSessionStore, monkeypatch: pytest.MonkeyPatch) -> Journal:
    return Journal(store, monkeypatch)


# --- who meets whom --------------------------------------------------------------------------


async def test_who_is_alone_does_not_share(store: SqlSessionStore, journal: Journal) -> None:
    for write in await sessions(store, 3):
        assert isinstance(await share(store, write), Committed)
    assert (journal.alone, journal.batches) == (3, [])


async def test_who_comes_at_once_shares(store: SqlSessionStore, journal: Journal) -> None:
    writes = await sessions(store, 100)
    for number in range(3):
        outcomes = await asyncio.gather(*(share(store, write) for write in writes))
        assert all(isinstance(outcome, Committed) for outcome in outcomes)
        writes = [
            replace(write, expected=outcome.tag, events=(event(f"r{number}"),))
            for write, outcome in zip(writes, outcomes, strict=True)
            if isinstance(outcome, Committed)
        ]
    assert sum(journal.batches) + journal.alone == 300
    assert max(journal.batches) <= LARGEST
    assert len(journal.batches) + journal.alone < 60
    for number, write in enumerate(writes):
        found = (await loaded(store, write.key)).session
        assert found.tag == write.expected
        assert [(e.seq, e.id) for e in found.events] == [(1, f"e{number}"), (2, "r0"), (3, "r1")]


async def test_what_cannot_be_shared_goes_alone(store: SqlSessionStore, journal: Journal) -> None:
    writes = await sessions(store, 6)
    odd = [
        replace(writes[0], app_delta=b'{"k":1}'),
        replace(writes[1], user_delta=b'{"k":1}'),
        replace(writes[2], expected=None),
        replace(writes[3], events=(event("x"), event("y"))),
        replace(writes[4], events=(), session_delta=b'{"k":1}'),
    ]
    assert not any(write.shareable for write in odd)
    assert writes[5].shareable
    outcomes = await together(store, [(write, ()) for write in [*odd, writes[5]]])
    assert all(isinstance(outcome, Committed) for outcome in outcomes), outcomes
    assert journal.batches == []


# --- outcomes --------------------------------------------------------------------------------


async def _neighbours(store: SqlSessionStore) -> list[tuple[Append, type[AppendOutcome]]]:
    """Appends to sessions in every state, and what becomes of each."""
    writes = await sessions(store, 12)
    app = writes[0].key.app_name
    stale, done, other, foreign, conflict, ended, state, whole, nulls, odd = writes[:10]
    await committed(store, with_event(stale, event("earlier")))
    await committed(store, done)
    await committed(store, with_event(other, event("z")))
    await committed(store, with_event(conflict, event("taken")))
    await as_stranger(
        store,
        "UPDATE sessions SET update_time = '2030-01-01 00:00:00.000000' WHERE app_name = :a AND id = 's3'",
        a=app,
    )
    await as_stranger(
        store,
        "UPDATE sessions SET expires_at = '2001-01-01 00:00:00.000000' WHERE app_name = :a AND id = 's5'",
        a=app,
    )
    tag = (await store.tags(conflict.key)).session
    sliding = SessionKey(app, "user", "sliding")
    await create_with(store, Create(sliding, START, b"{}", ttl=3_600_000, sliding=True))
    slides = (await store.tags(sliding)).session
    await as_stranger(
        store,
        "UPDATE sessions SET expires_at = '2100-01-01 00:00:00.000000' "
        "WHERE app_name = :a AND id = 'sliding'",
        a=app,
    )
    for write in (state, whole, nulls):
        made = await committed(store, replace(write, events=(), session_delta=b'{"a":{"x":1},"b":2}'))
        assert made.tag.revision == 1
    tags = {write.key: (await store.tags(write.key)).session for write in (state, whole, nulls)}
    return [
        (stale, Stale),
        (done, Already),
        (other, Stale),
        (foreign, Stale),
        (replace(conflict, expected=tag, events=(event("taken", payload=b'{"another":1}'),)), Conflict),
        (ended, Missing),
        (replace(state, expected=tags[state.key], session_delta=b'{"a":{"y":2},"c":null}'), Committed),
        (
            replace(whole, expected=tags[whole.key], session_delta=b'{"n":1}', replace_state=True),
            Committed,
        ),
        (replace(nulls, expected=tags[nulls.key]), Committed),
        (
            with_event(odd, event("odd", payload=b'{"f":1e16,"z":-0.0,"i":12345678901234567890123}')),
            Committed,
        ),
        (writes[10], Committed),
        (replace(writes[11], key=writes[11].key._replace(session_id="none")), Missing),
        (with_event(writes[11], event("y" * 200)), Failed),
        (Append(sliding, slides, START + 5, (event("slide", at=7),)), Committed),
    ]


def _comparable(outcome: AppendOutcome) -> object:
    """An outcome without what differs from one session to the next."""
    match outcome:
        case Committed():
            state = None if outcome.state is None else sorted(outcome.state)
            tag = (outcome.tag.revision, outcome.tag.update_time)
            return (tag, values(outcome.events), state, outcome.numbered, outcome.expires_in)
        case Already(_, latest):
            return latest
        case Stale(current):
            return (current.revision, current.update_time)
        case Failed(error):
            return (type(error), str(error))
    return outcome


async def test_each_outcome_is_its_own(store: SqlSessionStore, journal: Journal) -> None:
    """One that is refused fails nobody else; each is told what it would have been told alone."""
    alone = [(write, await append(store, write), kind) for write, kind in await _neighbours(store)]
    shared = await _neighbours(store)
    journal.batches.clear()
    journal.alone = 0
    outcomes = await together(store, [(write, ()) for write, _ in shared])
    assert journal.batches == [len(shared) - 1], "all but the one that no database can store"
    # SQLite has the one whose event is there tried again; PostgreSQL settles all of them together.
    assert journal.alone == (1 if "sqlite" in str(store.engine.url) else 0)
    for (write, expected, kind), (same, _), outcome in zip(alone, shared, outcomes, strict=True):
        assert isinstance(expected, kind), (write, expected)
        assert isinstance(outcome, kind), (same, outcome)
        assert _comparable(outcome) == _comparable(expected)
        before, after = await store.load(write.key, ALL), await store.load(same.key, ALL)
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert values(before.session.events) == values(after.session.events)
            assert before.session.tag.revision == after.session.tag.revision
            assert (before.expires_in is None) == (after.expires_in is None)
            assert (after.expires_in or 0) <= 3_600_000, "it was told to live for an hour from now"
        if isinstance(outcome, Committed):
            assert after is not None
            assert after.session.tag == outcome.tag
            assert values(after.session.events[-1:]) == values(outcome.events)
            assert outcome.state in (None, after.session.state)


async def test_one_session_twice(store: SqlSessionStore, journal: Journal) -> None:
    """Two appends of one revision have one winner; the same append twice is stored once."""
    rivals, twins, third = await sessions(store, 3)
    rival = with_event(rivals, event("rival"))
    outcomes = await together(store, [(write, ()) for write in (rivals, rival, twins, twins, third)])
    assert journal.batches == [3]
    names = [type(outcome).__name__ for outcome in outcomes]
    assert sorted(names[:2]) == ["Committed", "Stale"]
    assert sorted(names[2:4]) == ["Already", "Committed"]
    assert names[4] == "Committed"
    for write in (rivals, twins):
        content = (await loaded(store, write.key)).session
        assert len(content.events) == 1
        assert content.tag.revision == 1


async def test_invalidations_are_recorded_by_the_same_statement(
    store: SqlSessionStore, journal: Journal
) -> None:
    """Only of those who ask, only if they are stored; a second one renews the stamp."""
    writes = await sessions(store, 4)
    await committed(store, with_event(writes[3], event("earlier")))
    recorded = [*writes[:2], writes[3]]
    outcomes = await together(
        store, [(write, (write.key.session,) if write in recorded else ()) for write in writes]
    )
    assert (journal.batches, journal.alone) == ([4], 1), "the first append that was sent, for a stale one"
    rows = {row.scope: row for row in await store.outbox(1_000)}
    mine = {scope: row for scope, row in rows.items() if scope.app_name == writes[0].key.app_name}
    assert set(mine) == {write.key.session for write in writes[:2]}
    for write, outcome in zip(writes[:2], outcomes, strict=False):
        assert isinstance(outcome, Committed)
        assert mine[write.key.session].tag == outcome.tag
        again = replace(write, expected=outcome.tag, events=(event("again"),))
        other = new_key()
        made = await created(store, other)
        neighbour = Append(other, made.session.tag, START, (event("e"),))
        renewed, _ = await together(store, [(again, (again.key.session,)), (neighbour, ())])
        assert isinstance(renewed, Committed)
        row = {row.scope: row for row in await store.outbox(1_000)}[write.key.session]
        assert row.tag == renewed.tag
        assert row.stamp != mine[write.key.session].stamp


# --- who leaves, who is late -----------------------------------------------------------------


async def test_who_leaves_is_not_waited_for(
    store: SqlSessionStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while it waits, cancelled as it is called, released without an append."""
    writes = await sessions(store, 4)
    waiting, called, released, stays = writes
    async with gathering(store):
        tasks = [asyncio.create_task(share(store, write)) for write in (waiting, called)]
        writers = [asyncio.create_task(store.writer(grouped="append")) for _ in range(2)]
        await until(lambda: len(groups(store)._waiting) == 4)
        tasks[0].cancel()
        seat = groups(store)._waiting[1]
        monkeypatch.setattr(seat, "call", lambda batch: (Seat.call(seat, batch), tasks[1].cancel()))
    gone, staying = [await writer for writer in writers]
    await gone.release()
    await gone.release()
    assert isinstance(staying, Seat)
    batch = staying._batch
    assert batch is not None
    await until(lambda: batch._missing == {staying})
    assert isinstance(await staying.append(stays), Committed)
    await staying.release()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert (journal.batches, journal.alone) == ([], 1)
    for write in (waiting, called, released):
        assert (await loaded(store, write.key)).session.tag == write.expected


async def test_what_was_brought_is_stored_though_the_caller_is_gone(store: SqlSessionStore) -> None:
    first, second = await sessions(store, 2)
    one, two = await seated(store, 2)

    async def caller() -> None:
        await one.append(first)

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    task.cancel()
    assert isinstance(await two.append(second), Committed)
    for write in (first, second):
        assert (await loaded(store, write.key)).session.tag.revision == 1
    await one.release()
    await two.release()


async def test_nobody_waits_for_a_batch_that_was_cancelled(store: SqlSessionStore) -> None:
    """As at the end of an event loop: what was brought is lost, and whoever waits for it hears of that."""
    first, second = await sessions(store, 2)
    one, two = await seated(store, 2)
    outcome = asyncio.ensure_future(one.append(first))
    for task in groups(store).tasks:
        task.cancel()
    await asyncio.wait((outcome,), timeout=10)
    assert outcome.cancelled()
    assert isinstance(await two.append(second), Committed), "it goes alone"
    assert (await loaded(store, first.key)).session.tag == first.expected
    await one.release()
    await two.release()


async def test_nobody_waits_long_for_who_is_late(store: SqlSessionStore, journal: Journal) -> None:
    """Who brings its append after the others are stored is stored all the same."""
    writes = await sessions(store, 4)
    async with gathering(store):
        tasks = [asyncio.create_task(share(store, write)) for write in writes[:2]]
        late = [asyncio.create_task(store.writer(grouped="append")) for _ in range(2)]
        await until(lambda: len(groups(store)._waiting) == 4)
    writers = [await writer for writer in late]
    assert all(isinstance(outcome, Committed) for outcome in await asyncio.gather(*tasks))
    assert isinstance(await writers[0].append(writes[2]), Committed)
    await until(lambda: groups(store)._free == store._dialect.group_connections)
    assert isinstance(await writers[1].append(writes[3]), Committed), "the batch is long over"
    assert (journal.batches, journal.alone) == ([2], 2)
    for writer in writers:
        await writer.release()


async def test_who_is_late_together_is_stored_together(store: SqlSessionStore, journal: Journal) -> None:
    """A slow cache keeps the masks of a whole batch."""
    writes = await sessions(store, 3)
    loop = asyncio.get_running_loop()
    writers = await seated(store, 3)
    called = loop.time()
    await until(lambda: loop.time() > called + 2 * GRACE)
    outcomes = await asyncio.gather(
        *(writer.append(write) for writer, write in zip(writers, writes, strict=True))
    )
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    assert (journal.batches, journal.alone) == ([3], 0)


async def test_a_seat_does_whatever_a_writer_does(store: SqlSessionStore) -> None:
    writers = await seated(store, 2)
    key = new_key()
    assert (await writers[0].create(Create(key, START, b'{"k":1}'))) == await store.load(key, ALL)
    assert await writers[1].delete(key) is True
    assert await writers[1].delete(key) is False
    for writer in writers:
        await writer.release()


# --- what goes wrong -------------------------------------------------------------------------


async def test_masks_that_have_grown_old_are_not_relied_on(
    request: pytest.FixtureRequest, backend: str
) -> None:
    """R7: who shares may have masked since its batch was sealed, so no statement is sent much later."""
    async with open_store(backend_url(request, backend), backend, TieredConfig(mask_age=0.0)) as store:
        writes = await sessions(store, 3)
        outcomes = await together(store, [(write, ()) for write in writes])
        for write, outcome in zip(writes, outcomes, strict=True):
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, StoreUnavailableError)
            assert "nothing was written" in str(outcome.error)
            assert (await loaded(store, write.key)).session.tag == write.expected


async def test_what_the_statement_refuses_is_found_out_one_by_one(
    store: SqlSessionStore, journal: Journal, backend: str
) -> None:
    """A definite error wrote nothing: each is tried alone, and only the guilty one fails."""
    writes = await sessions(store, 4)
    guilty = with_event(writes[1], event("refused-" + writes[1].key.app_name))
    writes[1] = guilty
    if "sqlite" in str(store.engine.url):
        await as_stranger(
            store,
            "CREATE TRIGGER refusing BEFORE INSERT ON events WHEN NEW.id LIKE 'refused-%' "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END",
        )
    else:
        await as_stranger(
            store,
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'refused'; END $$",
            "CREATE OR REPLACE TRIGGER refusing BEFORE INSERT ON events FOR EACH ROW "
            "WHEN (NEW.id LIKE 'refused-%') EXECUTE FUNCTION refuse()",
        )
    outcomes = await together(store, [(write, ()) for write in writes])
    assert [type(outcome) for outcome in outcomes] == [Committed, Failed, Committed, Committed]
    assert (journal.batches, journal.alone) == ([4], 4)
    assert (await loaded(store, guilty.key)).session.tag == guilty.expected


async def test_without_a_connection_each_who_waits_is_told(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}
    async with open_store(postgresql_url, "postgresql", **options) as store:
        writes = await sessions(store, 5)
        holder = await store.writer()
        outcomes = await asyncio.gather(*(share(store, write) for write in writes), return_exceptions=True)
        await holder.release()
        monkeypatch.setattr(store.engine.pool, "_timeout", PATIENCE)
        assert all(isinstance(outcome, PoolTimeoutError) for outcome in outcomes), outcomes
        assert len({id(outcome) for outcome in outcomes}) == 5
        outcomes = await asyncio.gather(*(share(store, write) for write in writes))
        assert all(isinstance(outcome, Committed) for outcome in outcomes)
