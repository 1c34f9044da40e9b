"""Prints the sixty items of ADK's conformance list with their evidence, and fails where one is missing.

    make matrix, or: python -m tests.adk.matrix [pytest arguments]

A test named `test_item_07_...` is the evidence for item 7. It runs on stock's service and on ours with the
same assertions; where the mark `differs` says what each does, the row shows that. A gap is an item without a
test on ours, with one that did not pass, or whose tests together leave a kind of database out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console
from rich.table import Table

from tests.servers import STORES

ITEMS: Final = range(1, 61)
# What is said of constructors and of the class itself holds without a database.
WITHOUT_DATABASE: Final = {41, 47, 49}
FOLDER: Final = Path(__file__).parent
_NAME: Final = re.compile(r"test_item((?:_\d\d)+)_")


def items_of(name: str) -> list[int]:
    """Returns the numbers in a test's name."""
    found = _NAME.match(name)
    return [int(number) for number in found[1].split("_")[1:]] if found else []


@dataclass
class Row:
    """The evidence for one item."""

    tests: set[str] = field(default_factory=set)
    outcomes: dict[str, set[str]] = field(default_factory=lambda: {"stock": set(), "ours": set()})
    differs: dict[str, list[str]] = field(default_factory=lambda: {"stock": [], "ours": []})
    stores: set[str] = field(default_factory=set)

    def result(self, implementation: str) -> str:
        """Returns what the item showed of stock or of ours."""
        outcomes = self.outcomes[implementation]
        if not outcomes:
            return "not run"
        if outcomes != {"passed"}:
            return ", ".join(sorted(outcomes - {"passed"}))
        return "; ".join(self.differs[implementation]) or "as the item says"

    def gap(self, number: int) -> str | None:
        """Returns what is missing."""
        if not self.tests:
            return "no test"
        for implementation, outcomes in self.outcomes.items():
            if outcomes != {"passed"}:
                return f"{implementation}: {self.result(implementation)}"
        missing = set(STORES) - self.stores
        if missing and number not in WITHOUT_DATABASE:
            return f"not on {', '.join(sorted(missing))}"
        return None


class Evidence:
    """A pytest plugin that collects what the tests of each item show."""

    def __init__(self) -> None:
        self.rows = {number: Row() for number in ITEMS}
        self._parameters: dict[str, set[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            spec = getattr(item, "callspec", None)
            values = {str(value) for value in spec.params.values()} if spec else set()
            self._parameters[item.nodeid] = values
            marker = item.get_closest_marker("differs")
            for number in items_of(item.name):
                row = self.rows[number]
                row.tests.add(item.nodeid.partition("[")[0].rpartition("/")[2].removeprefix("test_"))
                for implementation, does in (marker.kwargs if marker else {}).items():
                    if does not in row.differs[implementation]:
                        row.differs[implementation].append(does)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        values = self._parameters[report.nodeid]
        for number in items_of(report.nodeid.rpartition("::")[2]):
            row = self.rows[number]
            # A test without a parameter compares both in its body.
            for implementation in {"stock", "ours"} & values or {"ours"}:
                row.outcomes[implementation].add(report.outcome)
            row.stores |= set(STORES) & values


def table(rows: dict[int, Row]) -> Table:
    """Returns the rows to print."""
    made = Table(title="ADK conformance")
    for heading in ("item", "tests", "stock", "ours", "databases"):
        made.add_column(heading, overflow="fold")
    for number, row in rows.items():
        stores = ", ".join(store for store in STORES if store in row.stores) or "-"
        made.add_row(
            str(number), "\n".join(sorted(row.tests)), row.result("stock"), row.result("ours"), stores
        )
    return made


def main(arguments: Sequence[str]) -> int:
    """Runs the tests, prints the rows and returns an exit status."""
    evidence = Evidence()
    status = pytest.main([str(FOLDER), "-q", "-k", "test_item_", *arguments], plugins=[evidence])
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(evidence.rows))
    gaps = {number: gap for number, row in evidence.rows.items() if (gap := row.gap(number))}
    for number, gap in gaps.items():
        console.print(f"item {number}: {gap}")
    console.print(f"{len(ITEMS) - len(gaps)} of {len(ITEMS)} items shown, {len(gaps)} gaps")
    return 1 if gaps or status else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
