"""`tiered-sessions cache`: what an operator does to the cache of a database."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ..config import TieredConfig
from ..errors import ConfigurationError
from ..urls import normalise_database_url, redact

if TYPE_CHECKING:
    from ..store.store import SqlSessionStore

# Servers read the namespace every 5 s, at their next outbox poll.
IN_FORCE_WITHIN: Final = 6

cache_app = typer.Typer(
    name="cache",
    help="The cache of a database.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@cache_app.command("reset")
def reset_command(
    db: Annotated[
        str | None, typer.Option(help="Database URL; else TIERED_SESSIONS_DB_URL or DATABASE_URL.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Orphan every cached entry of a database at once, by a new namespace in SQL.

    After the database was restored, or failed over and lost commits; or when `verify` has found a
    wrong entry. Beside running services; loses nothing but hits. Exit status: 0 done, 1 not
    confirmed, 2 could not be done.
    """
    url = database_address(db)
    if not yes:
        if as_json:
            raise ConfigurationError("--json does not ask; say --yes")
        typer.echo(f"Every cached entry of {redact(url)} will be read from SQL again.")
        typer.confirm("Reset?", abort=True)
    old, new = asyncio.run(_reset(url))
    if as_json:
        typer.echo(json.dumps({"old": old, "new": new, "in_force_within": IN_FORCE_WITHIN}))
        return
    typer.echo(f"{old} -> {new}")
    typer.echo(
        f"In force in every running service within {IN_FORCE_WITHIN} s; until then some still use the old "
        "one. The old keys were left to their TTL (idle_ttl, 1 h by default)."
    )


async def _reset(url: str) -> tuple[str, str]:
    async with opened_store(url) as store:
        return await store.namespace(), await store.reset_namespace()


def database_address(db: str | None) -> str:
    """Returns the database URL given, or the environment's.

    Raises:
        ConfigurationError: There is none, or it cannot be one of a running service.
    """
    url = db or os.environ.get("TIERED_SESSIONS_DB_URL") or os.environ.get("DATABASE_URL")
    if not url:
        raise ConfigurationError("Name the database: --db URL, or TIERED_SESSIONS_DB_URL in the environment")
    if normalise_database_url(url).memory:
        raise ConfigurationError("A database in memory ends with its process and needs none of this")
    return url


@asynccontextmanager
async def opened_store(url: str) -> AsyncIterator[SqlSessionStore]:
    """Opens a database whose tables are there; makes none."""
    # Here, because SQLAlchemy is a third of a second that no other command should wait for.
    from ..store.engines import build_engine
    from ..store.store import SqlSessionStore

    config = TieredConfig()
    store = SqlSessionStore(build_engine(url, config), owns_engine=True, config=config, create_tables=False)
    try:
        await store.prepare()
        yield store
    finally:
        await store.close()
