"""Counters of the library: the protocol to receive them, and their names."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

READ_PROCESS: Final = "reads.process"
READ_CACHE: Final = "reads.cache"
READ_STORE: Final = "reads.store"
CACHE_HIT: Final = "cache.hit"
CACHE_MISS: Final = "cache.miss"
CACHE_MASKED: Final = "cache.masked"
CACHE_UNAVAILABLE: Final = "cache.unavailable"
FILL_STORED: Final = "fill.stored"
FILL_REFUSED: Final = "fill.refused"
APPLY_APPLIED: Final = "apply.applied"
APPLY_ABSENT: Final = "apply.absent"
APPLY_GAP: Final = "apply.gap"
LATER_DISCARDED: Final = "later.discarded"
OUTBOX_WRITTEN: Final = "outbox.written"
OUTBOX_DRAINED: Final = "outbox.drained"
BREAKER_OPENED: Final = "breaker.opened"
BREAKER_CLOSED: Final = "breaker.closed"


class Sampled(NamedTuple):
    """The counters of sampled entries, so long after the sampled call."""

    compared: str
    inconsistent: str


SAMPLED_AT_ONCE: Final = Sampled("sampled.compared.0s", "sampled.inconsistent.0s")
SAMPLED_LATER: Final = Sampled("sampled.compared.1s", "sampled.inconsistent.1s")
SAMPLED_AT_BOUND: Final = Sampled(
    "sampled.compared.max_staleness", "sampled.inconsistent.max_staleness"
)
SAMPLED_WRONG: Final = "sampled.wrong"


class Metrics(Protocol):
    """Receives counters. Called on the hot path: must not block and must not raise."""

    def count(self, name: str, value: int = 1) -> None:
        """Adds `value` to the counter `name`."""
        ...


class NullMetrics:
    """Drops every counter."""

    def count(self, name: str, value: int = 1) -> None:
        """Does nothing."""
