"""Stores the sessions that are there before anything is measured: the same for everybody.

Stock's tables are filled by bulk inserts through stock's own table definitions, so that 200,000
events take seconds instead of half an hour; ours through the library's own front door.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Coroutine, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from google.adk.events.event import Event
from google.adk.sessions.session import Session
from sqlalchemy import Connection, insert, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .events import APP, APP_STATE, USER_STATE, first_state, state_after, stored_event, update_time
from .records import Group

_ROWS = 500
_EVENTS = 500
_LANES = 8


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _sessions(groups: Iterable[Group]) -> Iterator[tuple[str, str, int]]:
    for group in groups:
        for number in range(group.sessions):
            yield group.user_of(number), group.id_of(number), group.events


def _users(groups: Iterable[Group]) -> list[str]:
    return sorted({user for user, _, _ in _sessions(groups)})


async def fill_stock(url: str, groups: list[Group]) -> None:
    """Fills the tables of stock's `DatabaseSessionService`, which it makes first."""
    from google.adk.sessions.database_session_service import DatabaseSessionService

    service = DatabaseSessionService(db_url=url)
    await service.prepare_tables()
    await service.close()
    engine = create_async_engine(url)
    try:
        await _fill(engine, groups)
    finally:
        await engine.dispose()


async def _fill(engine: AsyncEngine, groups: list[Group]) -> None:
    from google.adk.sessions.schemas import v1

    began = _time(update_time(0))
    app = [{"app_name": APP, "state": APP_STATE, "update_time": began}]
    users = (
        {"app_name": APP, "user_id": user, "state": USER_STATE, "update_time": began}
        for user in _users(groups)
    )
    sessions = (
        {
            "app_name": APP,
            "user_id": user,
            "id": name,
            "state": state_after(name, count),
            "create_time": began,
            "update_time": _time(update_time(count)),
        }
        for user, name, count in _sessions(groups)
    )
    events = (
        _row(user, name, stored_event(name, number))
        for user, name, count in _sessions(groups)
        for number in range(count)
    )
    async with engine.begin() as connection:
        for table, rows in (
            (v1.StorageAppState, app),
            (v1.StorageUserState, users),
            (v1.StorageSession, sessions),
            (v1.StorageEvent, events),
        ):
            await connection.run_sync(_insert, table, rows)


def _insert(connection: Connection, table: Any, rows: Iterable[dict[str, Any]]) -> None:
    statement = insert(table.__table__)
    for part in _parts(rows, _ROWS):
        connection.execute(statement, part)


def _parts(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    part: list[dict[str, Any]] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _row(user: str, session: str, event: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": event["id"],
        "app_name": APP,
        "user_id": user,
        "session_id": session,
        "invocation_id": event["invocation_id"],
        "timestamp": _time(event["timestamp"]),
        "event_data": event,
    }


def whole_session(user: str, name: str, count: int) -> Session:
    """Returns a stored session as an object, with its own state only."""
    return Session(
        app_name=APP,
        user_id=user,
        id=name,
        state=state_after(name, count),
        events=[Event.model_validate(stored_event(name, number)) for number in range(count)],
        last_update_time=update_time(count),
    )


async def fill_stock_sqlite(url: str, groups: list[Group]) -> None:
    """Fills the tables of stock's `SqliteSessionService`, which it makes first."""
    from google.adk.sessions.sqlite_session_service import SqliteSessionService

    path = make_url(url).database or ""
    service = SqliteSessionService(path)
    await service.list_sessions(app_name=APP, user_id="nobody")
    began = update_time(0)
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO app_states VALUES (?, ?, ?)", (APP, json.dumps(APP_STATE), began))
        users = ((APP, user, json.dumps(USER_STATE), began) for user in _users(groups))
        database.executemany("INSERT INTO user_states VALUES (?, ?, ?, ?)", users)
        sessions = (
            (APP, user, name, json.dumps(state_after(name, count)), began, update_time(count))
            for user, name, count in _sessions(groups)
        )
        database.executemany("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)", sessions)
        events = (
            (
                e["id"],
                APP,
                user,
                name,
                e["invocation_id"],
                e["timestamp"],
                Event.model_validate(e).model_dump_json(exclude_none=True),
            )
            for user, name, count in _sessions(groups)
            for e in (stored_event(name, number) for number in range(count))
        )
        database.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", events)
    database.close()


async def fill_stock_redis(url: str, prefix: str, groups: list[Group]) -> None:
    """Fills the keys of stock's Redis service."""
    import redis.asyncio

    async with redis.asyncio.Redis.from_url(url) as client:
        await client.set(f"{prefix}app_state:{APP}", json.dumps(APP_STATE))
        for user in _users(groups):
            await client.set(f"{prefix}user_state:{APP}:{user}", json.dumps(USER_STATE))
        for user, name, count in _sessions(groups):
            text = whole_session(user, name, count).model_dump_json()
            await client.set(f"{prefix}{APP}:{user}:{name}", text, ex=7200)


async def fill_ours(url: str, groups: list[Group]) -> None:
    """Fills a new database of ours through the service, with many events to an append."""
    from tiered_sessions import TieredConfig
    from tiered_sessions.adk import TieredSessionService

    # Nobody waits for these writes, and a busy disk may.
    patient = TieredConfig(lock_timeout=60, statement_timeout=60, mask_life=70)
    async with TieredSessionService(url, cache=None, config=patient) as service:

        async def share(user: str) -> None:
            # The shared state comes with the first session of each user, as in an application.
            shared = {f"user:{key}": value for key, value in USER_STATE.items()}
            shared |= {f"app:{key}": value for key, value in APP_STATE.items()}
            await service.create_session(APP, user, shared, f"{user}-first")
            await service.delete_session(APP, user, f"{user}-first")

        async def store(user: str, name: str, count: int) -> None:
            session = await service.create_session(APP, user, first_state(name), name)
            for start in range(0, count, _EVENTS):
                numbers = range(start, min(start + _EVENTS, count))
                events = [Event.model_validate(stored_event(name, number)) for number in numbers]
                await service.append_events(session, events)

        await _at_once(share(user) for user in _users(groups))
        await _at_once(store(*session) for session in _sessions(groups))


async def _at_once(calls: Iterator[Coroutine[Any, Any, None]]) -> None:
    """Runs the calls, a few of them at a time."""

    async def lane() -> None:
        for call in calls:
            await call

    await asyncio.gather(*(lane() for _ in range(_LANES)))
