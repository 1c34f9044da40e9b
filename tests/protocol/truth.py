"""What was committed, kept beside the database in plain values: the model of the stateful machine.

It learns of an operation at the moment the database performs it, says what the outcome has to be,
and remembers every version of every row. From then on it judges what caches hold and readers get.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
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
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
)


@dataclass
class Version:
    """One state of one row. `tag` None: no such row. Times: ms, as both servers count them."""

    number: int
    at: int
    tag: Tag | None
    state: dict[str, Any] = field(default_factory=dict)
    events: tuple[EventRecord, ...] = ()
    ttl: int | None = None
    sliding: bool = False
    ends: int | None = None
    order: int = 0
    """How many commits there were by then, its own included."""
    exposed: dict[str, float | None] = field(default_factory=dict)
    """Namespaces where a fault, none of ours, let older content survive the commit: since when it
    is gone there, None: it is still there (table 5.5)."""
    recorded: bool = False
    """Whether the outbox will end that."""

    def over(self, now: int) -> bool:
        return self.tag is None or (self.ends is not None and self.ends <= now)


def same_events(ours: tuple[EventRecord, ...], theirs: tuple[EventRecord, ...]) -> bool:
    """Compares events, payloads as JSON."""
    return [(*e[:3], json.loads(e.payload)) for e in ours] == [
        (*e[:3], json.loads(e.payload)) for e in theirs
    ]


def selected(events: tuple[EventRecord, ...], query: Query) -> tuple[EventRecord, ...]:
    """Returns the events that `query` asks for."""
    later = [e for e in events if query.after is None or e.timestamp >= query.after]
    return tuple(later if query.limit is None else later[max(0, len(later) - query.limit) :])


class Truth:
    """Every version of every row. `now`: the servers' clock."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._rows: dict[ScopeKey, list[Version]] = {}
        self.commits = 0

    def versions(self, scope: ScopeKey) -> list[Version]:
        """Returns the versions of a row, the first of which is that there was none."""
        return self._rows.setdefault(scope, [Version(0, -1, None)])

    def current(self, scope: ScopeKey) -> Version:
        """Returns the newest version of a row."""
        return self.versions(scope)[-1]

    def find(self, scope: ScopeKey, tag: Tag) -> Version:
        """Returns the version that has `tag`; there must be one."""
        found = [v for v in self.versions(scope) if v.tag == tag]
        assert found, f"I1: no commit of {scope.kind} has the tag {tag}"
        return found[0]

    def _add(self, scope: ScopeKey, version: Version) -> Version:
        if version.ttl is not None and (version.sliding or version.ends is None):
            version.ends = version.at + version.ttl
        self.commits += 1
        version.order = self.commits
        self.versions(scope).append(version)
        return version

    def _next(self, scope: ScopeKey, tag: Tag | None, **values: Any) -> Version:
        return self._add(scope, Version(self.current(scope).number + 1, self._now(), tag, **values))

    # --- what the database may say ------------------------------------------------------------

    def appended(self, append: Append, outcome: Any) -> list[tuple[ScopeKey, Version]]:
        """Judges an append that the database has just performed; returns the versions it made."""
        scope, session = append.key.session, self.current(append.key.session)
        assert type(outcome) is self._verdict(append, session), f"{append} became {outcome}"
        if isinstance(outcome, Stale | Already):
            assert (outcome.current if isinstance(outcome, Stale) else outcome.tag) == session.tag
        if not isinstance(outcome, Committed):
            return []
        assert session.tag is not None
        revision = session.tag.revision + max(1, len(append.events))
        assert outcome.tag[:2] == (session.tag.incarnation, revision)
        assert outcome.tag.nonce != session.tag.nonce
        events = tuple(
            EventRecord(session.tag.revision + n, e.id, e.timestamp, e.payload)
            for n, e in enumerate(append.events, 1)
        )
        assert same_events(outcome.events, events)
        state = session.state | json.loads(append.session_delta or b"{}")
        values = {"events": session.events + events, "ttl": session.ttl, "sliding": session.sliding}
        if not session.sliding:
            values["ends"] = session.ends
        made = [(scope, self._next(scope, outcome.tag, state=state, **values))]
        made += self._shared(append.key.app, append.app_delta, outcome.app)
        return made + self._shared(append.key.user, append.user_delta, outcome.user)

    def _verdict(self, append: Append, session: Version) -> type:
        if session.over(self._now()):
            return Missing
        stored = {e.id: json.loads(e.payload) for e in session.events}
        known = [e for e in append.events if e.id in stored]
        if any(stored[e.id] != json.loads(e.payload) for e in known):
            return Conflict
        if known:
            return Already if len(known) == len(append.events) else Conflict
        return Committed if append.expected in (None, session.tag) else Stale

    def _shared(
        self, scope: ScopeKey, delta: bytes | None, content: Content | None
    ) -> list[tuple[ScopeKey, Version]]:
        old = self.current(scope)
        if delta is None and old.tag is not None:
            return []
        assert content is not None
        state = old.state | json.loads(delta or b"{}")
        assert json.loads(content.state) == state
        return [(scope, self._next(scope, content.tag, state=state))]

    def created(self, create: Create, outcome: Any) -> list[tuple[ScopeKey, Version]]:
        """Judges a create, as `appended` does an append."""
        scope, old = create.key.session, self.current(create.key.session)
        if not old.over(self._now()):
            assert isinstance(outcome, Exists)
            return []
        if old.tag is not None and not create.replace_expired:
            assert isinstance(outcome, Expired)
            return []
        assert isinstance(outcome, Snapshot)
        tag = outcome.session.tag
        assert tag.incarnation not in [v.tag.incarnation for v in self.versions(scope) if v.tag]
        state = json.loads(create.state)
        session = self._next(scope, tag, state=state, ttl=create.ttl, sliding=create.sliding)
        made = [(scope, session)]
        made += self._shared(create.key.app, create.app_delta, outcome.app)
        return made + self._shared(create.key.user, create.user_delta, outcome.user)

    def deleted(self, key: SessionKey, only_expired: bool, outcome: Any) -> list[tuple[ScopeKey, Version]]:
        """Judges a delete, as `appended` does an append."""
        old = self.current(key.session)
        gone = old.tag is not None and (not only_expired or old.over(self._now()))
        assert outcome is gone, f"deleting answered {outcome}"
        return [(key.session, self._next(key.session, None))] if gone else []

    # --- what a cache may hold, and a reader get ------------------------------------------------

    def check_entry(self, scope: ScopeKey, content: Content) -> Version:
        """I1, I2: an entry is a state that was committed with its tag, its events a tail of the log."""
        version = self.find(scope, content.tag)
        assert json.loads(content.state) == version.state, "I1: another state than was committed"
        cut = len(version.events) - len(content.events)
        assert cut >= 0
        assert same_events(version.events[cut:], content.events), "I2: not a tail of the log"
        assert content.complete <= (cut == 0), "I2: it says that it is complete"
        if cut and content.before is not None:
            assert content.before >= max(e.timestamp for e in version.events[:cut]), "I2: before"
        return version

    def check_served(self, snapshot: Snapshot, query: Query, began: int) -> dict[ScopeKey, Version]:
        """I1: each part of an answer is a committed state, whole, of a session that had not expired."""
        served: dict[ScopeKey, Version] = {}
        for scope in snapshot.key.scopes:
            content = snapshot.content(scope)
            assert content is not None, f"no {scope.kind} state"
            served[scope] = version = self.find(scope, content.tag)
            assert json.loads(content.state) == version.state, "I1: another state than was committed"
        session = served[snapshot.key.session]
        wanted = selected(session.events, query)
        assert same_events(wanted, snapshot.session.events), "I1: not the events asked for"
        assert not session.over(began), "it had expired before the read began"
        return served

    def check_absent(self, scope: ScopeKey, began: int, ended: int) -> None:
        """Says whether a read may answer that there is no session: at some moment there was none."""
        versions = self.versions(scope)
        for version, successor in zip(versions, [*versions[1:], None], strict=True):
            until = ended if successor is None else min(ended, successor.at)
            if until >= began and version.over(until):
                return
        raise AssertionError("there was such a session all the time")
