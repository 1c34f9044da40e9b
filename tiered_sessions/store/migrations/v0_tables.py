"""The tables of an upgrade from google-adk's V0 layout."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    ForeignKeyConstraint,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeEngine

from ...errors import SchemaMismatchError
from ..schema import JsonText, events, sessions
from .catalog import ADDED, Shape
from .v0_events import DOCUMENTS, FLAGS, TEXTS

KEPT_SESSIONS: Final = "tiered_sessions_v0_sessions"
KEPT_EVENTS: Final = "tiered_sessions_v0_events"
"""What the old tables are called after an upgrade in place."""

_KEYS: Final = ("id", "app_name", "user_id", "session_id")
_OTHERS: Final[dict[str, TypeEngine[Any]]] = {
    "invocation_id": String(256),
    "timestamp": DateTime(),
    "actions": LargeBinary(),
    "long_running_tool_ids_json": Text(),
    **dict.fromkeys(TEXTS, Text()),
    **dict.fromkeys(FLAGS, Boolean()),
    **dict.fromkeys(DOCUMENTS, JsonText()),
}
_FIRST: Final = frozenset({*_KEYS, "invocation_id", "timestamp", "actions", "author", "content"})
"""The columns that every release with V0 has made."""

_new = MetaData()


def _beside(table: Table) -> Table:
    return Table(
        f"tiered_sessions_v1_{table.name}",
        _new,
        *(Column(c.name, c.type, primary_key=c.primary_key, nullable=c.nullable) for c in table.columns),
        **table.dialect_kwargs,
    )


new_sessions: Final = _beside(sessions)
new_events: Final = _beside(events)
new_events.append_constraint(
    ForeignKeyConstraint(
        ["app_name", "user_id", "session_id"],
        [new_sessions.c.app_name, new_sessions.c.user_id, new_sessions.c.id],
        ondelete="CASCADE",
    )
)


def is_v0(shape: Shape) -> bool:
    """Says whether the database holds google-adk's V0 layout."""
    return shape.lacks_column("events", "event_data") and not shape.lacks_column("events", "actions")


def old_events(columns: Collection[str], name: str = "events") -> Table:
    """Describes a V0 `events` table with those columns.

    Raises:
        SchemaMismatchError: There is a column that no release has made: it would be lost.
    """
    unknown = sorted(set(columns) - set(_KEYS) - set(_OTHERS))
    missing = sorted(_FIRST - set(columns))
    if unknown or missing:
        what = f"lacks {', '.join(missing)}" if missing else f"has columns of others: {', '.join(unknown)}"
        raise SchemaMismatchError(f"The table {name} is not google-adk's: it {what}. Nothing was changed.")
    return Table(
        name,
        MetaData(),
        *(Column(key, String(128), primary_key=True) for key in _KEYS),
        *(Column(other, type_) for other, type_ in _OTHERS.items() if other in columns),
    )


def old_state(table: Table, name: str | None = None) -> Table:
    """Describes the V0 table of sessions or of states, which has the columns of V1 and none of ours."""
    ours = ADDED[table.name]
    return Table(
        name or table.name,
        MetaData(),
        *(Column(c.name, c.type, primary_key=c.primary_key) for c in table.columns if c.name not in ours),
    )
