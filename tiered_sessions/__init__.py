"""Agents' sessions in two tiers: SQL is the record, Redis the copy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import TieredConfig
    from .errors import (
        CacheError,
        CommitOutcomeUnknownError,
        ConfigurationError,
        EventIdConflictError,
        InvalidValueError,
        PoolTimeoutError,
        SchemaMismatchError,
        SessionExistsError,
        SessionNotFoundError,
        SharedEventChangedError,
        StaleSessionError,
        StoreError,
        StoreUnavailableError,
        TieredSessionsError,
        UnknownPickleError,
    )
    from .metrics import Metrics, NullMetrics
    from .models import Event, EventActions, GetSessionConfig, ListSessionsResponse, Session
    from .service import TieredSessionService

__version__ = "0.1.0"

_HOMES = {
    "config": ("TieredConfig",),
    "errors": (
        "CacheError",
        "CommitOutcomeUnknownError",
        "ConfigurationError",
        "EventIdConflictError",
        "InvalidValueError",
        "PoolTimeoutError",
        "SchemaMismatchError",
        "SessionExistsError",
        "SessionNotFoundError",
        "SharedEventChangedError",
        "StaleSessionError",
        "StoreError",
        "StoreUnavailableError",
        "TieredSessionsError",
        "UnknownPickleError",
    ),
    "metrics": ("Metrics", "NullMetrics"),
    "models": ("Event", "EventActions", "GetSessionConfig", "ListSessionsResponse", "Session"),
    "service": ("TieredSessionService",),
}
_NAMES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 (the front door first)
    "TieredSessionService",
    "Session",
    "Event",
    "EventActions",
    "GetSessionConfig",
    "ListSessionsResponse",
    "TieredConfig",
    "Metrics",
    "NullMetrics",
    "TieredSessionsError",
    "UnknownPickleError",
    "ConfigurationError",
    "StoreError",
    "StaleSessionError",
    "SessionNotFoundError",
    "SessionExistsError",
    "EventIdConflictError",
    "InvalidValueError",
    "CommitOutcomeUnknownError",
    "SchemaMismatchError",
    "StoreUnavailableError",
    "PoolTimeoutError",
    "SharedEventChangedError",
    "CacheError",
]


def __getattr__(name: str) -> Any:
    # SQLAlchemy alone takes a third of a second to import; a command line must not pay for it.
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_NAMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
