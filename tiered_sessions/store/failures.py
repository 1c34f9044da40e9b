"""Turns what drivers raise into this package's errors, and says what it means for a transaction."""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.exc import IntegrityError as SqlIntegrityError
from sqlalchemy.exc import TimeoutError as CheckoutTimeoutError

from ..errors import (
    CommitOutcomeUnknownError,
    InvalidValueError,
    PoolTimeoutError,
    SchemaMismatchError,
    StoreError,
    StoreUnavailableError,
)
from ..urls import redact

DRIVER_ERRORS: Final = (SQLAlchemyError, sqlite3.Error, OSError, TimeoutError, ValueError)
"""What a driver may raise. aiosqlite reports a closed connection by a ValueError."""

_CREATE_TABLES = "let the service make its tables (create_tables=True), or run: tiered-sessions migrate"

_RETRY_STATES = ("40001", "40P01")
_RETRY_NUMBERS = (1213, 1020, 3101)
_LOCK_STATES = ("55P03",)
_LOCK_NUMBERS = (1205, 3572)
_MISSING_NUMBERS = (1146, 1054)
_DENIED_NUMBERS = (1142, 1143, 1044, 1227)
_LOGIN_NUMBERS = (1045, 1049, 1698)
_VALUE_NUMBERS = (1366, 1406, 1264, 1267, 1292, 3140, 4025, 1153)
_PLACE_NUMBERS = (1290, 1836, 1040, 1203, 1041, 1021, 1114)


def is_bare(error: BaseException) -> bool:
    """Says whether it is asyncpg's own: SQLAlchemy 2.0 gives what connecting raises no name of its own."""
    # By the name, as asyncpg is imported by those only who use it.
    return type(error).__module__.startswith("asyncpg.")


def sqlstate(error: BaseException) -> str:
    """Finds PostgreSQL's code in a driver's error, empty if there is none."""
    original = getattr(error, "orig", error)
    return str(getattr(original, "sqlstate", None) or getattr(original, "pgcode", None) or "")


def number(error: BaseException) -> int:
    """Finds MySQL's number in a driver's error, 0 if there is none."""
    args = getattr(getattr(error, "orig", error), "args", ())
    return args[0] if args and isinstance(args[0], int) else 0


def is_duplicate(error: BaseException) -> bool:
    """Says whether a unique index refused a row."""
    if isinstance(error, sqlite3.IntegrityError):
        return error.sqlite_errorcode in (
            sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
            sqlite3.SQLITE_CONSTRAINT_UNIQUE,
        )
    if not isinstance(error, SqlIntegrityError):
        return False
    state, code = sqlstate(error), number(error)
    # Any other database tells a duplicate from a missing parent only in its message.
    return state == "23505" or code == 1062 or not (state or code)


def is_retryable(error: BaseException) -> bool:
    """Says whether the database rolled the transaction back to break a tie."""
    return sqlstate(error) in _RETRY_STATES or number(error) in _RETRY_NUMBERS


def is_disconnect(error: BaseException) -> bool:
    """Says whether the connection is gone, so that nothing is known of what it was doing."""
    if isinstance(error, DBAPIError):
        return bool(error.connection_invalidated) or sqlstate(error).startswith(("08", "57P"))
    return isinstance(error, (OSError, TimeoutError))


def is_timeout(error: BaseException) -> bool:
    """Says whether the server stopped a statement that ran too long."""
    return sqlstate(error) == "57014"


def unknown(error: BaseException) -> CommitOutcomeUnknownError:
    """Makes the error for a write whose connection broke."""
    made = CommitOutcomeUnknownError()
    made.__cause__ = error
    return made


def mapped(error: BaseException) -> StoreError:
    """Makes this package's error of a driver's; no password and no payload is in its text."""
    if isinstance(error, StoreError):
        return error
    made = _mapped(error)
    made.__cause__ = error
    return made


def _mapped(error: BaseException) -> StoreError:
    if isinstance(error, CheckoutTimeoutError):
        return PoolTimeoutError()
    original = getattr(error, "orig", None) or error
    if isinstance(original, sqlite3.Error):
        return _of_sqlite(original)
    text = redact(str(original).split("\n", 1)[0])[:300]
    state, code = sqlstate(error), number(error)
    if state in _LOCK_STATES or code in _LOCK_NUMBERS:
        return StoreUnavailableError("Another connection holds a lock on the session; nothing was written")
    if is_timeout(error):
        return StoreUnavailableError("The statement took longer than statement_timeout; nothing was written")
    if state in _RETRY_STATES or code in _RETRY_NUMBERS:
        return StoreUnavailableError("Other transactions kept coming between; nothing was written")
    if state in ("42P01", "42703", "3F000") or code in _MISSING_NUMBERS:
        return SchemaMismatchError(f"A table or column is missing ({text}): {_CREATE_TABLES}")
    if state in ("28P01", "28000", "3D000") or code in _LOGIN_NUMBERS:
        return StoreUnavailableError(f"The database refused the connection: {text}")
    if state == "42501" or code in _DENIED_NUMBERS:
        return StoreError(f"The database user may not do this: {text}")
    if state[:2] in ("22", "54") or code in _VALUE_NUMBERS:
        return InvalidValueError(
            f"The database cannot store the value ({state or code}); nothing was written"
        )
    if state[:2] in ("08", "53", "57", "25") or code in _PLACE_NUMBERS or 2000 <= code < 3000:
        return StoreUnavailableError(f"The database cannot be used now: {text}")
    if is_disconnect(error) or not isinstance(error, SQLAlchemyError):
        return StoreUnavailableError(f"The database cannot be reached: {text or type(error).__name__}")
    if isinstance(error, DBAPIError):
        name = type(error).__name__
        if name in ("OperationalError", "InterfaceError"):
            return StoreUnavailableError(f"The database cannot be used now: {text}")
        return StoreError(f"The database refused the statement: {text}")
    if isinstance(error, InvalidRequestError):
        return StoreUnavailableError("The connection was closed")
    return StoreError(f"The database refused the operation: {type(error).__name__}")


def _of_sqlite(error: sqlite3.Error) -> StoreError:
    text = str(error)
    code = getattr(error, "sqlite_errorcode", None) or 0
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnavailableError("Another connection holds the database's lock; nothing was written")
    if "no such table" in text or "no such column" in text or "has no column" in text:
        return SchemaMismatchError(f"{text}: {_CREATE_TABLES}")
    if code & 0xFF in (sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH):
        return InvalidValueError(f"SQLite cannot store the value; nothing was written ({text})")
    if isinstance(error, (sqlite3.OperationalError, sqlite3.ProgrammingError, sqlite3.DatabaseError)):
        return StoreUnavailableError(f"The database file cannot be used: {text}")
    return StoreError(f"SQLite refused the operation: {text}")
