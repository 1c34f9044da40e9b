"""Accepts, normalises and redacts the addresses of databases and caches."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import quote

from .driver_parameters import add_mysql, add_postgresql
from .errors import ConfigurationError
from .url_parts import Parts, parse, take_typed


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A database address in SQLAlchemy's spelling.

    Attributes:
        url: For `create_async_engine`; says nothing that `connect_args` and `engine_options` say.
        connect_args: What the driver takes but its URL cannot say (TLS contexts, socket paths).
        engine_options: Pool options that stood in the URL, typed.
        dialect: `postgresql`, `mysql` (MariaDB too), `sqlite`, `oracle`, `mssql`, `spanner`, or as given.
        driver: The asynchronous driver.
        memory: Whether the database lives and dies with this process.
    """

    url: str
    connect_args: dict[str, Any]
    engine_options: dict[str, Any]
    dialect: str
    driver: str
    memory: bool = False


_HOST: Final = re.compile(r"\[[^\]]*\]|[^:,\s]*")
_EMBEDDED: Final = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+")


def redact(text: str) -> str:
    """Hides the password and every query value of a URL, or of each URL in a message."""
    if re.match(r"\s*[A-Za-z][\w+.-]*://", text):
        return _redacted(text)
    return _EMBEDDED.sub(lambda match: _redacted(match[0]), text)


def _redacted(text: str) -> str:
    parts = parse(text)
    if parts is None:
        return text.partition("://")[0].strip() + "://***"
    query, parts.query = [name for name, _ in parts.query], []
    secret = parts.password is not None
    parts.password = None
    shown = parts.render()
    if secret:
        shown = shown.replace("@", ":***@", 1)
    return shown + ("?" + "&".join(f"{quote(name)}=***" for name in query) if query else "")


# --- databases --------------------------------------------------------------------------------

_DIALECTS: Final = {
    "postgres": "postgresql",
    "postgresql": "postgresql",
    "mysql": "mysql",
    "mariadb": "mysql",
    "sqlite": "sqlite",
    "oracle": "oracle",
    "mssql": "mssql",
    "spanner": "spanner",
}

# The first is the default; the values are what SQLAlchemy calls the asynchronous one.
_DRIVERS: Final[dict[str, dict[str, str]]] = {
    "postgresql": {
        "asyncpg": "asyncpg",
        "psycopg": "psycopg",
        "psycopg_async": "psycopg",
        "psycopg2": "asyncpg",
        "psycopg2cffi": "asyncpg",
        "pg8000": "asyncpg",
    },
    "mysql": {
        "aiomysql": "aiomysql",
        "asyncmy": "asyncmy",
        "pymysql": "aiomysql",
        "mysqldb": "aiomysql",
        "mysqlconnector": "aiomysql",
        "mariadbconnector": "aiomysql",
    },
    "sqlite": {"aiosqlite": "aiosqlite", "pysqlite": "aiosqlite"},
    "oracle": {"oracledb": "oracledb", "oracledb_async": "oracledb", "cx_oracle": "oracledb"},
    "mssql": {"aioodbc": "aioodbc", "pyodbc": "aioodbc"},
    "spanner": {"spanner": "spanner"},
}

_EXAMPLES: Final = {
    "postgresql": "postgresql://user:password@host:5432/database",
    "mysql": "mysql://user:password@host:3306/database",
    "sqlite": "sqlite:///relative.db, sqlite:////absolute.db or sqlite:///:memory:",
    "oracle": "oracle+oracledb://user:password@host:1521/?service_name=name",
    "mssql": "mssql+aioodbc://user:password@host:1433/database?driver=ODBC+Driver+18+for+SQL+Server",
    "spanner": "spanner+spanner:///projects/p/instances/i/databases/d",
}

_PACKAGES: Final = {
    "asyncpg": ("asyncpg", None),
    "psycopg": ("psycopg[binary]", "psycopg"),
    "aiosqlite": ("aiosqlite", None),
    "aiomysql": ("aiomysql", "mysql"),
    "asyncmy": ("asyncmy", None),
    "spanner": ("sqlalchemy-spanner", None),
    "oracledb": ("oracledb", None),
    "aioodbc": ("aioodbc", None),
}

_ENGINE_OPTIONS: Final[dict[str, type]] = {
    "pool_size": int,
    "max_overflow": int,
    "pool_timeout": float,
    "pool_recycle": int,
    "pool_pre_ping": bool,
    "pool_use_lifo": bool,
    "echo": bool,
}


def database_schemes() -> tuple[str, ...]:
    """Returns every spelling of a database URL's scheme that `normalise_database_url` knows by name."""
    return tuple(
        spelling
        for name, dialect in _DIALECTS.items()
        for spelling in (name, *(f"{name}+{driver}" for driver in _DRIVERS[dialect]))
    )


def missing_driver_error(driver: str) -> ConfigurationError:
    """Makes the error for a driver that is not installed: it names the package to install."""
    package, extra = _PACKAGES.get(driver, (driver, None))
    also = f" (or: pip install 'tiered-sessions[{extra}]')" if extra else ""
    return ConfigurationError(f"The database driver {driver} is not installed: pip install '{package}'{also}")


