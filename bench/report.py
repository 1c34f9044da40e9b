"""The targets table, filled in: for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from .results import Results, Summary, joined
from .subjects.catalogue import L1, OURS, RAW, REFERENCE
from .targets import TARGETS, Target, Verdict

_COLOURS: dict[Verdict, str] = {"goal": "green", "floor": "yellow", "BELOW": "red", "-": "dim"}
_HEADINGS = (
    "workload",
    "",
    "ADK p50 ms / op/s",
    "ours p50 ms / op/s",
    "raw",
    "L1",
    "ours",
    "floor",
    "goal",
    "",
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table."""

    cells: tuple[str, ...]
    verdict: Verdict


def lines(runs: Sequence[Results]) -> list[Line]:
    """Returns the lines of all targets."""
    both = joined(runs)
    return [_line(target, runs, both) for target in TARGETS]


def _line(target: Target, runs: Sequence[Results], both: Results) -> Line:
    verdict = target.verdict(runs)
    reference = ours = ""
    if target.cell is not None:
        reference = _pair(both.summary(target.cell, REFERENCE))
        ours = _pair(both.summary(target.cell, OURS))
    value = target.value(runs)
    sign = "<= " if target.most else ""
    return Line(
        (
            target.row,
            target.part,
            reference,
            ours,
            *(_bound(target, runs, name) for name in (RAW, L1)),
            "-" if value is None else f"{_number(value)}{target.unit}{_spread(target, runs)}",
            f"{sign}{_number(target.floor)}{target.unit}",
            f"{sign}{_number(target.goal)}{target.unit}",
            verdict,
        ),
        verdict,
    )


def _bound(target: Target, runs: Sequence[Results], name: str) -> str:
    value = target.value(runs, name)
    return "" if value is None else f"{_number(value)}{target.unit}"


def _spread(target: Target, runs: Sequence[Results]) -> str:
    """Returns the least and the most that single runs found, if there were several."""
    found = target.found(runs)
    return f" ({_number(min(found))} - {_number(max(found))})" if len(runs) > 1 and found else ""


def _pair(summary: Summary | None) -> str:
    return "-" if summary is None else f"{_number(summary.p50)} / {_number(summary.rate)}"


def _remarks(summary: Summary) -> str:
    shares = sorted(summary.sources.items(), key=lambda item: -item[1])
    remarks = [f"{name} {share:.0%}" for name, share in shares if share >= 0.005]
    if summary.failed:
        remarks.append(f"{summary.failed} of {summary.operations + summary.failed} failed: {summary.failure}")
    return ", ".join(remarks)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{_number(ratio)}x"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")


def table(runs: Sequence[Results]) -> Table:
    """Returns the table for a terminal: what was measured of it."""
    made = Table(*_HEADINGS, title="Targets")
    for line in lines(runs):
        if line.verdict == "-":
            continue
        made.add_row(*line.cells[:-1], f"[{_COLOURS[line.verdict]}]{line.verdict}[/]")
    return made


_COLUMNS = (
    "cell",
    "implementation",
    "op/s",
    "x ADK",
    "p50 ms",
    "p99 ms",
    "CPU ms/op",
    "remarks",
)


def comparison(results: Results) -> Table:
    """Returns every cell with every implementation, for a terminal."""
    made = Table(*_COLUMNS, title="All figures")
    for row in _rows(results):
        made.add_row(*row)
    return made


def _rows(results: Results) -> Iterator[tuple[str, ...]]:
    for cell, subjects in results.cells.items():
        for number, name in enumerate(subjects):
            found = results.summary(cell, name)
            label = "" if number else cell
            if found is None:
                yield label, name, *("-",) * 5, f"every call failed: {subjects[name][0].failure}"
                continue
            figures = map(_number, (found.p50, found.p99, found.cpu))
            yield (
                label,
                name,
                _number(found.rate),
                _times(results.ratio(cell, name)),
                *figures,
                _remarks(found),
            )


def markdown(runs: Sequence[Results]) -> str:
    """Returns the table and what else was measured as Markdown."""
    results = joined(runs)
    rows = [_HEADINGS, ("---",) * len(_HEADINGS), *(line.cells for line in lines(runs))]
    text = [*_table(rows), "", *_table([_COLUMNS, ("---",) * len(_COLUMNS), *_rows(results)])]
    if results.missing:
        text += ["", "Not measured:", "", *(f"- {why.splitlines()[0]}" for why in results.missing)]
    if results.cut:
        text += ["", f"No time for: {'; '.join(results.cut)}"]
    text += ["", *_beside(results)]
    about = ", ".join(f"{name} {value}" for name, value in results.about.items())
    return "\n".join([*text, "", about, ""])


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in rows]


def _beside(results: Results) -> list[str]:
    """Returns round trips, memory and outages in full."""
    text = []
    beside = {"round trips": results.trips, "memory": {"": results.memory}, "outage": {"": results.outage}}
    for what, found in beside.items():
        for name, parts in found.items():
            for part, figures in parts.items():
                shown = ", ".join(f"{key} {_number(value)}" for key, value in figures.items())
                text.append(f"- {' '.join(filter(None, (what, name, part)))}: {shown}")
    return text
