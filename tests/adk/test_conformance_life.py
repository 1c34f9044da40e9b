"""Items 38-49 of the conformance list: lists, deletion, life cycle, construction, on stock and on ours."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest
from google.adk.sessions import DatabaseSessionService
from google.adk.sessions.base_session_service import BaseSessionService, ListSessionsResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.adk.conformance import Make, event, on_both, reload, texts
from tiered_sessions.adk import StaleSessionError, TieredSessionService

IMPLEMENTATIONS = {"stock": DatabaseSessionService, "ours": TieredSessionService}
constructors = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@on_both
async def test_item_38_39_40_list(service: Any, app: str) -> None:
    for user, id_ in (("u", "c"), ("v", "b"), ("u", "a"), ("u", "b")):
        state = {"id": id_, "user:u": user, "app:a": 1}
        session = await service.create_session(app_name=app, user_id=user, state=state, session_id=id_)
        await service.append_event(session, event(timestamp=1000.0 if id_ != "c" else 2000.0))
    listed = await service.list_sessions(app_name=app)
    assert isinstance(listed, ListSessionsResponse)
    assert [(s.user_id, s.id) for s in listed.sessions] == [("u", "a"), ("u", "b"), ("v", "b"), ("u", "c")]
    assert all(s.events == [] for s in listed.sessions)
    assert all(s._storage_update_marker for s in listed.sessions)
    assert listed.sessions[0].state == {"id": "a", "user:u": "u", "app:a": 1}
    assert listed.sessions[2].state == {"id": "b", "user:u": "v", "app:a": 1}
    assert listed.sessions[-1].last_update_time == 2000.0
    of_one = await service.list_sessions(app_name=app, user_id="u")
    assert [s.id for s in of_one.sessions] == ["a", "b", "c"]
    assert (await service.list_sessions(app_name=app, user_id="")).sessions == []
    assert (await service.list_sessions(app_name=app + "2")).sessions == []
    await service.append_event(listed.sessions[0], event("onto a listed session", timestamp=3000.0))
    assert len((await reload(service, listed.sessions[0])).events) == 2


@constructors
def test_item_41_list_has_no_paging(implementation: str) -> None:
    parameters = inspect.signature(IMPLEMENTATIONS[implementation].list_sessions).parameters
    assert set(parameters) == {"self", "app_name", "user_id"}
    assert set(ListSessionsResponse.model_fields) == {"sessions"}


@on_both
async def test_item_42_43_delete(make: Make, app: str) -> None:
    service, other = make(), make()
    state = {"k": 1, "user:u": 1, "app:a": 1}
    session = await service.create_session(app_name=app, user_id="u", state=state, session_id="s")
    await service.append_event(session, event(timestamp=1000.0))
    assert len((await reload(other, session)).events) == 1
    assert await service.delete_session(app, "u", "s") is None
    assert await service.delete_session(app_name=app, user_id="u", session_id="s") is None
    assert await other.get_session(app_name=app, user_id="u", session_id="s") is None
    assert (await other.list_sessions(app_name=app)).sessions == []
    again = await other.create_session(app_name=app, user_id="u", session_id="s")
    assert again.state == {"user:u": 1, "app:a": 1}
    for reader in (service, other):
        assert (await reload(reader, again)).events == []
    with pytest.raises(StaleSessionError):
        await service.append_event(session, event("of the deleted one"))


@on_both
async def test_item_44_user_state(service: Any, app: str) -> None:
    if not hasattr(BaseSessionService, "get_user_state") and isinstance(service, DatabaseSessionService):
        return
    assert await service.get_user_state(app_name=app, user_id="u") == {}
    await service.create_session(app_name=app, user_id="u", state={"user:a": [1], "app:b": 2, "c": 3})
    state = await service.get_user_state(app_name=app, user_id="u")
    state["a"].append(2)
    assert await service.get_user_state(app_name=app, user_id="u") == {"a": [1]}
    assert await service.get_user_state(app_name=app, user_id="v") == {}


@on_both
async def test_item_45_flush_is_there(service: Any, app: str) -> None:
    assert await service.flush() is None
    session = await service.create_session(app_name=app, user_id="u")
    await service.append_event(session, event("x"))
    assert await service.flush() is None
    assert texts(await reload(service, session)) == ["x"]


@on_both
async def test_item_46_close_leaves_a_given_engine_open(
    implementation: str, db_url: str, cache_address: str | None, app: str
) -> None:
    more = {"cache": cache_address} if implementation == "ours" else {}
    engine = create_async_engine(db_url)
    try:
        async with IMPLEMENTATIONS[implementation](db_engine=engine, **more) as service:
            assert service.db_engine is engine
            session = await service.create_session(app_name=app, user_id="u")
        pool = engine.pool
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        assert engine.pool is pool, "disposing replaces the pool"
        async with IMPLEMENTATIONS[implementation](db_engine=engine, **more) as service:
            assert await reload(service, session) == session
    finally:
        await engine.dispose()


@on_both
async def test_item_46_close_disposes_of_its_own_engine(make: Make, app: str) -> None:
    service = make()
    await service.create_session(app_name=app, user_id="u")
    pool = service.db_engine.pool
    await service.close()
    assert pool.checkedin() == 0
    await service.close()


@constructors
def test_item_47_exactly_one_database(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIERED_SESSIONS_DB_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    make: Any = IMPLEMENTATIONS[implementation]
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ValueError, match="db_url"):
        make()
    with pytest.raises(ValueError, match="db_url"):
        make("sqlite+aiosqlite://", engine)
    assert make(db_engine=engine).db_engine is engine


@constructors
@pytest.mark.parametrize(
    "url",
    [
        "no URL, pass: s3cret",
        "nonsense+driver://u:s3cret@h/d?password=s3cret",
        "postgresql+nosuchdriver://u:s3cret@h/d?password=s3cret",
    ],
)
def test_item_47_unusable_url_has_no_secret_in_its_error(implementation: str, url: str) -> None:
    make: Any = IMPLEMENTATIONS[implementation]
    with pytest.raises(ValueError, match=r".+") as raised:
        make(url)
    if url.startswith(("nonsense", "postgresql")):
        assert "s3cret" not in str(raised.value)


@pytest.mark.differs(
    stock="a synchronous driver, or none, is refused with the right spelling",
    ours="it is taken as the asynchronous driver of that database",
)
@constructors
@pytest.mark.parametrize("url", ["sqlite:///{}", "sqlite+pysqlite:///{}"])
async def test_item_47_synchronous_driver(implementation: str, url: str, tmp_path: Any, app: str) -> None:
    make: Any = IMPLEMENTATIONS[implementation]
    url = url.format(tmp_path / "sessions.db")
    if implementation == "stock":
        # Releases before 2.13 refuse it without a hint.
        with pytest.raises(ValueError, match=r"aiosqlite|database engine"):
            make(url)
        return
    async with make(url, cache=None) as service:
        session = await service.create_session(app_name=app, user_id="u")
        assert await reload(service, session) == session


@pytest.mark.differs(
    stock="refuses to be built without an argument",
    ours="takes the database that TIERED_SESSIONS_DB_URL or DATABASE_URL names",
)
@constructors
def test_item_47_database_of_the_environment(
    implementation: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path / 'd.db'}")
    monkeypatch.delenv("TIERED_SESSIONS_DB_URL", raising=False)
    make: Any = IMPLEMENTATIONS[implementation]
    if implementation == "stock":
        with pytest.raises(ValueError, match="db_url"):
            make()
        return
    assert str(tmp_path) in str(make(cache=None).db_engine.url)


@on_both
async def test_item_48_prepare_may_be_repeated(make: Make, app: str) -> None:
    services = [make() for _ in range(3)]
    for service in services:
        await service.prepare_tables()
    await services[0].prepare_tables()
    session = await services[0].create_session(app_name=app, user_id="u")
    await services[0].append_event(session, event("x"))
    assert texts(await reload(services[1], session)) == ["x"]


_WITHOUT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {absent!r} or name.startswith({absent!r} + "."):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def _last_line(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.differs(
    stock="without SQLAlchemy it imports, and is refused when built",
    ours="without google-adk the package imports, and tiered_sessions.adk names its extra",
)
@constructors
def test_item_49_missing_extra_is_named(implementation: str) -> None:
    if implementation == "stock":
        code = """
