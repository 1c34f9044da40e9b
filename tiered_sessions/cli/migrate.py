"""`tiered-sessions migrate`: the schema, and rows that stock ADK wrote."""

from __future__ import annotations

import asyncio
import json
import os
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import ConfigurationError
from ..store.migrations.adopt import count_foreign
from ..store.migrations.catalog import Shape
from ..store.migrations.connect import database
from ..store.migrations.runner import migrate, plan, script
from ..store.migrations.script import render


class Dialect(StrEnum):
    """The databases that a script can be printed for."""

    postgresql = "postgresql"
    mysql = "mysql"
    mariadb = "mariadb"
    sqlite = "sqlite"
    mssql = "mssql"
    oracle = "oracle"


def migrate_command(
    db: Annotated[
        str | None, typer.Option(help="Database URL; else TIERED_SESSIONS_DB_URL or DATABASE_URL.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")
    ] = False,
    print_sql: Annotated[
        bool, typer.Option("--print-sql", help="Print what is missing as SQL; change nothing.")
    ] = False,
    dialect: Annotated[
        Dialect | None,
        typer.Option(help="With --print-sql: for an empty database of this kind, not connecting."),
    ] = None,
    from_adk: Annotated[
        bool, typer.Option("--from-adk", help="With --dialect: for a database that google-adk has made.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bring a database to the newest schema, and give every row of google-adk its tag and numbers.

    Safe to stop and to run again, and beside running servers.
    """
    if print_sql and dry_run:
        raise ConfigurationError("--dry-run and --print-sql exclude each other")
    if (dialect or from_adk) and not print_sql:
        raise ConfigurationError("--dialect and --from-adk belong to --print-sql")
    if from_adk and not dialect:
        raise ConfigurationError("--from-adk needs --dialect; a --db is looked at instead")
    if print_sql:
        _print_sql(db, dialect, from_adk, as_json)
    elif dry_run:
        _print_plan(asyncio.run(_dry_run(_address(db))), as_json)
    else:
        _print_report(asyncio.run(_migrate(_address(db), quiet=as_json)), as_json)


def _address(db: str | None) -> str:
    url = db or os.environ.get("TIERED_SESSIONS_DB_URL") or os.environ.get("DATABASE_URL")
    if not url:
        raise ConfigurationError("Name the database: --db URL, or TIERED_SESSIONS_DB_URL in the environment")
    return url


def _print_sql(db: str | None, dialect: Dialect | None, from_adk: bool, as_json: bool) -> None:
    if dialect is None:
        sql = asyncio.run(_script(_address(db)))
    elif db is not None:
        raise ConfigurationError(
            "--dialect is for printing without a database; leave out one of --db and --dialect"
        )
    else:
        sql = render(Shape.made_by_adk(dialect) if from_adk else Shape(dialect))
    typer.echo(json.dumps({"sql": sql}) if as_json else sql, nl=as_json)


async def _script(url: str) -> str:
    async with database(url) as engine:
        return await script(engine)


async def _dry_run(url: str) -> dict[str, Any]:
    async with database(url) as engine:
        steps = [{"step": step.name, "rewrites_table": step.rewrites} for step in await plan(engine)]
        return {"steps": steps, "rows": await count_foreign(engine)}


async def _migrate(url: str, *, quiet: bool) -> dict[str, Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("adopting rows", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        async with database(url) as engine:
            report = await migrate(engine, show)
        bar.update(task, total=bar.tasks[task].completed)
    adopted = report.adopted
    return {
        "steps": list(report.steps),
        "sessions": adopted.sessions,
        "scopes": adopted.scopes,
        "busy": adopted.busy,
    }


def _print_plan(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report))
        return
    for step in report["steps"]:
        typer.echo(step["step"] + (" (rewrites the table)" if step["rewrites_table"] else ""))
    typer.echo(f"{len(report['steps'])} steps, {report['rows']} rows to adopt. Nothing was changed.")


def _print_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report))
        return
    for step in report["steps"]:
        typer.echo(step)
    typer.echo(
        f"{len(report['steps'])} steps done; adopted {report['sessions']} sessions and "
        f"{report['scopes']} app and user states."
    )
    if report["busy"]:
        typer.echo(f"{report['busy']} rows were locked: run again, or leave them to their next append.")
