"""Each rule of consistency.md 5.1, on every cache, by a clock that the test moves."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import fakeredis
import pytest
from redis.asyncio import Redis

from tests.conformance.virtual_time import Clock, live_by
from tiered_sessions.cache import chunks
from tiered_sessions.cache.base import (
    ApplyReply,
    CacheLimits,
    FillReply,
    Granted,
    Hit,
    LeaseRefused,
    Masked,
    Miss,
    SessionCache,
)
from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.records import Content, EventRecord, ScopeKey, SessionKey, Tag

KEY = SessionKey("app", "user", "session").session
USER = SessionKey("app", "user", "session").user
LIMITS = CacheLimits(
    idle_ttl=10_000, max_age=50_000, window_events=40, window_bytes=5_000, mask_life=400, lease_life=200
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis", "valkey", "fakeredis"])
async def kept(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[SessionCache]:
    """A cache of each kind, living by `clock`."""
    if request.param == "memory":
        yield MemoryCache(LIMITS, clock=clock)
        return
    name = uuid.uuid4().hex
    if request.param == "fakeredis":
        client: Redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    else:
        client = Redis.from_url(request.getfixturevalue(f"{request.param}_url"))
        if request.param == "redis":
            name = request.getfixturevalue("redis_namespace")
    cache = RedisSessionCache(client, LIMITS, namespace=name, jitter=lambda: 1.0)
    live_by(cache, clock)
    yield cache
    await cache.close()
    await client.aclose()


def tag(revision: int, nonce: int = 5) -> Tag:
    return Tag(2**62 + 1, revision, nonce, 1_700_000_000_000_001)


def event(seq: int, size: int = 20) -> EventRecord:
    return EventRecord(seq, f"é\ud800\t{seq}", 1_000_000 + seq, b'{"x":"' + b"y" * size + b'"}')


def content(revision: int, events: int = 0, *, complete: bool = True, before: int | None = None) -> Content:
    kept = tuple(event(seq) for seq in range(revision - events + 1, revision + 1))
    return Content(tag(revision), b'{"a":1}', kept, complete, before)


async def fill(
    cache: SessionCache, what: Content, key: ScopeKey = KEY, expires_at: int | None = None
) -> None:
    lease = await cache.lease(key, "filler")
    assert isinstance(lease, Granted)
    reply = await cache.fill(key, "filler", lease.granted_at, "stamp", what, expires_at)
    assert reply is FillReply.STORED


async def look(cache: SessionCache, key: ScopeKey = KEY) -> Hit | Masked | Miss:
    (found,) = await cache.lookup((key,))
    assert isinstance(found, Hit | Masked | Miss)
    return found


async def hit(cache: SessionCache, key: ScopeKey = KEY) -> Hit:
    found = await look(cache, key)
    assert isinstance(found, Hit)
    return found


async def test_what_is_filled_is_found(kept: SessionCache, clock: Clock) -> None:
    await fill(kept, content(30, 30, complete=False, before=-7))
    clock.now += 5
    session, user = await kept.lookup((KEY, USER))
    assert isinstance(session, Hit)
    assert session.content == content(30, 30, complete=False, before=-7)
    assert (session.validated_at, session.entry_stamp, session.now) == (clock.now - 5, "stamp", clock.now)
    assert isinstance(user, Miss)


async def test_a_header_has_neither_state_nor_events(kept: SessionCache) -> None:
    await fill(kept, content(30, 20, complete=False, before=9))
    await fill(kept, content(3), USER)
    session, user = await kept.lookup((KEY, USER), header_only=True)
    assert isinstance(session, Hit)
    assert session.content == Content(tag(30), b"", (), False, 9)
    assert session.header_only
    assert isinstance(user, Hit)
    assert user.content == content(3)
    assert not user.header_only


async def test_a_mask_hides_the_entry_and_its_expiry_deletes_it(kept: SessionCache, clock: Clock) -> None:
    await fill(kept, content(1, 1))
    assert await kept.intent(KEY, "writer") == clock.now
    assert isinstance(await look(kept), Masked)
    assert await kept.lease(KEY, "reader") is LeaseRefused.MASKED
    clock.now += LIMITS.mask_life
    assert isinstance(await look(kept), Miss)
    assert isinstance(await kept.lease(KEY, "reader"), Granted)


async def test_a_released_mask_shows_the_entry_again(kept: SessionCache) -> None:
    await fill(kept, content(1, 1))
    for token in ("one", "two"):
        await kept.intent(KEY, token)
    await kept.release(KEY, "one")
    assert isinstance(await look(kept), Masked)
    await kept.release(KEY, "two")
    assert (await hit(kept)).content == content(1, 1)


async def test_an_intent_revokes_the_lease(kept: SessionCache) -> None:
    lease = await kept.lease(KEY, "reader")
    assert isinstance(lease, Granted)
    await kept.intent(KEY, "writer")
    assert await kept.fill(KEY, "reader", lease.granted_at, "", content(1)) is FillReply.MASKED
    await kept.release(KEY, "writer")
    assert await kept.fill(KEY, "reader", lease.granted_at, "", content(1)) is FillReply.REFUSED


async def test_a_lease_is_one_and_ends(kept: SessionCache, clock: Clock) -> None:
    first = await kept.lease(KEY, "one")
    assert isinstance(first, Granted)
    assert await kept.lease(KEY, "two") is LeaseRefused.WAIT
    clock.now += LIMITS.lease_life
    assert await kept.fill(KEY, "one", first.granted_at, "", content(1)) is FillReply.REFUSED
    second = await kept.lease(KEY, "one")
    assert isinstance(second, Granted)
    assert await kept.fill(KEY, "one", first.granted_at, "", content(1)) is FillReply.REFUSED
    assert await kept.fill(KEY, "one", second.granted_at, "", content(2)) is FillReply.STORED
    assert await kept.lease(KEY, "three") is LeaseRefused.PRESENT


async def test_apply_moves_the_entry_to_its_successor(kept: SessionCache, clock: Clock) -> None:
    await fill(kept, content(17, 17))
    begun = await kept.intent(KEY, "writer")
    assert isinstance(begun, int)
    clock.now += 3
    new = (event(18), event(19))
    assert await kept.apply(KEY, "writer", tag(17), tag(19), new, b'{"b":2}', begun) is ApplyReply.APPLIED
    found = await hit(kept)
    assert found.content == Content(tag(19), b'{"b":2}', (*content(17, 17).events, *new))
    assert (found.validated_at, found.entry_stamp) == (begun, "stamp")
    assert await kept.apply(KEY, "writer", tag(17), tag(19), new, b"{}", begun) is ApplyReply.OLD
    assert (await hit(kept)).content == found.content


async def test_apply_never_makes_an_entry_look_older(kept: SessionCache, clock: Clock) -> None:
    await fill(kept, content(1, 1))
    assert await kept.apply(KEY, "w", tag(1), tag(2), (event(2),), None, clock.now - 1) is ApplyReply.APPLIED
    assert (await hit(kept)).validated_at == clock.now


async def test_apply_never_makes_an_entry(kept: SessionCache) -> None:
    assert await kept.apply(KEY, "writer", tag(1), tag(2), (event(2),), b"{}", 0) is ApplyReply.ABSENT
    assert isinstance(await look(kept), Miss)


@pytest.mark.parametrize(
    "old", [tag(4), tag(5, 6), tag(5)._replace(incarnation=1), tag(5)._replace(update_time=0)]
)
async def test_apply_onto_another_tag_deletes(kept: SessionCache, old: Tag) -> None:
    await fill(kept, content(5, 5))
    await kept.intent(KEY, "other")
    assert await kept.apply(KEY, "writer", old, tag(6), (event(6),), None, 0) is ApplyReply.GAP
    assert isinstance(await look(kept), Masked)
    await kept.release(KEY, "other")
    assert isinstance(await look(kept), Miss)


async def test_apply_takes_away_only_the_own_mask(kept: SessionCache) -> None:
    await fill(kept, content(1, 1))
    await kept.intent(KEY, "one")
    await kept.intent(KEY, "two")
    assert await kept.apply(KEY, "one", tag(1), tag(2), (event(2),), None, 0) is ApplyReply.APPLIED
    assert isinstance(await look(kept), Masked)
    await kept.release(KEY, "two")
    assert (await hit(kept)).content == content(2, 2)


async def test_a_late_apply_of_ones_own_still_holds(kept: SessionCache, clock: Clock) -> None:
    await fill(kept, content(1, 1))
    await kept.intent(KEY, "writer")
    clock.now += LIMITS.mask_life
    assert await kept.apply(KEY, "writer", tag(1), tag(2), (event(2),), None, 0) is ApplyReply.APPLIED


async def test_apply_deletes_what_anothers_expired_mask_hides(kept: SessionCache, clock: Clock) -> None:
    await fill(kept, content(1, 1))
    await kept.intent(KEY, "dead")
    clock.now += LIMITS.mask_life
    await kept.intent(KEY, "writer")
    assert await kept.apply(KEY, "writer", tag(1), tag(2), (event(2),), None, 0) is ApplyReply.ABSENT
    assert isinstance(await kept.lease(KEY, "reader"), Granted)


@pytest.mark.parametrize(
    ("new", "reply"),
    [
        (Tag(2**62 + 1, 8, 9, 1), ApplyReply.APPLIED),
        (tag(5), ApplyReply.OLD),
        (tag(5, 6), ApplyReply.GAP),
        (tag(4), ApplyReply.GAP),
        (Tag(1, 8, 9, 1), ApplyReply.GAP),
    ],
)
async def test_a_shared_scope_is_replaced_whole(kept: SessionCache, new: Tag, reply: ApplyReply) -> None:
    await fill(kept, content(5), USER)
    assert await kept.apply(USER, "writer", None, new, (), b'{"new":1}', 0) is reply
    found = await look(kept, USER)
    if reply is ApplyReply.APPLIED:
        assert isinstance(found, Hit)
        assert found.content == Content(new, b'{"new":1}')
    else:
        assert isinstance(found, Miss if reply is ApplyReply.GAP else Hit)


async def test_drop_keeps_the_tag_that_sql_has(kept: SessionCache) -> None:
    await fill(kept, content(5, 5))
    await kept.intent(KEY, "writer")
    await kept.drop(KEY, "writer", tag(5))
    assert (await hit(kept)).content == content(5, 5)
    await kept.intent(KEY, "other")
    await kept.drop(KEY, None, tag(6))
    assert isinstance(await look(kept), Masked)
    await kept.release(KEY, "other")
    assert isinstance(await look(kept), Miss)


async def test_drop_revokes_the_lease(kept: SessionCache) -> None:
    lease = await kept.lease(KEY, "reader")
    assert isinstance(lease, Granted)
    await kept.drop(KEY, None, None)
    assert await kept.fill(KEY, "reader", lease.granted_at, "", content(1)) is FillReply.REFUSED


async def test_touch_notes_a_validation(kept: SessionCache, clock: Clock) -> None:
    await fill(kept, content(5, 5))
    clock.now += LIMITS.idle_ttl
    assert await kept.touch(KEY, tag(5), clock.now - 1, "newer") is True
    assert await kept.touch(KEY, tag(5), 0, "newest") is True
    assert await kept.touch(KEY, tag(5, 6), clock.now, "other") is False
    clock.now += LIMITS.idle_ttl
    found = await hit(kept)
    assert (found.validated_at, found.entry_stamp) == (clock.now - LIMITS.idle_ttl - 1, "newest")
    assert await kept.touch(USER, tag(5), clock.now, "other") is False


async def test_an_entry_lives_idle_and_in_all_so_long(kept: SessionCache, clock: Clock) -> None:
    await fill(kept, content(5, 5))
    clock.now += LIMITS.idle_ttl + 1
    assert isinstance(await look(kept), Miss)
    await fill(kept, content(5, 5))
    for _ in range(6):
        assert await kept.touch(KEY, tag(5), clock.now, "") is True
        clock.now += LIMITS.idle_ttl - 1_000
    assert isinstance(await look(kept), Miss)


@pytest.mark.parametrize("header_only", [False, True])
async def test_an_expired_session_is_a_miss_at_once(
    kept: SessionCache, clock: Clock, header_only: bool
) -> None:
    await fill(kept, content(5, 5), expires_at=clock.now + 1_000)
    clock.now += 999
    assert isinstance((await kept.lookup((KEY,), header_only))[0], Hit)
    clock.now += 1
    assert isinstance((await kept.lookup((KEY,), header_only))[0], Miss)
    await kept.intent(KEY, "writer")
    assert isinstance((await kept.lookup((KEY,), header_only))[0], Masked)


async def test_an_expired_entry_makes_room_for_a_fill(kept: SessionCache, clock: Clock) -> None:
    await fill(kept, content(5, 5), expires_at=clock.now + 100)
    assert await kept.lease(KEY, "early") is LeaseRefused.PRESENT
    clock.now += 100
    await fill(kept, content(1, 1))
    clock.now += LIMITS.idle_ttl
    assert (await hit(kept)).content == content(1, 1)


async def test_an_apply_moves_the_expiry_if_it_says_so(kept: SessionCache, clock: Clock) -> None:
    await fill(kept, content(5, 5), expires_at=clock.now + 100)
    assert await kept.apply(KEY, "w", tag(5), tag(6), (), None, 0) is ApplyReply.APPLIED
    clock.now += 100
    assert isinstance(await look(kept), Miss)
    expires = clock.now + 100
    assert await kept.apply(KEY, "w", tag(6), tag(7), (event(7),), None, 0, expires) is ApplyReply.APPLIED
    assert (await hit(kept)).content.tag == tag(7)
    clock.now += 100
    assert isinstance(await look(kept), Miss)


async def test_an_intent_prolongs_a_life_and_never_shortens_it(kept: SessionCache, clock: Clock) -> None:
    await fill(kept, content(5, 5))
    clock.now += LIMITS.idle_ttl
    await kept.intent(KEY, "writer")
    clock.now += 2 * LIMITS.mask_life
    assert await kept.apply(KEY, "writer", tag(5), tag(6), (), None, 0) is ApplyReply.APPLIED
    await kept.intent(KEY, "writer")
    await kept.release(KEY, "writer")
    clock.now += LIMITS.idle_ttl
    assert isinstance(await look(kept), Hit)


async def test_a_fill_is_trimmed_event_by_event(kept: SessionCache) -> None:
    await fill(kept, content(100, 100))
    found = (await hit(kept)).content
    assert found.events == content(100, 40).events
    assert (found.complete, found.before) == (False, 1_000_060)


async def test_an_applied_window_loses_whole_chunks(kept: SessionCache) -> None:
    await fill(kept, content(40, 40))
    for revision in range(41, 58):
        reply = await kept.apply(KEY, "writer", tag(revision - 1), tag(revision), (event(revision),), None, 0)
        assert reply is ApplyReply.APPLIED
        found = (await hit(kept)).content
        # At 56 events a whole chunk can go and leave 40.
        assert len(found.events) == (revision if revision < 56 else revision - chunks.CHUNK)
        assert found.before == (None if revision < 56 else 1_000_016)
        assert found.complete == (revision < 56)


async def test_bytes_bound_the_window_to_single_events(kept: SessionCache) -> None:
    await fill(kept, content(2, 2, complete=False, before=None))
    big = event(3, LIMITS.window_bytes - 100)
    assert await kept.apply(KEY, "writer", tag(2), tag(3), (big,), None, 0) is ApplyReply.APPLIED
    found = (await hit(kept)).content
    assert found.events == (event(2), big) or found.events == (big,)
    assert (found.complete, found.before) == (False, None)
    huge = event(4, LIMITS.window_bytes)
    assert await kept.apply(KEY, "writer", tag(3), tag(4), (huge,), None, 0) is ApplyReply.APPLIED
    assert (await hit(kept)).content.events == ()
    assert await kept.apply(KEY, "writer", tag(4), tag(5), (event(5),), None, 0) is ApplyReply.APPLIED
    assert (await hit(kept)).content == Content(tag(5), b'{"a":1}', (event(5),), False, None)


@pytest.mark.parametrize("times", [(2**53, 2**53 + 1), (-(2**53) - 1, -(2**53)), (-1, 2), (-20, -3)])
async def test_timestamps_compare_exactly(kept: SessionCache, times: tuple[int, int]) -> None:
    old = tuple(event(seq)._replace(timestamp=times[seq % 2]) for seq in range(40))
    await fill(kept, Content(tag(40), b"{}", old))
    new = tuple(event(seq) for seq in range(41, 57))
    assert await kept.apply(KEY, "writer", tag(40), tag(56), new, None, 0) is ApplyReply.APPLIED
    assert (await hit(kept)).content.before == times[1]


async def test_one_owner_drains(kept: SessionCache, clock: Clock) -> None:
    assert await kept.elect("one", 500) is True
    assert await kept.elect("two", 500) is False
    assert await kept.elect("one", 500) is True
    clock.now += 501
    assert await kept.elect("two", 500) is True


async def test_a_namespace_hides_all(kept: SessionCache) -> None:
    await fill(kept, content(1, 1))
    name = kept.namespace
    kept.namespace = f"{name}-next"
    assert isinstance(await look(kept), Miss)
    kept.namespace = name
    assert isinstance(await look(kept), Hit)
