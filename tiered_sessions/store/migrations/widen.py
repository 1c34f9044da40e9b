"""Widening what stock ADK makes with a `mariadb+` URL: DATETIME without fractions, TEXT of 64 KB."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .catalog import Shape, narrow_columns

if TYPE_CHECKING:
    from alembic.operations import Operations


def widen_columns(op: Operations, shape: Shape) -> None:
    """Gives each such column the type that a `mysql+` URL makes. Copies the tables."""
    for table, column in narrow_columns(shape):
        wanted = table.c[column]
        op.alter_column(table.name, column, type_=wanted.type, nullable=wanted.nullable)
