"""Fixtures shared by every suite, and the rule that a skip never goes unseen."""

from __future__ import annotations

import asyncio
import os
import tracemalloc  # noqa: F401  pytest imports it when it hears of a lost object, in whatever thread that is
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import hypothesis
import pytest

from tests import servers

hypothesis.settings.register_profile("suite", deadline=None, print_blob=True)
hypothesis.settings.load_profile("suite")

SKIPS = Path(__file__).with_name("skips.txt")
SERVER_FIXTURES = {"postgresql_url", "mysql_url", "redis_url", "redis_namespace"}
SERVER_PARAMETERS = {"postgresql", "mariadb", "mysql", "redis"}


# -- the event loop -------------------------------------------------------------------------------

if os.environ.get("TIERED_SESSIONS_TEST_LOOP") == "uvloop":

    def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
        """Runs tests that are coroutines on uvloop, as uvicorn runs servers where it is installed."""
        import uvloop

        return {"uvloop": uvloop.new_event_loop}


# -- databases ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    """SQLAlchemy URL (asyncpg) of an empty PostgreSQL database, made for the test module."""
    with servers.postgresql_database() as url:
        yield url


@pytest.fixture(scope="module")
def mysql_url() -> Iterator[str]:
    """SQLAlchemy URL (aiomysql) of an empty MariaDB or MySQL database, made for the test module."""
    with servers.mariadb_database() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """SQLAlchemy URL (aiosqlite) of a file that does not exist yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'sessions.db'}"


@pytest.fixture(params=servers.STORES)
def store_url(request: pytest.FixtureRequest) -> str:
    """SQLAlchemy URL of a database; runs the test once for each name in `servers.STORES`.

    PostgreSQL and MariaDB databases are shared by the tests of a module: use ids of your own.
    Restrict with `@pytest.mark.parametrize("store_url", ["sqlite", ...], indirect=True)`.
    """
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgresql_url", "mariadb": "mysql_url"}[request.param]
    return str(request.getfixturevalue(fixture))


# -- caches ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def redis_url() -> str:
    """URL of a shared Redis: use keys of `redis_namespace` only, never flush it."""
    return servers.server_url("redis")


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """URL of a Valkey server of this test run's own."""
    with servers.start_valkey() as server:
        yield server.url


@pytest.fixture
def redis_namespace(redis_url: str) -> Iterator[str]:
    """A key namespace nobody else uses; its keys are removed afterwards."""
    with servers.namespace(redis_url) as name:
        yield name


@pytest.fixture(params=servers.CACHES)
def cache(request: pytest.FixtureRequest) -> object:
    """What to cache in; runs the test once for each name in `servers.CACHES`.

    None (no cache), "memory", a `redis://` URL (redis, valkey), or a fakeredis client. Databases
    differ from test to test, and so do the namespaces derived from them, so keys never meet.
    Restrict with `@pytest.mark.parametrize("cache", ["none", ...], indirect=True)`.
    """
    if request.param in ("redis", "valkey"):
        return str(request.getfixturevalue(f"{request.param}_url"))
    if request.param == "fakeredis":
        import fakeredis

        return fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer())
    return "memory" if request.param == "memory" else None


# -- markers and skips ----------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks with `server` the tests that need a server outside the test process."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        parameters = getattr(item, "callspec", None)
        values = {v for v in parameters.params.values() if isinstance(v, str)} if parameters else set()
        # Such as "postgresql", or "postgresql-psycopg"; an address is not of such parts.
        parts = {part for value in values for part in value.split("-")}
        if names & SERVER_FIXTURES or parts & SERVER_PARAMETERS:
            item.add_marker("server")


def expected_skips() -> list[str]:
    """Returns the patterns of skip reasons the project has agreed to."""
    lines = (line.strip() for line in SKIPS.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Returns why a test or a module was skipped."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


class SkipWatch:
    """Collects every skip and, in CI, fails the run on a reason that is not in skips.txt."""

    def __init__(self) -> None:
        self.unexpected: set[str] = set()
        self.strict = bool(os.environ.get("CI") or servers.required())
        self.patterns = expected_skips()

    def seen(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = skip_reason(report)
        if not any(fnmatchcase(reason, pattern) for pattern in self.patterns):
            self.unexpected.add(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seen(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.seen(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.strict and self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.strict and self.unexpected:
            terminalreporter.section("skips that are not in tests/skips.txt", red=True)
            for line in sorted(self.unexpected):
                terminalreporter.line(line, red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Watches skips in the process that reports (with xdist: the controller)."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipWatch(), "tiered-sessions-skips")
