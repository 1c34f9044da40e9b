"""What a simulated run consists of: its faults, its processes and the calls under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.records import Content, Query, ScopeKey, SessionKey
from tiered_sessions.tier import steps
from tiered_sessions.tier.flights import Flight, Flights
from tiered_sessions.tier.floors import Floors
from tiered_sessions.tier.steps import Answer, Rules

RULES = Rules(
    max_staleness=30_000,
    cached=True,
    private=False,
    exclusive=False,
    window_events=200,
    event_bytes=1000,
    state_bytes=1000,
)


class Violation(AssertionError):
    """A promise is broken."""


@dataclass(frozen=True)
class Faults:
    """What may go wrong in a run, as often as its seed likes.

    `cut_off`: a writer's masks may get no reply, and what is sent behind them may be lost. `failover`: an
    older copy of the cache takes over, once, while nobody writes; `unstamped`: and it looks like the
    same server. `unknown`: a commit ends without a word. `lost_commits`: SQL fails over, once, to a
    server that is behind. `impatience`: how often a wait for the cache is given up. `pauses`: how often
    five seconds go by while nobody writes.
    `slow`: commands that often arrive last if nobody waits for them; if somebody does, their reply does.
    """

    crashes: bool = False
    evictions: bool = False
    cut_off: bool = False
    duplicates: bool = False
    failover: bool = False
    unstamped: bool = False
    unknown: bool = False
    lost_commits: bool = False
    impatience: float = 0.1
    pauses: float = 0.01
    slow: tuple[type, ...] = ()


class Process:
    """What survives between the calls of one process. `seen`: the newest commit it knows of."""

    def __init__(self, cache: MemoryCache, rules: Rules, clock: Callable[[], int]) -> None:
        life = None if rules.max_staleness is None else rules.max_staleness / 1000 + 1
        self.cache = cache
        self.floors = Floors(life, lambda: clock() / 1000)
        self.flights: Flights[tuple[SessionKey, Query], Answer] = Flights()
        self.known: dict[SessionKey, Content] = {}
        self.seen: dict[ScopeKey, int] = {}

    def saw(self, scope: ScopeKey, position: int) -> None:
        """Notes what it wrote, or told a caller."""
        self.seen[scope] = max(position, self.seen.get(scope, 0))


@dataclass(eq=False)
class Actor:
    """One call under way, or one flight. `outer`: what goes on when `steps` has ended."""

    process: Process
    number: int
    pace: float
    steps: Any
    finish: Callable[[Actor, Any], None]
    flight: Flight[Answer] | None = None
    boarded: Flight[Answer] | None = None
    asked: steps.Flight | None = None
    outer: Any = None
    wait: steps.Wait | None = None
    asking: bool = False
    sent: dict[int, Any] = field(default_factory=dict)
    replies: dict[int, Any] = field(default_factory=dict)
    written: dict[ScopeKey, int] = field(default_factory=dict)
    handles: int = 0
    polls: int = 0
    writing: bool = False


@dataclass(frozen=True, eq=False)
class Planned:
    """A call that begins some time."""

    pace: float
    begin: Callable[[], Any]


@dataclass(frozen=True, eq=False)
class Left:
    """A command that nobody waits for."""

    pace: float
    actor: Actor
    command: Any


@dataclass(frozen=True)
class Served:
    """What a read was told: the log's length when it began, and what its process knew by then."""

    began: int
    floors: dict[ScopeKey, int]
    answer: Answer
