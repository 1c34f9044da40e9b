"""The database as a value: an immutable toy of one session and its scopes that remembers every
version, so that an answer can be judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

from tests.protocol.explorer.machines import Table, freeze
from tiered_sessions.records import (
    Already,
    Append,
    Committed,
    Conflict,
    Content,
    Create,
    EventRecord,
    Exists,
    Expired,
    Missing,
    Older,
    OutboxRow,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
    Tags,
)
from tiered_sessions.tier import steps

KEY = SessionKey("app", "user", "session")
SCOPES = KEY.scopes
_ALL = Query()


class Foreign(NamedTuple):
    """What another program does, unknown to the cache: appends an event without a number, changes
    the session's state, or deletes the row of the user's state (a trigger records that)."""

    name: str
    what: Literal["event", "state", "no user"]


class Sql(NamedTuple):
    """A database. `versions`: all contents each scope ever had, the last is now; None: no row.
    `since`: when each was committed, by the cache's clock."""

    versions: tuple[tuple[Content | None, ...], ...]
    since: tuple[tuple[int, ...], ...]
    base: Tag
    """The session's own columns, which a foreign writer leaves as they are."""
    outbox: tuple[OutboxRow, ...] = ()
    fresh: int = 100
    """Incarnations, nonces and stamps: never given out twice."""
    ends: int | None = None
    """When the session expires, by the cache's clock."""
    over: bool = False
    """It has expired, its row is there still: to a reader there is none."""
    now: int = 0

    def row(self, scope: ScopeKey) -> Content | None:
        return self.versions[SCOPES.index(scope)][-1]

    def tag(self, scope: ScopeKey) -> Tag | None:
        row = self.row(scope)
        return row.tag if row else None

    def put(self, scope: ScopeKey, content: Content | None) -> Sql:
        at = SCOPES.index(scope)
        versions, since = list(self.versions), list(self.since)
        versions[at] += (content,)
        since[at] += (self.now,)
        sql = self._replace(versions=tuple(versions), since=tuple(since))
        if scope == KEY.session:
            sql = sql._replace(over=False)
            if content is None or content.tag.incarnation != sql.base.incarnation:
                sql = sql._replace(ends=None)
            if content is not None and content.tag.adopted:
                sql = sql._replace(base=content.tag)
        return sql._replace(fresh=sql.fresh + 2)

    def record(self, scopes: tuple[ScopeKey, ...]) -> Sql:
        sql = self
        for scope in scopes:
            kept = tuple(row for row in sql.outbox if row.scope != scope)
            added = OutboxRow(scope, sql.tag(scope), sql.fresh)
            sql = sql._replace(outbox=tuple(sorted((*kept, added))), fresh=sql.fresh + 1)
        return sql

    def load(self, query: Query = _ALL) -> Snapshot | None:
        session, user, app = (self.row(scope) for scope in SCOPES)
        if session is None:
            return None
        events, complete = _newest(session.events, query)
        older = session.events[: len(session.events) - len(events)]
        # As store/reads.py: what was left out is looked up only if it is all that came before.
        known = older and events and query.after is None
        before = max(event.timestamp for event in older) if known else None
        shown = replace(session, events=events, complete=complete, before=before)
        left = None if self.ends is None else self.ends - self.now
        return Snapshot(KEY, shown, user, app, left)

    def expire(self) -> Sql:
        """By the database's clock the session's time is over."""
        if self.ends is None or self.over:
            return self
        return self.put(KEY.session, None)._replace(over=True)

    def lose(self) -> Sql:
        """A standby takes over that has not received the session's last commit."""
        at = SCOPES.index(KEY.session)
        kept = tuple(row for row in self.outbox if row.scope != KEY.session)
        return self.put(KEY.session, self.versions[at][-2])._replace(outbox=kept)


_OLD = tuple(EventRecord(seq, f"old {seq}", 0, b"{}") for seq in (2, 3))
_TAGS = Tag(1, 3, 1, 0), Tag(2, 1, 2, 0), Tag(3, 1, 3, 0)
FIRST = Sql(
    versions=tuple((Content(tag, b"{}", _OLD if tag.revision > 1 else ()),) for tag in _TAGS),
    since=((0,),) * 3,
    base=_TAGS[0],
)
"""One session of two events."""


def _newest(events: tuple[EventRecord, ...], query: Query) -> tuple[tuple[EventRecord, ...], bool]:
    """Returns the events a query asks for, and whether they are all."""
    chosen = query.select(events)
    return chosen, query.after is None and query.limit != 0 and len(chosen) == len(events)


