"""The vocabulary of the protocol: what its generators yield, and what they are told.

A generator yields `Ask`, `Send`, `Wait`, `Later`, `Flight` or a question to the process itself, and
receives the reply named in the docstring ("->"). Whoever performs the steps (performer.py, or an explorer)
owns deadlines, tokens and cancellation; it never throws into a generator.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, get_args

from ..cache.base import Granted, Unavailable
from ..records import (
    Append,
    Content,
    Create,
    EventRecord,
    Failed,
    Kind,
    OutboxRow,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Tag,
    Unknown,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the protocol needs to know of the configuration. `max_staleness` in ms.

    `private`: other writers do not use this cache, so it proves nothing by itself.
    `exclusive`: no other process can reach the database, so a private cache proves enough.
    """

    max_staleness: int | None
    cached: bool
    private: bool
    exclusive: bool
    window_events: int
    event_bytes: int
    state_bytes: int
    wait_apply: bool = False


class Timer(Enum):
    """What bounds a wait: the call's cache budget, or one poll interval within it."""

    CACHE = "cache"
    POLL = "poll"


class Ended(Enum):
    """Why a wait ended without a reply. `SPENT`: the call's cache budget is over."""

    TIMER = "timer"
    SPENT = "spent"
    CANCELLED = "cancelled"


class Ask(NamedTuple):
    """Sends a command and waits for it alone; the reply is the command's.

    A cache's that does not come within the call's budget is `Unavailable`, as is that of a call which was
    cancelled before its `Write` was sent.
    """

    command: Command

    def wait(self, handle: int) -> Wait:
        """Returns what it waits for once it was sent."""
        return Wait((handle,), None if type(self.command) in STORE_COMMANDS else Timer.CACHE)

    @staticmethod
    def told(got: Reply | Ended) -> Any:
        """Returns the reply to it, of what that wait was told."""
        return got.value if isinstance(got, Reply) else Unavailable(got.value)


class Send(NamedTuple):
    """Starts a command; the reply is its handle, an int."""

    command: Command


class Wait(NamedTuple):
    """Waits for the first reply among `handles`; the reply is a `Reply` or `Ended`.

    Cancellation is handed in as a reply, and only before a `Write` was sent (R29).
    """

    handles: tuple[int, ...]
    timer: Timer | None = None


class Reply(NamedTuple):
    """The reply of one command."""

    handle: int
    value: Any


@dataclass(frozen=True, slots=True)
class Unsent(Unavailable):
    """The command was not sent: nothing comes of it later."""


class Later(NamedTuple):
    """Performs a command that nobody waits for, after earlier ones of the same key.

    `behind`: It undoes one of this call that has had no reply. If the cache does not answer at the moment,
    it goes all the same, and arrives when the other does (unless connections are lent by a client of the
    caller's, where it waits for its turn).
    """

    command: ScopedCommand
    behind: bool = False


class Flight(NamedTuple):
    """Joins, or starts, the one `fetch` of this process for these arguments.

    A caller joins only a fetch that has not sent a read yet (R31).
    """

    key: SessionKey
    query: Query
    leases: tuple[ScopeKey, ...]


class LookUp(NamedTuple):
    """-> tuple[Lookup, ...], one a key."""

    keys: tuple[ScopeKey, ...]
    newest: int | None


class Intent(NamedTuple):
    """-> int | Unavailable."""

    scope: ScopeKey
    token: str


class Release(NamedTuple):
    """-> None | Unavailable."""

    scope: ScopeKey
    token: str


class Lease(NamedTuple):
    """-> Granted | LeaseRefused | Unavailable."""

    scope: ScopeKey
    token: str


class Fill(NamedTuple):
    """-> FillReply | Unavailable."""

    scope: ScopeKey
    token: str
    granted: Granted
    content: Content
    expires_at: int | None = None


class Apply(NamedTuple):
    """-> ApplyReply | Unavailable."""

    scope: ScopeKey
    token: str
    old: Tag | None
    new: Tag
    events: tuple[EventRecord, ...]
    state: bytes | None
    validated_at: int
    expires_at: int | None = None


class Drop(NamedTuple):
    """-> None | Unavailable."""

    scope: ScopeKey
    token: str | None
    keep: Tag | None


class Touch(NamedTuple):
    """-> bool | Unavailable."""

    scope: ScopeKey
    tag: Tag
    validated_at: int
    stamp: str


class Elect(NamedTuple):
    """-> bool | Unavailable: whether this process drains the outbox."""


