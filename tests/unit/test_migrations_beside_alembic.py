"""An application's own Alembic in the same database leaves our tables alone, and the reverse."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Connection, Integer, MetaData, Table
from sqlalchemy.ext.asyncio import create_async_engine

from tiered_sessions.store.migrations.runner import prepare_schema
from tiered_sessions.store.schema import metadata

DOCS = Path(__file__).parents[2] / "docs" / "migrations.md"


def application() -> MetaData:
    """The tables of an application, two versions later than its database."""
    theirs = MetaData()
    Table("customers", theirs, Column("id", Integer, primary_key=True), Column("age", Integer, index=True))
    Table("orders", theirs, Column("id", Integer, primary_key=True))
    return theirs


def documented_options() -> dict[str, Any]:
    """Runs the snippet of the docs, and returns what it gives to `context.configure`."""
    snippet = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert snippet is not None
    given: dict[str, Any] = {}

    class Context:
        def configure(self, **options: Any) -> None:
            given.update(options)

    exec(snippet[1].replace("..., ", ""), {"context": Context()})
    return given


@pytest.mark.parametrize("documented", [True, False])
async def test_autogenerate_with_the_documented_filters(sqlite_url: str, documented: bool) -> None:
    engine = create_async_engine(sqlite_url)
    old = MetaData()
    Table("customers", old, Column("id", Integer, primary_key=True))
    Table("abandoned", old, Column("id", Integer, primary_key=True))
    async with engine.begin() as connection:
        await connection.run_sync(old.create_all)
    await prepare_schema(engine, create_tables=True)

    def differences(connection: Connection) -> set[tuple[str, str]]:
        options = documented_options() if documented else {}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), application())
        return {(str(d[0]), str(getattr(d[-1], "name", d[-1]))) for d in found if isinstance(d, tuple)}

    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()
    theirs = {
        ("add_table", "orders"),
        ("add_column", "age"),
        ("add_index", "ix_customers_age"),
        ("remove_table", "abandoned"),
    }
    if documented:
        assert found == theirs
    else:
        # What the filters are for.
        assert found > theirs | {("remove_table", name) for name in metadata.tables}


async def test_we_do_not_use_the_version_table_of_others(sqlite_url: str) -> None:
    engine = create_async_engine(sqlite_url)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        await connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('0123456789ab')")
    await prepare_schema(engine, create_tables=True)
    async with engine.connect() as connection:
        rows = await connection.exec_driver_sql("SELECT version_num FROM alembic_version")
        assert [tuple(row) for row in rows] == [("0123456789ab",)]
    await engine.dispose()
