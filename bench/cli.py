"""The command line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import plan
from .about import about
from .loops import LOOPS, choose
from .places import Places, Servers, default_url
from .plan import MODES, Choice, Mode
from .plot import NoPlotError, draw
from .records import Cell, Limits, Scale, Task
from .report import comparison, markdown, table
from .results import Results, joined
from .runner import Runner
from .subjects.catalogue import OURS, available
from .workloads import WORKLOADS

_WIDTH = 160
_ABOUT = """\
Measures this library beside stock google-adk: the same sessions and events, one process for each
implementation, in turns. Starts no server and leaves nothing behind: every run makes databases and keys
of its own and removes them. What was returned is compared with what was written, outside the timed part."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench", description=_ABOUT)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--smoke", dest="mode", action="store_const", const="smoke", help="some cells, a few calls each"
    )
    size.add_argument(
        "--quick", dest="mode", action="store_const", const="quick", help="a few minutes (the default)"
    )
    size.add_argument(
        "--full",
        dest="mode",
        action="store_const",
        const="full",
        help="two repetitions of everything, 15 minutes at most",
    )
    parser.set_defaults(mode="quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw FILE.png and FILE.svg")
    parser.add_argument(
        "--show",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing; report what --json wrote, the medians of several runs",
    )
    parser.add_argument(
        "--workloads", nargs="+", default=[], metavar="PATTERN", help="only these, e.g. 'hot-*' append"
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"of {', '.join(available('postgresql'))}, adk-database",
    )
    parser.add_argument(
        "--families", nargs="+", choices=("postgresql", "sqlite", "mariadb"), help="kinds of databases"
    )
    parser.add_argument("--repetitions", type=int, help="how often each cell is measured")
    parser.add_argument("--seconds", type=float, help="how long at most each time")
    parser.add_argument("--minutes", type=float, help="how long the run takes at most")
    parser.add_argument(
        "--loop", choices=LOOPS, help="the event loop of all; default: uvloop where it is installed"
    )
    parser.add_argument("--no-extras", action="store_true", help="without round trips, memory and outages")
    parser.add_argument(
        "--profile", metavar="CELL", help="instead: profile ours in one cell, e.g. hot-all-200/c32"
    )
    parser.add_argument("--list", action="store_true", help="name the cells and end")
    for server in ("postgresql", "mariadb", "redis"):
        parser.add_argument(
            f"--{server}", default=default_url(server), metavar="URL", help="default: %(default)s"
        )
    parser.add_argument(
        "--folder", help="where SQLite files are made; default: the system's temporary folder"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 1 if something that was wanted was not measured."""
    given = _parser().parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    if given.show is not None:
        runs = [Results.from_json(json.loads(file.read_text())) for file in given.show]
    else:
        mode, choice = _mode(given), Choice(tuple(given.workloads), tuple(given.implementations))
        if given.list:
            for family in mode.families:
                for cell in plan.cells(mode, family, choice):
                    names = plan.subjects(mode, cell, available(family), choice)
                    console.print(f"{cell.name}: {', '.join(names)}", highlight=False)
            return 0
        if given.loop is not None:
            choose(given.loop)
        servers = Servers(given.postgresql, given.mariadb, given.redis, given.folder)
        if given.profile:
            console.print(asyncio.run(_profile(servers, mode, given.profile)), highlight=False, markup=False)
            return 0
        try:
            runs = [asyncio.run(_run(servers, mode, choice, console))]
        except (KeyboardInterrupt, asyncio.CancelledError):
            console.print("stopped")
            return 130
    return _report(runs, given, console)


def _mode(given: argparse.Namespace) -> Mode:
    mode = MODES[given.mode]
    scale = Scale(
        given.repetitions or mode.scale.repetitions, given.seconds or mode.scale.seconds, mode.scale.share
    )
    return replace(
        mode,
        scale=scale,
        minutes=given.minutes or mode.minutes,
        families=tuple(given.families or mode.families),
        extras=mode.extras and not given.no_extras,
    )


async def _run(servers: Servers, mode: Mode, choice: Choice, console: Console) -> Results:
    # A run that is told to stop removes its databases, too.
    task = asyncio.current_task()
    assert task is not None
    # Only the main thread of a POSIX system can be told so.
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    results = Results(await about(servers, mode.families, mode.name))
    columns = (
        TextColumn("{task.fields[family]}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        async with Places(servers) as places:
            runner = Runner(places, mode, choice, results)
            for family in mode.families:
                bar = progress.add_task("", total=1.0, family=family)

                def shown(what: str, done: float, bar: Any = bar) -> None:
                    progress.update(bar, description=what, completed=done)

                await runner.family(family, shown)
                shown("done", 1.0)
    return results


def _cell(name: str) -> Cell:
    """Returns the cell of a name as `--list` has it, or without its family.

    Raises:
        SystemExit: There is none.
    """
    for cell in plan.cells(MODES["full"], "postgresql", Choice()):
        if cell.processes == 1 and name in (cell.name, cell.name.partition("/")[2]):
            return cell
    raise SystemExit(f"no cell of one process on PostgreSQL is named {name}; --list names them")


async def _profile(servers: Servers, mode: Mode, name: str) -> str:
    cell = _cell(name)
    async with Places(servers) as places:
        runner = Runner(places, mode, Choice(subjects=(OURS,)), Results({}))
        limits = Limits(mode.scale.seconds, WORKLOADS[cell.workload].operations(cell.callers, mode.scale))
        return await runner.profile(Task(cell, plan.group(mode, cell), 0, 0, limits))


def _report(runs: list[Results], given: argparse.Namespace, console: Console) -> int:
    results = joined(runs)
    console.print(comparison(results))
    console.print(table(runs))
    if given.json is not None:
        given.json.write_text(json.dumps(results.to_json(), indent=1) + "\n")
    if given.markdown is not None:
        given.markdown.write_text(markdown(runs))
    if given.plot is not None:
        try:
            console.print("drawn:", *map(str, draw(runs, given.plot)))
        except NoPlotError as error:
            console.print(str(error))
    for why in results.missing:
        print("not measured:", why, file=sys.stderr)
    if results.cut:
        print(f"no time for {len(results.cut)} repetitions, from {results.cut[0]} on", file=sys.stderr)
    return 1 if results.missing else 0
