"""Accepts, normalises and redacts the addresses of databases and caches."""

from __future__ import annotations

import difflib
import re
import ssl
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl, quote, unquote, urlencode
from uuid import uuid4

from .errors import ConfigurationError


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


@dataclass(slots=True)
class _Parts:
    scheme: str
    user: str | None
    password: str | None
    host: str
    port: str | None
    database: str | None
    query: list[tuple[str, str]] = field(default_factory=list)

    def pop(self, *names: str) -> str | None:
        """Takes the last value of a query parameter out, under any of its names."""
        values = [value for name, value in self.query if name in names]
        self.query = [(name, value) for name, value in self.query if name not in names]
        return values[-1] if values else None

    def render(self) -> str:
        user = "" if self.user is None else quote(self.user, safe="")
        if self.password is not None:
            user += ":" + quote(self.password, safe="")
        at = "@" if self.user is not None or self.password is not None else ""
        port = f":{self.port}" if self.port else ""
        path = "" if self.database is None else "/" + self.database
        query = "?" + urlencode(self.query, safe="/") if self.query else ""
        return f"{self.scheme}://{user}{at}{self.host}{port}{path}{query}"


# A raw @, / or ? in a password is ambiguous: the narrowest reading that parses whole wins, and where
# two do, the one that takes more for the password.
_USERS: Final = (
    *(rf"(?P<user>[^:/?@]*)(?::(?P<password>{secret}))?@" for secret in ("[^@/?]*", "[^@]*", "[^?]*", ".*")),
    "(?P<user>(?!))?(?P<password>(?!))?",
)
_SHAPES: Final = tuple(
    re.compile(
        rf"(?P<scheme>[A-Za-z][\w+.-]*)://{user}(?P<host>\[[^\]/?@]*\]|[^/?@]*?)(?P<port>:\d*)?"
        rf"(?:/(?P<database>{'[^?@]*' if user is not _USERS[-1] else '[^?]*'}))?"
        r"(?:\?(?P<query>(?:[\w.-]+=[^&]*&?)*))?",
        re.DOTALL,
    )
    for user in _USERS
)


def _parse(text: str) -> _Parts | None:
    for shape in _SHAPES:
        if match := shape.fullmatch(text.strip()):
            part = match.groupdict()
            return _Parts(
                part["scheme"].lower(),
                None if part["user"] is None else unquote(part["user"]),
                None if part["password"] is None else unquote(part["password"]),
                part["host"],
                (part["port"] or ":")[1:] or None,
                part["database"],
                parse_qsl(part["query"] or "", keep_blank_values=True),
            )
    return None


_HOST: Final = re.compile(r"\[[^\]]*\]|[^:,\s]*")
_EMBEDDED: Final = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+")


def redact(text: str) -> str:
    """Hides the password and every query value of a URL, or of each URL in a message."""
    if re.match(r"\s*[A-Za-z][\w+.-]*://", text):
        return _redacted(text)
    return _EMBEDDED.sub(lambda match: _redacted(match[0]), text)


def _redacted(text: str) -> str:
    parts = _parse(text)
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

_BOOLEANS: Final = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
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
    parts = _parse(text)
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
    options = _take_typed(parts, _ENGINE_OPTIONS)
    parts.pop("future")
    arguments: dict[str, Any] = {}
    memory = False
    parts.scheme = f"{dialect}+{driver}"
    match dialect:
        case "postgresql":
            _postgresql(parts, driver, arguments)
        case "mysql":
            _mysql(parts, arguments)
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


_KINDS: Final[dict[type, str]] = {int: "an integer", float: "a number", bool: "true or false"}


def _take_typed(parts: _Parts, types: dict[str, type]) -> dict[str, Any]:
    taken: dict[str, Any] = {}
    for name, kind in types.items():
        if (value := parts.pop(name)) is not None:
            try:
                taken[name] = _BOOLEANS[value.lower()] if kind is bool else kind(value)
            except (ValueError, KeyError):
                message = f"{name} in the database URL must be {_KINDS[kind]}"
                raise ConfigurationError(message) from None
    return taken


