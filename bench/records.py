"""What travels between the runner, its workers and the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

Family = Literal["postgresql", "sqlite", "mariadb"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One workload with so many concurrent callers in each of so many processes."""

    family: Family
    workload: str
    callers: int
    processes: int = 1

    @property
    def name(self) -> str:
        """Identifies the cell in files and on the command line."""
        callers = f"c{self.callers}" if self.processes == 1 else f"{self.processes}x{self.callers}"
        return f"{self.family}/{self.workload}/{callers}"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        repetitions: How often each implementation measures a cell.
        seconds: How long at most each time.
        share: Which part of the operations and sessions of a full run.
    """

    repetitions: int
    seconds: float
    share: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a measurement ends: whichever comes first."""

    seconds: float
    operations: int


@dataclass(frozen=True, slots=True)
class Group:
    """Sessions that are stored before anything is measured: equal ones, told apart by a number."""

    name: str
    sessions: int
    events: int
    users: int | None = None
    """Over how many users they are spread; None: each has a user of its own."""

    def user_of(self, number: int) -> str:
        """Returns the user of a session."""
        return f"{self.name}-u{number if self.users is None else number % self.users}"

    def id_of(self, number: int) -> str:
        """Returns the id of a session."""
        return f"{self.name}-{number}"


@dataclass(frozen=True, slots=True)
class Task:
    """Asks a worker to measure one cell once."""

    cell: Cell
    group: Group
    repetition: int
    process: int
    limits: Limits

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Self:
        """Reads what `asdict` wrote."""
        return cls(
            Cell(**given["cell"]),
            Group(**given["group"]),
            given["repetition"],
            given["process"],
            Limits(**given["limits"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one worker measured of one cell in one repetition. Times of an operation in ms.

    Attributes:
        operations: How many were done in the timed part.
        seconds: How long the timed part was.
        cpu_seconds: How much processor time this process took in it.
        failed: How many more raised an error, the first of which is `failure`.
        checked: How many returned events were compared with what was written, outside the timed part.
        counters: What the library counted in it (ours only).
    """

    operations: int
    seconds: float
    cpu_seconds: float
    p50: float
    p99: float
    slowest: float
    checked: int
    failed: int = 0
    failure: str = ""
    counters: dict[str, int] = field(default_factory=dict)
