"""A bound written by hand: one statement an operation on stock's tables, and nothing else.

By asyncpg on PostgreSQL and by aiomysql on MariaDB. No cache, no check for expiry, no retry: what the
plainest code reaches that still refuses a stale append. Events are validated from JSON, as stock does.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, NamedTuple

import orjson
from google.adk.errors._stale_session_error import StaleSessionError
from google.adk.events.event import Event
from google.adk.sessions.base_session_service import (
    BaseSessionService,
    GetSessionConfig,
    ListSessionsResponse,
)
from google.adk.sessions.session import Session
from sqlalchemy import make_url

from .. import population
from ..records import Group
from .base import Subject

_CONNECTIONS: Final = 15
# MariaDB's LIMIT takes no NULL.
_ALL: Final = 2**62


class _Statements(NamedTuple):
    """One for each operation. Parameters are numbered, as PostgreSQL has them."""

    get: str
    append: str
    list: str
    create: str
    delete: str


_POSTGRESQL_STATES: Final = """
    (SELECT state::text FROM app_states a WHERE a.app_name = $1),
    (SELECT state::text FROM user_states u WHERE u.app_name = $1 AND u.user_id = $2)"""
_POSTGRESQL: Final = _Statements(
    get=f"""
    SELECT s.state::text, s.update_time, {_POSTGRESQL_STATES},
        (SELECT array_agg(e.event_data::text ORDER BY e.timestamp, e.id) FROM (
            SELECT event_data, timestamp, id FROM events
            WHERE app_name = $1 AND user_id = $2 AND session_id = $3
            ORDER BY timestamp DESC, id DESC LIMIT $4) e)
    FROM sessions s WHERE s.app_name = $1 AND s.user_id = $2 AND s.id = $3""",
    append="""
    WITH changed AS (
        UPDATE sessions SET update_time = $5, state = state || $6::jsonb
        WHERE app_name = $1 AND user_id = $2 AND id = $3 AND update_time = $4 RETURNING id)
    INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, event_data)
    SELECT $7, $1, $2, changed.id, $8, $5, $9::jsonb FROM changed RETURNING 1""",
    list=f"""
    SELECT s.id, s.state::text, s.update_time, {_POSTGRESQL_STATES}
    FROM sessions s WHERE s.app_name = $1 AND s.user_id = $2 ORDER BY s.update_time, s.id""",
    create=f"""
    WITH made AS (
        INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time)
        VALUES ($1, $2, $3, $4, $5, $5) RETURNING 1)
    SELECT {_POSTGRESQL_STATES} FROM made""",
    delete="DELETE FROM sessions WHERE app_name = $1 AND user_id = $2 AND id = $3",
)
_MARIADB_STATES: Final = """
    (SELECT state FROM app_states a WHERE a.app_name = $1),
    (SELECT state FROM user_states u WHERE u.app_name = $1 AND u.user_id = $2)"""
# No single statement changes one table and inserts into another, so an append is a compound one: it takes
# one round trip, where a transaction of two statements takes four and lasts longer. It merges no nulls.
_MARIADB: Final = _Statements(
    get=f"""
    SELECT s.state, s.update_time, {_MARIADB_STATES},
        (SELECT GROUP_CONCAT(e.event_data ORDER BY e.timestamp, e.id SEPARATOR ',') FROM (
            SELECT event_data, timestamp, id FROM events
            WHERE app_name = $1 AND user_id = $2 AND session_id = $3
            ORDER BY timestamp DESC, id DESC LIMIT $4) e)
    FROM sessions s WHERE s.app_name = $1 AND s.user_id = $2 AND s.id = $3""",
    append="""
    BEGIN NOT ATOMIC
        START TRANSACTION;
        UPDATE sessions SET update_time = $5, state = JSON_MERGE_PATCH(state, $6)
        WHERE app_name = $1 AND user_id = $2 AND id = $3 AND update_time = $4;
        IF ROW_COUNT() = 1 THEN
            INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, event_data)
            VALUES ($7, $1, $2, $3, $8, $5, $9);
        END IF;
        COMMIT;
    END""",
    list=f"""
    SELECT s.id, s.state, s.update_time, {_MARIADB_STATES}
    FROM sessions s WHERE s.app_name = $1 AND s.user_id = $2 ORDER BY s.update_time, s.id""",
    create=f"""
    INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time)
    VALUES ($1, $2, $3, $4, $5, $5) RETURNING {_MARIADB_STATES}""",
    delete="DELETE FROM sessions WHERE app_name = $1 AND user_id = $2 AND id = $3",
)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _merged(session: str, app: str | None, user: str | None) -> dict[str, Any]:
    state: dict[str, Any] = orjson.loads(session)
    for prefix, shared in (("app:", app), ("user:", user)):
        state |= {prefix + key: value for key, value in orjson.loads(shared or "{}").items()}
    return state


class RawService(BaseSessionService):
    """Sessions by one statement each. Shared state is read, not written."""

    _statements: ClassVar[_Statements]

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: Any = None
        self._connecting = asyncio.Lock()

    @abstractmethod
    async def _connect(self) -> Any:
        """Makes a pool."""

    @abstractmethod
    async def _execute(self, pool: Any, statement: str, *values: Any) -> tuple[Sequence[Any], int]:
        """Executes a statement that commits by itself. Returns its rows, and how many it wrote."""

    @abstractmethod
    def _events(self, found: Any) -> list[Any]:
        """Decodes the events of a session."""

    @abstractmethod
    async def _disconnect(self, pool: Any) -> None:
        """Closes a pool."""

    async def _run(self, statement: str, *values: Any) -> tuple[Sequence[Any], int]:
        if self._pool is None:
            # One pool, however many callers come first.
            async with self._connecting:
                self._pool = self._pool or await self._connect()
        return await self._execute(self._pool, statement, *values)

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> Session:
        name = session_id or str(uuid.uuid4())
        now = datetime.now(UTC).replace(tzinfo=None)
        text = orjson.dumps(state or {}).decode()
        (row,), _ = await self._run(self._statements.create, app_name, user_id, name, text, now)
        return self._session(app_name, user_id, name, _merged(text, *row), [], now)

    async def get_session(
        self, *, app_name: str, user_id: str, session_id: str, config: GetSessionConfig | None = None
    ) -> Session | None:
        window = (config.num_recent_events if config else None) or _ALL
        rows, _ = await self._run(self._statements.get, app_name, user_id, session_id, window)
        if not rows:
            return None
        (row,) = rows
        events = [Event.model_validate(value) for value in self._events(row[4])]
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
        rows, _ = await self._run(self._statements.list, app_name, user_id)
        return ListSessionsResponse(
            sessions=[
                self._session(app_name, user_id or "", row[0], _merged(row[1], row[3], row[4]), [], row[2])
                for row in rows
            ]
        )

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        await self._run(self._statements.delete, app_name, user_id, session_id)

    async def append_event(self, session: Session, event: Event) -> Event:
        stored = orjson.dumps(event.model_dump(exclude_none=True, mode="json")).decode()
        _, written = await self._run(
            self._statements.append,
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
        if not written:
            raise StaleSessionError("the session has changed")
        session.state.update(event.actions.state_delta)
        session.events.append(event)
        session.last_update_time = event.timestamp
        return event

    async def close(self) -> None:
        """Closes the connections."""
        if self._pool is not None:
            await self._disconnect(self._pool)


class RawPostgresql(RawService):
    """The bound on PostgreSQL."""

    _statements = _POSTGRESQL

    async def _connect(self) -> Any:
        import asyncpg  # type: ignore[import-untyped]

        return await asyncpg.create_pool(self._url.replace("+asyncpg", ""), min_size=1, max_size=_CONNECTIONS)

    async def _execute(self, pool: Any, statement: str, *values: Any) -> tuple[Sequence[Any], int]:
        rows = await pool.fetch(statement, *values)
        return rows, len(rows)

    def _events(self, found: Any) -> list[Any]:
        return [orjson.loads(text) for text in found or ()]

    async def _disconnect(self, pool: Any) -> None:
        await pool.close()


class RawMariadb(RawService):
    """The bound on MariaDB."""

    _statements = _Statements(*(re.sub(r"\$(\d)", r"%(\1)s", text) for text in _MARIADB))

    async def _connect(self) -> Any:
        import aiomysql  # type: ignore[import-untyped]
        from pymysql.constants import CLIENT  # type: ignore[import-untyped]

        url = make_url(self._url)
        return await aiomysql.create_pool(
            host=url.host,
            port=url.port or 3306,
            user=url.username,
            password=url.password or "",
            db=url.database,
            charset="utf8mb4",
            client_flag=CLIENT.FOUND_ROWS,
            autocommit=True,
            minsize=1,
            maxsize=_CONNECTIONS,
        )

    async def _execute(self, pool: Any, statement: str, *values: Any) -> tuple[Sequence[Any], int]:
        named = {str(number): value for number, value in enumerate(values, 1)}
        async with pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(statement, named)
            return await cursor.fetchall(), cursor.rowcount

    def _events(self, found: Any) -> list[Any]:
        events: list[Any] = orjson.loads(f"[{found or ''}]")
        return events

    async def _disconnect(self, pool: Any) -> None:
        pool.close()
        await pool.wait_closed()


class Raw(Subject):
    """The bound, on tables that stock made."""

    def connect(self) -> BaseSessionService:
        kind = RawMariadb if self.address.family == "mariadb" else RawPostgresql
        return kind(self.address.database)

    async def fill(self, groups: list[Group]) -> None:
        await population.fill_stock(self.address.database, groups)
