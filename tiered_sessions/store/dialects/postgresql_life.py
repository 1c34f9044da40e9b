"""PostgreSQL: a session's beginning, and its end, by one statement each, which commits by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import TextClause, text

from ...records import Content, Create, ScopeKey, SessionKey, Snapshot, Tag
from ..clock import POSTGRESQL_NOW
from ..steps import key_params, scope_content
from ..values import fresh, to_time
from . import postgresql_text as sql
from .postgresql_group import Execute

CFG: Final = "cfg AS MATERIALIZED (SELECT set_config('lock_timeout', :lock, true) AS x)"
CASCADES: Final = (
    "fk AS MATERIALIZED (SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_constraint WHERE contype = 'f' "
    "AND conrelid = CAST('events' AS regclass) AND confrelid = CAST('sessions' AS regclass) "
    "AND confdeltype = 'c') AS cascades)"
)
_TAG: Final = "incarnation, revision, nonce, update_time, CAST(state AS text) AS state"


async def create(execute: Execute, write: Create, outbox: Sequence[ScopeKey], lock: str) -> Snapshot | None:
    """Sends the statement that inserts a session; None if its id is taken."""
    tag = Tag(fresh(), 0, fresh(), write.update_time)
    params: dict[str, Any] = {
        **key_params(write.key),
        "lock": lock,
        "state": write.state.decode(),
        "time": to_time(write.update_time),
        "i": tag.incarnation,
        "n": tag.nonce,
    }
    for kind, delta in (("app", write.app_delta), ("user", write.user_delta)):
        if delta is not None:
            params |= {f"{kind}_delta": delta.decode(), f"{kind}_i": fresh(), f"{kind}_n": fresh()}
    if write.ttl is not None:
        params |= {"ttl": write.ttl, "sliding": write.ttl if write.sliding else None}
    kinds: tuple[str, ...] = ()
    if outbox:
        kinds = tuple(sorted([scope.kind for scope in outbox]))
        params |= {"micros": write.update_time, **{f"stamp_{kind}": fresh() for kind in kinds}}
    statement = create_statement(
        write.app_delta is not None, write.user_delta is not None, write.ttl is not None, kinds
    )
    rows = await execute(statement, params)
    if not rows:
        return None
    row = rows[0]
    user, app = scope_content(row[6:11]), scope_content(row[1:6])
    return Snapshot(write.key, Content(tag, row[0].encode()), user, app, write.ttl)


@cache
def create_statement(app: bool, user: bool, ttl: bool, outbox: tuple[str, ...]) -> TextClause:
    """Generates the statement; `app` and `user` say whether there are deltas for them.

    Everything after `ses` selects from it, so that nothing is written if the id is taken; the
    count keeps the lock order session, app, user.
    """
    expiry = "CAST(NULL AS timestamp), CAST(NULL AS bigint)"
    if ttl:
        expiry = (
            f"{POSTGRESQL_NOW} + CAST(:ttl AS double precision) * interval '1 millisecond', "
            "CAST(:sliding AS bigint)"
        )
    app_key, user_key = "app_name = :a", "app_name = :a AND user_id = :u"
    parts = [
        CFG,
        "ses AS (INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time, incarnation, "
        "revision, nonce, expires_at, sliding_ttl) SELECT CAST(:a AS text), CAST(:u AS text), "
        "CAST(:s AS text), CAST(:state AS jsonb), CAST(:time AS timestamp), CAST(:time AS timestamp), "
        f"CAST(:i AS bigint), 0, CAST(:n AS bigint), {expiry} FROM cfg WHERE cfg.x IS NOT NULL "
        f"ON CONFLICT DO NOTHING RETURNING {_TAG})",
        sql.scope_part("app", "ses", "")
        if app
        else _present("app", "app_states", "app_name", "CAST(:a AS text)", app_key, "ses"),
        sql.scope_part("usr", "ses", ", (SELECT count(*) FROM app) earlier")
        if user
        else _present(
            "usr",
            "user_states",
            "app_name, user_id",
            "CAST(:a AS text), CAST(:u AS text)",
            user_key,
            "ses, (SELECT count(*) FROM app) earlier",
        ),
    ]
    if outbox:
        parts.append(sql.outbox_part(outbox, "ses", app=app, user=user))
    return text(
        f"WITH {', '.join(parts)} SELECT ses.state, a.*, u.* FROM ses "
        f"LEFT JOIN {_found('app', 'app_states', app_key, app)} a ON true "
        f"LEFT JOIN {_found('usr', 'user_states', user_key, user)} u ON true"
    )


def _present(name: str, table: str, key: str, values: str, where: str, source: str) -> str:
    """Makes the row of a shared scope if it is missing, and gives stock ADK's a tag.

    One that somebody else makes meanwhile stays what it is, and is answered. The random numbers are
    the session's: a tag is compared with those of its own row only.
    """
    return (
        f"{name} AS (INSERT INTO {table} AS x ({key}, state, update_time, incarnation, revision, nonce) "
        f"SELECT {values}, CAST('{{}}' AS jsonb), CAST(:time AS timestamp), CAST(:i AS bigint), 0, "
        f"CAST(:n AS bigint) FROM {source} "
        f"WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE {where} AND revision IS NOT NULL) "
        f"ON CONFLICT ({key}) DO UPDATE SET incarnation = COALESCE(x.incarnation, EXCLUDED.incarnation), "
        "revision = COALESCE(x.revision, 0), nonce = COALESCE(x.nonce, EXCLUDED.nonce) "
        f"RETURNING {_TAG})"
    )


def _found(name: str, table: str, where: str, changed: bool) -> str:
    columns = "incarnation, revision, nonce, update_time, state"
    if changed:
        return f"(SELECT {columns} FROM {name})"
    # The one is empty where the other is not: both are of the moment when the statement began.
    return (
        f"(SELECT {columns} FROM {name} UNION ALL SELECT {_TAG} FROM {table} "
        f"WHERE {where} AND revision IS NOT NULL)"
    )


async def delete(
    execute: Execute, key: SessionKey, outbox: Sequence[ScopeKey], only_expired: bool, lock: str
) -> bool | None:
    """Sends the statement that deletes a session; None: its events would stay, nothing was written."""
    kinds = tuple(sorted(scope.kind for scope in outbox))
    params = {**key_params(key), "lock": lock, **{f"stamp_{kind}": fresh() for kind in kinds}}
    (row,) = await execute(delete_statement(only_expired, kinds), params)
    return bool(row[1]) if row[0] else None


@cache
def delete_statement(only_expired: bool, outbox: tuple[str, ...]) -> TextClause:
    """Generates the statement. It leaves the events to the foreign key, and does nothing without one.

    Only the cascade sees the event of an append that the statement waited for.
    """
    expired = f" AND x.expires_at <= {POSTGRESQL_NOW}" if only_expired else ""
    parts = [
        CFG,
        CASCADES,
        "ses AS (DELETE FROM sessions x WHERE x.app_name = :a AND x.user_id = :u AND x.id = :s "
        f"AND (SELECT x FROM cfg) IS NOT NULL AND (SELECT cascades FROM fk){expired} RETURNING 1)",
    ]
    if outbox:
        keys = {
            "session": "CAST(:a AS text), CAST(:u AS text), CAST(:s AS text)",
            "user": "CAST(:a AS text), CAST(:u AS text), ''",
            "app": "CAST(:a AS text), '', ''",
        }
        none = ", ".join(["CAST(NULL AS bigint)"] * 4)
        rows = " UNION ALL ".join(
            f"SELECT '{kind}', {keys[kind]}, {none}, CAST(:stamp_{kind} AS bigint) "
            "FROM fk, (SELECT count(*) FROM ses) earlier WHERE fk.cascades"
            for kind in outbox
        )
        parts.append(
            f"box AS (INSERT INTO cache_outbox ({sql.OUTBOX_KEY}, {', '.join(sql.OUTBOX_COLUMNS)}) "
            f"{rows} {sql.OUTBOX_RENEWED})"
        )
    return text(f"WITH {', '.join(parts)} SELECT cascades, (SELECT count(*) FROM ses) FROM fk")
