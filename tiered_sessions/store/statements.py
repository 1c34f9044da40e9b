"""The portable statements, in SQLAlchemy Core. Parameters: a, u, s name the session.

A statement is built once and executed with different parameters, so that it is compiled once.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Integer,
    Select,
    Table,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.sql.base import Executable

from .clock import ALIVE, EXPIRED, UtcNow
from .schema import (
    NAMESPACE_KEY,
    adk_internal_metadata,
    app_states,
    cache_outbox,
    events,
    sessions,
    user_states,
)

_a: Final[Any] = bindparam("a")
_u: Final[Any] = bindparam("u")
_s: Final[Any] = bindparam("s")

_session_key = and_(sessions.c.app_name == _a, sessions.c.user_id == _u, sessions.c.id == _s)
_user_key = and_(user_states.c.app_name == _a, user_states.c.user_id == _u)
_app_key = app_states.c.app_name == _a
_event_key = and_(events.c.app_name == _a, events.c.user_id == _u, events.c.session_id == _s)
_events_of_row = and_(
    events.c.app_name == sessions.c.app_name,
    events.c.user_id == sessions.c.user_id,
    events.c.session_id == sessions.c.id,
)
# As a CASE, because SQL Server and Oracle take no bare EXISTS among the columns.
_foreign = case((exists(select(literal(1)).where(_events_of_row, events.c.seq.is_(None))), 1), else_=0)


def _tag(table: Table) -> tuple[ColumnElement[Any], ...]:
    return (table.c.incarnation, table.c.revision, table.c.nonce, table.c.update_time)


def _locked(statement: Select[Any], table: Table) -> Select[Any]:
    # SQL Server has no FOR UPDATE and takes a hint instead.
    return statement.with_for_update().with_hint(table, "WITH (UPDLOCK, ROWLOCK)", "mssql")


_session = select(sessions.c.app_name, sessions.c.user_id, sessions.c.id, *_tag(sessions), sessions.c.state)
_user = select(user_states.c.app_name, user_states.c.user_id, *_tag(user_states), user_states.c.state)
_app = select(app_states.c.app_name, *_tag(app_states), app_states.c.state)

HEADER: Final = (
    select(
        *_session.selected_columns,
        _foreign,
        *_user.selected_columns,
        *_app.selected_columns,
        sessions.c.expires_at,
        UtcNow(),
    )
    .select_from(
        sessions.outerjoin(
            user_states,
            and_(user_states.c.app_name == sessions.c.app_name, user_states.c.user_id == sessions.c.user_id),
        ).outerjoin(app_states, app_states.c.app_name == sessions.c.app_name)
    )
    .where(_session_key, ALIVE)
)
SESSION_TAG: Final = select(
    sessions.c.app_name, sessions.c.user_id, sessions.c.id, *_tag(sessions), _foreign
).where(_session_key, ALIVE)
# Expired or not: whoever holds the lock looks at the times.
LOCK_SESSION: Final = _locked(
    _session.add_columns(sessions.c.expires_at, UtcNow(), sessions.c.sliding_ttl).where(_session_key),
    sessions,
)
EXPIRED_SESSION: Final = select(sessions.c.app_name, sessions.c.user_id, sessions.c.id).where(
    _session_key, EXPIRED
)
EXPIRED_SESSIONS: Final = (
    select(sessions.c.app_name, sessions.c.user_id, sessions.c.id)
    .where(EXPIRED)
    .order_by(sessions.c.expires_at)
    .limit(bindparam("n", type_=Integer))
)
NOW: Final = select(UtcNow())
USER: Final = _user.where(_user_key)
APP: Final = _app.where(_app_key)
LOCK_USER: Final = _locked(USER, user_states)
LOCK_APP: Final = _locked(APP, app_states)

TAGS: Final = (
    select(
        literal("session").label("kind"),
        sessions.c.app_name,
        sessions.c.user_id,
        sessions.c.id,
        *_tag(sessions),
    )
    .where(_session_key, ALIVE)
    .union_all(
        select(
            literal("user"), user_states.c.app_name, user_states.c.user_id, literal(""), *_tag(user_states)
        ).where(_user_key),
        select(literal("app"), app_states.c.app_name, literal(""), literal(""), *_tag(app_states)).where(
            _app_key
        ),
    )
)


@cache
def list_sessions(of_user: bool) -> CompoundSelect[Any]:
    """All sessions of an app or of one user, in the order of conformance 39; among them the shared scopes."""
    none = literal("")
    listed = select(
        literal("session").label("kind"), *_session.selected_columns, _foreign.label("foreign_rows")
    )
    users = select(
        literal("user"), *_user.selected_columns[:2], none, *_user.selected_columns[2:], literal(0)
    )
    app = select(literal("app"), _app.selected_columns[0], none, none, *_app.selected_columns[1:], literal(0))
    listed = listed.where(sessions.c.app_name == _a, ALIVE)
    users = users.where(user_states.c.app_name == _a)
    if of_user:
        listed, users = listed.where(sessions.c.user_id == _u), users.where(user_states.c.user_id == _u)
    return listed.union_all(users, app.where(_app_key)).order_by("update_time", "user_id", "id")


@cache
def session_keys(of_app: bool, of_user: bool, after: bool) -> Select[Any]:
    """Keys in the order of the primary key, which no row value is needed to follow (SQL Server)."""
    columns = (sessions.c.app_name, sessions.c.user_id, sessions.c.id)
    given = [_a] * of_app + [_u] * of_user
    statement = select(*columns).where(ALIVE)
    for column, value in zip(columns, given, strict=False):
        statement = statement.where(column == value)
    if after:
        statement = statement.where(columns[len(given)] > bindparam("after"))
    return statement.order_by(*columns).limit(bindparam("n", type_=Integer))


@cache
def count_sessions(of_user: bool) -> Select[Any]:
    """How many sessions an app or one user has."""
    statement = select(func.count()).select_from(sessions).where(sessions.c.app_name == _a, ALIVE)
    return statement.where(sessions.c.user_id == _u) if of_user else statement


# --- events ----------------------------------------------------------------------------------

_event = select(events.c.seq, events.c.id, events.c.timestamp, events.c.event_data).where(_event_key)


@cache
def newest_events(*, limited: bool, after: bool, before_seq: bool, foreign: bool) -> Select[Any]:
    """A session's events, newest first. Parameters: n, after, before.

    Events without a number come after those with one, in stock's order; only a session that has
    some pays for the sort.
    """
    statement = _event
    if after:
        statement = statement.where(events.c.timestamp >= bindparam("after"))
    if before_seq:
        statement = statement.where(events.c.seq < bindparam("before", type_=BigInteger))
    if foreign:
        statement = statement.order_by(
            case((events.c.seq.is_(None), 1), else_=0).desc(),
            events.c.seq.desc(),
            events.c.timestamp.desc(),
            events.c.id.desc(),
        )
    else:
        statement = statement.order_by(events.c.seq.desc())
    return statement.limit(bindparam("n", type_=Integer)) if limited else statement


# seq + 0 keeps a planner from the index on seq, along which it would read the whole log.
LATEST_BEFORE: Final = (
    select(events.c.timestamp)
    .where(_event_key, events.c.seq + 0 < bindparam("before", type_=BigInteger))
    .order_by(events.c.timestamp.desc(), events.c.id.desc())
    .limit(1)
)
FOREIGN_EVENTS: Final = _event.where(events.c.seq.is_(None))
GREATEST_SEQ: Final = select(func.max(events.c.seq)).where(_event_key)
EVENT: Final = _event.where(events.c.id == bindparam("event_id"))
NUMBER_EVENT: Final = (
    update(events)
    .where(_event_key, events.c.id == bindparam("event_id"))
    .values(seq=bindparam("v_seq", type_=BigInteger))
)


def _insert(table: Table, *columns: str) -> Executable:
    names = columns or tuple(column.name for column in table.columns)
    return insert(table).values({name: bindparam(f"v_{name}") for name in names}).inline()


INSERT_EVENT: Final = _insert(events)
INSERT_SESSION: Final = _insert(sessions)
INSERT_USER: Final = _insert(user_states)
INSERT_APP: Final = _insert(app_states)


@cache
def update_session(*, adopted: bool, state: bool, sliding: bool) -> Executable:
    """Moves a locked session on. Comparing the tag again guards where the lock does nothing."""
    compared = (
        and_(sessions.c.revision == bindparam("old_revision"), sessions.c.nonce == bindparam("old_nonce"))
        if adopted
        else sessions.c.revision.is_(None)
    )
    names = ["incarnation", "revision", "nonce", "update_time"]
    names += ["state"] * state + ["expires_at"] * sliding
    values: dict[str, Any] = {name: bindparam(f"v_{name}") for name in names}
    return update(sessions).where(_session_key, compared).values(values)


_scope_columns = ("incarnation", "revision", "nonce", "update_time", "state")
UPDATE_USER: Final = (
    update(user_states).where(_user_key).values({name: bindparam(f"v_{name}") for name in _scope_columns})
)
UPDATE_APP: Final = (
    update(app_states).where(_app_key).values({name: bindparam(f"v_{name}") for name in _scope_columns})
)
# Only names the content: whatever stock ADK writes at the same time stays.
_adopted: dict[str, Any] = {name: bindparam(f"v_{name}") for name in ("incarnation", "revision", "nonce")}
ADOPT_USER: Final = update(user_states).where(_user_key, user_states.c.revision.is_(None)).values(_adopted)
ADOPT_APP: Final = update(app_states).where(_app_key, app_states.c.revision.is_(None)).values(_adopted)
DELETE_EVENTS: Final = delete(events).where(_event_key)
DELETE_SESSION: Final = delete(sessions).where(_session_key)
# Looking again guards where the lock does nothing.
DELETE_EXPIRED_SESSION: Final = delete(sessions).where(_session_key, EXPIRED)

# --- outbox and namespace --------------------------------------------------------------------

_outbox_key = and_(
    cache_outbox.c.kind == bindparam("scope"),
    cache_outbox.c.app_name == _a,
    cache_outbox.c.user_id == _u,
    cache_outbox.c.session_id == _s,
)
_outbox_columns = ("incarnation", "revision", "nonce", "update_time", "stamp")
UPDATE_OUTBOX: Final = (
    update(cache_outbox).where(_outbox_key).values({name: bindparam(f"v_{name}") for name in _outbox_columns})
)
INSERT_OUTBOX: Final = _insert(cache_outbox)
_outbox = select(
    cache_outbox.c.kind,
    cache_outbox.c.app_name,
    cache_outbox.c.user_id,
    cache_outbox.c.session_id,
    cache_outbox.c.incarnation,
    cache_outbox.c.revision,
    cache_outbox.c.nonce,
    cache_outbox.c.update_time,
    cache_outbox.c.stamp,
)
# SQL Server limits only what is ordered.
OUTBOX: Final = _outbox.order_by(*cache_outbox.primary_key).limit(bindparam("n", type_=Integer))
DELETE_OUTBOX: Final = delete(cache_outbox).where(_outbox_key, cache_outbox.c.stamp == bindparam("seen"))

NAMESPACE: Final = select(adk_internal_metadata.c.value).where(adk_internal_metadata.c.key == NAMESPACE_KEY)
SET_NAMESPACE: Final = (
    update(adk_internal_metadata)
    .where(adk_internal_metadata.c.key == NAMESPACE_KEY)
    .values(value=bindparam("v_value"))
)
