"""Lua equals the memory reference, reply by reply and field by field, under a moved clock."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import fakeredis
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from redis.asyncio import Redis

from tests.conformance.virtual_time import START, Clock, live_by
from tiered_sessions.cache import chunks, keys
from tiered_sessions.cache.base import CacheLimits, Granted, LeaseRefused
from tiered_sessions.cache.memory import MemoryCache, Slot
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.records import Content, EventRecord, ScopeKey, Tag

# --- the sequences -------------------------------------------------------------------------------

SESSION = ScopeKey("session", "app", "user", "s{1}/:")
USER = ScopeKey("user", "app", "user")
tokens = st.sampled_from("ab")
scopes = st.sampled_from([SESSION, SESSION, SESSION, USER])
tags = st.builds(
    Tag,
    st.sampled_from([7, 2**63 - 1]),
    st.integers(0, 4),
    st.sampled_from([-5, 2**62 + 1]),
    st.sampled_from([10, 2**53 + 1]),
)
stamps = st.one_of(st.integers(-(10**17), 10**17), st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1]))
event = st.tuples(
    st.text(max_size=4), stamps, st.sampled_from([b"{}", b'{"a":\n1}', b'{"a":"' + b"x" * 90 + b'\t"}'])
)
events = st.builds(lambda few, times: few * times, st.lists(event, max_size=3), st.integers(1, 14))
states = st.sampled_from([b"{}", b'{"k":"' + b"v" * 150 + b'"}'])
befores = st.sampled_from([None, -3, 2**53 + 1])
times = st.integers(-500, 500)
# How long from now the session expires; also so late that Lua prints it only with care.
expiries = st.sampled_from([None, None, None, 0, 1, 199, 200, 400, 10**11])
load = st.tuples(st.just("load"), scopes, tokens, tags, states, events, befores, expiries)
command = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0, 1, 199, 200, 201, 399, 400, 401, 800, 801, 3000])),
    st.tuples(st.just("lookup"), st.sampled_from([None, 0])),
    st.tuples(st.just("intent"), scopes, tokens),
    st.tuples(st.just("release"), scopes, tokens),
    st.tuples(st.just("lease"), scopes, tokens),
    st.tuples(
        st.just("fill"), scopes, tokens, st.sampled_from([0, 0, 1]), tags, states, events, befores, expiries
    ),
    load,
    *[
        st.tuples(
            st.just("apply"),
            scopes,
            tokens,
            st.sampled_from(["current", "current", "current", "none", "other", "same"]),
            tags,
            st.one_of(st.none(), states),
            events,
            times,
            expiries,
        )
    ]
    * 4,
    st.tuples(
        st.just("drop"),
        scopes,
        st.one_of(st.none(), tokens),
        st.sampled_from(["current", "current", "other", "none"]),
        tags,
    ),
    st.tuples(st.just("touch"), scopes, st.sampled_from(["current", "other"]), tags, times, tokens),
    st.tuples(st.just("elect"), tokens, st.sampled_from([1, 200])),
)
limits = st.builds(
    CacheLimits,
    idle_ttl=st.sampled_from([300, 2000]),
    max_age=st.sampled_from([900, 5000]),
    # Of the largest, and of no other, a third is several chunks.
    window_events=st.sampled_from([1, 5, 16, 17, 40, 300, 300, 300]),
    window_bytes=st.sampled_from([0, 100, 700, 3000, 100_000, 100_000]),
    mask_life=st.just(400),
    lease_life=st.just(200),
)


def _records(events: Sequence[tuple[str, int, bytes]]) -> tuple[EventRecord, ...]:
    return tuple(EventRecord(seq, *each[:1], each[1], each[2]) for seq, each in enumerate(events, 1))


class Pair:
    """The reference and a server under the same commands."""

    def __init__(self, client: Redis, limits: CacheLimits, namespace: str) -> None:
        self.clock = Clock()
        self.client = client
        self.memory = MemoryCache(limits, clock=self.clock, namespace=namespace)
        self.redis = RedisSessionCache(client, limits, namespace=namespace, jitter=lambda: 1.0)
        live_by(self.redis, self.clock)
        self.granted: dict[tuple[ScopeKey, str], int] = {}

    def slot(self, key: ScopeKey) -> Slot:
        return self.memory._get(key, self.clock.now)

    def expiry(self, left: int | None) -> int | None:
        return None if left is None else self.clock.now + left

    def tag(self, key: ScopeKey, which: str, other: Tag) -> Tag | None:
        if which == "none":
            return None
        entry = self.slot(key).entry
        return entry.tag if which == "current" and entry else other

    async def both(self, name: str, *arguments: Any) -> Any:
        expected = await getattr(self.memory, name)(*arguments)
        got = await getattr(self.redis, name)(*arguments)
        for each in got if isinstance(got, tuple) else ():
            if hasattr(each, "stamp"):
                object.__setattr__(each, "stamp", "")
        if isinstance(got, Granted):
            got = Granted(got.granted_at, "")
        assert got == expected, (name, arguments)
        return expected

    async def lease(self, key: ScopeKey, token: str) -> Granted | LeaseRefused:
        reply = await self.both("lease", key, token)
        if isinstance(reply, Granted):
            self.granted[key, token] = reply.granted_at
        return reply

    async def fill(
        self,
        key: ScopeKey,
        token: str,
        off: int,
        tag: Tag,
        state: bytes,
        events: Any,
        before: int | None,
        left: int | None,
    ) -> None:
        shared = key.kind != "session"
        complete = shared or before == -3
        kept = () if shared else _records(events)
        content = Content(tag, state, kept, complete, None if complete else before)
        granted = self.granted.get((key, token), START) + off
        await self.both("fill", key, token, granted, f"stamp-{token}", content, self.expiry(left))

    async def step(self, name: str, *given: Any) -> None:
        if name == "wait":
            self.clock.now += given[0]
        elif name == "lookup":
            await self.both("lookup", (SESSION, USER), *given)
        elif name == "lease":
            await self.lease(*given)
        elif name == "fill":
            await self.fill(*given)
        elif name == "load":
            key, token, *rest = given
            await self.lease(key, token)
            await self.fill(key, token, 0, *rest)
        elif name == "apply":
            key, token, which, other, state, events, time, left = given
            old = self.tag(key, which, other)
            shared = key.kind != "session"
            new = other
            if not shared and old is not None and which != "same":
                new = old._replace(revision=old.revision + 1, nonce=other.nonce)
            lines = () if shared else _records(events)
            known = None if shared else old
            at, expires = self.clock.now + time, self.expiry(left)
            await self.both("apply", key, token, known, new, lines, state, at, expires)
        elif name == "drop":
            key, token, which, other = given
            await self.both("drop", key, token, self.tag(key, which, other))
        elif name == "touch":
            key, which, other, time, stamp = given
            await self.both("touch", key, self.tag(key, which, other), self.clock.now + time, stamp)
        else:
            await self.both(name, *given)

    async def compare(self) -> None:
        """Compares all that either holds of every key, and parts of it."""
        held = self.slot(SESSION).entry
        last = held.events % chunks.CHUNK if held else 0
        # Events of the last chunk, one more, and another chunk of them.
        for newest in {max(1, last), last + 1, last + chunks.CHUNK, last + chunks.CHUNK + 1}:
            await self.both("lookup", (SESSION, USER), newest)
        for key in (SESSION, USER):
            name = keys.entry_key(self.memory.namespace, key)
            fields = await self.client.hgetall(name)
            expires = await self.client.pexpiretime(name)
            slot = self.slot(key)
            if 0 <= expires < self.clock.now:
                fields, expires = {}, -2
            assert expires == (slot.expires if fields else -2)
            assert _read(fields) == _written(slot)


def _written(slot: Slot) -> dict[str, Any]:
    held: dict[str, Any] = {}
    if slot.masks:
        held["masks"] = dict(slot.masks)
    if slot.lease:
        held["lease"] = (slot.lease.token, slot.lease.granted_at, slot.lease.deadline)
    if slot.entry:
        entry = slot.entry
        held |= {
            "tag": entry.tag,
            "state": entry.state,
            "chunks": [b"".join(map(chunks.line, chunk)) for chunk in entry.chunks],
            "n": entry.events,
            "b": entry.size,
            "c": entry.complete,
            "mt": entry.before,
            "va": entry.validated_at,
            "fa": entry.filled_at,
            "sv": entry.stamp,
            "ex": entry.expires_at,
        }
    return held


def _read(fields: dict[bytes, bytes]) -> dict[str, Any]:
    held: dict[str, Any] = {}
    if b"p" in fields:
        masks = [mask.split(b" ", 1) for mask in fields.pop(b"p").splitlines()]
        held["masks"] = {token.decode(): int(deadline) for deadline, token in masks}
    if b"l" in fields:
        held["lease"] = (fields.pop(b"l").decode(), int(fields.pop(b"lt")), int(fields.pop(b"ld")))
    if b"r" in fields:
        numbers = range(int(fields.pop(b"k0")), int(fields.pop(b"k1")) + 1)
        before, expires = fields.pop(b"mt"), fields.pop(b"ex")
        held |= {
            "tag": Tag(*(int(fields.pop(name)) for name in (b"i", b"r", b"g", b"ut"))),
            "state": fields.pop(b"st"),
            "chunks": [fields.pop(b"c%d" % number) for number in numbers],
            "n": int(fields.pop(b"n")),
            "b": int(fields.pop(b"b")),
            "c": fields.pop(b"c") == b"1",
            "mt": int(before) if before else None,
            "va": int(fields.pop(b"va")),
            "fa": int(fields.pop(b"fa")),
            "sv": fields.pop(b"sv").decode(),
            "ex": int(expires) if expires else None,
        }
    assert not fields
    return held


# --- the servers ---------------------------------------------------------------------------------


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(params=["redis", "valkey", "fakeredis"])
def place(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[tuple[Redis, str]]:
    """A client of a server and a namespace there whose keys are removed afterwards."""
    if request.param == "fakeredis":
        client: Redis = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
        name = uuid.uuid4().hex
    elif request.param == "valkey":
        client = Redis.from_url(request.getfixturevalue("valkey_url"))
        name = uuid.uuid4().hex
    else:
        client = Redis.from_url(request.getfixturevalue("redis_url"))
        name = request.getfixturevalue("redis_namespace")
    yield client, name
    runner.run(client.aclose())


def test_lua_is_the_reference(place: tuple[Redis, str], runner: asyncio.Runner, request: Any) -> None:
    client, name = place
    numbers = itertools.count()
    fake = "fakeredis" in request.node.name

    @settings(
        max_examples=80 if fake else 250,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(limits=limits, first=load, commands=st.lists(command, min_size=4, max_size=24))
    def follows(limits: CacheLimits, first: tuple[Any, ...], commands: list[tuple[Any, ...]]) -> None:
        async def run() -> None:
            pair = Pair(client, limits, f"{name}-{next(numbers)}")
            for each in (first, *commands):
                await pair.step(*each)
                await pair.compare()

        runner.run(run())

    follows()
