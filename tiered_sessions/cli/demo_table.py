"""How a run of the demo looks on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .demo_check import Read
from .demo_report import PLACES, Incident, Report, TurnRow, by_place

GROUPS = {
    "up": "cache up",
    "dead": "cache dead",
    "back": "cache back",
    "beside": "beside a write",
}
SHORT = {"process": "process", "cache": "Redis", "store": "SQL"}
SHOWN_FINDINGS = 10


class TurnTable:
    """Shows the turns while they happen; where output is not a terminal, once at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # No refreshing thread: the demo forks while the table stands.
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._first = 0

    def __enter__(self) -> TurnTable:
        if self._live is not None:
            self._live.start()
        return self

    def update(self, report: Report) -> None:
        """Draws the newest rows, as many as fit on the terminal."""
        if self._live is None:
            return
        table = turn_table(report, report.rows[self._first :])
        while self._first < len(report.rows) - 1 and self._too_high(table):
            self._first += 1
            table = turn_table(report, report.rows[self._first :])
        self._live.update(table, refresh=True)

    def _too_high(self, table: Table) -> bool:
        return len(self._console.render_lines(table)) >= self._console.height

    def finish(self, report: Report) -> None:
        """Shows all rows."""
        table = turn_table(report, report.rows)
        if self._live is not None:
            self._live.update(table)
            self._live.stop()
        else:
            self._console.print(table)

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def turn_table(report: Report, rows: Iterable[TurnRow | Incident]) -> Table:
    """Builds the table of turns: medians of the appends and of the reads right after them."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("turn", justify="right")
    table.add_column("on")
    table.add_column("what happened", min_width=22, max_width=40)
    table.add_column("append, ms", justify="right", no_wrap=True)
    for server in ("A", "B"):
        table.add_column(f"reads on {server}, ms", no_wrap=True)
    for row in rows:
        if isinstance(row, Incident):
            table.add_row("", "", Text(f"cache {row.text}\n{row.detail}", style="bold yellow"))
            continue
        what = Text(row.agents)
        if row.tools:
            what.append(f"\n{', '.join(row.tools)}", style="dim")
        append = f"{len(row.appends_ms)} x {median(row.appends_ms):.1f}" if row.appends_ms else ""
        reads = [_places(report.reads_after_writes(row.turn, server)) for server in ("A", "B")]
        table.add_row(str(row.turn), row.server, what, append, *reads)
    return table


def _places(reads: list[Read]) -> str:
    """One line a place: `Redis 4 x 0.5`."""
    return "\n".join(
        f"{SHORT[place]} {found['count']} x {found['median_ms']:.1f}"
        for place, found in by_place(reads).items()
    )


def print_summary(console: Console, report: Report) -> None:
    """Prints all reads by place and by what the cache was doing, then the verdict."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("all reads")
    for label in PLACES.values():
        table.add_column(label, justify="right")
    for group, reads in report.read_groups().items():
        found = by_place(reads)
        cells = [
            f"{found[place]['count']} x {found[place]['median_ms']:.2f} ms" if place in found else "-"
            for place in PLACES
        ]
        table.add_row(GROUPS[group], *cells)
    console.print(table)
    console.print(
        "In process: Redis said in one round trip that nothing changed since these events were decoded.\n"
        "Beside a write the cached copy is hidden: such reads may be answered by SQL.\n",
        style="dim",
    )
    if report.cache_answers_again is False:
        console.print("The cache was given back, but it was not used again.", style="bold red")
    verdict = report.verdict
    findings = [*report.failures, *verdict.lost, *verdict.stale, *verdict.different]
    for finding in findings[:SHOWN_FINDINGS]:
        console.print(f"  {finding}", style="red", highlight=False)
    if len(findings) > SHOWN_FINDINGS:
        console.print(f"  ... and {len(findings) - SHOWN_FINDINGS} more", style="red")
    appends = report.appends_ms
    middle = median(appends) if appends else 0.0
    console.print(
        f"{len(appends)} appends (median {middle:.2f} ms) and {len(report.reads)} reads compared with SQL: "
        f"lost {len(verdict.lost)}, stale {len(verdict.stale)}, different {len(verdict.different)}.",
        style="bold green" if report.ok else "bold red",
        highlight=False,
        soft_wrap=True,
    )