def perform(sql: Sql, command: Any) -> tuple[Sql, Any]:
    """Executes one command: the database afterwards, and its reply."""
    match command:
        case steps.Load(_, query):
            return sql, sql.load(query)
        case steps.LoadOlder(_, before, query):
            row = sql.row(KEY.session)
            if row is None:
                return sql, None
            return sql, Older(row.tag, *_newest(tuple(e for e in row.events if e.seq < before), query))
        case steps.ReadTags():
            return sql, Tags(*(sql.tag(scope) for scope in SCOPES))
        case steps.Write(operation, outbox):
            before = sql.fresh
            sql, outcome = _write(sql, operation)
            return (sql if sql.fresh == before else sql.record(outbox)), outcome
        case steps.ReadOutbox():
            return sql, sql.outbox
        case steps.ForgetOutbox(rows):
            return sql._replace(outbox=tuple(r for r in sql.outbox if r not in rows)), None
        case steps.ReadExpired():
            return sql, (KEY,) if sql.over else ()
        case Foreign(name, what):
            return _foreign(sql, name, what), None
    raise AssertionError(command)


def _write(sql: Sql, operation: Any) -> tuple[Sql, Any]:
    row = sql.row(KEY.session)
    if isinstance(operation, Append):
        return _append(sql, operation)
    if isinstance(operation, Create):
        if row is not None:
            return sql, Exists()
        if sql.over and not operation.replace_expired:
            return sql, Expired()
        content = Content(Tag(sql.fresh, 1, sql.fresh + 1, 0), operation.state)
        sql = sql.put(KEY.session, content)
        if operation.user_delta is not None:
            sql = _merge(sql, operation.user_delta)
        return sql, sql.load()
    if sql.over:
        return sql._replace(over=False, fresh=sql.fresh + 1), True
    return (sql.put(KEY.session, None), True) if row and not operation.only_expired else (sql, False)


def _merge(sql: Sql, state: bytes) -> Sql:
    old = sql.tag(KEY.user)
    tag = Tag(old.incarnation, old.revision + 1, sql.fresh, 0) if old else Tag(sql.fresh, 1, sql.fresh + 1, 0)
    return sql.put(KEY.user, Content(tag, state))


def _append(sql: Sql, operation: Append) -> tuple[Sql, Any]:
    row = sql.row(KEY.session)
    if row is None:
        return sql, Missing()
    (event,) = operation.events
    for old in row.events:
        if old.id == event.id:
            same = old.payload == event.payload
            return sql, Already(row.tag, old.seq == row.tag.revision) if same else Conflict(old.id)
    if operation.expected is not None and tuple(operation.expected) != tuple(row.tag):
        return sql, Stale(row.tag)
    numbered = not row.tag.adopted
    revision = sql.base.revision
    events = []
    for old in row.events:
        revision += old.seq == 0
        events.append(old._replace(seq=old.seq or revision))
    tag = Tag(sql.base.incarnation, revision + 1, sql.fresh, operation.update_time)
    record = EventRecord(tag.revision, event.id, event.timestamp, event.payload)
    sql = sql.put(KEY.session, replace(row, tag=tag, events=(*events, record)))
    user = None
    if operation.user_delta is not None:
        sql = _merge(sql, operation.user_delta)
        user = sql.row(KEY.user)
    return sql, Committed(tag, (record,), None, user, None, numbered)


def _foreign(sql: Sql, name: str, what: str) -> Sql:
    if what == "no user":
        return sql.put(KEY.user, None).record((KEY.user,))
    row = sql.row(KEY.session)
    if row is None:
        return sql
    if what == "state":
        tag = row.tag._replace(update_time=sql.fresh)
        return sql.put(KEY.session, replace(row, tag=tag, state=b'{"by":"%s"}' % name.encode()))
    added = EventRecord(0, name, 1, b"{}")
    return sql.put(KEY.session, replace(row, tag=Tag(0, 0, 0, sql.fresh), events=(*row.events, added)))


class SqlStates:
    """All states of the database met in one exploration."""

    def __init__(self, replies: Table) -> None:
        self.table = Table()
        self._replies = replies
        self._known: dict[tuple[int, int, int], tuple[int, int]] = {}

    def perform(self, sql: int, now: int, number: int, command: Any) -> tuple[int, int]:
        """Executes the command of this number: the state afterwards, and the reply's number."""
        name = sql, now, number
        found = self._known.get(name)
        if found is None:
            after, reply = perform(self.table.values[sql]._replace(now=now), command)
            after = after._replace(now=0)
            found = self._known[name] = self.table.add(after), self._replies.add(reply, freeze(reply))
        return found
