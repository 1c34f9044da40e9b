"""The short form of the matrix: some faults, each for a second, must be as documented."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from tests.histories.fleet import Fault
from tests.histories.matrix import run_all, table

SECONDS = 1.0


async def hold(faults: Sequence[Fault], database: str) -> None:
    """Runs the faults and fails with what was found."""
    rows = await run_all(faults, SECONDS, Console(stderr=True, quiet=True), database=database)
    Console(width=250).print(table(rows))
    assert sorted(row.name for row in rows) == sorted(fault.name for fault in faults)
    found = {row.name: row.verdict.examples or dict(row.verdict.anomalies) for row in rows if not row.ok}
    assert not found, json.dumps(found, indent=1)
    # A fleet whose reads never meet the cache would show nothing. All of them may be masked, though:
    # a writer that died hides the app's state from everybody for the life of its masks.
    assert all(row.counters["cache.hit"] > 0 for row in rows)
    assert all(row.verdict.operations["append"] > 0 for row in rows)
