"""The rules of writing: one winner, nothing twice, nothing half (consistency.md 5.2)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

from ..codec import same_json
from ..records import (
    Already,
    Append,
    AppendOutcome,
    Committed,
    Conflict,
    Create,
    Exists,
    Missing,
    Query,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
)
from ..store.base import SessionStore
from .store_samples import (
    START,
    StoreFixtures,
    append,
    committed,
    create,
    create_with,
    created,
    delete,
    equal,
    event,
    loaded,
    new_key,
    outbox,
    values,
)


class CreateRules(StoreFixtures):
    """create: an id is taken once, and shared state is merged."""

    async def test_what_was_created_is_loaded(self, store: SessionStore) -> None:
        """I1: the outcome of a create is what a load returns."""
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

    async def test_create_makes_missing_scope_rows_and_keeps_present_ones(self, store: SessionStore) -> None:
        """R19: each shared scope has a tag of its own, which moves only with a delta."""
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

    async def test_an_id_is_created_once_and_the_second_writes_nothing(self, store: SessionStore) -> None:
        """Conformance 2: not even the shared state of the one that lost."""
        key = new_key()
        first = await created(store, key, b'{"a":1}')
        assert await create(store, key, b'{"a":2}', user_delta=b'{"u":1}', app_delta=b'{"p":1}') == Exists()
        assert await loaded(store, key) == first
        assert isinstance(await create(store, key._replace(user_id="other")), Snapshot)

    async def test_of_concurrent_creates_one_wins(self, store: SessionStore) -> None:
        """Conformance 3."""
        key = new_key()
        outcomes = await asyncio.gather(*(create(store, key, app_delta=b'{"p":1}') for _ in range(6)))
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Exists"] * 5 + ["Snapshot"]

    async def test_concurrent_creates_lose_no_shared_state(self, store: SessionStore) -> None:
        """R19: deltas are merged in the transaction, not before it."""
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


class AppendRules(StoreFixtures):
    """append: a write onto the tag that was seen, and each event once."""

    async def test_what_an_append_answers_is_what_a_load_returns(self, store: SessionStore) -> None:
        """R25: what is applied to the cache is what the transaction committed."""
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

    async def test_scopes_without_a_delta_are_not_touched(self, store: SessionStore) -> None:
        """5.2: a write changes the tags of the scopes it has a delta for."""
        key = new_key()
        made = await created(store, key)
        done = await committed(store, Append(key, made.session.tag, START + 1, (event("e1"),)))
        assert (done.state, done.user, done.app) == (None, None, None)
        now = await loaded(store, key)
        assert (now.user, now.app, now.session.state) == (made.user, made.app, made.session.state)

    async def test_a_state_only_append_takes_one_revision(self, store: SessionStore) -> None:
        """Section 4: a change of state takes a revision without an event."""
        key = new_key()
        made = await created(store, key, b'{"a":1}')
        done = await committed(store, Append(key, made.session.tag, START, session_delta=b'{"b":2}'))
        assert done.tag.revision == 1
        done = await committed(store, Append(key, done.tag, START, (event("e1"),)))
        assert done.events[0].seq == 2
        replaced = Append(key, done.tag, START, session_delta=b'{"c":3}', replace_state=True)
        assert equal((await committed(store, replaced)).state, {"c": 3})
        assert equal((await loaded(store, key)).session.state, {"c": 3})

    async def test_stale_and_missing_write_nothing(self, store: SessionStore) -> None:
        """R17, R18, R28: the tag is compared whole; nothing is written, no outbox row either."""
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

    async def test_an_event_is_stored_once(self, store: SessionStore) -> None:
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

    async def test_an_event_id_with_other_content_is_a_conflict(self, store: SessionStore) -> None:
        """R22: not stale, and not a success."""
        key = new_key()
        tag = (await created(store, key)).session.tag
        tag = (await committed(store, Append(key, tag, START, (event("e1"),)))).tag
        for expected in (tag, None, tag._replace(revision=0)):
            other = Append(key, expected, START, (event("e1", 0, b'{"text":"other"}'),))
            assert await append(store, other) == Conflict("e1")
            partly = Append(key, expected, START, (event("e0"), event("e1")))
            assert await append(store, partly) == Conflict("e1")
        assert (await loaded(store, key)).session.tag == tag

    async def test_an_id_twice_in_one_append(self, store: SessionStore) -> None:
        """R22, within one append."""
        key = new_key()
        tag = (await created(store, key)).session.tag
        twice = Append(key, tag, START, (event("e"), event("e", 0, b'{"text":"other"}')))
        assert await append(store, twice) == Conflict("e")
        done = await committed(store, Append(key, tag, START, (event("e"), event("e"))))
        assert [record.id for record in done.events] == ["e"]

    async def test_of_concurrent_appends_to_one_tag_one_wins(self, store: SessionStore) -> None:
        """5.2: compare and write are one step; the others learn the winner's tag."""
        key = new_key()
        tag = (await created(store, key)).session.tag
        outcomes = await asyncio.gather(
            *(append(store, Append(key, tag, START + n, (event(f"e{n}"),))) for n in range(20))
        )
        winners = [outcome for outcome in outcomes if isinstance(outcome, Committed)]
        assert len(winners) == 1
        assert [outcome for outcome in outcomes if outcome != winners[0]] == [Stale(winners[0].tag)] * 19
        assert values((await loaded(store, key)).session.events) == values(winners[0].events)

    async def test_concurrent_appends_without_comparison_all_succeed(self, store: SessionStore) -> None:
        """None as expected tag skips the comparison, not the lock."""
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


