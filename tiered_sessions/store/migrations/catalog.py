"""What a database holds now, and whether it is a layout that may be adopted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, Numeric, Table, inspect, literal, select, text
from sqlalchemy.dialects import mysql
from sqlalchemy.types import Date, DateTime, Integer, TypeEngine

from ...errors import SchemaMismatchError
from ..schema import (
    NAMESPACE_KEY,
    SCHEMA_VERSION,
    SCHEMA_VERSION_KEY,
    adk_internal_metadata,
    cache_outbox,
    metadata,
    schema_version,
)

ADDED = {
    "sessions": ("incarnation", "revision", "nonce", "expires_at", "sliding_ttl"),
    "app_states": ("incarnation", "revision", "nonce"),
    "user_states": ("incarnation", "revision", "nonce"),
    "events": ("seq",),
}
"""The columns of ours in ADK's tables."""

OWN_TABLES = (schema_version.name, cache_outbox.name)


@dataclass(frozen=True)
class TableShape:
    """One table as the database describes it."""

    columns: Mapping[str, TypeEngine[object]]
    indexes: frozenset[str] = frozenset()
    invalid_indexes: frozenset[str] = frozenset()
    empty: bool = False


@dataclass(frozen=True)
class Shape:
    """Those of our tables that exist, and the rows that name versions."""

    dialect: str
    tables: Mapping[str, TableShape] = field(default_factory=dict)
    version: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def made_by_adk(cls, dialect: str) -> Shape:
        """The layout that stock ADK makes, without its events index, as before 2.13."""
        tables = {
            table.name: TableShape(
                {c.name: c.type for c in table.columns if c.name not in ADDED.get(table.name, ())}
            )
            for table in metadata.sorted_tables
            if table.name not in OWN_TABLES
        }
        return cls(dialect, tables, names={SCHEMA_VERSION_KEY: SCHEMA_VERSION})

    def lacks_column(self, table: str, column: str) -> bool:
        """Says whether `table` exists without `column`."""
        return table in self.tables and column not in self.tables[table].columns


def read_shape(connection: Connection) -> Shape:
    """Reads the shape of the database behind `connection`; changes nothing."""
    inspector = inspect(connection)
    tables = {
        table.name: TableShape(
            columns={column["name"]: column["type"] for column in inspector.get_columns(table.name)},
            indexes=frozenset(str(index["name"]) for index in inspector.get_indexes(table.name)),
            invalid_indexes=_invalid_indexes(connection, table.name),
            empty=connection.execute(select(literal(1)).select_from(table).limit(1)).first() is None,
        )
        for table in metadata.sorted_tables
        if inspector.has_table(table.name)
    }
    version, names = None, {}
    if "version" in getattr(tables.get(schema_version.name), "columns", ()):
        version = connection.execute(
            select(schema_version.c.version).order_by(schema_version.c.version.desc()).limit(1)
        ).scalar()
    if {"key", "value"} <= set(getattr(tables.get(adk_internal_metadata.name), "columns", ())):
        rows = connection.execute(select(adk_internal_metadata.c.key, adk_internal_metadata.c.value))
        names = {row.key: row.value for row in rows}
    return Shape(connection.dialect.name, tables, version, names)


def _invalid_indexes(connection: Connection, table: str) -> frozenset[str]:
    if connection.dialect.name != "postgresql":
        return frozenset()
    rows = connection.execute(
        text(
            "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            "WHERE i.indrelid = to_regclass(:name) AND NOT (i.indisvalid AND i.indisready)"
        ),
        {"name": table},
    )
    return frozenset(row.relname for row in rows)


def is_current(connection: Connection, latest: int) -> bool:
    """Says whether nothing needs to be done, by statements that read no row but three.

    Every column is named, for the tables may have been dropped and made anew by stock ADK since.
    """
    for table in metadata.sorted_tables:
        if table not in (schema_version, adk_internal_metadata):
            columns = [
                column for column in table.columns if column.name in ADDED.get(table.name, column.name)
            ]
            connection.execute(select(*columns).where(literal(1) == literal(0)))
    versions = connection.execute(select(schema_version.c.version).where(schema_version.c.version >= latest))
    if versions.scalars().all() != [latest]:
        return False
    rows = connection.execute(
        select(adk_internal_metadata.c.key, adk_internal_metadata.c.value).where(
            adk_internal_metadata.c.key.in_((SCHEMA_VERSION_KEY, NAMESPACE_KEY))
        )
    )
    names = {row.key: row.value for row in rows}
    return names.get(SCHEMA_VERSION_KEY) == SCHEMA_VERSION and NAMESPACE_KEY in names


def refuse_unknown(shape: Shape, latest: int) -> None:
    """Raises `SchemaMismatchError` unless the tables are ADK's V1 layout, ours, or not there."""
    if (shape.version or 0) > latest:
        raise SchemaMismatchError(
            f"The database was prepared by a newer tiered_sessions (schema {shape.version}, this one knows "
            f"{latest}); upgrade the package. Nothing was changed."
        )
    if shape.lacks_column("events", "event_data") and not shape.lacks_column("events", "actions"):
        raise SchemaMismatchError(
            "The database holds google-adk's V0 layout (pickled events). Stop its writers and run "
            "`tiered-sessions migrate`, which upgrades it in place, or into another database with --to. "
            "Nothing was changed."
        )
    for name, table in shape.tables.items():
        added = ADDED.get(name, ())
        expected = {column.name: column.type for column in metadata.tables[name].columns}
        missing = [column for column in expected if column not in table.columns and column not in added]
        if missing:
            raise SchemaMismatchError(
                f"The table {name} is not the one of google-adk or tiered_sessions: it has no column "
                f"{', '.join(missing)}. Use a database or schema of its own. Nothing was changed."
            )
        for column in added:
            found = table.columns.get(column)
            if found is not None and not _fits(found, metadata.tables[name].c[column].type):
                raise SchemaMismatchError(
                    f"The column {name}.{column} exists as {found}, which tiered_sessions did not make. "
                    "Rename it. Nothing was changed."
                )
    if adk_internal_metadata.name in shape.tables:
        version = shape.names.get(SCHEMA_VERSION_KEY)
        # Our own version table is made first, so where it is, a row that is missing here was not
        # written because that run was killed.
        if version is None and schema_version.name not in shape.tables:
            raise SchemaMismatchError(
                f"The table {adk_internal_metadata.name} has no row {SCHEMA_VERSION_KEY!r}: the "
                "database is damaged, or google-adk was stopped while making it. Nothing was changed."
            )
        if version is not None and version != SCHEMA_VERSION:
            raise SchemaMismatchError(
                f"The database says schema_version {version!r}; this tiered_sessions knows "
                f"{SCHEMA_VERSION!r}, that of google-adk 1.22 and later. Nothing was changed."
            )


def _fits(found: TypeEngine[object], expected: TypeEngine[object]) -> bool:
    kinds: tuple[type, ...] = (Integer, Numeric) if isinstance(expected, Integer) else (DateTime, Date)
    return isinstance(found, kinds)


def narrow_columns(shape: Shape) -> list[tuple[Table, str]]:
    """Lists the columns that cannot hold what we store: stock ADK's with a `mariadb+` URL.

    There it makes DATETIME without fractions and TEXT of 64 KB.
    """
    return [
        (metadata.tables[name], column)
        for name, table in shape.tables.items()
        if name not in OWN_TABLES
        for column, type_ in table.columns.items()
        if (isinstance(type_, mysql.DATETIME) and (type_.fsp or 0) < 6 and column != "expires_at")
        or (isinstance(type_, mysql.TEXT))
    ]
