"""A service over a real database and a real cache, and faults planted into both."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import redis.asyncio as redis
from sqlalchemy import text

from tests import patience
from tiered_sessions import Event, EventActions, TieredSessionService
from tiered_sessions.cache import keys
from tiered_sessions.cache.base import Hit
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.records import Append, NewEvent, ScopeKey, SessionKey
from tiered_sessions.store.engines import build_engine
from tiered_sessions.store.store import SqlSessionStore

PATIENT = replace(patience.PATIENT, window_events=20, sample_rate=0)
_ROW = "app_name = :app_name AND user_id = :user_id AND id = :session_id"


@dataclass
class Planted:
    """One session of `events` events, cached with its shared state."""

    url: str
    cache_url: str
    key: SessionKey
    service: TieredSessionService
    store: SqlSessionStore
    cache: RedisSessionCache
    client: redis.Redis

    def name(self, scope: ScopeKey) -> str:
        """Returns the name of the key in Redis."""
        return keys.entry_key(self.cache.namespace, scope)

    async def plant(self, scope: ScopeKey, fields: Mapping[str, Any]) -> None:
        """Writes fields of an entry past the product."""
        assert await self.client.hexists(self.name(scope), "r")
        await self.client.hset(self.name(scope), mapping=dict(fields))

    async def field(self, scope: ScopeKey, name: str) -> bytes:
        """Reads a field of an entry."""
        found = await self.client.hget(self.name(scope), name)
        assert found is not None
        return bytes(found)

    async def entry(self, scope: ScopeKey) -> Hit | None:
        """Returns the entry, if there is one."""
        (found,) = await self.cache.lookup((scope,))
        return found if isinstance(found, Hit) else None

    async def fill(self) -> None:
        """Has a service of its own read the session into the cache."""
        async with TieredSessionService(self.url, cache=self.cache_url, config=PATIENT) as reader:
            assert await reader.get_session(*self.key) is not None

    async def write_unheard(self) -> None:
        """Appends an event that the cache is not told of."""
        tag = (await self.store.tags(self.key)).session
        event = NewEvent("unheard", "i", 1, b"{}")
        write = Append(self.key, tag, 1_800_000_000_000_000, (event,), b'{"n":9}')
        writer = await self.store.writer()
        await writer.append(write)
        await writer.release()

    async def lose_commit(self) -> None:
        """Takes the last append back in SQL, as a restore would."""
        before = await self._row()
        session = await self.service.get_session(*self.key)
        assert session is not None
        await self.service.append_event(session, _event(99))
        await self.service.flush()
        names = ("state", "revision", "nonce", "update_time")
        cast = "CAST(:state AS JSONB)" if "postgresql" in self.url else ":state"
        async with self.store.engine.begin() as connection:
            values = ", ".join(f"{name} = {cast if name == 'state' else ':' + name}" for name in names)
            bound = {**dict(zip(names, before, strict=True)), **self.key._asdict()}
            await connection.execute(text(f"UPDATE sessions SET {values} WHERE {_ROW}"), bound)
            lost = text("DELETE FROM events WHERE app_name = :app_name AND id = 'e99'")
            await connection.execute(lost, {"app_name": self.key.app_name})

    async def _row(self) -> tuple[Any, ...]:
        state = "CAST(state AS TEXT)" if "postgresql" in self.url else "state"
        async with self.store.engine.begin() as connection:
            query = text(f"SELECT {state}, revision, nonce, update_time FROM sessions WHERE {_ROW}")
            return tuple((await connection.execute(query, self.key._asdict())).one())


def _event(number: int) -> Event:
    actions = EventActions(state_delta={"n": number})
    return Event(id=f"e{number}", author="user", invocation_id="i", actions=actions)


@contextlib.asynccontextmanager
async def planted(url: str, cache_url: str, events: int = 3) -> AsyncIterator[Planted]:
    """Makes one session under an app of its own, and fills the cache with it."""
    key = SessionKey(f"app-{uuid4().hex}", "user", "s")
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(patience.patient())
        service = await stack.enter_async_context(TieredSessionService(url, cache=cache_url, config=PATIENT))
        session = await service.create_session(
            key.app_name, key.user_id, {"n": 0, "user:u": 1, "app:a": [1.5, None]}, key.session_id
        )
        for number in range(events):
            await service.append_event(session, _event(number))
        await service.flush()
        store = SqlSessionStore(build_engine(url, PATIENT), owns_engine=True, config=PATIENT)
        stack.push_async_callback(store.close)
        cache = RedisSessionCache(cache_url, namespace=await store.namespace())
        stack.push_async_callback(cache.close)
        client = await stack.enter_async_context(redis.Redis.from_url(cache_url))
        made = Planted(url, cache_url, key, service, store, cache, client)
        assert await service.get_session(*key) is not None
        await service.flush()
        yield made
