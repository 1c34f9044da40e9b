"""What a run found, as it is written to a file and read by the report."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .records import Cell, Measurement
from .subjects.catalogue import OURS, REFERENCE


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians of one implementation's repetitions of a cell. Times of an operation in ms."""

    repetitions: int
    operations: int
    rate: float
    """Operations per second."""
    p50: float
    p99: float
    slowest: float
    cpu: float
    """Processor time of the measured process, per operation."""
    failed: int
    """Operations that raised an error, of all repetitions; they are not counted in the rate."""
    failure: str
    sources: dict[str, float]
    """Which part of the reads came from the process, the cache and the store (ours)."""


def summarise(measured: list[Measurement]) -> Summary:
    """Takes the medians."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    return Summary(
        repetitions=len(measured),
        operations=sum(one.operations for one in measured),
        rate=median([one.operations / one.seconds for one in measured]),
        p50=median([one.p50 for one in measured]),
        p99=median([one.p99 for one in measured]),
        slowest=max(one.slowest for one in measured),
        cpu=median([1000 * one.cpu_seconds / one.operations for one in measured]),
        failed=sum(one.failed for one in measured),
        failure=next(filter(None, (one.failure for one in measured)), ""),
        sources=_sources(measured),
    )


def _sources(measured: list[Measurement]) -> dict[str, float]:
    counted: Counter[str] = Counter()
    for one in measured:
        counted.update({name: value for name, value in one.counters.items() if name.startswith("reads.")})
    return {name.removeprefix("reads."): value / counted.total() for name, value in counted.items()}


def together(parts: list[Measurement]) -> Measurement:
    """Makes one measurement of those of processes that ran at the same time."""
    rate = sum(one.operations / one.seconds for one in parts if one.operations)
    operations = sum(one.operations for one in parts)
    return Measurement(
        operations=operations,
        seconds=operations / rate if rate else parts[0].seconds,
        cpu_seconds=sum(one.cpu_seconds for one in parts),
        p50=statistics.mean(one.p50 for one in parts),
        p99=max(one.p99 for one in parts),
        slowest=max(one.slowest for one in parts),
        checked=sum(one.checked for one in parts),
        failed=sum(one.failed for one in parts),
        failure=next(filter(None, (one.failure for one in parts)), ""),
        counters=dict(sum((Counter(one.counters) for one in parts), Counter())),
    )


@dataclass(slots=True)
class Results:
    """Everything one run found.

    Attributes:
        about: Versions, machine, mode, when.
        cells: Measurements by name of the cell and implementation, one for each repetition.
        trips: Round trips, by implementation and call.
        memory: Memory of cached sessions, by implementation.
        outage: First failing calls.
        missing: What could not be measured, and why.
        cut: Repetitions for which there was no time.
    """

    about: dict[str, Any]
    cells: dict[str, dict[str, list[Measurement]]] = field(default_factory=dict)
    trips: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    outage: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def add(self, cell: Cell, subject: str, measured: Measurement) -> None:
        """Notes one repetition."""
        self.cells.setdefault(cell.name, {}).setdefault(subject, []).append(measured)

    def summary(self, cell: str, subject: str) -> Summary | None:
        """Returns the medians of an implementation in a cell, or None if it did nothing in it."""
        measured = [one for one in self.cells.get(cell, {}).get(subject, ()) if one.operations]
        return summarise(measured) if measured else None

    def ratio(self, cell: str, subject: str = OURS, reference: str = REFERENCE) -> float | None:
        """Returns how many times the reference's rate an implementation reached."""
        one, other = self.summary(cell, subject), self.summary(cell, reference)
        return one.rate / other.rate if one and other else None

    def to_json(self) -> dict[str, Any]:
        """Returns what is written to the file."""
        cells = {
            cell: {
                subject: {
                    **(asdict(found) if (found := self.summary(cell, subject)) else {}),
                    "ratio": self.ratio(cell, subject),
                    "repeated": [asdict(one) for one in measured],
                }
                for subject, measured in subjects.items()
            }
            for cell, subjects in self.cells.items()
        }
        return {
            "about": self.about,
            "cells": cells,
            "trips": self.trips,
            "memory": self.memory,
            "outage": self.outage,
            "missing": self.missing,
            "cut": self.cut,
        }

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Results:
        """Reads what `to_json` returned."""
        beside = {name: given[name] for name in ("trips", "memory", "outage", "missing", "cut")}
        found = cls(given["about"], **beside)
        for cell, subjects in given["cells"].items():
            for subject, summary in subjects.items():
                repeated = [Measurement(**one) for one in summary["repeated"]]
                found.cells.setdefault(cell, {})[subject] = repeated
        return found


def joined(runs: Sequence[Results]) -> Results:
    """Returns all repetitions of several runs as one's, and the medians of what each measured once."""
    both = Results(runs[-1].about)
    for run in runs:
        for cell, subjects in run.cells.items():
            for subject, measured in subjects.items():
                both.cells.setdefault(cell, {}).setdefault(subject, []).extend(measured)
        both.missing += run.missing
        both.cut += run.cut
    both.trips = _medians([run.trips for run in runs])
    both.memory = _medians([run.memory for run in runs])
    both.outage = _medians([run.outage for run in runs])
    return both


def _medians(parts: Sequence[Any]) -> Any:
    """Returns the median of each number of nested dictionaries of the same form."""
    if not isinstance(parts[0], dict):
        return statistics.median(parts)
    return {name: _medians([part[name] for part in parts if name in part]) for name in parts[0]}