class DeleteRules(StoreFixtures):
    """delete, the outbox and the writer."""

    async def test_delete(self, store: SessionStore) -> None:
        """R16, R17: events go with the session, shared state stays, a session made again is another."""
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

    async def test_invalidations_are_recorded_in_the_same_transaction(self, store: SessionStore) -> None:
        """R11: one row a scope, a new stamp at each write, deleted only by the stamp that was seen."""
        key = new_key()
        made = await created(store, key)
        write = Append(key, made.session.tag, START, (event("e"),), user_delta=b"{}", app_delta=b"{}")
        done = await append(store, write, write.scopes)
        assert isinstance(done, Committed)
        assert done.user is not None
        assert done.app is not None

        rows = await outbox(store, key)
        assert {kind: row.tag for kind, row in rows.items()} == {
            "session": done.tag,
            "user": done.user.tag,
            "app": done.app.tag,
        }
        next_ = await append(store, Append(key, done.tag, START, (event("f"),)), [key.session])
        assert isinstance(next_, Committed)
        newer = await outbox(store, key)
        assert newer["session"].tag == next_.tag
        assert newer["session"].stamp != rows["session"].stamp
        await store.outbox_done(list(rows.values()))
        assert await outbox(store, key) == {"session": newer["session"]}
        await delete(store, key, [key.session])
        assert (await outbox(store, key))["session"].tag is None
        again = await create_with(store, Create(key, START, b"{}", app_delta=b'{"x":1}'), [key.app])
        assert isinstance(again, Snapshot)
        assert again.app is not None
        assert (await outbox(store, key))["app"].tag == again.app.tag
        await store.outbox_done(list((await outbox(store, key)).values()))
        assert await outbox(store, key) == {}

    async def test_a_writer_does_several_units_and_is_released_twice(self, store: SessionStore) -> None:
        """A writer is a connection, not a transaction."""
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

    async def test_appends_at_once_have_an_outcome_each(self, store: SessionStore) -> None:
        """Writers that may share a statement (`grouped`): one who is refused fails no neighbour."""

        async def share(write: Append) -> AppendOutcome:
            writer = await store.writer(grouped="append")
            try:
                return await writer.append(write)
            finally:
                await writer.release()

        app = new_key().app_name
        keys = [SessionKey(app, "user", f"s{n}") for n in range(12)]
        writes = [
            Append(key, (await created(store, key)).session.tag, START, (event("e", n),), b'{"n":%d}' % n)
            for n, key in enumerate(keys)
        ]
        stale, twice, gone = writes[:3]
        await committed(store, replace(stale, events=(event("earlier"),)))
        await committed(store, twice)
        await delete(store, gone.key)
        outcomes = await asyncio.gather(*map(share, writes))
        assert [type(outcome) for outcome in outcomes[:3]] == [Stale, Already, Missing]
        for n, (write, outcome) in enumerate(zip(writes[3:], outcomes[3:], strict=True), 3):
            assert isinstance(outcome, Committed)
            content = (await loaded(store, write.key)).session
            assert content.tag == outcome.tag
            assert values(content.events) == values(outcome.events)
            assert [(e.id, e.timestamp) for e in content.events] == [("e", START + n)]
            assert equal(content.state, {"n": n})
            assert equal(outcome.state, {"n": n})
