"""One state of the explored world, what is asked of it, and the calls its programs make."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any, NamedTuple

from tiered_sessions.records import Query
from tiered_sessions.tier.steps import Rules

RULES = Rules(
    max_staleness=30_000,
    cached=True,
    private=False,
    exclusive=False,
    window_events=200,
    event_bytes=1000,
    state_bytes=1000,
)


class Promise(Enum):
    """What table 5.5 says of a mix, strongest first. Own writes and monotone reads hold in all.

    NEVER: no answer misses a commit done before its read began, no servable entry is old.
    TRANSIENT: nothing is stale any more when nothing is under way and the outbox is drained.
    BOUNDED: every answer holds what was committed `max_staleness` before its read began.

    Where SQL loses commits, own writes and monotone reads end with them.
    """

    NEVER = "never"
    TRANSIENT = "transient"
    BOUNDED = "bounded"


class Faults(NamedTuple):
    """How often each may happen, at any step.

    `crashes`: a process dies. `timers`: a reader's wait for the cache ends without a reply, the
    command reaches the server later or never. `alone`: a caller does not wait for the flight it
    joined. `cutoffs`: the same timer for a writer's masks. `strays`: a command of the cache that nobody waits
    for never arrives. `copies`: a command arrives twice.
    `evictions`: a key goes. `failovers`: an older copy of the cache takes over; `saves`: how often
    a newer copy is made. `unknowns`: a statement's outcome is not told, or it fails. `cancels`: a
    caller leaves before its statement is sent. `polls`: a wait for somebody's fill is repeated.
    `losses`: SQL fails over and loses the session's last commit. `expiries`: the database's clock
    is set ahead, and the session has expired to it alone.
    """

    crashes: int = 0
    timers: int = 0
    alone: int = 0
    cutoffs: int = 0
    strays: int = 0
    copies: int = 0
    evictions: int = 0
    failovers: int = 0
    saves: int = 0
    unknowns: int = 0
    cancels: int = 0
    polls: int = 1
    losses: int = 0
    expiries: int = 0

    def less(self, name: str) -> Faults:
        return self._replace(**{name: getattr(self, name) - 1})


NO_FAULTS = Faults()


class Calls(NamedTuple):
    """What programs are made of: the product's modules, or mutants of them."""

    protocol: ModuleType
    chores: ModuleType
    rules: Rules


Program = Callable[[Calls], Generator[Any, Any, Any]]


@dataclass(frozen=True)
class Scenario:
    """A mix: programs by process, faults, and the promise to check.

    `jumps`: by how many ms the clock jumps, in this order, each at any time. One of more than 2.5 s
    finds no statement under way, as the time-outs of section 5 guarantee, unless `late`; one of
    more than 5 s finds nobody waiting for the cache. `calm`: keys are evicted only without a mask, failovers
    come while no write is under way. `cut`: processes without a cache; they may get it back.
    `stamps`: a failover changes the server stamp. `cold`: nothing is cached at first. `user`: a
    program writes the user scope; else its commands are not delayed. `window`: how many events an
    entry holds when it is filled; a session starts with two. `ends`: after how many ms it expires.
    """

    name: str
    programs: tuple[tuple[int, Program], ...]
    promise: Promise = Promise.NEVER
    faults: Faults = NO_FAULTS
    rules: Rules = RULES
    jumps: tuple[int, ...] = ()
    late: bool = False
    calm: bool = False
    cut: tuple[int, ...] = ()
    stamps: bool = True
    cold: bool = False
    user: bool = False
    window: int = 200
    ends: int | None = None


class Process(NamedTuple):
    """What survives between the calls of one process. `seen`: the versions its calls returned."""

    floors: int
    known: int
    seen: tuple[int, ...]
    cut: bool = False
    probed: int = 0


class Actor(NamedTuple):
    """One program, or one flight, under way.

    `bound`: the versions its read must not be older than; `own`: those its statement left.
    `aged`: handles up to this one were sent before a jump. `writing`: 1 with a connection, 2 from
    the statement on. A flight has a `name` by which callers wait for it; `sealed`, `left` as in
    tier/flights.py; `private`: nobody else can join it; `query`: what whoever joins it asks for.
    """

    machine: int
    process: int
    name: str
    sent: tuple[tuple[int, int], ...] = ()
    replies: tuple[tuple[int, int], ...] = ()
    handles: int = 0
    bound: tuple[int, ...] = ()
    own: tuple[int, ...] = ()
    aged: int = 0
    polls: int = 0
    writing: int = 0
    tokens: int = 0
    flight: str = ""
    sealed: bool = False
    left: bool = False
    private: bool = False
    query: Query | None = None


class State(NamedTuple):
    """All of one moment. Numbers name entries of the explorer's tables."""

    now: int
    stamp: str
    cache: int
    backup: int
    sql: int
    processes: tuple[int, ...]
    actors: tuple[int, ...]
    flights: tuple[int, ...]
    bag: tuple[int, ...]
    """Commands that nobody waits for, to be executed at any time or never."""
    jumps: int
    faults: Faults