def _postgresql(parts: _Parts, driver: str, arguments: dict[str, Any]) -> None:
    if unquote(parts.host).startswith("/"):
        parts.query.append(("host", unquote(parts.host)))
        parts.host = ""
    socket = next((value for name, value in parts.query if name == "host" and value.startswith("/")), None)
    if socket:
        # SQLAlchemy splits a host of the query at its colons, and Cloud SQL's paths have some.
        arguments["host"] = parts.pop("host")
    if parts.pop("pgbouncer") in ("true", "1"):
        parts.query.append(("prepared_statement_cache_size", "0"))
    mode = _ssl_mode(parts.pop("sslmode", "ssl"))
    if driver == "psycopg":
        if mode:
            arguments["sslmode"] = mode
        if parts.pop("prepared_statement_cache_size") == "0":
            arguments["prepare_threshold"] = None
        arguments.update(_take_typed(parts, {"prepare_threshold": int}))
        return
    files = {name: parts.pop(name) for name in ("sslrootcert", "sslcert", "sslkey")}
    if any(files.values()):
        arguments["ssl"] = _ssl_context(
            mode or "prefer", files["sslrootcert"], files["sslcert"], files["sslkey"]
        )
    elif mode:
        arguments["ssl"] = mode
    if parts.pop("channel_binding") == "require":
        raise ConfigurationError(
            "asyncpg cannot do channel_binding=require: leave it out, or write postgresql+psycopg://"
        )
    settings = {}
    if name := parts.pop("application_name"):
        settings["application_name"] = name
    for setting in re.findall(r"(?:-c\s*|--)([\w.-]+=(?:\\.|[^\s\\])*)", parts.pop("options") or ""):
        key, _, value = setting.partition("=")
        settings[key.replace("-", "_")] = re.sub(r"\\(.)", r"\1", value)
    if settings:
        arguments["server_settings"] = settings
    timeout = parts.pop("connect_timeout")
    if timeout is not None:
        parts.query.append(("timeout", timeout))
    arguments.update(_take_typed(parts, _ASYNCPG_NUMBERS))
    if ("prepared_statement_cache_size", "0") in parts.query:
        # Behind a transaction pooler asyncpg's own cache and its numbered names collide as well.
        arguments.setdefault("statement_cache_size", 0)
        arguments["prepared_statement_name_func"] = _statement_name
    known = {"host", "port", "prepared_statement_cache_size", "target_session_attrs", "krbsrvname"}
    if unknown := sorted({name for name, _ in parts.query} - known):
        raise ConfigurationError(
            f"asyncpg does not know {', '.join(unknown)} in the database URL; "
            "leave it out, or write postgresql+psycopg://, which takes every parameter of libpq"
        )


_ASYNCPG_NUMBERS: Final[dict[str, type]] = {
    "timeout": float,
    "command_timeout": float,
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
}


def _statement_name() -> str:
    return f"tiered_sessions_{uuid4().hex}"


_SSL_MODES: Final = {
    **{name: name for name in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")},
    **{name: "require" if on else "disable" for name, on in _BOOLEANS.items()},
    "disabled": "disable",
    "preferred": "prefer",
    "required": "require",
    "verify_ca": "verify-ca",
    "verify_full": "verify-full",
    "verify_identity": "verify-full",
}


def _ssl_mode(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return _SSL_MODES[text.lower()]
    except KeyError:
        raise ConfigurationError(
            "sslmode in the database URL must be disable, allow, prefer, require, verify-ca or verify-full"
        ) from None


def _ssl_context(mode: str, root: str | None, cert: str | None, key: str | None) -> ssl.SSLContext | None:
    if mode == "disable":
        return None
    try:
        context = ssl.create_default_context(cafile=None if root == "system" else root)
        if cert:
            context.load_cert_chain(cert, key)
    except OSError as error:
        raise ConfigurationError(f"A certificate file of the database URL cannot be read: {error}") from error
    # As libpq: a root certificate that was given is always checked, the host's name only on demand.
    context.check_hostname = mode == "verify-full"
    if root is None and mode not in ("verify-ca", "verify-full"):
        context.verify_mode = ssl.CERT_NONE
    return context


def _mysql(parts: _Parts, arguments: dict[str, Any]) -> None:
    mode = _ssl_mode(parts.pop("ssl_mode", "ssl-mode", "sslmode", "ssl"))
    root, cert, key = (parts.pop(name) for name in ("ssl_ca", "ssl_cert", "ssl_key"))
    by_name = parts.pop("ssl_check_hostname", "ssl_verify_identity")
    if by_name is not None and _BOOLEANS.get(by_name.lower()):
        mode = "verify-full"
    if mode is None and (root or cert):
        mode = "require"
    # The drivers cannot fall back to plain text: "preferred" is what they do without a context.
    if mode in ("require", "verify-ca", "verify-full"):
        arguments["ssl"] = _ssl_context(mode, root, cert, key)
    if not any(name == "charset" for name, _ in parts.query):
        parts.query.append(("charset", "utf8mb4"))


def _sqlite(parts: _Parts, text: str) -> bool:
    if parts.host or parts.user is not None:
        raise ConfigurationError(f"{redact(text)} names a host, not a file; write {_EXAMPLES['sqlite']}")
    name = parts.database
    if not name or name == ":memory:":
        parts.database = ":memory:"
        return True
    return name.startswith("file:") and (":memory:" in name or ("mode", "memory") in parts.query)


_SPANNER: Final = re.compile(r"/?projects/[^/]+/instances/[^/]+/databases/[^/]+")


def _spanner(parts: _Parts, text: str) -> None:
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
    parts = _parse(text)
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
