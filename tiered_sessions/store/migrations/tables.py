"""Filters for an application's own Alembic, so that it leaves our tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..schema import metadata


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """Alembic's `include_name`: keeps our tables from being reflected."""
    table = name if type_ == "table" else parent_names.get("table_name")
    return table not in metadata.tables


def include_object(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Alembic's `include_object`: keeps our tables, and what belongs to them, from being compared."""
    table = name if type_ == "table" else getattr(getattr(object_, "table", None), "name", None)
    return table not in metadata.tables
