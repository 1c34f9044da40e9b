"""A bound written by hand: one asyncpg statement an operation on stock's tables, and nothing else.

No cache, no check for expiry, no retry, no other database than PostgreSQL: what the plainest code
reaches that still refuses a stale append. Events are validated from JSON, as stock does.
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]
import orjson
from google.adk.errors._stale_session_error import StaleSessionError
from google.adk.events.event import Event
from google.adk.sessions.base_session_service import (
    BaseSessionService,
    GetSessionConfig,
    ListSessionsResponse,
)
from google.adk.sessions.session import Session

from .. import population
from ..records import Group
from .base import Subject

_STATES: Final = """
    (SELECT state::text FROM app_states a WHERE a.app_name = $1),
    (SELECT state::text FROM user_states u WHERE u.app_name = $1 AND u.user_id = $2)"""
_GET: Final = f"""
    SELECT s.state::text, s.update_time, {_STATES},
        (SELECT array_agg(e.event_data::text ORDER BY e.timestamp, e.id) FROM (
            SELECT event_data, timestamp, id FROM events
            WHERE app_name = $1 AND user_id = $2 AND session_id = $3
            ORDER BY timestamp DESC, id DESC LIMIT $4) e)
    FROM sessions s WHERE s.app_name = $1 AND s.user_id = $2 AND s.id = $3"""
_APPEND: Final = """
    WITH changed AS (
        UPDATE sessions SET update_time = $5, state = state || $6::jsonb
        WHERE app_name = $1 AND user_id = $2 AND id = $3 AND update_time = $4 RETURNING id)
    INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, event_data)
    SELECT $7, $1, $2, changed.id, $8, $5, $9::jsonb FROM changed RETURNING 1"""
_LIST: Final = f"""
    SELECT s.id, s.state::text, s.update_time, {_STATES}
    FROM sessions s WHERE s.app_name = $1 AND s.user_id = $2 ORDER BY s.update_time, s.id"""
_CREATE: Final = f"""
    WITH made AS (
        INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time)
        VALUES ($1, $2, $3, $4, $5, $5) RETURNING 1)
    SELECT {_STATES} FROM made"""
_DELETE: Final = "DELETE FROM sessions WHERE app_name = $1 AND user_id = $2 AND id = $3"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _merged(session: str, app: str | None, user: str | None) -> dict[str, Any]:
    state: dict[str, Any] = orjson.loads(session)
    for prefix, shared in (("app:", app), ("user:", user)):
        state |= {prefix + key: value for key, value in orjson.loads(shared or "{}").items()}
    return state


class RawService(BaseSessionService):
    """Sessions by one statement each. Shared state is read, not written."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: asyncpg.Pool | None = None
        self._connecting = asyncio.Lock()

    async def _connected(self) -> asyncpg.Pool:
        # One pool, however many callers come first.
        async with self._connecting:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(self._url, min_size=1, max_size=15)
        return self._pool

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> Session:
        pool = self._pool or await self._connected()
        name = session_id or str(uuid.uuid4())
        now = datetime.now(UTC).replace(tzinfo=None)
        text = orjson.dumps(state or {}).decode()
        row = await pool.fetchrow(_CREATE, app_name, user_id, name, text, now)
        return self._session(app_name, user_id, name, _merged(text, *row), [], now)

    async def get_session(
        self, *, app_name: str, user_id: str, session_id: str, config: GetSessionConfig | None = None
    ) -> Session | None:
        pool = self._pool or await self._connected()
        window = config.num_recent_events if config else None
        row = await pool.fetchrow(_GET, app_name, user_id, session_id, window)
        if row is None:
            return None
        events = [Event.model_validate(orjson.loads(text)) for text in row[4] or ()]
        return self._session(app_name, user_id, session_id, _merged(row[0], row[2], row[3]), events, row[1])

    def _session(
        self, app: str, user: str, name: str, state: dict[str, Any], events: list[Event], updated: datetime
    ) -> Session:
        return Session(
            app_name=app,
            user_id=user,
            id=name,
            state=state,
            events=events,
            last_update_time=updated.replace(tzinfo=UTC).timestamp(),
        )

    async def list_sessions(self, *, app_name: str, user_id: str | None = None) -> ListSessionsResponse:
        pool = self._pool or await self._connected()
        rows = await pool.fetch(_LIST, app_name, user_id)
        return ListSessionsResponse(
            sessions=[
                self._session(app_name, user_id or "", row[0], _merged(row[1], row[3], row[4]), [], row[2])
                for row in rows
            ]
        )

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        pool = self._pool or await self._connected()
        await pool.execute(_DELETE, app_name, user_id, session_id)

    async def append_event(self, session: Session, event: Event) -> Event:
        pool = self._pool or await self._connected()
        stored = orjson.dumps(event.model_dump(exclude_none=True, mode="json")).decode()
        written = await pool.fetchval(
            _APPEND,
            session.app_name,
            session.user_id,
            session.id,
            _time(session.last_update_time),
            _time(event.timestamp),
            orjson.dumps(event.actions.state_delta).decode(),
            event.id,
            event.invocation_id,
            stored,
        )
        if written is None:
            raise StaleSessionError("the session has changed")
        session.state.update(event.actions.state_delta)
        session.events.append(event)
        session.last_update_time = event.timestamp
        return event

    async def close(self) -> None:
        """Closes the connections."""
        if self._pool is not None:
            await self._pool.close()


class Raw(Subject):
    """The bound, on tables that stock made."""

    def connect(self) -> BaseSessionService:
        return RawService(self.address.database.replace("+asyncpg", ""))

    async def fill(self, groups: list[Group]) -> None:
        await population.fill_stock(self.address.database, groups)
