"""The protocol between SQL and cache: the order of steps, and every decision, without I/O.

`read`, `append`, `create` and `delete` are generators (`chores.py` has two more, `sweep` and `drain`).
Each yields a step and receives its reply; `performer.py` performs the steps, and an explorer can interleave
the same generators at every yield. There is no clock, no randomness and no `await` here.

Why it is right, in four sentences. A write masks what it will change *before* it commits, so no
reader can meet an old entry after the commit (I4), and a mask that nobody takes away deletes the
entry with it (a writer that dies leaves a miss, not a lie). A reader may fill only under a lease
that every write revokes, so nothing read before a commit is stored after it (I1). An entry moves
only from a tag to its successor (I3). Whatever the cache does, SQL answers (I7).

Invariants I1-I8 and races R1-R35 are those of docs/consistency.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

from ..cache.base import Granted, Hit, LeaseRefused, Lookup, Miss, Unavailable
from ..records import (
    Already,
    Append,
    AppendOutcome,
    Committed,
    Content,
    Create,
    CreateOutcome,
    DeleteOutcome,
    Exists,
    Expired,
    Failed,
    Kind,
    Missing,
    Older,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Stale,
    Tag,
    Tags,
    Unknown,
)
from .steps import (
    Answer,
    Apply,
    Ask,
    Began,
    Checkout,
    Delete,
    Drop,
    Ended,
    Fill,
    Flight,
    Intent,
    Judge,
    Keep,
    Known,
    Later,
    Lease,
    Load,
    LoadOlder,
    LookUp,
    Observed,
    ReadTags,
    Release,
    Reply,
    Rules,
    Seal,
    Send,
    Served,
    Standing,
    Steps,
    Timer,
    Token,
    Touch,
    Unsent,
    Wait,
    Write,
    Wrote,
    Young,
)

_BEGAN = Began()
_TOKEN = Token()
_KINDS: Final[tuple[Kind | None, ...]] = (None, "append", "create", "delete")
_CHECKOUTS = {kind: Ask(Checkout(kind)) for kind in _KINDS}

# --- small parts -------------------------------------------------------------------------------


def fitting(content: Content, rules: Rules) -> Content | None:
    """Returns the part of `content` that may be cached: none of a too large state, and only
    the events after the last too large one."""
    if not content.tag.adopted or len(content.state) > rules.state_bytes:
        return None
    cut = 0
    for position, event in enumerate(content.events, 1):
        if len(event.payload) > rules.event_bytes:
            cut = position
    if cut == 0:
        return content
    older = content.events[:cut]
    before: int | None = max(e.timestamp for e in older)
    if not content.complete:
        before = None if content.before is None else max(content.before, before or 0)
    return replace(content, events=content.events[cut:], complete=False, before=before)


class Told(NamedTuple):
    """What became of commands that were sent together, by scope.

    Of the `late` ones nobody knows: they have had no reply in time, or their connection has broken. They
    may take effect still (R6).
    """

    replies: dict[ScopeKey, Any]
    late: tuple[ScopeKey, ...]
    cancelled: bool


def _told(asked: dict[int, ScopeKey]) -> Steps[Told]:
    """Waits for the replies to all of `asked`, by handle."""
    replies: dict[ScopeKey, Any] = {}
    lost: list[ScopeKey] = []
    got: Reply | Ended | None = None
    while asked:
        got = yield Wait(tuple(asked), Timer.CACHE)
        if not isinstance(got, Reply):
            break
        scope = asked.pop(got.handle)
        if isinstance(got.value, Unavailable) and not isinstance(got.value, Unsent):
            lost.append(scope)
        else:
            replies[scope] = got.value
    return Told(replies, (*lost, *asked.values()), got is Ended.CANCELLED)


# --- read (consistency 5.3) --------------------------------------------------------------------


class Verdict(Enum):
    """What the cached entry of one scope is good for."""

    SERVE = "serve"
    VALIDATE = "validate"
    FETCH = "fetch"
    BYPASS = "bypass"


# To look a member up in its class takes longer than anything else that a verdict needs.
_SAME = (Standing.SAME,) * 3
_BELOW, _DOUBT = Standing.BELOW, Standing.DOUBT
_SERVE, _VALIDATE = Verdict.SERVE, Verdict.VALIDATE
_SERVED = [_SERVE] * 3


class Absent(NamedTuple):
    """The cache cannot answer; these scopes may be filled from what SQL says."""

    leases: tuple[ScopeKey, ...]


def _verdict(found: Lookup, standing: Standing, probed: int, rules: Rules) -> Verdict:
    if not isinstance(found, Hit):
        return Verdict.FETCH if isinstance(found, Miss) else Verdict.BYPASS
    if standing is _BELOW:
        return Verdict.FETCH
    if standing is _DOUBT:
        return _VALIDATE
    # Another server process than the one that filled it: a failover may have lost a mask (R10).
    if found.entry_stamp != found.stamp:
        return _VALIDATE
    # A private cache never hears of other writers' masks (R33).
    if rules.private and not rules.exclusive:
        return _VALIDATE
    # From a time when this process could not reach the cache: nobody may have drained (R11).
    if found.validated_at <= probed:
        return _VALIDATE
    if rules.max_staleness is None:
        return _SERVE
    age = found.now - found.validated_at
    strong = rules.max_staleness == 0
    return _VALIDATE if strong or age > rules.max_staleness else _SERVE


def _look(key: SessionKey, query: Query, rules: Rules) -> Steps[Answer | Absent]:
    """Steps 1-3: one flight to the cache, then serve, validate, or say what is missing."""
    scopes = key.scopes
    known = None if rules.private else (yield Known(key))
    look = LookUp(scopes, query.newest if known is None else 0)
    found: tuple[Lookup, ...] | Unavailable
    strong: int | None = None
    if rules.max_staleness == 0:
        # At 0 the tags are read beside the cache, not after it. A later look reads them anew.
        lookup = yield Send(look)
        began = yield _BEGAN
        strong = yield Send(ReadTags(key))
        found = Ask.told((yield Wait((lookup,), Timer.CACHE)))
    else:
        found = yield Ask(look)
    if isinstance(found, Unavailable) or isinstance(found[0], Unavailable):
        return Absent(())
    session = found[0]
    # Equal tags are equal content, and it is a shared cache that says so (5.4).
    kept: Content | None = None
    if known is not None and isinstance(session, Hit):
        enough = query.answered_by(known) or len(known.events) >= session.held
        if enough and known.tag == session.content.tag:
            kept = known
        else:
            # It changed elsewhere, or has more of what is wanted. One command, so nothing is torn (R32).
            found = yield Ask(LookUp(scopes, query.newest))
            if isinstance(found, Unavailable):
                return Absent(())

    tags: list[Tag | None] = []
    hits: list[Hit] = []
    for entry in found:
        if isinstance(entry, Hit):
            hits.append(entry)
            tags.append(entry.content.tag)
        else:
            tags.append(None)
    probed, standings = yield Judge(scopes, tuple(tags))
    verdicts: list[Verdict] = []
    for scope, entry, standing in zip(scopes, found, standings, strict=True):
        if standing is _BELOW:
            # Dropped first, else the lease would answer "present" (I6).
            yield Ask(Drop(scope, None, None))
        verdicts.append(_verdict(entry, standing, probed, rules))

    if verdicts != _SERVED:
        if len(hits) < len(found) or Verdict.FETCH in verdicts:
            # One statement will load all parts; only what is missing here may be filled.
            return Absent(tuple([s for s, v in zip(scopes, verdicts, strict=True) if v is Verdict.FETCH]))

        if strong is None:
            began = yield _BEGAN
            held: Tags = yield Ask(ReadTags(key))
        else:
            held = (yield Wait((strong,))).value
        changed: list[ScopeKey] = []
        for scope, entry, verdict in zip(scopes, hits, verdicts, strict=True):
            tag = held.tag(scope)
            accepted = yield Observed(scope, tag, began)
            if tag != entry.content.tag or not accepted:
                changed.append(scope)
                yield Ask(Drop(scope, None, tag))
            elif verdict is _VALIDATE and strong is None and not rules.private:
                # `now` was read before the tags were: the bound counts from it.
                yield Later(Touch(scope, entry.content.tag, entry.now, entry.stamp))
        if changed:
            return Absent(tuple(changed))

    content = hits[0].content if kept is None else kept
    source: Literal["process", "cache", "store"] = "process" if rules.private or kept is not None else "cache"
    if not query.answered_by(content):
        first = content.events[0].seq if content.events else content.tag.revision + 1
        older: Older | None = yield Ask(LoadOlder(key, first, query))
        if older is None or older.tag != content.tag:
            # Another revision than the window's: the two do not fit together (R21).
            yield Ask(Drop(key.session, None, older.tag if older else None))
            return Absent((key.session,))
        events = older.events + content.events
        content = replace(content, events=events, complete=older.complete, before=None)
        kept, source = None, "store"
    # Older events that were chosen by their time may have left others out.
    if kept is None and (query.after is None or source == "cache") and not rules.private:
        yield Keep(key, content)
    if standings != _SAME:
        yield Served(scopes, tuple([hit.content.tag for hit in hits]))
    snapshot = Snapshot(key, content, hits[1].content, hits[2].content)
    return Answer(snapshot, source)


def fetch(key: SessionKey, query: Query, leases: Sequence[ScopeKey], rules: Rules) -> Steps[Answer]:
    """Step 5: what a flight does. Leases, then one load, then the fills they allow."""
    tokens: dict[ScopeKey, str] = {}
    asked: dict[int, ScopeKey] = {}
    for scope in leases:
        tokens[scope] = yield Token()
        asked[(yield Send(Lease(scope, tokens[scope])))] = scope
    told: Told = yield from _told(asked)
    granted = {scope: reply for scope, reply in told.replies.items() if isinstance(reply, Granted)}
    refused = told.replies.get(key.session)
    for scope in told.late:
        # One that is granted late has the next readers wait for a fill that never comes.
        yield Later(Release(scope, tokens[scope]), behind=True)

    # Somebody fills it already: look again, once or until the budget is over, whole each time.
    yield Seal()
    while refused in (LeaseRefused.WAIT, LeaseRefused.PRESENT):
        if refused is LeaseRefused.WAIT and (yield Wait((), Timer.POLL)) is not Ended.TIMER:
            break
        seen = yield from _look(key, query, rules)
        if isinstance(seen, Answer):
            return seen
        if refused is LeaseRefused.PRESENT and key.session in seen.leases:
            # There is an entry, and nobody can read it: make room for one that can be read.
            yield Later(Drop(key.session, None, None))
        if refused is LeaseRefused.PRESENT or key.session not in seen.leases:
            break

    # To fill is to read the whole window, whatever was asked: the next reader wants it.
    wanted = query
    if key.session in granted and query != Query():
        wanted = Query(limit=max(query.limit or 0, rules.window_events))
    snapshot: Snapshot | None = yield Ask(Load(key, wanted))
    for scope, grant in granted.items():
        content = snapshot.content(scope) if snapshot else None
        content = fitting(content, rules) if content else None
        if content is None:
            # Nothing to fill: give the lease back, or the next readers would wait for it.
            yield Later(Drop(scope, None, None))
        else:
            expires = None
            if scope == key.session and snapshot is not None and snapshot.expires_in is not None:
                # The grant precedes the read, so the entry never outlives the session.
                expires = grant.granted_at + snapshot.expires_in
            yield Later(Fill(scope, tokens[scope], grant, content, expires))
    if snapshot is None:
        return Answer(None, "store")
    whole = key.session in granted or query == Query()
    if whole and snapshot.session.tag.adopted and rules.cached and not rules.private:
        yield Keep(key, snapshot.session)
    if wanted != query and not query.answered_by(snapshot.session):
        snapshot = yield Ask(Load(key, query))
    return Answer(snapshot, "store")


def read(key: SessionKey, query: Query, rules: Rules) -> Steps[Answer]:
    """Finds one session. Never older than what this process wrote or served before (I6)."""
    answer = Answer(None, "store")
    for _ in range(3):
        seen = (yield from _look(key, query, rules)) if rules.cached else Absent(())
        if isinstance(seen, Answer):
            answer = seen
            break
        began = yield _BEGAN
        answer = yield Flight(key, query, seen.leases)
        if answer.source != "store":
            break
        fresh = True
        for scope in key.scopes if answer.snapshot else (key.session,):
            content = answer.snapshot.content(scope) if answer.snapshot else None
            tag = content.tag if content else None
            accepted = yield Observed(scope, tag, began)
            fresh = fresh and accepted
        if fresh:
            break
    if answer.snapshot is None:
        return answer
    snapshot, content = answer.snapshot, answer.snapshot.session
    chosen = query.select(content.events)
    if chosen is content.events:
        return answer
    # `replace` takes three times as long, and the newest events are what most readers want.
    session = Content(content.tag, content.state, chosen, content.complete, content.before)
    return Answer(
        Snapshot(key, session, snapshot.user, snapshot.app, snapshot.expires_in), answer.source
    )


# --- write (consistency 5.2) -------------------------------------------------------------------


class Marked(NamedTuple):
    """The masks of one write: when the server took each, for the scopes it acknowledged.

    The late ones would hide what they arrive at until they expire, so they are taken away like the others
    as soon as the outcome is known; if that overtakes them, they do expire (R6).
    """

    token: str
    acknowledged: dict[ScopeKey, int]
    late: tuple[ScopeKey, ...] = ()


def _mask(
    scopes: tuple[ScopeKey, ...], rules: Rules, grouped: Kind | None
) -> Steps[Marked | Failed | None]:
    """Step 1: a connection, then the masks. None: cancelled, and nothing is left behind."""
    held: Failed | Unavailable | None = yield _CHECKOUTS[grouped]
    if isinstance(held, Unavailable):
        # Nothing but the caller ends a wait for a connection.
        return None
    if held is not None:
        return held
    if not (scopes and rules.cached):
        return Marked("", {})
    for _ in range(3):
        # A token of its own for each attempt: an earlier one may still be on its way (R6).
        token = yield _TOKEN
        asked: dict[int, ScopeKey] = {}
        for scope in scopes:
            asked[(yield Send(Intent(scope, token)))] = scope
        handles = tuple(asked)
        told: Told = yield from _told(asked)
        acknowledged = {scope: at for scope, at in told.replies.items() if not isinstance(at, Unavailable)}
        marked = Marked(token, acknowledged, told.late)
        if told.cancelled:
            yield from _release(marked)
            return None
        # A mask that was sent long ago could end before the statement does (R7).
        if (yield Young(handles)):
            return marked
        yield from _release(marked)
    return Marked(token, {})


def _commit(
    operation: Append | Create | Delete, scopes: tuple[ScopeKey, ...], marked: Marked, rules: Rules
) -> Steps[Any]:
    """Step 2: the statement. What could not be masked is invalidated by an outbox row (R11)."""
    unmasked: list[ScopeKey] = []
    if rules.cached and not rules.private:
        unmasked = [scope for scope in scopes if scope not in marked.acknowledged]
    outcome = yield Ask(Write(operation, tuple(unmasked)))
    if isinstance(outcome, Unknown):
        # It may be stored: the masks stay until they expire, entry and all (R5).
        for scope in scopes:
            yield Wrote(scope, None)
    elif isinstance(outcome, Failed):
        yield from _release(marked)
    return outcome


def _release(marked: Marked, but: ScopeKey | None = None) -> Steps[None]:
    """Takes the masks away: this write changed nothing there."""
    for scope in (*marked.acknowledged, *marked.late):
        if scope != but:
            yield Later(Release(scope, marked.token), behind=scope in marked.late)


def _refute(entry: Drop, marked: Marked, rules: Rules) -> Steps[None]:
    """Drops what the caller believed before it hears of it, lest its reload be the same again (R23)."""
    if rules.cached and isinstance((yield Ask(entry)), Unavailable):
        yield Later(entry, behind=entry.scope in marked.late)


def _publish(commands: list[Apply | Drop], marked: Marked, rules: Rules) -> Steps[None]:
    """Step 3: shows the cache what was committed. Losing any of it costs a miss."""
    for scope in marked.late:
        yield Later(Drop(scope, marked.token, None), behind=True)
    for command in commands:
        if rules.wait_apply:
            yield Ask(command)
        else:
            yield Later(command)


def _shared(marked: Marked, scope: ScopeKey, content: Content | None, rules: Rules) -> Apply | Drop:
    """The apply of a shared scope, whose writer does not know the tag before its own."""
    if content is None or len(content.state) > rules.state_bytes:
        return Drop(scope, marked.token, None)
    at = marked.acknowledged[scope]
    return Apply(scope, marked.token, None, content.tag, (), content.state, at)


def append(operation: Append, rules: Rules) -> Steps[AppendOutcome | None]:
    """Stores one append: masks, one statement, apply. None: cancelled before the statement."""
    began = yield _BEGAN
    scopes = operation.scopes
    marked = yield from _mask(scopes, rules, "append" if operation.shareable else None)
    if not isinstance(marked, Marked):
        return marked
    session = scopes[0]
    outcome: AppendOutcome = yield from _commit(operation, scopes, marked, rules)
    if isinstance(outcome, Committed):
        yield Wrote(session, outcome.tag)
        commands: list[Apply | Drop] = []
        for scope in scopes[1:]:
            content = outcome.content(scope)
            yield Wrote(scope, content.tag if content else None)
            if scope in marked.acknowledged:
                commands.append(_shared(marked, scope, content, rules))
        if session in marked.acknowledged:
            commands.append(_applied(operation, outcome, marked, rules))
        yield from _extend(operation, outcome)
        yield from _publish(commands, marked, rules)
    elif isinstance(outcome, Stale):
        yield Observed(session, outcome.current, began)
        yield from _release(marked, but=session)
        yield from _refute(Drop(session, marked.token, outcome.current), marked, rules)
    elif isinstance(outcome, Missing):
        yield Observed(session, None, began)
        yield from _release(marked, but=session)
        yield from _refute(Drop(session, marked.token, None), marked, rules)
    elif isinstance(outcome, Already):
        # The caller is told that it is stored: its next read must show it. The attempt that stored
        # it may have lost its masks, so an older entry goes, and of shared scopes SQL is asked.
        yield Observed(session, outcome.tag, began)
        for scope in scopes[1:]:
            yield Wrote(scope, None)
        yield from _release(marked, but=session)
        if session in marked.acknowledged or session in marked.late:
            drop = Drop(session, marked.token, outcome.tag)
            yield Later(drop, behind=session in marked.late)
    elif not isinstance(outcome, Unknown | Failed):
        yield from _release(marked)
    return outcome


def _applied(operation: Append, outcome: Committed, marked: Marked, rules: Rules) -> Apply | Drop:
    """The apply of the session, or a drop where the entry cannot be extended."""
    session = operation.key.session
    large = outcome.state is not None and len(outcome.state) > rules.state_bytes
    for event in outcome.events:
        large = large or len(event.payload) > rules.event_bytes
    # After numbering foreign events the entry's window is not this append's predecessor.
    if large or outcome.numbered or operation.expected is None:
        return Drop(session, marked.token, None)
    at = marked.acknowledged[session]
    expires = None if outcome.expires_in is None else at + outcome.expires_in
    return Apply(
        session, marked.token, operation.expected, outcome.tag, outcome.events, outcome.state, at, expires
    )


def _extend(operation: Append, outcome: Committed) -> Steps[None]:
    """Moves the content kept in the process to the new tag, if it is the predecessor."""
    known: Content | None = yield Known(operation.key)
    if known is None or known.tag != operation.expected or outcome.numbered:
        return
    state = known.state if outcome.state is None else outcome.state
    content = Content(outcome.tag, state, known.events + outcome.events, known.complete, known.before)
    yield Keep(operation.key, content, added=outcome.events)


def create(operation: Create, rules: Rules) -> Steps[CreateOutcome | None]:
    """Stores a new session. It makes no cache entry: a late one would resurrect (R6, R15)."""
    outcome = yield from _create(operation, rules)
    if isinstance(outcome, Expired):
        # To replace that one is to delete it: the clocks of SQL and cache may differ, so only a
        # mask hides its entry for certain (I5).
        outcome = yield from _create(replace(operation, replace_expired=True), rules)
    return outcome


def _create(operation: Create, rules: Rules) -> Steps[CreateOutcome | None]:
    marked = yield from _mask(operation.scopes, rules, "create" if operation.shareable else None)
    if not isinstance(marked, Marked):
        return marked
    outcome: CreateOutcome = yield from _commit(operation, operation.scopes, marked, rules)
    if isinstance(outcome, Snapshot):
        session = operation.key.session
        yield Wrote(session, None)
        commands: list[Apply | Drop] = []
        if session in marked.acknowledged:
            commands.append(Drop(session, marked.token, None))
        for scope in operation.scopes:
            if scope == session:
                continue
            content = outcome.content(scope)
            yield Wrote(scope, content.tag if content else None)
            if scope in marked.acknowledged:
                commands.append(_shared(marked, scope, content, rules))
        yield from _publish(commands, marked, rules)
    elif isinstance(outcome, Exists | Expired):
        yield from _release(marked)
    return outcome


def delete(operation: Delete, rules: Rules) -> Steps[DeleteOutcome | None]:
    """Deletes a session. Masked until the drop: nobody is served it any more (I5)."""
    session = operation.key.session
    marked = yield from _mask((session,), rules, None if operation.only_expired else "delete")
    if not isinstance(marked, Marked):
        return marked
    outcome: DeleteOutcome = yield from _commit(operation, (session,), marked, rules)
    if isinstance(outcome, bool):
        yield Wrote(session, None)
        drops: list[Apply | Drop] = [Drop(scope, marked.token, None) for scope in marked.acknowledged]
        yield from _publish(drops, marked, rules)
    return outcome
