"""The rules of reading: each scope as it was committed, and which events come with it."""

from __future__ import annotations

import json

from ..records import Append, Create, Query, SessionKey, Stale, Tags
from ..store.base import SessionStore
from .store_samples import (
    START,
    StoreFixtures,
    append,
    committed,
    create,
    create_with,
    created,
    equal,
    event,
    loaded,
    new_key,
)


class ReadRules(StoreFixtures):
    """load, older, tags, lists: what was committed, at one moment."""

    async def test_windows(self, store: SessionStore) -> None:
        """R21: `complete` and `before` say what lies before the events of a load."""
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

    async def test_older_events(self, store: SessionStore) -> None:
        """5.3: the older events, with the tag in the same statement."""
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

    async def test_tags(self, store: SessionStore) -> None:
        """Tags of the rows there are, by one statement."""
        key = new_key()
        assert await store.tags(key) == Tags(None, None, None)
        made = await created(store, key)
        assert made.user is not None
        assert made.app is not None
        assert await store.tags(key) == Tags(made.session.tag, made.user.tag, made.app.tag)
        assert await store.tags(key._replace(session_id="none")) == Tags(None, made.user.tag, made.app.tag)

    async def test_lists_and_counts(self, store: SessionStore) -> None:
        """Conformance 39, 40: by update time, then user, then id; "" is a real user."""
        key = new_key()
        for user, session, at in (("v", "a", 2), ("u", "c", 2), ("u", "b", 2), ("", "z", 1), ("u", "y", 3)):
            await create_with(store, Create(SessionKey(key.app_name, user, session), START + at, b'{"k":1}'))
        other = SessionKey(key.app_name, "w", "x")
        await create(store, other, user_delta=b'{"mine":1}', app_delta=b'{"all":1}')
        listed = list(await store.sessions(key.app_name, None))
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

    async def test_the_namespace_stays(self, store: SessionStore) -> None:
        """R27: a second start does not orphan the cache."""
        name = await store.namespace()
        assert name
        await store.prepare()
        assert await store.namespace() == name

    async def test_ids_that_look_alike_are_different(self, store: SessionStore) -> None:
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
