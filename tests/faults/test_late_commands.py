"""What becomes of commands that reach the cache when nobody waits for them any more (R6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple
from uuid import uuid4

import pytest

from tests.faults.worker import Counters
from tests.relay import Relay
from tiered_sessions import (
    Event,
    EventActions,
    Session,
    SessionExistsError,
    StaleSessionError,
    TieredConfig,
    TieredSessionService,
)
from tiered_sessions.cache.base import Granted, Masked
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.records import SessionKey
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.store import SqlSessionStore

# The drainer removes no masks, but what it does would be in the way of who looks.
CONFIG = TieredConfig(outbox_poll=600, sample_rate=0)


class Slow(NamedTuple):
    """A service whose cache can be made slow, a session that it has cached, and a look beside it."""

    relay: Relay
    service: TieredSessionService
    key: SessionKey
    beside: RedisSessionCache
    counters: Counters

    async def get(self) -> Session:
        session = await self.service.get_session(*self.key)
        assert session is not None
        return session


@pytest.fixture
async def slow(sqlite_url: str, valkey_url: str) -> AsyncIterator[Slow]:
    counters = Counters()
    async with (
        Relay(valkey_url) as relay,
        TieredSessionService(sqlite_url, cache=relay.url, config=CONFIG, metrics=counters) as service,
    ):
        key = SessionKey(f"app-{uuid4().hex}", "user", "s")
        store = SqlSessionStore(build_engine(sqlite_url, CONFIG), owns_engine=True, config=CONFIG)
        await service.create_session(key.app_name, key.user_id, session_id=key.session_id)
        # Once beforehand: a script that the server does not know yet is another command.
        await service.append_event(await service.get_session(*key), event())  # type: ignore[arg-type]
        await service.get_session(*key)
        await service.flush()
        beside = RedisSessionCache(valkey_url, namespace=await store.namespace(), timeout=30.0)
        yield Slow(relay, service, key, beside, counters)
        await beside.close()
        await store.close()


def event() -> Event:
    return Event(author="a", invocation_id="i", actions=EventActions(state_delta={"user:k": 1, "app:k": 1}))


async def append(slow: Slow, session: Session) -> None:
    await slow.service.append_event(session, event())


async def append_stale(slow: Slow, session: Session) -> None:
    stale = session.model_copy(deep=True)
    stale.state.clear()
    await slow.service.append_event(session, event())
    with pytest.raises(StaleSessionError):
        await slow.service.append_event(stale, event())


async def create(slow: Slow, session: Session) -> None:
    await slow.service.create_session(slow.key.app_name, slow.key.user_id, {"user:k": 2, "app:k": 2})


async def create_again(slow: Slow, session: Session) -> None:
    with pytest.raises(SessionExistsError):
        await slow.service.create_session(*slow.key[:2], {"user:k": 2}, slow.key.session_id)


async def delete(slow: Slow, session: Session) -> None:
    await slow.service.delete_session(*slow.key)


@pytest.mark.parametrize("held", ["requests", "replies"])
@pytest.mark.parametrize("write", [append, append_stale, create, create_again, delete])
async def test_a_late_mask_goes_with_its_write(
    slow: Slow, write: Callable[[Slow, Session], Awaitable[None]], held: str
) -> None:
    """It would hide the session from the cache for `mask_life`: four seconds of reads from SQL."""
    session = await slow.get()
    (slow.relay.hold_requests if held == "requests" else slow.relay.hold_replies)("EVALSHA")
    await write(slow, session)
    assert slow.relay.held, "no mask was late"
    slow.relay.heal()
    await slow.service.flush()
    found = await slow.beside.lookup(slow.key.scopes)
    assert not any(isinstance(entry, Masked) for entry in found), found


@pytest.mark.parametrize("write", [append, create_again])
async def test_late_masks_go_though_the_cache_seems_to_be_gone(
    slow: Slow, write: Callable[[Slow, Session], Awaitable[None]]
) -> None:
    """What opened the circuit breaker has masked: its withdrawal is behind it, and sent all the same."""
    keys = [slow.key._replace(session_id=f"s{number}") for number in range(20)]
    sessions = [
        await slow.service.create_session(*key[:2], session_id=key.session_id) for key in keys
    ]
    slow.relay.hold_requests("EVALSHA")
    for session in sessions:
        await write(slow, session)
        if slow.counters.counts["breaker.opened"]:
            break
    # A time-out in a process that was held up itself does not count.
    assert slow.counters.counts["breaker.opened"] == 1
    slow.relay.heal()
    await slow.service.flush()
    found = await slow.beside.lookup([*slow.key.scopes, *(key.session for key in keys)])
    assert not any(isinstance(entry, Masked) for entry in found), found


@pytest.mark.parametrize("held", ["requests", "replies"])
async def test_a_late_lease_keeps_nobody_waiting(slow: Slow, held: str) -> None:
    """Every reader would wait in vain for its fill, for as long as a lease lives: two seconds."""
    for scope in slow.key.scopes:
        await slow.beside.drop(scope, None, None)
    (slow.relay.hold_requests if held == "requests" else slow.relay.hold_replies)("EVALSHA")
    await slow.get()
    assert slow.relay.held, "no lease was late"
    slow.relay.heal()
    await slow.service.flush()
    for scope in slow.key.scopes:
        assert isinstance(await slow.beside.lease(scope, "next"), Granted)


async def broken_off(slow: Slow, call: Awaitable[object]) -> None:
    """Breaks the cache's connections while the server works on what the call has sent."""
    slow.relay.hold_replies("EVALSHA")
    task = asyncio.ensure_future(call)
    await slow.relay.until(lambda: bool(slow.relay.held))
    slow.relay.reset_all()
    await task
    slow.relay.heal()
    await slow.service.flush()


async def test_a_mask_whose_connection_breaks_goes_with_its_write(slow: Slow) -> None:
    await broken_off(slow, slow.service.append_event(await slow.get(), event()))
    found = await slow.beside.lookup(slow.key.scopes)
    assert not any(isinstance(entry, Masked) for entry in found), found


async def test_a_lease_whose_connection_breaks_keeps_nobody_waiting(slow: Slow) -> None:
    for scope in slow.key.scopes:
        await slow.beside.drop(scope, None, None)
    await broken_off(slow, slow.get())
    for scope in slow.key.scopes:
        assert isinstance(await slow.beside.lease(scope, "next"), Granted)
