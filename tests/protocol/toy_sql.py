"""A database of one session and its scopes, which remembers everything that was ever committed.

It compares tags value by value: a test that blinds the product's comparison does not blind the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
    OutboxRow,
    ScopeKey,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
    Tags,
)

KEY = SessionKey("app", "user", "session")


@dataclass(frozen=True)
class Backup:
    """What a server that fell behind holds."""

    rows: dict[ScopeKey, Content]
    outbox: dict[ScopeKey, OutboxRow]


@dataclass
class Sql:
    """The rows, and the log of their commits."""

    rows: dict[ScopeKey, Content] = field(default_factory=dict)
    outbox: dict[ScopeKey, OutboxRow] = field(default_factory=dict)
    history: dict[tuple[int, ...], Content] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 10**9)))
    log: list[tuple[ScopeKey, Tag | None]] = field(default_factory=list)
    """Every commit in order: what changed, and its tag from then on. None: deleted."""
    born: dict[tuple[ScopeKey, tuple[int, ...]], int] = field(default_factory=dict)
    """The length of the log when a content became the current one."""
    clock: Callable[[], int] = lambda: 0
    ends: dict[int, int] = field(default_factory=dict)
    """When each incarnation of the session expires."""
    sliding: dict[int, int] = field(default_factory=dict)

    # --- expiry -------------------------------------------------------------------------------

    def live(self, key: SessionKey, ttl: int, *, sliding: bool) -> None:
        """Lets the session expire `ttl` from now."""
        incarnation = self.rows[key.session].tag.incarnation
        self.ends[incarnation] = self.clock() + ttl
        if sliding:
            self.sliding[incarnation] = ttl

    def left(self, key: SessionKey) -> int | None:
        """Returns how long the session lives on; None: for ever."""
        row = self.rows.get(key.session)
        end = self.ends.get(row.tag.incarnation) if row else None
        return None if end is None else end - self.clock()

    def over(self, key: SessionKey) -> bool:
        """Says whether the session has expired."""
        left = self.left(key)
        return left is not None and left <= 0

    def expired(self) -> list[SessionKey]:
        """Returns the sessions a sweep would delete."""
        return [KEY] if self.over(KEY) else []

    # --- reads --------------------------------------------------------------------------------

    def load(self, key: SessionKey) -> Snapshot | None:
        """Returns what one statement sees."""
        session = self.rows.get(key.session)
        if session is None or self.over(key):
            return None
        return Snapshot(key, session, self.rows.get(key.user), self.rows.get(key.app), self.left(key))

    def tag(self, scope: ScopeKey) -> Tag | None:
        """Returns the tag of one row."""
        row = self.rows.get(scope)
        gone = scope == KEY.session and self.over(KEY)
        return row.tag if row and not gone else None

    def tags(self, key: SessionKey) -> Tags:
        """Returns the tags of a session's scopes."""
        return Tags(*(self.tag(scope) for scope in key.scopes))

    # --- writes -------------------------------------------------------------------------------

    def put(self, scope: ScopeKey, content: Content) -> None:
        """Commits one row."""
        self.rows[scope] = content
        self.history[tuple(content.tag)] = content
        self._committed(scope, content.tag)

    def remove(self, scope: ScopeKey) -> bool:
        """Commits the deletion of one row; false if there is none."""
        if self.rows.pop(scope, None) is None:
            return False
        self._committed(scope, None)
        return True

    def _committed(self, scope: ScopeKey, tag: Tag | None) -> None:
        self.log.append((scope, tag))
        if tag is not None:
            self.born[scope, tuple(tag)] = len(self.log)

    def next_tag(self, old: Tag | None, ut: int) -> Tag:
        """Returns the tag of a row's next content."""
        if old is None:
            return Tag(next(self.numbers), 1, next(self.numbers), ut)
        return Tag(old.incarnation, old.revision + 1, next(self.numbers), ut)

    def write(self, operation: Any, outbox: tuple[ScopeKey, ...]) -> Any:
        """Performs an append, a creation or a deletion."""
        if isinstance(operation, Append):
            outcome = self._append(operation)
            changed = isinstance(outcome, Committed)
        elif isinstance(operation, Create):
            taken = operation.key.session in self.rows
            over = self.over(operation.key)
            changed = not taken or (over and operation.replace_expired)
            if changed:
                for scope in (operation.key.user, operation.key.app):
                    if scope not in self.rows:
                        self.put(scope, Content(self.next_tag(None, 0), b"{}"))
                tag = self.next_tag(None, operation.update_time)
                self.put(operation.key.session, Content(tag, operation.state))
                if operation.ttl is not None:
                    self.live(operation.key, operation.ttl, sliding=operation.sliding)
            refused = Expired() if over else Exists()
            outcome = self.load(operation.key) if changed else refused
        elif operation.only_expired and not self.over(operation.key):
            changed = outcome = False
        else:
            changed = outcome = self.remove(operation.key.session)
        if changed:
            self.record(outbox)
        return outcome

    def _append(self, operation: Append) -> Any:
        key = operation.key
        row = self.rows.get(key.session)
        if row is None or self.over(key):
            return Missing()
        for event in operation.events:
            for old in row.events:
                if old.id == event.id:
                    if old.payload == event.payload:
                        return Already(row.tag, old.seq == row.tag.revision)
                    return Conflict(event.id)
        if operation.expected is not None and tuple(operation.expected) != tuple(row.tag):
            return Stale(row.tag)
        tag = self.next_tag(row.tag, operation.update_time)
        events = tuple(EventRecord(tag.revision, e.id, e.timestamp, e.payload) for e in operation.events)
        self.put(key.session, replace(row, tag=tag, events=row.events + events))
        user = None
        if operation.user_delta is not None:
            before = self.rows.get(key.user)
            next_tag = self.next_tag(before.tag if before else None, operation.update_time)
            user = Content(next_tag, operation.user_delta)
            self.put(key.user, user)
        ttl = self.sliding.get(tag.incarnation)
        if ttl is not None:
            self.live(key, ttl, sliding=True)
        return Committed(tag, events, None, user, None, expires_in=ttl)

    # --- the outbox ---------------------------------------------------------------------------

    def record(self, scopes: tuple[ScopeKey, ...]) -> None:
        """Records invalidations, each under a fresh stamp."""
        for scope in scopes:
            self.outbox[scope] = OutboxRow(scope, self.tag(scope), next(self.numbers))

    def forget(self, rows: Sequence[OutboxRow]) -> None:
        """Deletes recorded invalidations that nobody renewed since."""
        for row in rows:
            held = self.outbox.get(row.scope)
            if held is not None and held.stamp == row.stamp:
                del self.outbox[row.scope]

    # --- what others do to it -----------------------------------------------------------------

    def foreign_append(self, number: int) -> None:
        """What the trigger-less stock writer does, already numbered by a reader's eyes: other
        content, only `update_time` tells."""
        row = self.rows.get(KEY.session)
        if row is not None:
            events = (*row.events, EventRecord(row.tag.revision, f"f{number}", 1, b"{}"))
            self.put(KEY.session, replace(row, tag=row.tag._replace(update_time=-number), events=events))

    def backup(self) -> Backup:
        """Returns what a standby has received."""
        return Backup(dict(self.rows), dict(self.outbox))

    def fail_over(self, backup: Backup) -> None:
        """Makes the standby the record; what it never received is lost."""
        for scope in {**backup.rows, **self.rows}:
            now = backup.rows.get(scope)
            if now != self.rows.get(scope):
                self._committed(scope, now.tag if now else None)
        self.rows, self.outbox = dict(backup.rows), dict(backup.outbox)

    # --- what must hold -----------------------------------------------------------------------

    def authentic(self, content: Content) -> bool:
        """I1: says whether `content` was committed under its tag, as it is."""
        return content == self.history.get(tuple(content.tag))

    def superseded(self, scope: ScopeKey, content: Content, began: int) -> bool:
        """I4: says whether `scope` had changed since when the log was `began` long."""
        born = self.born[scope, tuple(content.tag)]
        return any(changed == scope for changed, _ in self.log[born:began])

    def missed(self, began: int) -> bool:
        """Says whether the session lived, not expiring, all the time since the log was `began` long."""
        tags = [tag for scope, tag in self.log if scope == KEY.session]
        before = [tag for scope, tag in self.log[:began] if scope == KEY.session]
        return not self.ends and before[-1] is not None and None not in tags[len(before) :]
