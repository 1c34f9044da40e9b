"""What is measured: every workload with its numbers, and which stored sessions it needs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final, Literal

from .records import Cell, Group, Scale

Kind = Literal["read", "append", "get-append", "turn", "list", "create", "delete"]
Warmth = Literal["hot", "elsewhere", "cold"]

TURN: Final = 4
"""Appends in a chat turn, after its get."""
WARM: Final = Group("warm", 40, 20)
"""Sessions to open connections with: read by nobody else."""
WARM_UP: Final = 5
"""Untimed operations of each writing caller before the timed ones."""
MANY: Final = 32
"""Callers in one process where there are many."""
LONG: Final = 2000
# So many sessions are read by a read workload; long ones by as many callers as there are.
_READ_SESSIONS: Final = 128


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload, the same for every implementation.

    Attributes:
        events: How many a session has at the beginning.
        window: How many of the newest a get asks for; None: all.
        warmth: "hot": read in this process before; "elsewhere": only another server has read it;
            "cold": nobody has, and the cache is empty.
        per_session: A writing caller takes another session after so many operations.
        per_batch: How many operations of a caller are prepared, timed and checked at a time.
        shared: All callers use one session.
        growth: Belongs to the series over history lengths.
        most: How many operations are enough, for one caller and for many.
    """

    name: str
    kind: Kind
    events: int
    window: int | None = None
    warmth: Warmth = "hot"
    per_session: int = 100
    per_batch: int = 25
    shared: bool = False
    growth: bool = False
    most: tuple[int, int] = (2000, 8000)

    def batch(self, callers: int) -> int:
        """Returns how many operations one caller does between two looks at the results.

        Results are held until they are checked; too many would burden the garbage collector, which no
        server does that answers and forgets.
        """
        if self.kind != "read":
            return self.per_batch
        returned = min(self.events, self.window or self.events)
        return max(1, min(1000, _HELD // (callers * returned)))

    def lot(self, callers: int, operations: int) -> int:
        """Returns how many sessions a writing caller needs at most, in one repetition."""
        return ceil((operations / callers + WARM_UP + 2 * self.per_batch) / self.per_session)

    def group(self, cell: Cell, scale: Scale) -> Group:
        """Returns the stored sessions a cell needs."""
        if self.kind == "read":
            # Those of the series over history lengths have one session each.
            sessions = 1 if self.growth else max(MANY, round(_READ_SESSIONS * scale.share))
            return Group(f"read{self.events}", MANY if self.events == LONG else sessions, self.events)
        if self.kind == "list":
            return Group("list", 100 * MANY, 0, MANY)
        if self.kind == "create":
            return Group("create", MANY, 0, MANY)
        name = f"{self.name}-{cell.processes}x{cell.callers}"
        lot = self.lot(cell.callers, self.operations(cell.callers, scale))
        callers = 1 if self.shared else cell.callers
        sessions = lot * callers * cell.processes * scale.repetitions
        return Group(name, sessions, self.events, MANY if self.kind == "delete" else None)

    def operations(self, callers: int, scale: Scale) -> int:
        """Returns how many operations of all callers are enough in one repetition."""
        return max(callers, round(self.most[callers > 1] * scale.share))


_HELD: Final = 40_000


def _read(
    name: str, events: int, window: int | None = None, warmth: Warmth = "hot", **more: bool
) -> Workload:
    most = (4000, 12_000) if events < LONG else (1000, 4000)
    return Workload(name, "read", events, window, warmth, most=most, **more)


LENGTHS: Final = (10, 100, 1000, 10_000)
"""History lengths of the growth rows."""

_ALL: Final = (
    _read("hot-all-20", 20),
    _read("hot-all-200", 200),
    _read("hot-all-2000", 2000),
    _read("hot-last20-200", 200, 20),
    _read("hot-last20-2000", 2000, 20),
    _read("hot-one-session", 200, shared=True),
    _read("elsewhere-last20", 200, 20, "elsewhere"),
    _read("elsewhere-all-200", 200, None, "elsewhere"),
    _read("cold-20", 20, None, "cold"),
    _read("cold-200", 200, None, "cold"),
    Workload("append", "append", 20),
    Workload("append-one-session", "append", 20, shared=True, per_session=100),
    Workload("get-append", "get-append", 40, per_session=40, per_batch=10, most=(1500, 6000)),
    Workload("turn", "turn", 20, per_session=20, per_batch=5, most=(600, 2400)),
    Workload("list-100", "list", 0, per_batch=4, most=(500, 2000)),
    Workload("create", "create", 0, most=(1500, 6000)),
    Workload("delete", "delete", 4, per_session=1, per_batch=5, most=(400, 960)),
    *(_read(f"growth-get-{n}", n, 20, growth=True) for n in LENGTHS),
    *(_read(f"growth-all-{n}", n, growth=True) for n in LENGTHS),
    *(
        Workload(
            f"growth-append-{n}",
            "append",
            n,
            20,
            per_session=min(n, 400),
            per_batch=min(n, 25),
            growth=True,
            most=(200, 200),
        )
        for n in LENGTHS
    ),
)
WORKLOADS: Final = {workload.name: workload for workload in _ALL}
