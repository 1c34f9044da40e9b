"""R29: a call that is cancelled at any of its awaits leaves both tiers right, and nothing behind.

A call's waits are counted in all tasks it starts, and it is cancelled at the first of them, then, with
another session, at the second, until it ends before it is cancelled. On a loop of virtual time, on a
SQLite file, and on PostgreSQL with Redis.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest

from tests.protocol.cancelling import (
    CONFIG,
    Cancelled,
    Open,
    Rig,
    count_waits,
    open_sockets,
    real,
    sqlite,
    virtual,
)
from tests.protocol.fleet import World
from tests.protocol.mutations import Edit, edit
from tiered_sessions.cache.base import Hit, Masked
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.errors import SessionExistsError
from tiered_sessions.records import (
    Already,
    Append,
    Committed,
    Create,
    NewEvent,
    Query,
    SessionKey,
    Snapshot,
)
from tiered_sessions.tier import protocol
from tiered_sessions.tier.call import Call
from tiered_sessions.tier.tier import SessionTier
from tiered_sessions.uncut import Uncut

ALL = Query()
MANY = 500
WAITS = {
    "first get": 4,
    "cold get": 11,
    "warm get": 1,
    "append": 10,
    "cold append": 10,
    "create": 7,
    "replace": 13,
    "delete": 7,
    "cold delete": 7,
    "flush": 1,
    "close": 2,
}
"""How often each waits where every command travels, at least."""
OPERATIONS = tuple(WAITS)


# --- what is cancelled, and what must hold then ------------------------------------------------------


class Scenario:
    """One call on a session of its own, cancelled at its `at`-th wait."""

    def __init__(self, rig: Rig, operation: str, at: int) -> None:
        self.rig = rig
        self.operation = operation
        self.at = at
        self.key = SessionKey(f"{rig.app_name} {operation} {at}", "user", "s")
        self.write = Append(self.key, None, 2, (event("b"),), b'{"s": 2}', b'{"u": 2}')
        self.creation = Create(self.key, 3, b'{"s": 3}', b'{"u": 3}')

    async def play(self) -> bool:
        """Plays it; false if the call ended before it was to be cancelled."""
        rig, key = self.rig, self.key
        await self.prepare()
        before = asyncio.all_tasks()
        went_on = await Cancelled(self.at).performs(self.work())
        if self.operation == "close":
            await rig.sessions.close()
        await self.all_ended(before)
        await self.given_back()
        if rig.masks is not None:
            assert rig.masks() == 0, "a mask is left"
        else:
            await self.unmasked()
        await self.check_write()
        await self.check_readers()
        if rig.wait is not None:
            await rig.wait(5)
            await rig.other.get(key, ALL)
            await rig.other.flush()
            (found,) = await rig.cache.lookup((key.session,))
            assert isinstance(found, Hit) or await rig.store.load(key, ALL) is None, "a lease is left"
        return went_on

    async def prepare(self) -> None:
        """Stores what is there before."""
        rig, key, operation = self.rig, self.key, self.operation
        if operation in ("create", "replace"):
            await rig.other.create(Create(key._replace(session_id="first"), 1, b"{}", user_delta=b'{"u": 1}'))
        if operation == "replace":
            await rig.other.create(Create(key, 1, b"{}", ttl=1))
            await rig.other.get(key, ALL)
            # It lives for a millisecond.
            while await rig.store.load(key, ALL) is not None:
                pass
        elif operation != "create":
            made = await rig.other.create(Create(key, 1, b'{"s": 1}', user_delta=b'{"u": 1}'))
            first = Append(key, made.session.tag, 1, (event("a"),))
            done = await rig.other.append(first)
            self.write = replace(self.write, expected=done.tag)
        if "cold" not in operation:
            await rig.other.get(key, ALL)
        if "first" not in operation:
            await rig.sessions.get(key._replace(session_id="nobody"), ALL)
        if "warm" in operation:
            await rig.sessions.get(key, ALL)
        if operation in ("flush", "close"):
            await rig.sessions.append(self.write)
        else:
            await rig.sessions.flush()
        await rig.other.flush()

    async def work(self) -> None:
        """The call."""
        sessions = self.rig.sessions
        match self.operation:
            case "append" | "cold append":
                await sessions.append(self.write)
            case "create" | "replace":
                await sessions.create(self.creation)
            case "delete" | "cold delete":
                await sessions.delete(self.key)
            case "flush":
                await sessions.flush()
            case "close":
                await sessions.close()
            case "first get" | "cold get" | "warm get":
                await sessions.get(self.key, ALL)
            case _:
                raise AssertionError(self.operation)

    async def all_ended(self, before: set[asyncio.Task[Any]]) -> None:
        """What the call has left under way ends by itself."""
        rig = self.rig
        lasting = {rig.sessions._upkeep._task, rig.other._upkeep._task}
        left = asyncio.all_tasks() - before - lasting
        if left:
            _, pending = await asyncio.wait(left, timeout=10)
            assert not pending, f"left under way: {pending}"
        await rig.sessions.flush()

    async def given_back(self) -> None:
        """No connection is kept; the upkeep of either tier may be using one now."""
        for _ in range(200):
            if not self.rig.checked_out():
                return
            await self.rig.store.tags(self.key)
        raise AssertionError("a connection is not given back")

    async def unmasked(self) -> None:
        """No mask is left. One that its release has overtaken on the way to the server expires."""
        async with asyncio.timeout(10):
            while any(isinstance(found, Masked) for found in await self.rig.cache.lookup(self.key.scopes)):
                pass

    async def check_write(self) -> None:
        """The write is there as a whole or not at all, and once if it is repeated."""
        rig = self.rig
        stored = await rig.store.load(self.key, ALL)
        if self.operation in ("create", "replace"):
            found = stored is not None
            assert await user_state(rig, self.key) == {"u": 3 if found else 1}
            with pytest.raises(SessionExistsError) if found else nullcontext():
                await rig.other.create(self.creation)
            assert await user_state(rig, self.key) == {"u": 3}
        elif "delete" in self.operation:
            assert await rig.other.delete(self.key) is (stored is not None)
        else:
            assert stored is not None
            assert stored.user is not None
            found = names(stored) == ["a", "b"]
            assert found or names(stored) == ["a"]
            assert found or self.operation not in ("flush", "close")
            assert json.loads(stored.session.state) == {"s": 2 if found else 1}
            assert json.loads(stored.user.state) == {"u": 2 if found else 1}
            again = await rig.other.append(self.write)
            assert isinstance(again, Already if found else Committed)
            stored = await rig.store.load(self.key, ALL)
            assert stored is not None
            assert names(stored) == ["a", "b"]

    async def check_readers(self) -> None:
        """Whoever reads gets what SQL holds."""
        rig = self.rig
        truth = await rig.store.load(self.key, ALL)
        for reader in (rig.other, rig.sessions):
            if self.operation == "close" and reader is rig.sessions:
                continue
            for _ in range(2):
                assert plain(await reader.get(self.key, ALL)) == plain(truth)
                await reader.flush()


def plain(found: Snapshot | None) -> Any:
    """Returns what is compared of a session."""
    contents = [found.content(scope) for scope in found.key.scopes] if found else ()
    return [c and (c.tag, json.loads(c.state), [e.id for e in c.events]) for c in contents]


def event(name: str) -> NewEvent:
    return NewEvent(name, "i", 1, b"{}")


def names(found: Snapshot) -> list[str]:
    return [event.id for event in found.session.events]


async def user_state(rig: Rig, key: SessionKey) -> Any:
    found = await rig.store.load(key._replace(session_id="first"), ALL)
    assert found is not None
    assert found.user is not None
    return json.loads(found.user.state)


async def cancel_everywhere(opened: Open, operation: str) -> int:
    """Cancels a call at each of its waits in turn; returns how many there are."""
    loop = asyncio.get_running_loop()
    factory, sockets = loop.get_task_factory(), open_sockets()
    count_waits(loop)
    try:
        at, went_on = 0, True
        while went_on:
            async with opened() as rig:
                while went_on:
                    at += 1
                    assert at < MANY, "it never ends"
                    went_on = await Scenario(rig, operation, at).play()
                    if operation in ("first get", "close"):
                        break
            assert open_sockets() == sockets, f"a connection is left open, cancelled at wait {at}"
        return at - 1
    finally:
        loop.set_task_factory(factory)


def on_virtual_time(operation: str) -> int:
    """Cancels a call everywhere, on a loop of virtual time."""
    world = World(CONFIG, 0)
    try:
        waits: int = world.run(cancel_everywhere(lambda: virtual(world), operation))
        world.check()
    finally:
        world.close()
    return waits


@pytest.mark.parametrize("operation", OPERATIONS)
def test_on_virtual_time(operation: str) -> None:
    assert on_virtual_time(operation) >= WAITS[operation]


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_on_a_sqlite_file(operation: str, sqlite_url: str) -> None:
    waits = await cancel_everywhere(lambda: sqlite(sqlite_url), operation)
    # This cache never makes anybody wait.
    assert waits > 0 or operation in ("warm get", "flush")


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_on_postgresql_and_redis(
    operation: str, postgresql_url: str, redis_url: str, redis_namespace: str
) -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Rig]:
        caches = [RedisSessionCache(redis_url) for _ in range(2)]
        async with real(postgresql_url, *caches) as rig:
            rig.app_name = redis_namespace
            yield rig

    waits = await cancel_everywhere(opened, operation)
    assert waits > 0 or operation == "flush", "Redis may have answered before"


# --- the suite has teeth -----------------------------------------------------------------------------

CANCELLED = "if told.cancelled:\n            "
RELEASED = "yield from _release(marked)"


@pytest.mark.parametrize(
    ("without", "seen"),
    [
        (edit(SessionTier, "_write", "if call.cut is not None:", "if False:"), "a connection"),
        (edit(Uncut, "cancel", "return False", "return super(type(self), self).cancel()"), "a mask is left"),
        (edit(Call, "end", "await self.writer.release()", "pass"), "a connection is not given back"),
        (edit(protocol, "_mask", CANCELLED + RELEASED, CANCELLED + "pass"), "a mask is left"),
    ],
    ids=["the rest of a write", "the statement's end", "the connection's return", "the masks' release"],
)
def test_it_is_red_without(without: Edit, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    with pytest.raises(AssertionError, match=seen):
        on_virtual_time("append")
