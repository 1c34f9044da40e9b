"""Bad input, row by row of docs/errors.md: a typed error, no secret in it, nothing half-written."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import pytest
from pydantic import ValidationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests import servers
from tiered_sessions import (
    ConfigurationError,
    Event,
    EventActions,
    EventIdConflictError,
    GetSessionConfig,
    InvalidValueError,
    SchemaMismatchError,
    Session,
    SessionExistsError,
    SessionNotFoundError,
    StoreError,
    StoreUnavailableError,
    TieredSessionsError,
    TieredSessionService,
)
from tiered_sessions.codec import dumps, same_json

HALF = "\ud800"


@pytest.fixture
async def service(store_url: str) -> AsyncIterator[TieredSessionService]:
    async with TieredSessionService(store_url, cache="memory") as service:
        yield service


@pytest.fixture
def app() -> str:
    return f"app-{uuid4().hex[:12]}"


async def contents(service: TieredSessionService, app: str) -> list[tuple[Any, ...]]:
    """Returns everything stored for an app."""
    listed = await service.list_sessions(app)
    found: list[tuple[Any, ...]] = [(await service.get_user_state(app, "u"),)]
    for session in listed:
        whole = await service.get_session(app, session.user_id, session.id)
        assert whole is not None
        found.append((whole.id, whole.state, [event.model_dump() for event in whole.events], whole._tag))
    return found


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["sessions.db", "postgresql://u:hidden@h:x/d", "postgersql://u:hidden@h/d"])
def test_malformed_url(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        TieredSessionService(url, cache=None)
    assert "hidden" not in str(caught.value)


def replaced(url: str, user: str | None = None, database: str | None = None) -> str:
    parts = urlsplit(url)
    netloc = parts.netloc if user is None else f"{user}:hidden@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=netloc, path=parts.path if database is None else f"/{database}"))


@pytest.mark.parametrize("store_url", ["postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("change", [{"user": "nobody_of_ours"}, {"database": "no_database_of_ours"}])
async def test_server_refuses(store_url: str, change: dict[str, str]) -> None:
    async with TieredSessionService(replaced(store_url, **change), cache=None) as service:
        with pytest.raises(StoreUnavailableError) as caught:
            await service.create_session("app", "u")
    assert "hidden" not in str(caught.value)


async def test_nobody_listens() -> None:
    url = f"postgresql://u:hidden@127.0.0.1:{servers.free_port()}/d"
    async with TieredSessionService(url, cache=None) as service:
        with pytest.raises(StoreUnavailableError) as caught:
            await service.get_session("app", "u", "s")
    assert "hidden" not in str(caught.value)


# --- schemas -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns", ["id INTEGER PRIMARY KEY", "app_name TEXT, user_id TEXT, id TEXT, data BLOB"]
)
async def test_unknown_schema(tmp_path: Path, columns: str) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 's.db'}"
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text(f"CREATE TABLE sessions ({columns})"))

    async def schema() -> list[Any]:
        async with engine.connect() as connection:
            return list(await connection.execute(text("SELECT name, sql FROM sqlite_master ORDER BY name")))

    before = await schema()
    async with TieredSessionService(url, cache=None) as service:
        with pytest.raises(SchemaMismatchError):
            await service.create_session("app", "u")
    assert await schema() == before
    await engine.dispose()


async def test_missing_file_with_create_tables_off(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    async with TieredSessionService(f"sqlite:///{file}", cache=None, create_tables=False) as service:
        with pytest.raises(StoreUnavailableError, match="no such file"):
            await service.create_session("app", "u")
    assert not file.exists()


async def test_missing_tables_with_create_tables_off(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    file.touch()
    async with TieredSessionService(f"sqlite:///{file}", cache=None, create_tables=False) as service:
        with pytest.raises(SchemaMismatchError, match=r"create_tables|migrate"):
            await service.create_session("app", "u")


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["app_name", "user_id", "session_id", "event_id", "invocation_id"])
async def test_over_long_id(service: TieredSessionService, app: str, field: str) -> None:
    session = await service.create_session(app, "u", {"k": 1}, "s")
    before = await contents(service, app)
    long = "x" * (257 if field == "invocation_id" else 129)
    if field in ("event_id", "invocation_id"):
        event = Event(id=long) if field == "event_id" else Event(invocation_id=long)
        event.actions.state_delta = {"k": 2, "user:u": 1}
        with pytest.raises(InvalidValueError, match=r"128|256"):
            await service.append_event(session, event)
    else:
        key = {"app_name": app, "user_id": "u", "session_id": "t"} | {field: long}
        with pytest.raises(InvalidValueError, match="128"):
            await service.create_session(**key, state={"user:u": 1})
        # No row can have such an id.
        assert await service.get_session(**key) is None
        await service.delete_session(**key)
    assert await contents(service, app) == before


async def test_state_that_is_not_json(service: TieredSessionService, app: str) -> None:
    session = await service.create_session(app, "u")
    before = await contents(service, app)
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    for value in (cycle, b"\xff"):
        with pytest.raises(InvalidValueError):
            await service.create_session(app, "u", {"k": value, "user:u": 1})
        with pytest.raises(InvalidValueError):
            await service.append_event(session, Event(actions=EventActions(state_delta={"k": value})))
        with pytest.raises(InvalidValueError):
            await service.merge_state(session, {"k": value})
    with pytest.raises(InvalidValueError):
        await service.append_event(session, Event(content={"parts": [object()]}))
    with pytest.raises(InvalidValueError):
        await service.append_event(session, Event(timestamp=math.nan))
    assert await contents(service, app) == before
    assert session.events == []


@pytest.mark.parametrize("value", ["a\0b", HALF, math.nan, -math.inf, 2**70, -(2**70), 1e300, "\U0010ffff"])
async def test_value_survives_or_is_refused(
    service: TieredSessionService, app: str, store_url: str, value: Any
) -> None:
    session = await service.create_session(app, "u")
    delta = {"k": value, "user:u": [value], "app:a": {"x": value}}
    event = Event(content={"text": value}, actions=EventActions(state_delta=dict(delta)))
    before = await contents(service, app)
    refused = store_url.startswith("postgresql") and not (
        isinstance(value, int) or value in (1e300, "\U0010ffff")
    )
    if refused:
        with pytest.raises(InvalidValueError):
            await service.append_event(session, event)
        with pytest.raises(InvalidValueError):
            await service.create_session(app, "u", delta)
        assert await contents(service, app) == before
        return
    await service.append_event(session, event)
    created = await service.create_session(app, "u", delta)
    for cache in ("memory", None):
        async with TieredSessionService(store_url, cache=cache) as other:
            for session_id in (session.id, created.id):
                found = await other.get_session(app, "u", session_id)
                assert found is not None
                seen = {key: found.state[key] for key in delta}
                assert same_json(dumps(seen), dumps(delta))
    assert await service.get_session(app, "u", session.id) is not None


@pytest.mark.parametrize("field", ["session_id", "event_id"])
@pytest.mark.parametrize("value", ["a\0b", HALF])
async def test_id_survives_or_is_refused(
    service: TieredSessionService, app: str, field: str, value: str
) -> None:
    session = await service.create_session(app, "u", session_id="s")
    before = await contents(service, app)
    try:
        if field == "session_id":
            created = await service.create_session(app, "u", session_id=value)
            assert await service.get_session(app, "u", value) == created
        else:
            await service.append_event(session, Event(id=value))
            assert await service.get_session(app, "u", "s") == session
    except InvalidValueError:
        assert await contents(service, app) == before


# --- sessions and events -------------------------------------------------------------------------


async def test_duplicates_and_missing(service: TieredSessionService, app: str) -> None:
    session = await service.create_session(app, "u", {"k": 1}, "s")
    await service.append_event(session, Event(id="e", author="a"))
    before = await contents(service, app)
    with pytest.raises(SessionExistsError):
        await service.create_session(app, "u", {"user:u": 1}, "s")
    with pytest.raises(EventIdConflictError):
        await service.append_event(session, Event(id="e", author="b"))
    with pytest.raises(EventIdConflictError):
        await service.append_events(session, [Event(id="f", author="a"), Event(id="f", author="b")])
    missing = Session(id="missing", app_name=app, user_id="u")
    with pytest.raises(SessionNotFoundError):
        await service.append_event(missing, Event(actions=EventActions(state_delta={"app:a": 1})))
    with pytest.raises(SessionNotFoundError):
        await service.replace_state(missing, {"user:u": 1})
    assert await service.get_session(app, "u", "missing") is None
    await service.delete_session(app, "u", "missing")
    assert await contents(service, app) == before
    assert [event.id for event in session.events] == ["e"]


def test_negative_window() -> None:
    with pytest.raises(ValidationError):
        GetSessionConfig(num_recent_events=-1)


def test_errors_can_be_caught_as_stock_ones_are() -> None:
    for error in (ConfigurationError, SessionNotFoundError, EventIdConflictError, InvalidValueError):
        assert issubclass(error, ValueError)
    for error in (ConfigurationError, StoreError):
        assert issubclass(error, TieredSessionsError)
