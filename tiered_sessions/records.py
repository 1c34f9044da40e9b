"""The values both tiers speak of: frozen, without I/O, without a framework.

Times are whole microseconds since 1970 UTC where SQL holds them (`update_time`,
`EventRecord.timestamp`) and whole milliseconds of the answering server's clock where
Redis does. JSON documents travel as UTF-8 bytes and are decoded once, at the edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple


class ScopeKey(NamedTuple):
    """Names what one cache entry, one tag and one outbox row belong to."""

    kind: Literal["session", "user", "app"]
    app_name: str
    user_id: str = ""
    session_id: str = ""


class SessionKey(NamedTuple):
    """Names one session. The same `session_id` may exist under several users."""

    app_name: str
    user_id: str
    session_id: str

    @property
    def session(self) -> ScopeKey:
        return _scopes(self)[0]

    @property
    def user(self) -> ScopeKey:
        return _scopes(self)[1]

    @property
    def app(self) -> ScopeKey:
        return _scopes(self)[2]

    @property
    def scopes(self) -> tuple[ScopeKey, ScopeKey, ScopeKey]:
        return _scopes(self)


@lru_cache(4096)
def _scopes(key: SessionKey) -> tuple[ScopeKey, ScopeKey, ScopeKey]:
    app, user, session = key
    return (ScopeKey("session", app, user, session), ScopeKey("user", app, user), ScopeKey("app", app))


class Tag(NamedTuple):
    """Names one content of one row: equal tags mean equal content.

    Always compared whole. `update_time` belongs to it because a foreign writer (stock ADK)
    changes nothing else. An `incarnation` of 0 is a row without our columns, or a session
    holding events that are not numbered yet: never cached, adopted by the next append.
    """

    incarnation: int
    revision: int
    nonce: int
    update_time: int

    @property
    def adopted(self) -> bool:
        return self.incarnation != 0


class EventRecord(NamedTuple):
    """One stored event. `seq` is the revision its append produced (0: not numbered yet)."""

    seq: int
    id: str
    timestamp: int
    payload: bytes


@dataclass(slots=True, unsafe_hash=True)
class Content:
    """What one row, and one cache entry, holds at one tag. Never changed: `frozen` would treble its cost.

    `events` is a contiguous tail of the log, oldest first (I2). `complete` says that no older
    event exists; otherwise `before` is the greatest timestamp among the older ones, None if
    unknown. For the user and app scopes `events` is empty and `complete` is true.
    """

    tag: Tag
    state: bytes
    events: tuple[EventRecord, ...] = ()
    complete: bool = True
    before: int | None = None

    def part_of(self, other: Content) -> bool:
        """Says whether `other` is the same content with more of its events, or equal in all."""
        if self.tag != other.tag or len(self.events) > len(other.events):
            return False
        return len(self.events) < len(other.events) or (
            (self.complete, self.before) == (other.complete, other.before)
        )


@dataclass(slots=True, unsafe_hash=True)
class Snapshot:
    """One session with its shared scopes, read at one moment. A scope without a row is None.

    Never changed, as `Content`.

    `expires_in`: milliseconds from that moment, by the database's clock, until the session expires.
    Not part of the content: it is another number at every look.
    """

    key: SessionKey
    session: Content
    user: Content | None
    app: Content | None
    expires_in: int | None = None

    def shows(self, other: Snapshot) -> bool:
        """Says whether a reader would be given the same for both."""
        one, two = self.session, other.session
        return (
            _equal(one, two)
            and one.events == two.events
            and _equal(self.user, other.user)
            and _equal(self.app, other.app)
        )

    def content(self, scope: ScopeKey) -> Content | None:
        """Returns the part that `scope` names."""
        return {"session": self.session, "user": self.user, "app": self.app}[scope.kind]


def _equal(one: Content | None, two: Content | None) -> bool:
    """Says whether both have the same tag and state."""
    if one is None or two is None:
        return one is two
    return one is two or (one.tag == two.tag and one.state == two.state)


@dataclass(slots=True)
class Listing:
    """Sessions without events, with their shared scopes, read at one moment: the one changed last at the end.

    In columns, as an object for each session costs more than to read it. `users`: by id, of those who
    have a row. It has the length of its columns and gives a `Snapshot` for each session.
    """

    app_name: str
    user_ids: Sequence[str]
    session_ids: Sequence[str]
    tags: Sequence[Tag]
    states: Sequence[str]
    users: Mapping[str, Content]
    app: Content | None

    def __len__(self) -> int:
        return len(self.tags)

    def __iter__(self) -> Iterator[Snapshot]:
        columns = zip(self.user_ids, self.session_ids, self.tags, self.states, strict=True)
        for user, session, tag, state in columns:
            content = Content(tag, state.encode(), complete=False)
            yield Snapshot(SessionKey(self.app_name, user, session), content, self.users.get(user), self.app)


class Tags(NamedTuple):
    """The tags of a session's three scopes, read by one statement. None: no such row."""

    session: Tag | None
    user: Tag | None
    app: Tag | None

    def tag(self, scope: ScopeKey) -> Tag | None:
        """Returns the tag of the row that `scope` names."""
        return {"session": self.session, "user": self.user, "app": self.app}[scope.kind]