def normalise_database_url(text: str) -> DatabaseUrl:
    """Reads a database address in any spelling docs/urls.md lists.

    Raises:
        ConfigurationError: It is malformed or unknown; the message has the right spelling, and no secret.
    """
    parts = parse(text)
    if parts is None or not _HOST.fullmatch(parts.host):
        _refuse_shape(text)
    name, plus, driver = parts.scheme.partition("+")
    dialect = _DIALECTS.get(name, name)
    if dialect not in _DRIVERS:
        _check_foreign(name, driver, text)
    else:
        if plus and driver not in _DRIVERS[dialect]:
            known = ", ".join(f"{dialect}+{d}" for d in dict.fromkeys(_DRIVERS[dialect].values()))
            raise ConfigurationError(f"Unknown driver in {redact(text)}; known are {known}")
        driver = _DRIVERS[dialect][driver] if plus else next(iter(_DRIVERS[dialect]))
    options = take_typed(parts, _ENGINE_OPTIONS)
    parts.pop("future")
    arguments: dict[str, Any] = {}
    memory = False
    parts.scheme = f"{dialect}+{driver}"
    match dialect:
        case "postgresql":
            add_postgresql(parts, driver, arguments)
        case "mysql":
            add_mysql(parts, arguments)
        case "sqlite":
            memory = _sqlite(parts, text)
        case "spanner":
            _spanner(parts, text)
    return DatabaseUrl(parts.render(), arguments, options, dialect, driver, memory)


def _refuse_shape(text: str) -> NoReturn:
    # The text may be a path or a key=value string with a password in it: it is not repeated.
    if "://" in text:
        raise ConfigurationError(
            f"Malformed database URL {redact(text)}: write dialect://user:password@host:port/database, with "
            "one host, a numeric port, and any of @ : / ? # % in the password percent-encoded"
        )
    raise ConfigurationError(
        f"The database URL has no scheme; write {_EXAMPLES['postgresql']}, {_EXAMPLES['mysql']}, "
        f"or for a file {_EXAMPLES['sqlite']}"
    )


def _check_foreign(name: str, driver: str, text: str) -> None:
    if name in ("redis", "rediss", "valkey", "valkeys", "unix", "memory"):
        raise ConfigurationError(f"{redact(text)} is the address of a cache: pass it as cache=")
    near = difflib.get_close_matches(name, [*_DIALECTS, "sqlserver"], n=1, cutoff=0.7)
    if near:
        dialect = _DIALECTS.get(near[0], "mssql")
        raise ConfigurationError(f"Unknown database {name!r}; did you mean {_EXAMPLES[dialect]}?")
    # Any other SQLAlchemy dialect works if its driver is asynchronous, and only its user knows which is.
    if not driver:
        raise ConfigurationError(
            f"Unknown database {name!r}; known are {', '.join(_DRIVERS)}; "
            f"for another SQLAlchemy dialect name its asynchronous driver: {name}+driver://..."
        )


def _sqlite(parts: Parts, text: str) -> bool:
    if parts.host or parts.user is not None:
        raise ConfigurationError(f"{redact(text)} names a host, not a file; write {_EXAMPLES['sqlite']}")
    name = parts.database
    if not name or name == ":memory:":
        parts.database = ":memory:"
        return True
    return name.startswith("file:") and (":memory:" in name or ("mode", "memory") in parts.query)


_SPANNER: Final = re.compile(r"/?projects/[^/]+/instances/[^/]+/databases/[^/]+")


def _spanner(parts: Parts, text: str) -> None:
    path = f"{parts.host}/{parts.database or ''}".lstrip("/")
    if not _SPANNER.fullmatch(path):
        raise ConfigurationError(f"Malformed Spanner URL {redact(text)}; write {_EXAMPLES['spanner']}")
    parts.host, parts.database = "", path


# --- caches -----------------------------------------------------------------------------------

_CACHES: Final = {
    **{scheme: scheme for scheme in ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")},
    **{scheme: scheme for scheme in ("redis+sentinel", "rediss+sentinel")},
    "valkey": "redis",
    "valkeys": "rediss",
    "valkey+cluster": "redis+cluster",
    "valkeys+cluster": "rediss+cluster",
    "valkey+sentinel": "redis+sentinel",
    "valkeys+sentinel": "rediss+sentinel",
}

_CACHE_EXAMPLES: Final = (
    "redis://:password@host:6379/0, rediss:// for TLS, unix:///path/to/socket?db=0, "
    "redis+cluster://host:6379, redis+sentinel://host:26379,host:26379/service/0"
)


def normalise_cache_url(text: str) -> str:
    """Reads the address of a Redis or Valkey server; returns it with user and password encoded.

    Raises:
        ConfigurationError: It is malformed or unknown; the message has the right spelling, and no secret.
    """
    parts = parse(text)
    if parts is None:
        shown = redact(text) if "://" in text else "without a scheme"
        raise ConfigurationError(f"Malformed cache URL {shown}; write {_CACHE_EXAMPLES}")
    if parts.scheme not in _CACHES:
        if parts.scheme.partition("+")[0] in _DIALECTS:
            raise ConfigurationError(f"{redact(text)} is the address of a database: pass it as db_url=")
        raise ConfigurationError(f"{redact(text)} is not the address of a cache; write {_CACHE_EXAMPLES}")
    parts.scheme = _CACHES[parts.scheme]
    host, path = parts.host, (parts.database or "").strip("/")
    if parts.scheme == "unix":
        right = not host and bool(path)
    elif parts.scheme.endswith("+sentinel"):
        right = re.fullmatch(r"[^/]+(/\d+)?", path) is not None
    else:
        if parts.scheme.endswith("+cluster"):
            # The port of the last one is apart.
            *others, host = host.split(",")
            hosts = [*(re.sub(r":\d+$", "", other) for other in others), host]
        else:
            hosts = [host]
        right = all(map(_HOST.fullmatch, hosts)) and re.fullmatch(r"\d*", path) is not None
    if not right:
        raise ConfigurationError(f"Malformed cache URL {redact(text)}; write {_CACHE_EXAMPLES}")
    return parts.render()
