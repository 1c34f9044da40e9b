"""`tiered-sessions migrate`: the schema, and rows that stock ADK wrote."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
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
from ..store.migrations.steps import Step
from ..store.migrations.v0_copy import Verified
from ..store.migrations.v0_upgrade import Options, Survey, v0_script
from .migrate_v0 import (
    ask,
    look_for_v0,
    options,
    survey_lines,
    survey_report,
    taken_away,
    upgrade_v0,
    verified_lines,
)


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
    to: Annotated[
        str | None, typer.Option(help="google-adk's V0 layout: upgrade into this empty database instead.")
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(
            help="V0: the time zone of the programs that wrote it, such as Europe/Berlin; else ours."
        ),
    ] = None,
    unknown_as_text: Annotated[
        bool,
        typer.Option("--unknown-as-text", help="V0: store the name of a pickled object of an unknown class."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="V0 and --remove: go on beside other users of the database.")
    ] = False,
    triggers: Annotated[
        bool, typer.Option("--triggers", help="Also install the triggers that report other programs' writes.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Take away again what was added to google-adk's tables.")
    ] = False,
    drop_v0: Annotated[
        bool, typer.Option("--drop-v0", help="Drop the old tables that an upgrade in place has kept.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --remove and --drop-v0: do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bring a database to the newest schema, and give every row of google-adk its tag and numbers.

    Safe to stop and to run again, and beside running servers. A database in google-adk's V0 layout
    (pickled events) is upgraded first; stop its users for that.
    """
    _refuse_together(
        {"--dry-run": dry_run, "--print-sql": print_sql},
        {
            "--remove": remove,
            "--drop-v0": drop_v0,
            "--to": to,
            "--triggers": triggers,
            "--print-sql": print_sql,
        },
    )
    if (dialect or from_adk) and not print_sql:
        raise ConfigurationError("--dialect and --from-adk belong to --print-sql")
    if from_adk and not dialect:
        raise ConfigurationError("--from-adk needs --dialect; a --db is looked at instead")
    how = options(timezone, unknown_as_text, force)
    if print_sql:
        _print_sql(db, dialect, from_adk, as_json)
    elif remove or drop_v0:
        _take_away(_address(db), drop_v0, dry_run, force, yes, as_json)
    elif dry_run:
        _print_plan(*asyncio.run(_dry_run(_address(db))), how, as_json)
    else:
        report = asyncio.run(_migrate(_address(db), to, how, triggers, quiet=as_json))
        _print_report(report, as_json)


def _refuse_together(*groups: dict[str, object]) -> None:
    for group in groups:
        given = [name for name, value in group.items() if value]
        if len(given) > 1:
            raise ConfigurationError(f"{' and '.join(given)} exclude each other")


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
        return await v0_script(engine) or await script(engine)


async def _dry_run(url: str) -> tuple[Survey | None, list[Step], int]:
    found = await look_for_v0(url)
    if found is not None:
        return found, [], 0
    async with database(url) as engine:
        return None, await plan(engine), await count_foreign(engine)


async def _migrate(url: str, to: str | None, how: Options, triggers: bool, *, quiet: bool) -> dict[str, Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        verified: list[Verified] = []
        if to is not None or await look_for_v0(url) is not None:
            verified = await upgrade_v0(url, to, how, _shown(bar, "upgrading rows"))
        async with database(to or url) as engine:
            report = await migrate(engine, _shown(bar, "adopting rows"), triggers=triggers)
    adopted = report.adopted
    counts = {"upgraded": [row._asdict() for row in verified]} if verified else {}
    return counts | {
        "steps": list(report.steps),
        "sessions": adopted.sessions,
        "scopes": adopted.scopes,
        "busy": adopted.busy,
    }


def _shown(bar: Progress, what: str) -> Callable[[int, int], None]:
    task = bar.add_task(what, total=None)

    def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    return show


def _take_away(url: str, kept_tables: bool, dry_run: bool, force: bool, yes: bool, as_json: bool) -> None:
    statements = asyncio.run(taken_away(url, kept_tables=kept_tables, dry_run=True))
    if not dry_run and statements:
        if not yes:
            if as_json:
                raise ConfigurationError("--json does not ask; say --yes")
            ask(statements, "Do this?")
        statements = asyncio.run(taken_away(url, kept_tables=kept_tables, dry_run=False, force=force))
    if as_json:
        typer.echo(json.dumps({"statements": statements, "done": not dry_run}))
        return
    for statement in statements:
        typer.echo(statement)
    typer.echo(
        f"{len(statements)} statements. Nothing was changed." if dry_run else f"{len(statements)} done."
    )


def _print_plan(found: Survey | None, steps: list[Step], rows: int, how: Options, as_json: bool) -> None:
    if as_json:
        named = [{"step": step.name, "rewrites_table": step.rewrites} for step in steps]
        v0 = {"v0": survey_report(found)} if found is not None else {}
        typer.echo(json.dumps(v0 | {"steps": named, "rows": rows}))
        return
    if found is not None:
        for line in survey_lines(found, how):
            typer.echo(line)
        typer.echo("It would be upgraded, then adopted. Nothing was changed.")
        return
    for step in steps:
        typer.echo(step.name + (" (rewrites the table)" if step.rewrites else ""))
    typer.echo(f"{len(steps)} steps, {rows} rows to adopt. Nothing was changed.")


def _print_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report))
        return
    for line in verified_lines(report.get("upgraded", [])):
        typer.echo(line)
    for step in report["steps"]:
        typer.echo(step)
    typer.echo(
        f"{len(report['steps'])} steps done; adopted {report['sessions']} sessions and "
        f"{report['scopes']} app and user states."
    )
    if report["busy"]:
        typer.echo(f"{report['busy']} rows were locked: run again, or leave them to their next append.")
