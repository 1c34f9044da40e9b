"""What the parameters of a database URL mean to its driver: TLS, sockets, time-outs, statement caches."""

from __future__ import annotations

import re
import ssl
from typing import Any, Final
from urllib.parse import unquote
from uuid import uuid4

from .errors import ConfigurationError
from .url_parts import BOOLEANS, Parts, take_typed


def add_postgresql(parts: Parts, driver: str, arguments: dict[str, Any]) -> None:
    """Moves into `arguments` what the driver takes but a URL of its own cannot say."""
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
        arguments.update(take_typed(parts, {"prepare_threshold": int}))
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
    arguments.update(take_typed(parts, _ASYNCPG_NUMBERS))
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
    **{name: "require" if on else "disable" for name, on in BOOLEANS.items()},
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


def add_mysql(parts: Parts, arguments: dict[str, Any]) -> None:
    """Moves TLS settings into `arguments`, and has the connection speak all of Unicode."""
    mode = _ssl_mode(parts.pop("ssl_mode", "ssl-mode", "sslmode", "ssl"))
    root, cert, key = (parts.pop(name) for name in ("ssl_ca", "ssl_cert", "ssl_key"))
    by_name = parts.pop("ssl_check_hostname", "ssl_verify_identity")
    if by_name is not None and BOOLEANS.get(by_name.lower()):
        mode = "verify-full"
    if mode is None and (root or cert):
        mode = "require"
    # The drivers cannot fall back to plain text: "preferred" is what they do without a context.
    if mode in ("require", "verify-ca", "verify-full"):
        arguments["ssl"] = _ssl_context(mode, root, cert, key)
    if not any(name == "charset" for name, _ in parts.query):
        parts.query.append(("charset", "utf8mb4"))
