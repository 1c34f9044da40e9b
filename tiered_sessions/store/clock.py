"""The database's clock, the only one that decides whether a session has expired."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import DateTime, or_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

from .schema import sessions
from .values import to_micros, to_time


class UtcNow(FunctionElement[datetime]):
    """The database's time as our columns hold it: UTC, without a zone."""

    type = DateTime()
    inherit_cache = True


# At the start of the statement. A transaction may have begun long before.
POSTGRESQL_NOW: Final = "timezone('UTC', statement_timestamp())"
MYSQL_NOW: Final = "UTC_TIMESTAMP(6)"
# Milliseconds are all it knows; six digits, because times are compared as text.
SQLITE_NOW: Final = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(UtcNow)  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
def _standard(element: UtcNow, compiler: SQLCompiler, **_: Any) -> str:
    return "CURRENT_TIMESTAMP"


@compiles(UtcNow, "postgresql")  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
def _postgresql(element: UtcNow, compiler: SQLCompiler, **_: Any) -> str:
    return POSTGRESQL_NOW


@compiles(UtcNow, "mysql", "mariadb")  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
def _mysql(element: UtcNow, compiler: SQLCompiler, **_: Any) -> str:
    return MYSQL_NOW


@compiles(UtcNow, "sqlite")  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
def _sqlite(element: UtcNow, compiler: SQLCompiler, **_: Any) -> str:
    return SQLITE_NOW


@compiles(UtcNow, "mssql")  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
def _mssql(element: UtcNow, compiler: SQLCompiler, **_: Any) -> str:
    return "SYSUTCDATETIME()"


@compiles(UtcNow, "oracle")  # type: ignore[no-untyped-call,untyped-decorator,unused-ignore]
def _oracle(element: UtcNow, compiler: SQLCompiler, **_: Any) -> str:
    return "SYS_EXTRACT_UTC(SYSTIMESTAMP)"


ALIVE: Final = or_(sessions.c.expires_at.is_(None), sessions.c.expires_at > UtcNow())
EXPIRED: Final = sessions.c.expires_at <= UtcNow()


def remaining(expires_at: datetime | str | None, now: datetime | str) -> int | None:
    """Returns the whole milliseconds left, 0 or less: expired; None: it never does."""
    return None if expires_at is None else (to_micros(expires_at) - to_micros(now)) // 1000


def after(now: datetime | str, ttl: int) -> datetime:
    """Returns the time `ttl` milliseconds later."""
    return to_time(to_micros(now) + ttl * 1000)
