"""What a run of the demo did and found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from .demo_check import Read, Verdict

PLACES = {"process": "in process", "cache": "Redis", "store": "SQL"}


@dataclass(slots=True)
class TurnRow:
    """One turn: who served it, what happened in it, how long each append took."""

    turn: int
    server: str
    agents: str
    tools: tuple[str, ...]
    appends_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Incident:
    """Something done to the cache in `turn`."""

    turn: int
    text: str
    detail: str


@dataclass(slots=True)
class Report:
    """Everything one run remembers."""

    store: str
    cache: str
    turns: int
    rows: list[TurnRow | Incident] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    cache_answers_again: bool | None = None
    failures: list[str] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every call was answered, rightly, and the cache was used again."""
        return self.verdict.clean and not self.failures and self.cache_answers_again is True

    @property
    def appends_ms(self) -> list[float]:
        return [ms for row in self.rows if isinstance(row, TurnRow) for ms in row.appends_ms]

    def reads_after_writes(self, turn: int, server: str) -> list[Read]:
        """Returns the reads of one server, each right after a write, in one turn."""
        return [
            read
            for read in self.reads
            if read.turn == turn and read.server == server and read.kind == "after"
        ]

    def read_groups(self) -> dict[str, list[Read]]:
        """Returns all reads, by what the cache was doing; those sent beside a write on their own."""
        groups: dict[str, list[Read]] = {"up": [], "dead": [], "back": [], "beside": []}
        for read in self.reads:
            groups["beside" if read.kind == "beside" else read.phase].append(read)
        return groups

    def as_json(self) -> dict[str, Any]:
        """Returns the machine-readable form, without the contents read."""
        return {
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "store": self.store,
            "cache": self.cache,
            "turns": self.turns,
            "appends": {"count": len(self.appends_ms), "median_ms": _median(self.appends_ms)},
            "reads": {group: by_place(reads) for group, reads in self.read_groups().items()},
            "reads_compared": len(self.reads),
            "cache_answers_again": self.cache_answers_again,
            "incidents": [asdict(row) for row in self.rows if isinstance(row, Incident)],
            "failures": self.failures,
            "lost": self.verdict.lost,
            "stale": self.verdict.stale,
            "different": self.verdict.different,
            "rows": [self._row(row) for row in self.rows if isinstance(row, TurnRow)],
        }

    def _row(self, row: TurnRow) -> dict[str, Any]:
        reads = {server: by_place(self.reads_after_writes(row.turn, server)) for server in ("A", "B")}
        appends = {"count": len(row.appends_ms), "median_ms": _median(row.appends_ms)}
        return {
            "turn": row.turn,
            "server": row.server,
            "agents": row.agents,
            "tools": row.tools,
            "appends": appends,
            "reads": reads,
        }


def by_place(reads: Iterable[Read]) -> dict[str, dict[str, float]]:
    """Counts reads and takes their median time, per place they were answered in."""
    times: dict[str, list[float]] = {place: [] for place in PLACES}
    for read in reads:
        times[read.place].append(read.ms)
    return {place: {"count": len(ms), "median_ms": _median(ms)} for place, ms in times.items() if ms}


def _median(ms: list[float]) -> float:
    return round(median(ms), 3) if ms else 0.0