class Load(NamedTuple):
    """-> Snapshot | None. A failed SQL read ends the call; it is not handed in here."""

    key: SessionKey
    query: Query


class LoadOlder(NamedTuple):
    """-> Older | None."""

    key: SessionKey
    before_seq: int
    query: Query


class ReadTags(NamedTuple):
    """-> Tags."""

    key: SessionKey


class ReadExpired(NamedTuple):
    """-> Sequence[SessionKey]: sessions that have expired, not all if there are many."""


class Checkout(NamedTuple):
    """-> None | Failed: a database connection, kept until the call ends.

    Begins a unit of work: until its `Write` is sent, the call can be cancelled. `grouped`: the
    connection may be shared with other calls' writes of this kind.
    """

    grouped: Kind | None = None


class Delete(NamedTuple):
    """The deletion of one session; `only_expired`: unless it lives."""

    key: SessionKey
    only_expired: bool = False


class Write(NamedTuple):
    """-> AppendOutcome | CreateOutcome | DeleteOutcome. Once sent it is not cancelled."""

    operation: Append | Create | Delete
    outbox: tuple[ScopeKey, ...]


class ReadOutbox(NamedTuple):
    """-> Sequence[OutboxRow]."""


class ForgetOutbox(NamedTuple):
    """-> None. Sent only for rows whose drop was acknowledged."""

    rows: tuple[OutboxRow, ...]


class Token(NamedTuple):
    """-> str, never given out before."""


class Began(NamedTuple):
    """-> int: which own writes precede what is sent from now on."""


class Standing(Enum):
    """How an entry's tag compares with the floor: what this process wrote or served (I6).

    `SAME`: it is the floor's, which lives on as if it had been served again.
    """

    SAME = "same"
    FINE = "fine"
    BELOW = "below"
    DOUBT = "doubt"


class Judge(NamedTuple):
    """-> (int, tuple[Standing, ...]): up to when (server ms) an entry's validation proves nothing, as the
    breaker closed last then; and a standing a scope, of which without an entry (tag None) nothing is said.
    """

    scopes: tuple[ScopeKey, ...]
    tags: tuple[Tag | None, ...]


class Served(NamedTuple):
    """The caller is about to see these: later reads must not be older."""

    scopes: tuple[ScopeKey, ...]
    tags: tuple[Tag, ...]


class Observed(NamedTuple):
    """-> bool: SQL says so, asked after `began`; false if an own write since is newer."""

    scope: ScopeKey
    tag: Tag | None
    began: int


class Wrote(NamedTuple):
    """This process changed the row; `tag` None: to what is for SQL to say."""

    scope: ScopeKey
    tag: Tag | None


class Known(NamedTuple):
    """-> Content | None: the session's content this process has kept."""

    key: SessionKey


class Keep(NamedTuple):
    """Keeps a session's content in the process, unless more of it is kept at the same tag.

    `added`: what it has more than the kept one.
    """

    key: SessionKey
    content: Content
    added: tuple[EventRecord, ...] | None = None


class Young(NamedTuple):
    """-> bool: whether these intents were sent recently enough to outlive a statement (R7)."""

    handles: tuple[int, ...]


class Seal(NamedTuple):
    """From here on nobody joins this flight: its read is about to be sent (R31)."""


ScopedCommand: TypeAlias = Intent | Release | Lease | Fill | Apply | Drop | Touch
CacheCommand: TypeAlias = ScopedCommand | LookUp | Elect
SqlRead: TypeAlias = Load | LoadOlder | ReadTags | ReadExpired | ReadOutbox | ForgetOutbox
StoreCommand: TypeAlias = SqlRead | Checkout | Write
STORE_COMMANDS: Final = frozenset(get_args(StoreCommand))
Command: TypeAlias = CacheCommand | StoreCommand
Question: TypeAlias = Token | Began | Judge | Served | Observed | Wrote | Known | Keep | Young | Seal
"""What the process itself is asked: atomic, no I/O."""
Step: TypeAlias = Ask | Send | Wait | Later | Flight | Question
Steps: TypeAlias = Generator[Step, Any, T]


class Answer(NamedTuple):
    """What a read found, and where."""

    snapshot: Snapshot | None
    source: Literal["process", "cache", "store"]


class Swept(NamedTuple):
    """How many expired sessions were found and how many deleted; `failed`: the last that was not."""

    found: int
    deleted: int
    failed: Failed | Unknown | None
