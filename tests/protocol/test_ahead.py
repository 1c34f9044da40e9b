"""What is made of an answer before it has come is given only if that answer comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.protocol.doubles import ToyStore, TroubledCache, run, tier
from tests.protocol.simulation import KEY
from tiered_sessions.config import TieredConfig
from tiered_sessions.records import Append, Content, Create, EventRecord, NewEvent, Query, Snapshot, Tag
from tiered_sessions.tier.ahead import Ahead
from tiered_sessions.tier.tier import SessionTier

ALL = Query()


class Maker:
    """Makes the ids of a session's events, and says of how many answers it did, and when."""

    def __init__(self, cache: TroubledCache) -> None:
        self.made: list[tuple[str, ...]] = []
        self.asked: list[int] = []
        self._cache = cache

    def make(self, snapshot: Snapshot) -> tuple[str, ...]:
        made = (*(event.id for event in snapshot.session.events), *_states(snapshot))
        self.made.append(made)
        self.asked.append(len(self._cache.commands))
        return made

    async def read(self, sessions: SessionTier, query: Query = ALL) -> tuple[str, ...]:
        """Reads as the front door does."""
        self.made.clear()
        self.asked.clear()
        ahead = Ahead(self.make)
        snapshot = await sessions.get(KEY, query, ahead)
        assert snapshot is not None
        return ahead.of(snapshot)


def _states(snapshot: Snapshot) -> list[str]:
    parts = (snapshot.session, snapshot.user, snapshot.app)
    return [part.state.decode() for part in parts if part is not None]


async def append(sessions: SessionTier, name: str, user: bytes | None = None) -> None:
    found = await sessions.get(KEY, ALL)
    assert found is not None
    event = NewEvent(name, "i", 1, b'{"id":"%s"}' % name.encode())
    await sessions.append(Append(KEY, found.session.tag, 1, (event,), user_delta=user))
    await sessions.flush()


async def _hot(cache: TroubledCache, staleness: float = 30.0) -> tuple[ToyStore, SessionTier, Maker]:
    """A session of three events that its process has read."""
    store = ToyStore()
    sessions, maker = tier(store, cache, TieredConfig(max_staleness=staleness)), Maker(cache)
    for name in ("a", "b", "c"):
        await append(sessions, name)
    for _ in range(3):
        await maker.read(sessions)
        await sessions.flush()
    return store, sessions, maker


def test_a_lone_reader_has_it_made_while_the_cache_is_asked() -> None:
    async def main() -> None:
        cache = TroubledCache(turns=2)
        _, sessions, maker = await _hot(cache)
        for query, expected in ((ALL, "abc"), (Query(2), "bc"), (Query(0), "")):
            before = len(cache.commands)
            found = await maker.read(sessions, query)
            assert found[:-3] == tuple(expected)
            assert maker.made == [found]
            # The look-up begins in the turn in which the caller begins to wait, and that is afterwards.
            assert maker.asked == [before]
            assert len(cache.commands) == before + 1
        await sessions.close()

    run(main())


@pytest.mark.parametrize("user", [None, b'{"k":1}'], ids=["event", "user state"])
@pytest.mark.parametrize("query", [ALL, Query(1)], ids=["all", "newest"])
@pytest.mark.parametrize("staleness", [30.0, 0.0])
def test_what_was_changed_elsewhere_is_shown(user: bytes | None, query: Query, staleness: float) -> None:
    """R31: what was expected is no answer."""

    async def main() -> None:
        cache = TroubledCache()
        store, sessions, maker = await _hot(cache, staleness)
        elsewhere = tier(store, cache)
        before = await maker.read(sessions, query)
        assert maker.made == [before]
        if user is None:
            await append(elsewhere, "d")
        else:
            # By another session of theirs.
            other = await elsewhere.create(Create(KEY._replace(session_id="other"), 0, b"{}"))
            await elsewhere.append(Append(other.key, other.session.tag, 1, (), user_delta=user))
            await elsewhere.flush()
        answer = await maker.read(sessions, query)
        assert maker.made == [before, answer], "once in vain"
        truth = store.sql.load(KEY)
        assert truth is not None
        assert answer[-2:] == tuple(_states(truth))[-2:]
        assert "d" in answer or user is not None
        # Now that is what is expected.
        assert await maker.read(sessions, query) == answer
        assert await maker.read(sessions, query) == answer
        assert len(maker.made) == 1
        for one in (sessions, elsewhere):
            await one.close()

    run(main())


