"""Sessions that expire (docs/consistency.md): by the database's clock, at once, in both tiers."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.conformance.store_backends import (
    BACKENDS,
    START,
    append,
    as_stranger,
    backend_url,
    create_with,
    created,
    delete,
    event,
    new_key,
    open_store,
)
from tests.patience import PATIENT, patient
from tests.servers import CACHES, STORES
from tiered_sessions import (
    Event,
    SessionExistsError,
    SessionNotFoundError,
    StaleSessionError,
    TieredConfig,
    TieredSessionService,
)
from tiered_sessions import metrics as counters
from tiered_sessions.errors import InvalidValueError
from tiered_sessions.records import (
    Append,
    Committed,
    Create,
    Exists,
    Expired,
    Failed,
    Missing,
    NewEvent,
    Query,
    SessionKey,
    Snapshot,
    Tag,
)
from tiered_sessions.store.store import SqlSessionStore

HOUR = 3_600_000
PAST, FUTURE = "2001-01-01 00:00:00.000000", "2199-01-01 00:00:00.000000"
FAR = 100 * 365 * 24 * HOUR // 2
WHICH = "WHERE app_name = :app AND user_id = :user AND id = :id"


# --- the store -----------------------------------------------------------------------------------


@pytest.fixture
async def store(request: pytest.FixtureRequest, backend: str) -> AsyncIterator[SqlSessionStore]:
    async with open_store(backend_url(request, backend), backend) as opened:
        yield opened


async def move(store: SqlSessionStore, key: SessionKey, moment: str) -> None:
    """Makes a session expire at another time, which takes nobody's patience."""
    await as_stranger(
        store,
        f"UPDATE sessions SET expires_at = '{moment}' {WHICH}",
        app=key.app_name,
        user=key.user_id,
        id=key.session_id,
    )


async def made(store: SqlSessionStore, ttl: int | None = None, *, sliding: bool = False) -> Snapshot:
    outcome = await create_with(store, Create(new_key(), START, b"{}", ttl=ttl, sliding=sliding))
    assert isinstance(outcome, Snapshot), outcome
    return outcome


async def left(store: SqlSessionStore, key: SessionKey) -> int | None:
    found = await store.load(key, Query())
    assert found is not None
    return found.expires_in


def events(*names: str) -> tuple[NewEvent, ...]:
    return tuple(map(event, names))


backends = pytest.mark.parametrize("backend", BACKENDS)


@backends
async def test_the_database_says_how_long_a_session_has(store: SqlSessionStore) -> None:
    for_ever, brief = await made(store), await made(store, HOUR)
    assert for_ever.expires_in is None
    assert await left(store, for_ever.key) is None
    assert brief.expires_in == HOUR
    found = await left(store, brief.key)
    # A minute for whoever stopped this process here.
    assert found is not None
    assert HOUR - 60_000 < found <= HOUR


@backends
async def test_an_expired_session_is_not_there(store: SqlSessionStore) -> None:
    session = await made(store, HOUR)
    key, tag = session.key, session.session.tag
    done = await append(store, Append(key, tag, START, events("a", "b")))
    assert isinstance(done, Committed)
    other = key._replace(session_id="other")
    await created(store, other)
    assert [s.key for s in await store.sessions(key.app_name, None)] == [other, key]
    assert await store.count(key.app_name, key.user_id) == 2

    await move(store, key, PAST)
    for query in (Query(), Query(limit=0), Query(limit=1), Query(after=START), Query(1, START)):
        assert await store.load(key, query) is None
        assert await store.older(key, 2, query) is None
    tags = await store.tags(key)
    assert tags.session is None
    assert session.user is not None
    assert tags.user == session.user.tag
    assert [s.key for s in await store.sessions(key.app_name, None)] == [other]
    assert [s.key for s in await store.sessions(key.app_name, key.user_id)] == [other]
    assert await store.count(key.app_name, None) == 1
    again = Append(key, done.tag, START, events("a", "b"))
    for late in (
        Append(key, done.tag, START, events("c")),
        Append(key, done.tag, START, events("c"), session_delta=b'{"k":1}', user_delta=b'{"u":1}'),
        Append(key, None, START, events("c")),
        replace(again, expected=Tag(1, 1, 1, 1)),
        again,
    ):
        assert await append(store, late) == Missing()
    assert await store.user_state(key.app_name, key.user_id) == b"{}"


