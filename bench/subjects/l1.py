"""A second bound written by hand: the first, with decoded events kept in the process.

Every get asks Redis once, for the session's version; every append tells Redis the new one and waits for
that. Nothing more, and so without guarantees: between an append's commit and its write to Redis, readers
are given what was before; if that write is lost, or two come in the wrong order, or a reader's first
version is written after a delete, they are for as long as nobody appends. Changes of the app's or user's
state made elsewhere are not seen, and events are shared with everybody who was given them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import redis.asyncio
from google.adk.events.event import Event
from google.adk.sessions.base_session_service import BaseSessionService, GetSessionConfig
from google.adk.sessions.session import Session

from ..places import remove_keys
from .raw import Raw, RawPostgresql


@dataclass(slots=True)
class _Kept:
    """A session as it was read, and appended to here.

    Attributes:
        window: How many of the newest events are there; 0: all.
    """

    version: bytes
    window: int
    session: Session

    def serves(self, version: bytes | str | None, window: int) -> bool:
        """Says whether a get of so many events can be answered from it, at that version."""
        return self.version == version and (not self.window or 0 < window <= self.window)


def _version(session: Session) -> bytes:
    # The time of the last change, in what the column keeps of it: equal for who wrote it and who reads it.
    return b"%.6f" % session.last_update_time


class L1Postgresql(RawPostgresql):
    """The bound with decoded events, on PostgreSQL and Redis. What is kept is bounded by nothing."""

    def __init__(self, url: str, cache: str, prefix: str) -> None:
        super().__init__(url)
        self._redis = redis.asyncio.Redis.from_url(cache)
        self._prefix = prefix
        self._kept: dict[str, _Kept] = {}

    def _key(self, app: str, user: str, name: str) -> str:
        return f"{self._prefix}{app}:{user}:{name}"

    async def get_session(
        self, *, app_name: str, user_id: str, session_id: str, config: GetSessionConfig | None = None
    ) -> Session | None:
        key = self._key(app_name, user_id, session_id)
        window = (config.num_recent_events if config else None) or 0
        version = await self._redis.get(key)
        kept = self._kept.get(key)
        if kept is None or not kept.serves(version, window):
            session = await super().get_session(
                app_name=app_name, user_id=user_id, session_id=session_id, config=config
            )
            if session is None:
                return None
            kept = self._kept[key] = _Kept(_version(session), window, session)
            if version is None:
                # Not over that of an append that was faster.
                await self._redis.set(key, kept.version, nx=True)
        return kept.session.model_copy(
            update={"state": dict(kept.session.state), "events": kept.session.events[-window:]}
        )

    async def append_event(self, session: Session, event: Event) -> Event:
        key = self._key(session.app_name, session.user_id, session.id)
        before = _version(session)
        await super().append_event(session, event)
        version = _version(session)
        kept = self._kept.get(key)
        if kept is not None and kept.version == before:
            kept.version = version
            kept.session.state.update(event.actions.state_delta)
            kept.session.events.append(event)
            kept.session.last_update_time = session.last_update_time
        await self._redis.set(key, version)
        return event

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        await super().delete_session(app_name=app_name, user_id=user_id, session_id=session_id)
        await self._redis.delete(self._key(app_name, user_id, session_id))

    async def close(self) -> None:
        await super().close()
        await self._redis.aclose()


class L1(Raw):
    """The bound with decoded events, on tables that stock made."""

    @property
    def _prefix(self) -> str:
        return f"{self.address.prefix}l1:"

    def connect(self) -> BaseSessionService:
        return L1Postgresql(self.address.database, self.address.redis, self._prefix)

    async def forget(self) -> None:
        async with redis.asyncio.Redis.from_url(self.address.redis) as client:
            await remove_keys(client, f"{self._prefix}*")

    @asynccontextmanager
    async def auditor(self) -> AsyncIterator[BaseSessionService]:
        service = RawPostgresql(self.address.database)
        try:
            yield service
        finally:
            await service.close()
