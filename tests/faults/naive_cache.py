"""A cache as it is often written first; the demo must not let it pass."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tiered_sessions.cache.base import (
    ApplyReply,
    FillReply,
    Granted,
    Hit,
    LeaseRefused,
    Lookup,
    Miss,
    Unavailable,
)
from tiered_sessions.records import Content, EventRecord, ScopeKey, Tag


class NaiveCache:
    """Sets after a read, deletes after a write, and deletes a key that nobody ever set."""

    shared = True
    namespace = ""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url)

    def _name(self, key: ScopeKey) -> str:
        return "naive:" + ":".join((self.namespace, *key))

    async def _do(self, *command: object) -> Any:
        try:
            return await self._redis.execute_command(*command)
        except RedisError as error:
            return Unavailable(type(error).__name__)

    async def lookup(self, keys: Sequence[ScopeKey], newest: int | None = None) -> tuple[Lookup, ...]:
        now = await self.probe()
        if isinstance(now, Unavailable):
            return (now,) * len(keys)
        found = [await self._do("GET", self._name(key)) for key in keys]
        return tuple(self._lookup(data, now) for data in found)

    def _lookup(self, data: Any, now: int) -> Lookup:
        if isinstance(data, Unavailable):
            return data
        if data is None:
            return Miss(now, "")
        content = pickle.loads(data)
        return Hit(content, now, "", now, "", len(content.events))

    async def intent(self, key: ScopeKey, token: str) -> int | Unavailable:
        return await self.probe()

    async def release(self, key: ScopeKey, token: str) -> None:
        return None

    async def lease(self, key: ScopeKey, token: str) -> Granted | LeaseRefused | Unavailable:
        now = await self.probe()
        return now if isinstance(now, Unavailable) else Granted(now, "")

    async def fill(
        self,
        key: ScopeKey,
        token: str,
        granted_at: int,
        stamp: str,
        content: Content,
        expires_at: int | None = None,
    ) -> FillReply | Unavailable:
        reply = await self._do("SET", self._name(key), pickle.dumps(content), "EX", 60)
        return reply if isinstance(reply, Unavailable) else FillReply.STORED

    async def apply(
        self,
        key: ScopeKey,
        token: str,
        old: Tag | None,
        new: Tag,
        events: tuple[EventRecord, ...],
        state: bytes | None,
        validated_at: int,
        expires_at: int | None = None,
    ) -> ApplyReply | Unavailable:
        return await self.drop(key, token, None) or ApplyReply.ABSENT

    async def drop(self, key: ScopeKey, token: str | None, keep: Tag | None) -> Unavailable | None:
        reply = await self._do("DEL", f"naive:{key.session_id}")
        return reply if isinstance(reply, Unavailable) else None

    async def touch(self, key: ScopeKey, tag: Tag, validated_at: int, stamp: str) -> bool | Unavailable:
        return True

    async def elect(self, owner: str, life: int) -> bool | Unavailable:
        return True

    async def probe(self) -> int | Unavailable:
        reply = await self._do("TIME")
        return reply if isinstance(reply, Unavailable) else int(reply[0]) * 1000

    async def close(self) -> None:
        await self._redis.aclose()
