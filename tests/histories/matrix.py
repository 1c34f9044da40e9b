"""The fault matrix: each fault for some seconds, what it did to the readers, and a verdict.

    python -m tests.histories.matrix [--rows TEXT ...] [--seconds S] [--database NAME] [--cache NAME]

Exit status 1 if anything was lost, doubled, resurrected, out of order, or stale beyond what is documented.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.histories.faults import all_faults
from tests.histories.fleet import Fault
from tests.histories.history import load
from tests.histories.runs import NoFault, Row, rows, save_elle
from tests.histories.verdict import COLUMNS

DATABASES = ("postgresql", "mysql", "sqlite")
CACHES = ("redis", "valkey")
WORST = ("lost", "duplicated", "resurrected")
BOUNDS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, float("inf"))


def chosen(texts: Sequence[str], database: str) -> list[Fault]:
    """Returns the faults for that database whose names contain one of `texts`; none: all."""
    every: list[Fault] = [NoFault(), *all_faults()]
    return [
        fault
        for fault in every
        if database in getattr(fault, "databases", DATABASES)
        and (not texts or any(text in fault.name for text in texts))
    ]


def table(found: Sequence[Row]) -> Table:
    """Shows the rows, one a fault."""
    title = "stale reads by what they missed - how many: median / longest, in ms"
    made = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    made.add_column("fault", min_width=24, max_width=44)
    for name in ("made", "operations", "hits", "outbox"):
        made.add_column(name, justify="right")
    made.add_column("allowed, s", justify="right")
    for name in COLUMNS:
        made.add_column(name, justify="right")
    made.add_column("errors", justify="right")
    for name in WORST:
        made.add_column(name, justify="right")
    made.add_column("")
    for row in found:
        verdict = row.verdict
        errors = "-" if row.bounds.store_fails else "0"
        made.add_row(
            row.name,
            str(row.faults),
            str(verdict.operations.total()),
            f"{row.hits:.0%}",
            str(verdict.cut_off),
            f"{row.bounds.staleness:g}",
            *(_ages(verdict.ages.get(name, [])) for name in COLUMNS),
            str(verdict.errors.total() or errors),
            *(str(verdict.anomalies[name]) for name in WORST),
            "[green]ok" if row.ok else "[red]" + ", ".join(verdict.anomalies),
        )
    return made


def _ages(ages: Sequence[float]) -> str:
    return f"{len(ages)}: {median(ages):.0f} / {max(ages):.0f}" if ages else "0"


def histogram(ages: Sequence[float]) -> dict[str, int]:
    """Counts ages in milliseconds by the least bound that they are below."""
    found = Counter(next(bound for bound in BOUNDS if age < bound) for age in ages)
    return {f"below {bound:g}": found[bound] for bound in BOUNDS if found[bound]}


def as_json(row: Row) -> dict[str, Any]:
    """Returns all of a row."""
    verdict = row.verdict
    return {
        "fault": row.name,
        "made": row.faults,
        "seconds": round(row.seconds, 2),
        "allowed_staleness": row.bounds.staleness,
        "allowed_cut_off": row.bounds.cut_off,
        "store_fails": row.bounds.store_fails,
        "loses_commits": row.bounds.loses_commits,
        "operations": dict(verdict.operations),
        "hits": round(row.hits, 3),
        "outbox": verdict.cut_off,
        "staleness_ms": {
            name: {"reads": len(ages), "p50": median(ages), "max": max(ages), "histogram": histogram(ages)}
            for name, ages in verdict.ages.items()
        },
        "errors": dict(verdict.errors),
        "anomalies": dict(verdict.anomalies),
        "examples": verdict.examples,
        "counters": dict(row.counters),
    }


async def run_all(
    faults: Sequence[Fault], seconds: float, console: Console, keep: Path | None = None, **options: Any
) -> list[Row]:
    """Runs the faults under a progress bar; `keep`: where the histories go, also in Elle's form."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=len(faults) * seconds)

        def say(name: str, gone: float) -> None:
            progress.update(task, description=name, completed=len(found) * seconds + min(gone, seconds))

        async for row in rows(faults, Path(folder), seconds, say=say, **options):
            found.append(row)
            if not console.is_terminal:
                console.print(f"{row.name}: {'ok' if row.ok else ', '.join(row.verdict.anomalies)}")
            say(row.name, 0)
            if keep is not None:
                name = row.name.replace("/", "-").replace(" ", "-")
                (keep / f"{name}.jsonl").write_bytes(row.history.read_bytes())
                save_elle(load(row.history), keep / f"{name}.elle.json")
    return found


def show_findings(console: Console, found: Sequence[Row]) -> None:
    """Prints what is wrong, in words."""
    for row in found:
        for text in row.verdict.examples:
            console.print(f"{row.name}: {text}", style="red", highlight=False, markup=False)


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories.matrix", description=__doc__)
    parser.add_argument("--rows", nargs="*", default=[], help="parts of the names of the faults; none: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each is made over and over")
    parser.add_argument("--database", choices=DATABASES, default="postgresql")
    parser.add_argument("--cache", choices=CACHES, default="redis")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--keep", type=Path, help="a folder for the histories")
    given = parser.parse_args()
    faults = chosen(given.rows, given.database)
    if not faults:
        parser.error("no fault has such a name")
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    found = asyncio.run(
        run_all(faults, given.seconds, console, given.keep, database=given.database, cache=given.cache)
    )
    Console(width=None if sys.stdout.isatty() else 250).print(table(found))
    show_findings(console, found)
    if given.json is not None:
        given.json.write_bytes(orjson.dumps([as_json(row) for row in found], option=orjson.OPT_INDENT_2))
    return 0 if all(row.ok for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