@backends
async def test_only_an_expired_row_makes_way(store: SqlSessionStore) -> None:
    old = await made(store, HOUR)
    key = old.key
    await append(store, Append(key, old.session.tag, START, events("a"), session_delta=b'{"old":1}'))
    new = Create(key, START + 1, b'{"new":1}', user_delta=b'{"u":1}', ttl=2 * HOUR)
    whole = replace(new, replace_expired=True)
    assert await create_with(store, new) == Exists()
    assert await create_with(store, whole) == Exists()

    await move(store, key, PAST)
    assert await create_with(store, new) == Expired()
    assert await store.user_state(key.app_name, key.user_id) == b"{}"
    assert key in await store.expired(1_000)
    outcome = await create_with(store, whole, outbox=(key.session,))
    assert isinstance(outcome, Snapshot)
    assert outcome.session.tag.incarnation != old.session.tag.incarnation
    found = await store.load(key, Query())
    assert found is not None
    assert (found.session, found.user) == (outcome.session, outcome.user)
    assert found.session.events == ()
    assert found.expires_in is not None
    assert found.expires_in > HOUR
    (row,) = [row for row in await store.outbox(1_000) if row.scope == key.session]
    assert row.tag == outcome.session.tag
    assert await create_with(store, whole) == Exists()
    await store.outbox_done([row])

    await delete(store, key)
    assert isinstance(await create_with(store, whole), Snapshot), "swept in between"


@backends
async def test_of_concurrent_replacements_one_wins(store: SqlSessionStore) -> None:
    old = await made(store, HOUR)
    await move(store, old.key, PAST)
    write = Create(old.key, START, b"{}", replace_expired=True)
    outcomes = await asyncio.gather(*(create_with(store, write) for _ in range(4)))
    won = [outcome for outcome in outcomes if isinstance(outcome, Snapshot)]
    assert len(won) == 1, outcomes
    assert all(isinstance(outcome, Exists | Failed) for outcome in outcomes if outcome is not won[0])
    found = await store.load(old.key, Query())
    assert found is not None
    assert found.session == won[0].session


@backends
@pytest.mark.parametrize(
    "deltas", [{}, {"session_delta": b'{"k":1}'}, {"user_delta": b'{"u":1}', "app_delta": b'{"a":1}'}]
)
@pytest.mark.parametrize("expected", [True, False])
async def test_an_append_moves_the_expiry_only_where_it_slides(
    store: SqlSessionStore, deltas: dict[str, bytes], expected: bool
) -> None:
    for sliding in (False, True):
        session = await made(store, HOUR, sliding=sliding)
        key = session.key
        await move(store, key, FUTURE)
        tag = session.session.tag if expected else None
        done = await append(store, Append(key, tag, START, events("a"), **deltas))  # type: ignore[arg-type]
        assert isinstance(done, Committed)
        assert done.expires_in == (HOUR if sliding else None)
        now = await left(store, key)
        assert now is not None
        assert (HOUR - 60_000 < now <= HOUR) if sliding else now > FAR
        again = await append(store, Append(key, None, START, (), session_delta=b'{"k":2}'))
        assert isinstance(again, Committed)
        assert again.expires_in == done.expires_in


@backends
async def test_a_sweep_deletes_only_what_is_still_expired(store: SqlSessionStore) -> None:
    alive, first, second = await made(store, HOUR), await made(store, HOUR), await made(store)
    await append(store, Append(second.key, second.session.tag, START, events("a")))
    await move(store, first.key, PAST)
    await move(store, second.key, PAST.replace("2001", "2000"))
    ours = (alive.key, first.key, second.key)
    assert [key for key in await store.expired(1_000) if key in ours] == [second.key, first.key]
    assert len(await store.expired(1)) == 1

    async def sweep(key: SessionKey) -> Any:
        writer = await store.writer()
        try:
            return await writer.delete(key, (key.session,), only_expired=True)
        finally:
            await writer.release()

    assert [await sweep(key) for key in ours] == [False, True, True]
    assert [await sweep(key) for key in ours] == [False, False, False]
    assert await left(store, alive.key)
    assert not set(ours) & set(await store.expired(1_000))
    await store.outbox_done([row for row in await store.outbox(1_000) if row.scope[1:] in ours])
    assert await delete(store, alive.key) is True