def test_two_answers_show_the_same_only_if_all_that_is_made_of_them_is_equal() -> None:
    events = (EventRecord(1, "a", 1, b"{}"), EventRecord(2, "b", 2, b"{}"))
    session = Content(Tag(1, 2, 3, 4), b"{}", events)
    shared = Content(Tag(5, 6, 7, 8), b"{}")
    one = Snapshot(KEY, session, shared, shared)
    # Another number at every look, and of what lies before the events nobody is told.
    same = Content(Tag(1, 2, 3, 4), b"{}", (*events,), complete=False, before=1)
    assert one.shows(Snapshot(KEY, same, replace(shared), replace(shared), 5))
    others = [
        replace(one, session=replace(session, tag=Tag(1, 2, 9, 4))),
        replace(one, session=replace(session, state=b'{"a":1}')),
        replace(one, session=replace(session, events=events[1:])),
        replace(one, session=replace(session, events=(events[0], events[1]._replace(payload=b"[]")))),
    ]
    for part in (None, replace(shared, tag=Tag(5, 6, 7, 9)), replace(shared, state=b'{"b":1}')):
        others += [replace(one, user=part), replace(one, app=part)]
    for other in others:
        assert not one.shows(other)
        assert not other.shows(one)


def test_who_is_not_alone_makes_nothing_ahead() -> None:
    """Others' answers are on their way: the time is theirs."""

    async def main() -> None:
        cache = TroubledCache(turns=2)
        _, sessions, _ = await _hot(cache)
        first, second = Maker(cache), Maker(cache)
        before = len(cache.commands)
        one, two = await asyncio.gather(first.read(sessions), second.read(sessions))
        assert one == two
        assert len(first.made) == len(second.made) == 1
        assert first.asked == [before], "it was alone when it began"
        assert second.asked == [before + 2]
        await sessions.close()

    run(main())


def test_what_cannot_be_made_is_heard_of_when_the_answer_has_come() -> None:
    async def main() -> None:
        cache = TroubledCache(turns=2)
        _, sessions, maker = await _hot(cache)

        def refuse(snapshot: Snapshot) -> None:
            maker.make(snapshot)
            raise ValueError("not to be made")

        ahead = Ahead(refuse)
        maker.made.clear()
        snapshot = await sessions.get(KEY, ALL, ahead)
        assert snapshot is not None
        assert len(maker.made) == 1
        with pytest.raises(ValueError, match="not to be made"):
            ahead.of(snapshot)
        await sessions.close()

    run(main())


class PostingCache(TroubledCache):
    """Sends at once, before anybody awaits."""

    def hurry(self) -> None: ...

    def post(self, name: str, arguments: Sequence[Any], taker: Callable[[Any], Any]) -> Any:
        if name != "lookup":
            return None
        future = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self.lookup(*arguments))
        task.add_done_callback(lambda done: future.set_result(taker(done.result())))
        return future


@pytest.mark.parametrize("kind", [TroubledCache, PostingCache])
def test_the_time_it_takes_is_not_taken_for_the_caches(kind: type[TroubledCache]) -> None:
    """I7: the budget is for waiting, and the breaker learns how long that takes."""

    async def main() -> None:
        cache = kind(delay=0.001)
        store, sessions, maker = await _hot(cache)
        elsewhere = tier(store, cache)
        await append(elsewhere, "d")
        loop: Any = asyncio.get_running_loop()

        def long(snapshot: Snapshot) -> tuple[str, ...]:
            loop._now += 1.0
            return maker.make(snapshot)

        before = len(store.statements)
        maker.made.clear()
        ahead = Ahead(long)
        snapshot = await sessions.get(KEY, ALL, ahead)
        assert snapshot is not None
        assert "d" in ahead.of(snapshot)
        assert len(maker.made) == 2
        assert store.statements[before:] == [], "the cache had time to answer the second look-up"
        for _ in range(20):
            await sessions.get(KEY, ALL, Ahead(long))
        assert sessions._breaker.timeout == 0.005
        for one in (sessions, elsewhere):
            await one.close()

    run(main())
