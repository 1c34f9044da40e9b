"""Every error of the package. A class's docstring is its default message."""

from __future__ import annotations

import inspect


class TieredSessionsError(Exception):
    """tiered_sessions failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.getdoc(type(self)) or type(self).__name__)


class ConfigurationError(TieredSessionsError, ValueError):
    """The configuration is not usable."""


class StoreError(TieredSessionsError):
    """The database refused the operation."""


class StaleSessionError(StoreError, ValueError):
    """The session was changed since it was loaded; load it again, then append."""


class SessionNotFoundError(StoreError, ValueError):
    """The session does not exist."""


class SessionExistsError(StoreError):
    """A session with this id exists already."""


class EventIdConflictError(StoreError, ValueError):
    """An event with this id and other content is already stored in the session."""


class InvalidValueError(StoreError, ValueError):
    """The value cannot be stored in this database; nothing was written."""


class CommitOutcomeUnknownError(StoreError):
    """The connection was lost while committing: the write may or may not be stored.

    Append the same event again, with the same id: it is stored once, whatever happened before.
    """


class SchemaMismatchError(StoreError):
    """The database's schema is not one this version knows; nothing was changed."""


class UnknownPickleError(StoreError):
    """A pickled event of google-adk's V0 layout names a class that it cannot hold; it was not loaded."""


class StoreUnavailableError(StoreError):
    """The database cannot be reached; nothing was written."""


class PoolTimeoutError(StoreUnavailableError):
    """No database connection became free; raise pool_size, max_overflow or pool_timeout."""


class SharedEventChangedError(TieredSessionsError):
    """A caller changed an event that other readers are given too; found with `shared_events="check"`."""


class CacheError(TieredSessionsError):
    """The cache failed. Never leaves the tier: a cache fault costs time, not correctness (I7)."""