class Query(NamedTuple):
    """Which events a reader wants: the newest `limit` of those at or after `after`.

    `limit` None: all; 0: none. `after`: microseconds, inclusive; None: no bound.
    """

    limit: int | None = None
    after: int | None = None

    def select(self, events: tuple[EventRecord, ...]) -> tuple[EventRecord, ...]:
        """Returns the events of `events` that the reader wants."""
        if self.after is not None:
            events = tuple([e for e in events if e.timestamp >= self.after])
        if self.limit is None:
            return events
        return events[-self.limit :] if self.limit else ()

    @property
    def newest(self) -> int | None:
        """How many of the newest events a cache is asked for: one at least, for a header has no state.

        None: it may take all.
        """
        return None if self.limit is None or self.after is not None else max(1, self.limit)

    def answered_by(self, content: Content) -> bool:
        """Says whether the window of `content` holds every event the reader wants."""
        if content.complete:
            return True
        if self.limit is not None and len(self.select(content.events)) >= self.limit:
            return True
        return self.after is not None and content.before is not None and content.before < self.after


class NewEvent(NamedTuple):
    """An event to store. `timestamp` in microseconds; `payload` is its JSON object."""

    id: str
    invocation_id: str
    timestamp: int
    payload: bytes


@dataclass(slots=True, unsafe_hash=True)
class Append:
    """A write to one session: events, state, or both, stored atomically.

    `expected` is the tag the writer saw; None skips the comparison. Deltas are JSON objects
    merged key by key, None where a scope does not change. `replace_state` stores `session_delta`
    as the whole session state. `update_time` becomes the row's. Never changed, as `Content`.
    """

    key: SessionKey
    expected: Tag | None
    update_time: int
    events: tuple[NewEvent, ...] = ()
    session_delta: bytes | None = None
    user_delta: bytes | None = None
    app_delta: bytes | None = None
    replace_state: bool = False

    @property
    def scopes(self) -> tuple[ScopeKey, ...]:
        """The scopes this write changes, in the lock order session, app, user."""
        key = self.key
        app = (key.app,) if self.app_delta is not None else ()
        user = (key.user,) if self.user_delta is not None else ()
        return (key.session, *app, *user)

    @property
    def shareable(self) -> bool:
        """Whether one statement may store it with appends to other sessions.

        More events than one could be stored in part, and a row of a shared scope cannot be changed
        twice by a statement.
        """
        shared = self.user_delta is not None or self.app_delta is not None
        return len(self.events) == 1 and not shared and self.expected is not None and self.expected.adopted


@dataclass(slots=True, unsafe_hash=True)
class Create:
    """A new session. Deltas as in `Append`; `state` is the session's own JSON object.

    `ttl`: milliseconds until it expires, from the commit or, if `sliding`, from its last append.
    `replace_expired`: an expired session of this id makes way. Only for who has masked its entry.
    Never changed, as `Content`.
    """

    key: SessionKey
    update_time: int
    state: bytes
    user_delta: bytes | None = None
    app_delta: bytes | None = None
    ttl: int | None = None
    sliding: bool = False
    replace_expired: bool = False

    @property
    def shareable(self) -> bool:
        """Whether one statement may store it with other creates: it changes no entry."""
        return not self.scopes

    @property
    def scopes(self) -> tuple[ScopeKey, ...]:
        """The scopes whose entries this write makes old, in the lock order session, app, user."""
        session = (self.key.session,) if self.replace_expired else ()
        app = (self.key.app,) if self.app_delta is not None else ()
        user = (self.key.user,) if self.user_delta is not None else ()
        return (*session, *app, *user)


# --- what a store answers --------------------------------------------------------------------


@dataclass(slots=True, unsafe_hash=True)
class Committed:
    """The append is stored. Contents are as SQL will return them, states whole.

    `session` is the new tag, the events just stored, and the whole session state, or None as
    state if it did not change. `numbered`: foreign events were numbered on the way, so no
    cached window can be extended by this append. `expires_in`: milliseconds until a sliding
    session expires now; None: the append did not move that. Never changed, as `Content`.
    """

    tag: Tag
    events: tuple[EventRecord, ...]
    state: bytes | None
    user: Content | None
    app: Content | None
    numbered: bool = False
    expires_in: int | None = None

    def content(self, scope: ScopeKey) -> Content | None:
        """Returns the new content of a shared scope, None if this write left it alone."""
        return self.user if scope.kind == "user" else self.app


@dataclass(frozen=True, slots=True)
class Already:
    """Every event was stored before with equal content (R22); `latest`: nothing came after."""

    tag: Tag
    latest: bool


@dataclass(frozen=True, slots=True)
class Stale:
    """The session is not the one the writer saw; `current` is its tag now."""

    current: Tag


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no such session."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """An event of this id with other content is stored."""

    event_id: str


@dataclass(frozen=True, slots=True)
class Exists:
    """The session id is taken."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The session id is taken by a session that has expired; nothing was written."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The connection broke when the write may have been committing."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing was written; `error` is what the caller gets."""

    error: Exception


Kind = Literal["append", "create", "delete"]
"""What a write does."""

AppendOutcome = Committed | Already | Stale | Missing | Conflict | Unknown | Failed
CreateOutcome = Snapshot | Exists | Expired | Unknown | Failed
DeleteOutcome = bool | Unknown | Failed


class Older(NamedTuple):
    """Events before a window, and the session's tag in the same statement."""

    tag: Tag
    events: tuple[EventRecord, ...]
    complete: bool


class OutboxRow(NamedTuple):
    """An invalidation recorded in SQL. `tag` None: the row was deleted."""

    scope: ScopeKey
    tag: Tag | None
    stamp: int