@pytest.mark.parametrize("backend", ["memory"])
@pytest.mark.parametrize(
    ("ttl", "sliding"), [(0, False), (-1, False), (100 * 366 * 24 * HOUR, False), (None, True)]
)
async def test_an_unusable_ttl_is_refused(store: SqlSessionStore, ttl: int | None, sliding: bool) -> None:
    outcome = await create_with(store, Create(new_key(), START, b"{}", ttl=ttl, sliding=sliding))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, InvalidValueError)


# --- the service ---------------------------------------------------------------------------------

PAIRS = [(store, cache) for store in STORES for cache in ("none", "memory", "redis")]
PAIRS += [("sqlite", cache) for cache in CACHES if ("sqlite", cache) not in PAIRS]
pairs = pytest.mark.parametrize(("store_url", "cache"), PAIRS, indirect=True)

Make = Callable[..., TieredSessionService]


class Counts:
    """Keeps the counters."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def count(self, name: str, value: int = 1) -> None:
        self.seen[name] += value


@pytest.fixture(scope="module")
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One file for the module, as the other databases are."""
    return f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('expiry') / 'sessions.db'}"


@pytest.fixture
async def make(store_url: str, cache: Any) -> AsyncIterator[Make]:
    """Makes services over one database and one cache, as processes of a fleet would."""
    async with contextlib.AsyncExitStack() as stack:

        def one(**options: Any) -> TieredSessionService:
            service = TieredSessionService(store_url, cache=cache, pool_size=4, **options)
            stack.push_async_callback(service.close)
            return service

        yield one


@pytest.fixture
def app() -> str:
    return f"app-{uuid4().hex[:12]}"


async def rows(engine: AsyncEngine, app: str, table: str = "sessions") -> int:
    async with engine.connect() as connection:
        found = await connection.execute(
            text(f"SELECT count(*) FROM {table} WHERE app_name = :app"), {"app": app}
        )
        return int(found.scalar_one())


async def lapse(engine: AsyncEngine, app: str, *ids: str, moment: str = PAST) -> None:
    """Lets time pass, for the database."""
    async with engine.begin() as connection:
        for id_ in ids:
            await connection.execute(
                text(f"UPDATE sessions SET expires_at = '{moment}' {WHICH}"),
                {"app": app, "user": "u", "id": id_},
            )


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            pass


@pairs
async def test_a_session_ends_by_itself(make: Make, app: str) -> None:
    """On every reader at once, whether or not it has been cached there."""
    ours, theirs = make(), make()
    await ours.create_session(app, "u", {"kept": 1, "user:k": 1}, "kept")
    held = await ours.create_session(app, "u", {"k": 1}, "s", ttl="0.4s")
    await theirs.get_session(app, "u", "s")

    async def gone() -> bool:
        return await theirs.get_session(app, "u", "s") is None

    await until(gone)
    assert await ours.get_session(app, "u", "s") is None
    assert [session.id for session in (await ours.list_sessions(app)).sessions] == ["kept"]
    assert await ours.count_sessions(app) == 1
    with pytest.raises(SessionNotFoundError):
        await ours.append_event(held, Event(author="late"))
    assert await ours.get_user_state(app, "u") == {"k": 1}


@pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("cache", ["redis", "fakeredis"], indirect=True)
async def test_the_cache_ends_it_without_asking_sql(make: Make, app: str) -> None:
    """SQL is made to say that it lives on: the entry ends all the same, when it was told to."""
    counts = Counts()
    with patient():
        service = make(config=replace(PATIENT, max_staleness=None, decoded_bytes=0), metrics=counts)
        held = await service.create_session(app, "u", session_id="s", ttl=4)
        await service.get_session(app, "u", "s")
        await service.flush()
        await lapse(service.db_engine, app, "s", moment=FUTURE)
        loads = counts.seen[counters.READ_STORE]

        async def loaded() -> bool:
            assert await service.get_session(app, "u", "s") is not None
            return counts.seen[counters.READ_STORE] > loads

        await until(loaded)
        assert counts.seen[counters.READ_CACHE] > 0
        await service.flush()
        cached = counts.seen[counters.READ_CACHE]
        assert await service.get_session(app, "u", "s") is not None
        assert counts.seen[counters.READ_CACHE] == cached + 1, "and makes room for what SQL says now"
        await service.append_event(held, Event(author="a"))


