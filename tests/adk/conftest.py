"""Tests of this folder run google-adk in the test's own process: without it each module is one skip."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import servers


class _Absent(pytest.Module):
    """Stands for a test module that cannot be imported without what it tests."""

    needs: str

    def collect(self) -> Iterator[Any]:
        reason = f"adk: {self.needs} is not installed beside the package"
        if "adk" in servers.required():
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    needs = {"google.adk": "google-adk"}
    if module_path.name == "test_a2a.py":
        needs["a2a"] = "google-adk[a2a]"
    for module, package in needs.items():
        if not _has(module):
            absent: _Absent = _Absent.from_parent(parent, path=module_path)
            absent.needs = package
            return absent
    return None


# --- the services that the conformance tests compare -------------------------------------------


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], str]]:
    """Makes a database of the test module's own for each implementation and kind of server."""
    with contextlib.ExitStack() as stack:
        made: dict[tuple[str, str], str] = {}

        def of(implementation: str, store: str) -> str:
            if (implementation, store) not in made:
                if store == "sqlite":
                    path = tmp_path_factory.mktemp(implementation) / "sessions.db"
                    url = f"sqlite+aiosqlite:///{path}"
                else:
                    kind = servers.postgresql_database if store == "postgresql" else servers.mariadb_database
                    url = stack.enter_context(kind())
                made[implementation, store] = url
            return made[implementation, store]

        yield of


@pytest.fixture
def db_url(implementation: str, store: str, database: Callable[[str, str], str]) -> str:
    """Address of the database of this implementation."""
    return database(implementation, store)


@pytest.fixture
def cache_address(cache_name: str, request: pytest.FixtureRequest) -> str | None:
    """What ours caches in."""
    if cache_name == "redis":
        return str(request.getfixturevalue("redis_url"))
    return None if cache_name == "none" else cache_name


@pytest.fixture
async def make(
    implementation: str, cache_address: str | None, db_url: str
) -> AsyncIterator[Callable[..., Any]]:
    """Makes services over one database and one cache, as processes of a fleet would; closes them."""
    from google.adk.sessions import DatabaseSessionService

    from tiered_sessions import TieredConfig
    from tiered_sessions.adk import TieredSessionService

    async with contextlib.AsyncExitStack() as stack:

        def one(**options: Any) -> Any:
            if implementation == "stock":
                service: Any = DatabaseSessionService(db_url, **options)
            else:
                options = {"config": TieredConfig(shared_events="check"), **options}
                service = TieredSessionService(db_url, cache=cache_address, **options)
            stack.push_async_callback(service.close)
            return service

        yield one


@pytest.fixture
def service(make: Callable[..., Any]) -> Any:
    """One service."""
    return make()


@pytest.fixture
def app() -> str:
    """An app name that no other test uses."""
    return f"app-{uuid4().hex[:12]}"
