"""The stopwatch: runs batches of operations of many callers and adds up what they took."""

from __future__ import annotations

import asyncio
import cProfile
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .events import WrongResultError
from .records import Limits, Measurement

_FAILURES = 100
Operation = Callable[[], Awaitable[Any]]
Lane = Sequence[Operation]
"""The operations of one caller, done one after the other."""


class Stopwatch:
    """Times what callers do at the same time, batch by batch; between batches time stands still."""

    def __init__(
        self,
        limits: Limits,
        settle: Callable[[], Awaitable[None]],
        profile: cProfile.Profile | None = None,
    ) -> None:
        self._limits = limits
        self._profile = profile
        self._settle = settle
        self._latencies: list[float] = []
        self._failures: list[Exception] = []
        self._seconds = 0.0
        self._cpu = 0.0

    @property
    def running(self) -> bool:
        """Whether another batch is wanted."""
        enough = len(self._latencies) >= self._limits.operations
        hopeless = len(self._failures) > max(_FAILURES, len(self._latencies))
        return not enough and not hopeless and self._seconds < self._limits.seconds

    async def time(self, lanes: Sequence[Lane]) -> list[list[Any]]:
        """Runs the lanes at the same time; returns what the operations of each returned.

        After the time is up no operation is begun. What finished calls left to do in the background
        is waited for, and counts.
        """
        if self._profile is not None:
            self._profile.enable()
        cpu, began = time.process_time(), time.perf_counter()
        end = began + max(self._limits.seconds - self._seconds, 0.0)
        results = await asyncio.gather(*(_run(lane, end, self._latencies, self._failures) for lane in lanes))
        await self._settle()
        self._seconds += time.perf_counter() - began
        self._cpu += time.process_time() - cpu
        if self._profile is not None:
            self._profile.disable()
        return results

    def measurement(self, checked: int, counters: dict[str, int]) -> Measurement:
        """Sums up."""
        ordered = sorted(self._latencies)
        return Measurement(
            operations=len(ordered),
            seconds=self._seconds,
            cpu_seconds=self._cpu,
            p50=1000 * percentile(ordered, 0.50),
            p99=1000 * percentile(ordered, 0.99),
            slowest=1000 * percentile(ordered, 1.0),
            checked=checked,
            failed=len(self._failures),
            failure=repr(self._failures[0])[:200] if self._failures else "",
            counters=counters,
        )


async def untimed(lanes: Sequence[Lane]) -> list[list[Any]]:
    """Runs the lanes at the same time, to the end; an operation that fails ends its lane only."""
    return list(await asyncio.gather(*(_run(lane, float("inf"), [], []) for lane in lanes)))


async def _run(lane: Lane, end: float, latencies: list[float], failures: list[Exception]) -> list[Any]:
    results: list[Any] = []
    clock = time.perf_counter
    began = clock()
    for operation in lane:
        if began >= end and latencies:
            break
        try:
            results.append(await operation())
        except WrongResultError:
            raise
        except Exception as error:
            # Services under load refuse calls; that is a finding. The lane's next calls rest on this one.
            failures.append(error)
            break
        ended = clock()
        latencies.append(ended - began)
        began = ended
    return results


def percentile(ordered: Sequence[float], share: float) -> float:
    """Returns a value of sorted ones that is at least as large as that share of them."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
