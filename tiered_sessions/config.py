"""Every number someone may tune, with its default and its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .errors import ConfigurationError

KIB = 1024
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TieredConfig:
    """Settings of the two tiers. Durations in seconds, sizes in bytes.

    Attributes:
        max_staleness: How old an answer may be after the faults named in docs/consistency.md.
            0: every read is checked against SQL. None: own writes and monotone reads only.
        cache_budget: How long one call waits for the cache in all (I7).
        idle_ttl: A cached session not written or validated for this long is forgotten (I8).
        max_age: A cache entry is never older than this, however busy.
        window_events: How many of the newest events are cached.
        window_bytes: How many bytes of them are cached.
        event_bytes: A larger event is not cached; the window begins after it.
        state_bytes: A larger state is not cached.
        lock_timeout: How long a write waits for a database lock.
        statement_timeout: How long a write statement runs; less than `mask_life`.
        mask_age: A write statement is sent only while its masks are younger than this.
        mask_life: How long a write hides the cached entry if the writer dies.
        lease_life: How long one process may take to fill an entry.
        outbox_poll: How often recorded invalidations are drained.
        sweep_every: How often expired sessions are deleted, give or take a half; 0: never by itself.
        decoded_bytes: Memory for the sessions kept in process, decoded; a session takes a quarter of it
            at most. An event of google-adk takes about 2.3 kB and its text. 0 keeps none.
        shared_events: Whether readers in one process are given the same event objects ("on"). A session
            object, its list of events and its state are always the caller's own; an event that was read
            is to be left as it is, as stored events are, or copied first. "check" finds who does not
            (`SharedEventChangedError`), at the price of reading every event again. "off": each reader
            is given events of its own, decoded each time.
        store_reads: How many reads of one process may be in the database at once.
        close_timeout: How long `close()` waits for writes under way.
        sample_rate: Which share of the calls is followed by comparisons of cache and SQL, counted as
            `sampled.*` (docs/operations.md). 0: none; with a private cache none is needed.
        wait_apply: An append also waits (within `cache_budget`) for the cache to show it.
        default_window: What `get_session` without a configuration reads: about so many of the newest
            events instead of all, never a response without its call, nor less than the newest compaction
            summary and what it leaves. Not for agents that rewind (docs/adk.md). None: all events.
    """

    max_staleness: float | None = 30.0
    cache_budget: float = 0.050
    idle_ttl: float = 3600.0
    max_age: float = 86_400.0
    window_events: int = 200
    window_bytes: int = MIB
    event_bytes: int = 256 * KIB
    state_bytes: int = 256 * KIB
    lock_timeout: float = 1.0
    statement_timeout: float = 2.5
    mask_age: float = 1.0
    mask_life: float = 4.0
    lease_life: float = 2.0
    outbox_poll: float = 0.5
    sweep_every: float = 60.0
    decoded_bytes: int = 256 * MIB
    shared_events: Literal["on", "off", "check"] = "on"
    store_reads: int = 32
    close_timeout: float = 5.0
    sample_rate: float = 0.001
    wait_apply: bool = False
    default_window: int | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, int | float) and value < 0:
                raise ConfigurationError(f"{name} must not be negative, not {value!r}")
        for name in ("window_events", "idle_ttl", "max_age", "lease_life", "outbox_poll", "store_reads"):
            if not getattr(self, name):
                raise ConfigurationError(f"{name} must be more than 0")
        if self.shared_events not in ("on", "off", "check"):
            raise ConfigurationError(
                f'shared_events must be "on", "off" or "check", not {self.shared_events!r}'
            )
        if self.sample_rate > 1:
            raise ConfigurationError("sample_rate must not be more than 1")
        if self.default_window == 0:
            raise ConfigurationError("default_window must be more than 0, or None for all events")
        # A statement sent at the last moment must end before its mask does (R7).
        if self.mask_life < self.mask_age + self.statement_timeout + 0.5:
            raise ConfigurationError("mask_life must be at least mask_age + statement_timeout + 0.5")
