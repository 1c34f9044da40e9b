"""Writes the table of docs/consistency.md, "What each fault costs".

    python -m tests.histories.report figures.json [more.json ...]

The files are those of `python -m tests.histories.matrix --json`; a row of a later file takes the place of
one of the same fault. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from tests.histories.verdict import COLUMNS

_HEAD = (
    "fault",
    "made",
    "operations",
    "hits",
    "through the outbox",
    "stale reads: how many (p50 / longest, ms), by what they missed",
    "allowed, s",
    "errors to callers",
    "lost / duplicated / resurrected",
)
_WORST = ("lost", "duplicated", "resurrected")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows, in the form of `matrix.as_json`, as a table."""
    lines = [_line(_HEAD), "| --- |" + " ---: |" * 4 + " --- | ---: |" + " --- |" * 2]
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    judged = not row["loses_commits"]
    found = {name: count for name, count in row["anomalies"].items() if name not in _WORST}
    worst = " / ".join(str(row["anomalies"].get(name, 0)) for name in _WORST) if judged else "not judged"
    return (
        row["fault"] + (f" **({', '.join(sorted(found))})**" if found else ""),
        str(row["made"]),
        f"{sum(row['operations'].values()):,}",
        f"{row['hits']:.0%}",
        str(row["outbox"]),
        _stale(row["staleness_ms"]) if judged else "not judged",
        _allowed(row),
        _errors(row["errors"]),
        worst,
    )


def _stale(ages: Mapping[str, Mapping[str, float]]) -> str:
    told = [
        f"{name} {ages[name]['reads']} ({ages[name]['p50']:.0f} / {ages[name]['max']:.0f})"
        for name in COLUMNS
        if name in ages
    ]
    return ", ".join(told) or "none"


def _allowed(row: Mapping[str, Any]) -> str:
    masked, recorded = row["allowed_staleness"], row["allowed_cut_off"]
    return f"{max(masked, recorded) if row['outbox'] else masked:g}"


def _errors(errors: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(errors.items())) or "0"


def main() -> None:
    """Prints the table of the files that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories.report", description=__doc__)
    parser.add_argument("figures", type=Path, nargs="+")
    rows: dict[str, Any] = {}
    for path in parser.parse_args().figures:
        rows |= {row["fault"]: row for row in orjson.loads(path.read_bytes())}
    print(markdown(list(rows.values())), end="")


if __name__ == "__main__":
    main()
