"""Schema 1: ADK's V1 layout with tags, event numbers, the outbox and the cache namespace."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import insert

from .. import schema
from .catalog import ADDED, narrow_columns
from .steps import Step, add_column, create_index, create_table, insert_name, random_hex
from .widen import widen_columns

VERSION = 1

STEPS: Sequence[Step] = (
    # First, as a mark that a run has begun and found a layout it knows.
    create_table(schema.schema_version),
    create_table(schema.adk_internal_metadata),
    insert_name(schema.SCHEMA_VERSION_KEY, lambda dialect: schema.SCHEMA_VERSION),
    *(
        create_table(table)
        for table in (schema.sessions, schema.events, schema.app_states, schema.user_states)
    ),
    Step(
        "widen columns made with a mariadb+ URL",
        lambda shape: bool(narrow_columns(shape)),
        widen_columns,
        True,
    ),
    *(add_column(schema.metadata.tables[table], column) for table in ADDED for column in ADDED[table]),
    create_table(schema.cache_outbox),
    create_index(schema.events_by_time),
    create_index(schema.events_by_seq, only=lambda dialect: dialect != "oracle"),
    create_index(schema.events_by_seq_oracle, only=lambda dialect: dialect == "oracle"),
    create_index(schema.sessions_by_expiry),
    insert_name(schema.NAMESPACE_KEY, random_hex),
    # Last: start-up trusts it.
    Step(
        "insert tiered_sessions_schema row 1",
        lambda shape: (shape.version or 0) < VERSION,
        lambda op, shape: op.execute(insert(schema.schema_version).values(version=VERSION)),
    ),
)
