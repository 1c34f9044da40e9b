"""A cache as it is often written first; the demo must not let it pass."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

from redis.asyncio import Redis

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

    async def _now(self) -> int:
        seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def lookup(self, keys: Sequence[ScopeKey], header_only: bool = False) -> tuple[Lookup, ...]:
        found: list[Lookup] = []
        now = await self._now()
        for key in keys:
            data = await self._redis.get(self._name(key))
            if data is None:
                found.append(Miss(now, ""))
            else:
                found.append(Hit(pickle.loads(data), now, "", now, ""))
        return tuple(found)

    async def intent(self, key: ScopeKey, token: str) -> int | Unavailable:
        return await self._now()

    async def release(self, key: ScopeKey, token: str) -> None:
        return None

    async def lease(self, key: ScopeKey, token: str) -> Granted | LeaseRefused | Unavailable:
        return Granted(await self._now(), "")

    async def fill(
        self, key: ScopeKey, token: str, granted_at: int, stamp: str, content: Content
    ) -> FillReply | Unavailable:
        await self._redis.set(self._name(key), pickle.dumps(content), ex=60)
        return FillReply.STORED

    async def apply(
        self,
        key: ScopeKey,
        token: str,
        old: Tag | None,
        new: Tag,
        events: tuple[EventRecord, ...],
        state: bytes | None,
        validated_at: int,
    ) -> ApplyReply | Unavailable:
        await self.drop(key, token, None)
        return ApplyReply.ABSENT

    async def drop(self, key: ScopeKey, token: str | None, keep: Tag | None) -> None:
        await self._redis.delete(f"naive:{key.session_id}")

    async def touch(self, key: ScopeKey, tag: Tag, validated_at: int, stamp: str) -> bool | Unavailable:
        return True

    async def elect(self, owner: str, life: int) -> bool | Unavailable:
        return True

    async def probe(self) -> int | Unavailable:
        return await self._now()

    async def close(self) -> None:
        await self._redis.aclose()
