"""The rules of sessions that expire: by the store's own clock, at once, and only once (section 7)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ..records import (
    Already,
    Append,
    Create,
    Exists,
    Expired,
    Failed,
    Missing,
    Query,
    SessionKey,
    Snapshot,
    Stale,
)
from ..store.base import SessionStore
from .store_samples import (
    START,
    StoreFixtures,
    append,
    committed,
    create_with,
    created,
    delete,
    ended,
    equal,
    event,
    loaded,
    new_key,
    outbox,
)

HOUR = 3_600_000


def brief(key: SessionKey) -> Create:
    """Returns the create of a session that lives a millisecond."""
    return Create(key, START, b'{"old":1}', ttl=1)


class ExpiryRules(StoreFixtures):
    """An expired session is not there, but for `expired`, `delete` and the create that replaces it."""

    async def test_a_store_says_how_long_a_session_has(self, store: SessionStore) -> None:
        """Milliseconds by the store's clock; None: for ever."""
        key = new_key()
        assert (await created(store, key)).expires_in is None
        assert (await loaded(store, key)).expires_in is None
        other = key._replace(session_id="brief")
        made = await create_with(store, Create(other, START, b"{}", ttl=HOUR))
        assert isinstance(made, Snapshot)
        assert made.expires_in == HOUR
        left = (await loaded(store, other)).expires_in
        # A minute for whoever stopped this process here.
        assert left is not None
        assert HOUR - 60_000 < left <= HOUR

    async def test_an_append_moves_the_expiry_only_where_it_slides(self, store: SessionStore) -> None:
        """A sliding session lives its time from its last append on."""
        for sliding in (False, True):
            key = new_key()
            made = await create_with(store, Create(key, START, b"{}", ttl=HOUR, sliding=sliding))
            assert isinstance(made, Snapshot)
            done = await committed(store, Append(key, made.session.tag, START, (event("e"),)))
            assert done.expires_in == (HOUR if sliding else None)
            assert await append(store, Append(key, made.session.tag, START, (event("e"),))) == Already(
                done.tag, latest=True
            )

    async def test_an_expired_session_is_not_there(self, store: SessionStore) -> None:
        """I5: no read shows it and no append finds it; shared state stays."""
        key = new_key()
        other = key._replace(session_id="other")
        await created(store, other, user_delta=b'{"u":1}')
        tag = (await ended(store, brief(key))).session.tag
        for query in (Query(), Query(0), Query(1), Query(None, START), Query(1, START)):
            assert await store.load(key, query) is None
            assert await store.older(key, 2, query) is None
        assert (await store.tags(key)).session is None
        assert (await store.tags(key)).user == (await store.tags(other)).user
        for user in (None, key.user_id):
            assert [found.key for found in await store.sessions(key.app_name, user)] == [other]
            assert await store.count(key.app_name, user) == 1
        for expected in (tag, None):
            late = Append(key, expected, START, (event("e"),), user_delta=b'{"u":2}')
            assert await append(store, late, late.scopes) == Missing()
        assert equal(await store.user_state(key.app_name, key.user_id), {"u": 1})
        assert await outbox(store, key) == {}

    async def test_only_an_expired_session_makes_way(self, store: SessionStore) -> None:
        """Its entry may be cached: only a writer that has masked it may replace it."""
        key = new_key()
        old = await ended(store, brief(key))
        new = Create(key, START + 1, b'{"new":1}', user_delta=b'{"u":1}', ttl=HOUR)
        whole = replace(new, replace_expired=True)
        assert await create_with(store, new, [key.user]) == Expired()
        assert equal(await store.user_state(key.app_name, key.user_id), {})
        assert await outbox(store, key) == {}
        made = await create_with(store, whole, [key.session])
        assert isinstance(made, Snapshot)
        assert made.session.tag.incarnation != old.session.tag.incarnation
        now = await loaded(store, key)
        assert (now.session, now.user) == (made.session, made.user)
        row = (await outbox(store, key))["session"]
        assert row.tag == made.session.tag
        await store.outbox_done([row])
        assert await create_with(store, whole) == Exists()
        assert await create_with(store, new) == Exists()
        write = Append(key, old.session.tag, START, (event("e"),))
        assert await append(store, write) == Stale(made.session.tag)

    async def test_of_concurrent_replacements_one_wins(self, store: SessionStore) -> None:
        """R17: of one incarnation there is one."""
        key = new_key()
        await ended(store, brief(key))
        write = Create(key, START, b"{}", replace_expired=True)
        outcomes = await asyncio.gather(*(create_with(store, write) for _ in range(4)))
        won = [outcome for outcome in outcomes if isinstance(outcome, Snapshot)]
        assert len(won) == 1, outcomes
        assert all(isinstance(outcome, Exists | Failed) for outcome in outcomes if outcome is not won[0])
        assert (await loaded(store, key)).session == won[0].session

    async def test_a_sweep_deletes_only_what_is_still_expired(self, store: SessionStore) -> None:
        """Section 7: the delete of a sweep checks again what `expired` said."""
        alive, first, second = (new_key(name) for name in ("alive", "first", "second"))
        await create_with(store, Create(alive, START, b"{}", ttl=HOUR))
        await ended(store, brief(first))
        await ended(store, brief(second))
        ours = (alive, first, second)
        found = [key for key in await store.expired(1_000) if key in ours]
        assert found == [first, second]
        assert len(await store.expired(1)) == 1
        swept = [await delete(store, key, only_expired=True) for key in ours]
        assert swept == [False, True, True]
        assert not set(ours) & set(await store.expired(1_000))
        assert await delete(store, first, only_expired=True) is False
        assert await delete(store, alive) is True
