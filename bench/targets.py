"""The targets: what each row must reach, and how it is computed from the results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .results import Results
from .subjects.catalogue import OURS
from .workloads import LENGTHS

Verdict = Literal["goal", "floor", "BELOW", "-"]
_TAIL: Final = 200
"""A p99 of fewer operations says nothing."""
Compute = Callable[[Results, str], float | None]
"""Finds an implementation's number in a run, None if it was not measured."""


@dataclass(frozen=True, slots=True)
class Target:
    """One number that must be reached.

    Attributes:
        cell: The cell it is about, if there is one: the table shows its times.
        most: Whether less is better.
        unit: Written behind the numbers.
    """

    row: str
    part: str
    compute: Compute
    floor: float
    goal: float
    cell: str | None = None
    most: bool = False
    unit: str = "x"

    def found(self, runs: Sequence[Results], subject: str = OURS) -> list[float]:
        """Returns what each run found that has measured it: only figures of one run are compared."""
        return [value for results in runs if (value := self.compute(results, subject)) is not None]

    def value(self, runs: Sequence[Results], subject: str = OURS) -> float | None:
        """Returns the median of what the runs found."""
        found = self.found(runs, subject)
        return statistics.median(found) if found else None

    def verdict(self, runs: Sequence[Results]) -> Verdict:
        """Says what is reached."""
        value = self.value(runs)
        if value is None:
            return "-"
        sign = -1 if self.most else 1
        if sign * value >= sign * self.goal:
            return "goal"
        return "floor" if sign * value >= sign * self.floor else "BELOW"


def _ratio(cell: str) -> Compute:
    return lambda results, subject: results.ratio(cell, subject)


def _rates(row: str, workload: str, floor: tuple[float, ...], goal: tuple[float, ...]) -> list[Target]:
    parts = ("c1", "c32", "2x16")[: len(floor)]
    return [
        Target(row, part, _ratio(cell), low, high, cell)
        for part, low, high, cell in zip(
            parts, floor, goal, [f"postgresql/{workload}/{part}" for part in parts], strict=True
        )
    ]


def _growth(kind: str) -> Compute:
    def compute(results: Results, subject: str) -> float | None:
        ends = [
            results.summary(f"postgresql/growth-{kind}-{n}/c1", subject) for n in (LENGTHS[-1], LENGTHS[0])
        ]
        return ends[0].p50 / ends[1].p50 if ends[0] and ends[1] else None

    return compute


def _tail(results: Results, subject: str) -> float | None:
    """Returns the worst p99 over p50 of the hot gets of one caller that were measured often enough."""
    hot = [
        summary
        for workload in ("hot-all-20", "hot-all-200", "hot-all-2000", "hot-last20-200", "hot-last20-2000")
        if (summary := results.summary(f"postgresql/{workload}/c1", subject)) and summary.operations >= _TAIL
    ]
    return max((one.p99 / one.p50 for one in hot), default=None)


def _gone(workload: str) -> Compute:
    return lambda results, subject: results.ratio(
        f"postgresql/{workload}/c1", f"{subject}-cache-gone", f"{subject}-uncached"
    )


def _first_failing(results: Results, subject: str) -> float | None:
    measured = results.outage.values() if subject == OURS else ()
    return max((one["extra"] for one in measured), default=None)


def _trips(call: str, what: str) -> Compute:
    def compute(results: Results, subject: str) -> float | None:
        found = results.trips.get(subject, {}).get(call)
        return None if found is None else round(found[what], 1)

    return compute


def _memory(place: str) -> Compute:
    def compute(results: Results, subject: str) -> float | None:
        found = results.memory.get(subject)
        return None if found is None else found[f"{place}_bytes"] / found["json_bytes"]

    return compute


def _worst(family: str, workload: str = "") -> Compute:
    def compute(results: Results, subject: str) -> float | None:
        cells = [cell for cell in results.cells if cell.startswith(f"{family}/{workload}")]
        ratios = [results.ratio(cell, subject) for cell in cells]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    return compute


TARGETS: Final = (
    *_rates("hot get, all of 20 events", "hot-all-20", (30, 50), (40, 120)),
    *_rates("hot get, all of 200 events", "hot-all-200", (110, 200), (160, 500)),
    *_rates("hot get, all of 2,000 events", "hot-all-2000", (300, 150), (500, 800)),
    *_rates("hot get, last 20 of 200", "hot-last20-200", (28, 48), (40, 120)),
    *_rates("hot get, last 20 of 2,000", "hot-last20-2000", (28, 48), (40, 120)),
    *_rates("get on another server, last 20", "elsewhere-last20", (4.5, 5), (10, 12)),
    *_rates("get on another server, all of 200", "elsewhere-all-200", (2, 2.8), (5, 6)),
    *_rates("cold get, 20 events", "cold-20", (3.3,), (6,)),
    *_rates("cold get, 200 events", "cold-200", (1.8,), (4,)),
    *_rates("append", "append", (6, 9), (8, 25)),
    *_rates("get + append by the same caller", "get-append", (14, 30), (20, 60)),
    *_rates("chat turn", "turn", (5.5, 22), (8, 45)),
    Target("chat turn", "2x16", _ratio("postgresql/turn/2x16"), 10, 20, "postgresql/turn/2x16"),
    *_rates("list 100 sessions", "list-100", (6, 11), (8, 18)),
    *_rates("create", "create", (5, 14), (8, 25)),
    *_rates("delete", "delete", (2.5, 7), (4, 12)),
    Target("growth from 10 to 10,000 events, p50", "get, last 20", _growth("get"), 1.3, 1.1, most=True),
    Target("growth from 10 to 10,000 events, p50", "append", _growth("append"), 1.3, 1.1, most=True),
    Target("Redis gone, against no cache", "get of 20, c1", _gone("hot-all-20"), 0.9, 0.97),
    Target("Redis gone, against no cache", "append, c1", _gone("append"), 0.9, 0.97),
    Target("Redis gone", "first failing call, over SQL", _first_failing, 50, 20, most=True, unit=" ms"),
    Target("p99 / p50 of hot gets", "c1, worst", _tail, 4, 2, most=True),
    Target("round trips", "get, Redis", _trips("get", "redis"), 1, 1, most=True, unit=""),
    Target("round trips", "get, SQL", _trips("get", "sql"), 0, 0, most=True, unit=""),
    Target("round trips", "append, SQL", _trips("append", "sql"), 1, 1, most=True, unit=""),
    Target(
        "round trips",
        "append, Redis awaited",
        _trips("append", "awaited_redis"),
        1.3,
        0.9,
        most=True,
        unit="",
    ),
    Target("round trips", "turn, SQL", _trips("turn", "sql"), 4, 4, most=True, unit=""),
    Target(
        "round trips", "turn, Redis awaited", _trips("turn", "awaited_redis"), 5.5, 4.5, most=True, unit=""
    ),
    Target(
        "memory of a session of 200 events", "in process, of its JSON", _memory("process"), 4, 2, most=True
    ),
    Target(
        "memory of a session of 200 events", "in Redis, of its JSON", _memory("redis"), 1.3, 1.15, most=True
    ),
    Target("SQLite, against SqliteSessionService", "worst row", _worst("sqlite"), 1, 1),
    Target("MariaDB", "worst row", _worst("mariadb"), 3, 3),
    Target("MariaDB", "cold get, 200 events", _worst("mariadb", "cold-200"), 2, 2),
)
