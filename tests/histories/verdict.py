"""What is allowed, what was found, and how far behind a read was."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.histories.history import Operation

SHOWN = 20
COLUMNS = ("append", "long history", "create", "delete", "re-create", "user state", "app state")


@dataclass
class Bounds:
    """What is allowed while the fault lasts, and after it.

    Attributes:
        staleness: Seconds a read may be behind; 0.0: never.
        cut_off: The same for writes that went through the outbox, whatever the fault.
        store_fails: Whether callers may see the database's errors.
        loses_commits: Whether what was acknowledged may be lost: then only errors are judged here.
    """

    staleness: float = 0.0
    cut_off: float = 3.0
    store_fails: bool = False
    loses_commits: bool = False


@dataclass
class Final:
    """What SQL holds in the end: (made, log) of each session that is, counters by user, and the app's."""

    sessions: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    users: dict[str, dict[str, int]] = field(default_factory=dict)
    app: dict[str, int] = field(default_factory=dict)


@dataclass
class Verdict:
    """What came out.

    Attributes:
        operations: How many were completed, by kind.
        anomalies: How often each was found; empty: all is well.
        examples: The first of them, in words.
        ages: Of the stale reads, by column: milliseconds behind.
        cut_off: How many writes went through the outbox.
        errors: What callers got instead of answers, whether allowed or not.
    """

    operations: Counter[str] = field(default_factory=Counter)
    anomalies: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    ages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cut_off: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def found(self, kind: str, text: str) -> None:
        """Notes an anomaly."""
        self.anomalies[kind] += 1
        if len(self.examples) < SHOWN:
            self.examples.append(f"{kind}: {text}")


class Timeline:
    """From when on it was known that something had come at least as far as a level."""

    def __init__(self, points: Iterable[tuple[int, int]]) -> None:
        self._times: list[int] = []
        self._levels: list[int] = []
        for moment, level in sorted(points):
            if not self._levels or level > self._levels[-1]:
                self._times.append(moment)
                self._levels.append(level)

    def age(self, moment: int, level: int) -> int:
        """Returns how long, at `moment`, more than `level` had been known; 0: it was not."""
        known = bisect_left(self._times, moment)
        first = bisect_right(self._levels, level, 0, known)
        return moment - self._times[first] if first < known else 0


class Register:
    """One thing that only grows: a log, or a counter. Global, and as each process knows it.

    Attributes:
        masked: The levels that were written with the entry masked, in order.
    """

    def __init__(self) -> None:
        self._points: list[tuple[int, int, str | None]] = []
        self._reads: list[tuple[Operation, int]] = []
        self.masked: list[int] = []

    def wrote(self, operation: Operation, level: int) -> None:
        """Takes an acknowledged write."""
        if not operation.cut_off:
            self.masked.append(level)
        self.known(operation, level)

    def known(self, operation: Operation, level: int) -> None:
        """Takes what an operation proves."""
        # A list comes from SQL and sets no floor: what it showed binds no later read of its process.
        process = None if operation.kind == "list" else operation.process
        self._points.append((operation.ended or 0, level, process))

    def read(self, operation: Operation, level: int) -> None:
        """Takes a read to judge."""
        self._reads.append((operation, level))

    def judge(self, name: str, column: str, judge: Judge) -> None:
        """Looks how far behind each read was."""
        self.masked.sort()
        everyone = Timeline((moment, level) for moment, level, _ in self._points)
        masked = Timeline((moment, self._masked(level)) for moment, level, _ in self._points)
        own: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for moment, level, process in self._points:
            if process is not None:
                own[process].append((moment, level))
        alone = defaultdict(lambda: Timeline(()), {one: Timeline(points) for one, points in own.items()})
        for operation, level in self._reads:
            stale = everyone.age(operation.begun, level)
            if stale:
                text = f"{name} at {level} by {operation.client}"
                if operation.kind == "list":
                    judge.verdict.found("stale", f"{text}, though a list comes from SQL")
                judge.stale(column, text, stale, masked.age(operation.begun, level))
                if alone[operation.process].age(operation.begun, level):
                    judge.verdict.found("backwards", text)

    def _masked(self, level: int) -> int:
        place = bisect_right(self.masked, level)
        return self.masked[place - 1] if place else -1


@dataclass
class Judge:
    """Measures what is stale against what is allowed."""

    bounds: Bounds
    verdict: Verdict

    def stale(self, column: str, text: str, age: int, masked: int) -> None:
        """Takes a stale read: how long behind all writes, and behind those that were masked, in ns."""
        self.verdict.ages[column].append(age / 1e6)
        cut_off = max(self.bounds.cut_off, self.bounds.staleness)
        for behind, bound in ((age, cut_off), (masked, self.bounds.staleness)):
            if behind > bound * 1e9:
                kind = "resurrected" if column in ("delete", "re-create") else "stale"
                self.verdict.found(kind, f"{text}, {behind / 1e6:.1f} ms behind, {column}")
                return
