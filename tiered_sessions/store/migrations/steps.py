"""The smallest units of a migration: each leaves a database that the next run can go on from."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Dialect, Index, Table, insert, text
from sqlalchemy.schema import CreateIndex, CreateTable

from ..schema import adk_internal_metadata
from .catalog import Shape

if TYPE_CHECKING:
    from alembic.operations import Operations


@dataclass(frozen=True)
class Step:
    """One change.

    Attributes:
        name: What it does, for people.
        needed: Whether a database of that shape still lacks it.
        upgrade: Does it.
        rewrites: It may copy or lock a live table for long, so start-up does not do it.
    """

    name: str
    needed: Callable[[Shape], bool]
    upgrade: Callable[[Operations, Shape], None]
    rewrites: bool = False


def create_table(table: Table) -> Step:
    """Makes a table, at its newest layout, without indexes."""
    return Step(
        f"create table {table.name}",
        lambda shape: table.name not in shape.tables,
        lambda op, shape: op.execute(CreateTable(table)),
    )


def add_column(table: Table, name: str) -> Step:
    """Adds a nullable column without default, which no database needs to rewrite a table for."""
    column = table.c[name]
    return Step(
        f"add column {table.name}.{name}",
        lambda shape: shape.lacks_column(table.name, name),
        lambda op, shape: op.add_column(table.name, Column(name, column.type, nullable=True)),
    )


def create_index(index: Index, *, only: Callable[[str], bool] = lambda dialect: True) -> Step:
    """Makes an index; on a PostgreSQL table that holds rows without stopping its writers."""
    table, name = index.table, str(index.name)
    assert table is not None

    def needed(shape: Shape) -> bool:
        found = shape.tables.get(table.name)
        return only(shape.dialect) and (
            found is None or name not in found.indexes or name in found.invalid_indexes
        )

    def upgrade(op: Operations, shape: Shape) -> None:
        found = shape.tables.get(table.name)
        invalid = found is not None and name in found.invalid_indexes
        if shape.dialect != "postgresql" or found is None or found.empty:
            if invalid:
                op.execute(text(f"DROP INDEX {name}"))
            op.execute(CreateIndex(index))
            return
        if not op.get_context().as_sql:
            # It waits for transactions under way, but nobody waits behind it.
            op.execute(text("SET lock_timeout = '60s'"))
        if invalid:
            op.execute(text(f"DROP INDEX CONCURRENTLY {name}"))
        statement = str(CreateIndex(index).compile(dialect=op.get_context().dialect))
        op.execute(text(statement.replace(" INDEX ", " INDEX CONCURRENTLY ", 1)))

    return Step(f"create index {name}", needed, upgrade)


def insert_name(key: str, value: Callable[[Dialect], Any]) -> Step:
    """Writes a row of ADK's metadata table."""
    return Step(
        f"insert {adk_internal_metadata.name} row {key}",
        lambda shape: key not in shape.names,
        lambda op, shape: op.execute(
            insert(adk_internal_metadata).values(key=key, value=value(op.get_context().dialect))
        ),
    )


_RANDOM_HEX = {
    "postgresql": "substr(md5(random()::text || clock_timestamp()::text), 1, 16)",
    "mysql": "substring(md5(concat(uuid(), rand())), 1, 16)",
    "mariadb": "substring(md5(concat(uuid(), rand())), 1, 16)",
    "sqlite": "lower(hex(randomblob(8)))",
    "mssql": "lower(left(replace(convert(varchar(36), newid()), '-', ''), 16))",
    "oracle": "lower(substr(standard_hash(sys_guid(), 'MD5'), 1, 16))",
}


def random_hex(dialect: Dialect) -> Any:
    """An expression of 16 random hex digits; in SQL, so that a printed script can be run twice."""
    expression = _RANDOM_HEX.get(dialect.name)
    return text(expression) if expression else secrets.token_hex(8)