@pairs
async def test_an_expired_id_is_free_again(make: Make, app: str) -> None:
    """Whatever the others have cached of the old session, they see the new one at once (I5)."""
    ours, theirs = make(), make()
    old = await ours.create_session(app, "u", {"old": 1, "user:k": 1}, "s", ttl=3600)
    await ours.append_event(old, Event(author="old"))
    for _ in range(2):
        assert await theirs.get_session(app, "u", "s") == old
        await theirs.flush()
    with pytest.raises(SessionExistsError):
        await ours.create_session(app, "u", session_id="s")
    await lapse(ours.db_engine, app, "s")
    new = await ours.create_session(app, "u", {"new": 1}, "s", ttl="3600s")
    assert new.state == {"new": 1, "user:k": 1}
    assert await rows(ours.db_engine, app, "events") == 0
    await ours.flush()
    for service in (theirs, ours, theirs):
        assert await service.get_session(app, "u", "s") == new
    with pytest.raises(StaleSessionError):
        await theirs.append_event(old, Event(author="stale"))
    await theirs.append_event(new, Event(author="new"))
    found = await ours.get_session(app, "u", "s")
    assert found is not None
    assert [event.author for event in found.events] == ["new"]


@pairs
async def test_appends_keep_a_sliding_session(make: Make, app: str) -> None:
    ours, theirs = make(), make()
    session = await ours.create_session(app, "u", session_id="s", ttl=3600, sliding=True)
    await theirs.get_session(app, "u", "s")
    for author in "abc":
        await ours.append_event(session, Event(author=author))
        await ours.flush()
        assert await theirs.get_session(app, "u", "s") == session
    await lapse(ours.db_engine, app, "s")
    with pytest.raises(SessionNotFoundError):
        await ours.append_event(session, Event(author="late"))
    # The refused append has told the cache.
    assert await theirs.get_session(app, "u", "s") is None


@pairs
async def test_what_expired_is_deleted_on_demand(make: Make, app: str) -> None:
    ours, theirs = make(), make()
    for id_ in ("a", "b", "kept", "for ever"):
        ttl = None if id_ == "for ever" else 3600
        session = await ours.create_session(app, "u", {"user:k": id_}, id_, ttl=ttl)
        await ours.append_event(session, Event(author=id_))
        await theirs.get_session(app, "u", id_)
    await theirs.flush()
    await lapse(ours.db_engine, app, "a", "b")
    # Others of this database may have expired, too.
    assert await ours.delete_expired() >= 2
    assert await rows(ours.db_engine, app) == 2
    assert await rows(ours.db_engine, app, "events") == 2
    await ours.flush()
    for service in (theirs, ours):
        assert await service.get_session(app, "u", "a") is None
        assert await service.get_session(app, "u", "kept") is not None
    assert await ours.get_user_state(app, "u") == {"k": "for ever"}


@pytest.mark.parametrize("store_url", STORES, indirect=True)
@pytest.mark.parametrize("cache", ["none", "memory", "redis"], indirect=True)
async def test_what_expired_is_swept_by_itself(make: Make, app: str) -> None:
    service = make(config=TieredConfig(sweep_every=0.05, outbox_poll=0.05))
    for number in range(5):
        await service.create_session(app, "u", session_id=str(number), ttl=0.01)
    await service.create_session(app, "u", session_id="kept", ttl=3600)

    async def swept() -> bool:
        return await rows(service.db_engine, app) == 1

    await until(swept)
    assert await service.get_session(app, "u", "kept") is not None


@pytest.mark.parametrize(
    "ttl", [0, -1, 0.0001, float("nan"), float("inf"), "", "3600", "-1s", "1h", "0s", True]
)
async def test_what_is_no_time_to_live(tmp_path: Path, ttl: Any) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'sessions.db'}"
    async with TieredSessionService(url, cache=None) as service:
        with pytest.raises(InvalidValueError, match="ttl must be"):
            await service.create_session("app", "u", ttl=ttl)
        with pytest.raises(InvalidValueError, match="sliding"):
            await service.create_session("app", "u", sliding=True)
        assert await service.count_sessions("app") == 0
