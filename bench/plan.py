"""Which cells a run measures, with which implementations, and how long it may take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from .records import Cell, Family, Group, Limits, Scale
from .subjects.catalogue import L1, OURS, RAW, REFERENCE
from .workloads import LENGTHS, MANY, WARM, WORKLOADS

_READS: Final = ("hot-all-20", "hot-all-200", "hot-last20-200")
# The dearest come last: if the time runs out, of these there are fewer.
_LONG_READS: Final = ("hot-last20-2000", "hot-all-2000")
_OTHERS: Final = ("elsewhere-last20", "elsewhere-all-200")
_WRITES: Final = ("append", "get-append", "turn", "list-100", "create", "delete")
_ONE_SESSION: Final = ("hot-one-session", "append-one-session")
# What events kept in the process, or the write to Redis, make a difference to.
_KEPT: Final = ("hot-*", "append", "get-append", "turn", "growth-get-*", "growth-append-*")
_UNCACHED: Final = ("hot-all-20", "append")
# Not lists: for those ADK's service scans the whole keyspace of the server, whoever else uses it.
_REDIS: Final = ("hot-all-20", "hot-all-200", "hot-last20-200", "append", "get-append", "turn", "create")
_DATABASE: Final = ("hot-all-20", "append", "turn")
_ELSEWHERE: Final = ("hot-all-20", "hot-all-200", "hot-last20-200", "cold-200", *_WRITES)
_BESIDE: Final = ("adk-redis", "adk-database", "ours-uncached", "ours-cache-gone")
_SMOKE: Final = ("hot-all-20", "append", "turn", "create", "delete")


@dataclass(frozen=True, slots=True)
class Mode:
    """A form of the run.

    Attributes:
        minutes: No measurement begins later.
        extras: Whether round trips, memory and outages are measured, too.
    """

    name: str
    scale: Scale
    minutes: float
    families: tuple[Family, ...]
    extras: bool


MODES: Final = {
    "smoke": Mode("smoke", Scale(1, 0.2, 0.02), 1.0, ("postgresql",), extras=False),
    "quick": Mode("quick", Scale(1, 0.6, 0.25), 6.0, ("postgresql", "sqlite"), extras=True),
    "full": Mode("full", Scale(2, 0.7, 1.0), 12.0, ("postgresql", "sqlite", "mariadb"), extras=True),
}


SHARES: Final[dict[Family, float]] = {"postgresql": 0.64, "sqlite": 0.14, "mariadb": 0.22}
"""Of the time, with what is stored first and measured beside the cells."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a mode is wanted: patterns of workloads, and implementations. Empty: everything."""

    workloads: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()

    def workload(self, name: str) -> bool:
        """Says whether a workload is wanted."""
        return not self.workloads or any(fnmatchcase(name, pattern) for pattern in self.workloads)

    def subject(self, name: str) -> bool:
        """Says whether an implementation is wanted."""
        return not self.subjects or name in self.subjects


def cells(mode: Mode, family: Family, choice: Choice) -> list[Cell]:
    """Returns the cells of a family in the order they are measured."""
    if mode.name == "smoke":
        found = [Cell(family, name, 1) for name in _SMOKE]
        found += [Cell(family, name, MANY) for name in _SMOKE[:2]]
    elif family == "postgresql":
        found = [Cell(family, name, callers) for name in (*_READS, *_WRITES) for callers in (1, MANY)]
        found += [Cell(family, "turn", MANY // 2, processes=2)]
        found += [Cell(family, name, callers) for name in _OTHERS for callers in (1, MANY)]
        found += [Cell(family, name, 1) for name in ("cold-20", "cold-200")]
        found += [Cell(family, name, MANY) for name in _ONE_SESSION]
        kinds = ("growth-get", "growth-append", "growth-all")
        found += [Cell(family, f"{kind}-{length}", 1) for kind in kinds for length in LENGTHS]
        found += [Cell(family, name, callers) for name in _LONG_READS for callers in (1, MANY)]
    else:
        found = [Cell(family, name, callers) for name in _ELSEWHERE for callers in (1, MANY)]
        found.remove(Cell(family, "cold-200", MANY))
    return [cell for cell in found if choice.workload(cell.workload)]


def subjects(mode: Mode, cell: Cell, available: Collection[str], choice: Choice) -> list[str]:
    """Returns the implementations that measure a cell, in the order they take turns."""
    wanted = [REFERENCE, OURS]
    wanted += [RAW] if cell.processes == 1 else []
    wanted += [L1] if any(fnmatchcase(cell.workload, pattern) for pattern in _KEPT) else []
    if cell.processes == 1:
        wanted += ["ours-uncached", "ours-cache-gone"] if cell.workload in _UNCACHED else []
        wanted += ["adk-database"] if cell.workload in _DATABASE else []
        wanted += ["adk-redis"] if cell.workload in _REDIS else []
    # Shorter forms do without what no target is about, unless it is asked for by name.
    left_out = {"smoke": _BESIDE, "quick": _BESIDE[:2], "full": ()}[mode.name]
    wanted = [name for name in wanted if name not in left_out or name in choice.subjects]
    return [name for name in wanted if name in available and choice.subject(name)]


def limits(mode: Mode, cell: Cell) -> Limits:
    """Returns when a measurement of a cell ends."""
    return Limits(mode.scale.seconds, WORKLOADS[cell.workload].operations(cell.callers, mode.scale))


def group(mode: Mode, cell: Cell) -> Group:
    """Returns the stored sessions a cell uses."""
    return WORKLOADS[cell.workload].group(cell, mode.scale)


def groups(mode: Mode, measured: Collection[Cell]) -> list[Group]:
    """Returns what must be stored before these cells are measured, each group once."""
    found = {one.name: one for one in (WARM, *(group(mode, cell) for cell in measured))}
    # Workloads that share sessions may differ in how many they use.
    for cell in measured:
        one = group(mode, cell)
        if one.sessions > found[one.name].sessions:
            found[one.name] = one
    return list(found.values())