import google.adk.sessions
try:
    google.adk.sessions.DatabaseSessionService("sqlite+aiosqlite://")
except ImportError as error:
    print(error)
"""
        assert "google-adk[db]" in _last_line(_WITHOUT.format(absent="sqlalchemy") + code)
        return
    code = """
import tiered_sessions
tiered_sessions.TieredSessionService
try:
    import tiered_sessions.adk
except ImportError as error:
    print(error)
"""
    assert "tiered-sessions[adk]" in _last_line(_WITHOUT.format(absent="google") + code)


@pytest.mark.parametrize(
    "method",
    [
        name
        for name, _ in inspect.getmembers(DatabaseSessionService, inspect.iscoroutinefunction)
        if name[0] != "_"
    ],
)
def test_signatures_take_whatever_stock_takes(method: str) -> None:
    stock = inspect.signature(getattr(DatabaseSessionService, method)).parameters
    ours = inspect.signature(getattr(TieredSessionService, method)).parameters
    for name, parameter in stock.items():
        assert name in ours, f"{method}({name})"
        assert ours[name].default == parameter.default, f"{method}({name})"
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            assert ours[name].kind is parameter.kind
            assert list(ours).index(name) == list(stock).index(name)


def test_it_is_a_session_service_of_its_own() -> None:
    assert issubclass(TieredSessionService, BaseSessionService)
    assert not issubclass(TieredSessionService, DatabaseSessionService)
    code = """
import sys, tiered_sessions.adk
print("google.adk.sessions.database_session_service" in sys.modules)
"""
    assert _last_line(code) == "False"
