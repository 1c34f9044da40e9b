"""Random faults for minutes, one after the other or two at once, and the verdict on all of it.

    python -m tests.histories.soak --minutes 10 --database postgresql --cache valkey --keep FOLDER

Exit status 1 if anything was lost, doubled, resurrected, out of order, or stale beyond what is documented.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import orjson
from rich.console import Console

from tests.histories.fleet import Fault, Fleet, shares
from tests.histories.matrix import CACHES, DATABASES, as_json, chosen, run_all, show_findings, table
from tiered_sessions.errors import StoreError

# Acts on the cache server, and on the database: they do not heal each other by accident.
TOGETHER = ("faults_cache", "faults_sql")


class Storm:
    """One of the faults, or two, drawn at random each time.

    Args:
        faults: Those that can share a fleet.
        seed: Makes the same order again.

    Attributes:
        made: How often each was made.
    """

    name = "soak"
    store_fails = True

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        self._faults = [fault for fault in faults if shares(fault)]
        self._pairs = [
            [fault for fault in self._faults if type(fault).__module__.endswith(module)]
            for module in TOGETHER
        ]
        self._random = random.Random(seed)
        self.staleness = max(fault.staleness for fault in self._faults)
        self.made: Counter[str] = Counter()

    async def run(self, fleet: Fleet) -> None:
        """Makes one, or two at once."""
        both = [self._random.choice(self._faults)]
        if all(self._pairs) and self._random.random() < 0.4:
            both = [self._random.choice(faults) for faults in self._pairs]
        self.made[" + ".join(fault.name for fault in both)] += 1
        async with asyncio.TaskGroup() as runs:
            for fault in both:
                runs.create_task(self._run(fleet, fault))
        await fleet.progress(20)

    async def _run(self, fleet: Fleet, fault: Fault) -> None:
        try:
            await fault.run(fleet)
        except (AssertionError, TimeoutError, StoreError) as error:
            # Beside another fault one may find nothing to hit, such as a statement to hold, or the cache
            # not in use again in time, or the database gone that it wants to change. Whatever it was,
            # the fleet must go on, and the history be right.
            fleet.note(f"{fault.name}: {error!r}")
            self.made[f"{fault.name}: {type(error).__name__}"] += 1


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--database", choices=DATABASES, default="postgresql")
    parser.add_argument("--cache", choices=CACHES, default="valkey")
    parser.add_argument("--rows", nargs="*", default=[], help="parts of the names of the faults; none: all")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--keep", type=Path, default=Path("soak"), help="the folder for the history")
    given = parser.parse_args()
    given.keep.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    storm = Storm(chosen(given.rows, given.database), given.seed)
    console.print(f"seed {given.seed}")
    found = asyncio.run(
        run_all([storm], given.minutes * 60, console, given.keep, database=given.database, cache=given.cache)
    )
    output = Console(width=None if sys.stdout.isatty() else 250)
    for name, count in storm.made.most_common():
        output.print(f"{count:5} {name}", highlight=False)
    output.print(table(found))
    show_findings(console, found)
    figures = {"seed": given.seed, **as_json(found[0]), "each": dict(storm.made)}
    (given.keep / "soak.json").write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    return 0 if found[0].ok else 1


if __name__ == "__main__":
    sys.exit(main())
