"""The migration as SQL text, for those who may not let a program change their schema."""

from __future__ import annotations

import io

from sqlalchemy import Dialect
from sqlalchemy.engine import make_url

from ...errors import ConfigurationError
from .catalog import Shape
from .numbered import all_steps

DIALECTS = ("postgresql", "mysql", "mariadb", "sqlite", "mssql", "oracle")


def render(shape: Shape, dialect: Dialect | None = None) -> str:
    """Renders what a database of that shape lacks, as a script for its own shell.

    Args:
        shape: What is there already.
        dialect: Of a connected engine; it knows MySQL from MariaDB whatever the URL says.

    Raises:
        ConfigurationError: `shape.dialect` is not one of `DIALECTS`.
    """
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext

    if shape.dialect not in DIALECTS:
        raise ConfigurationError(f"No script for {shape.dialect}; known are {', '.join(DIALECTS)}")
    out = io.StringIO()
    context = MigrationContext.configure(
        dialect=dialect or make_url(f"{shape.dialect}://").get_dialect()(),
        opts={"as_sql": True, "literal_binds": True, "output_buffer": out},
    )
    operations = Operations(context)
    for step in all_steps():
        if step.needed(shape):
            out.write(f"-- {step.name}\n")
            step.upgrade(operations, shape)
    return "".join(f"{line.rstrip()}\n" for line in out.getvalue().strip().splitlines())
