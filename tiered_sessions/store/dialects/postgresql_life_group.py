"""PostgreSQL: the beginnings, or the ends, of several sessions by one statement, which commits by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import TextClause, text

from ...records import Content, Create, CreateOutcome, DeleteOutcome, SessionKey, Snapshot, Tag
from ..clock import POSTGRESQL_NOW
from ..groups import Grouped
from ..steps import scope_content
from ..values import fresh, to_time
from . import postgresql_text as sql
from .postgresql_group import Execute
from .postgresql_life import CASCADES, CFG

_COLUMNS: Final = {
    "app": "text",
    "usr": "text",
    "ses": "text",
    "state": "text",
    "time": "timestamp",
    "i": "bigint",
    "n": "bigint",
}
_TTL: Final = {"ttl": "bigint", "sliding": "bigint"}
_KEY: Final = {name: _COLUMNS[name] for name in ("app", "usr", "ses")}
_STAMP: Final = {"stamp": "bigint"}
_TAG: Final = "incarnation, revision, nonce, update_time, CAST(state AS text) AS state"


def _batch(columns: dict[str, str]) -> str:
    """The rows of the batch, in an order that all batches have."""
    arrays = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in columns.items())
    return f"b AS (SELECT * FROM unnest({arrays}) AS b ({', '.join(columns)}) ORDER BY app, usr, ses)"


def _params(columns: dict[str, str], rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
    return {name: list(column) for name, column in zip(columns, zip(*rows, strict=True), strict=True)}


# --- creates ---------------------------------------------------------------------------------


async def create_group(
    execute: Execute, group: Sequence[Grouped[Create]], lock: str
) -> list[CreateOutcome | None]:
    """Sends the statement that inserts sessions; None of those whose id is taken."""
    ttl = any(write.ttl is not None for write, _ in group)
    tags = {write.key: Tag(fresh(), 0, fresh(), write.update_time) for write, _ in group}
    rows = [
        (
            *write.key,
            write.state.decode(),
            to_time(write.update_time),
            tags[write.key].incarnation,
            tags[write.key].nonce,
            *((write.ttl, write.ttl if write.sliding else None) if ttl else ()),
        )
        for write, _ in group
    ]
    params = {"lock": lock, **_params(_COLUMNS | (_TTL if ttl else {}), rows)}
    made = {SessionKey(*row[:3]): row for row in await execute(create_group_statement(ttl), params)}
    outcomes: list[CreateOutcome | None] = []
    for write, _ in group:
        row = made.get(write.key)
        if row is None:
            outcomes.append(None)
            continue
        session = Content(tags[write.key], row[3].encode())
        user, app = scope_content(row[9:14]), scope_content(row[4:9])
        outcomes.append(Snapshot(write.key, session, user, app, write.ttl))
    return outcomes


@cache
def create_group_statement(ttl: bool) -> TextClause:
    """Generates the statement: that of one create, for each of them.

    The counts keep the lock order session, app, user.
    """
    expiry = "CAST(NULL AS timestamp), CAST(NULL AS bigint)"
    if ttl:
        expiry = f"{POSTGRESQL_NOW} + CAST(b.ttl AS double precision) * interval '1 millisecond', b.sliding"
    of_app, of_user = "x.app_name = ses.app_name", "x.app_name = ses.app_name AND x.user_id = ses.user_id"
    return text(
        f"WITH {CFG}, {_batch(_COLUMNS | (_TTL if ttl else {}))}, "
        "ses AS (INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time, incarnation, "
        "revision, nonce, expires_at, sliding_ttl) SELECT app, usr, ses, CAST(b.state AS jsonb), time, time, "
        f"i, 0, n, {expiry} FROM b, cfg WHERE cfg.x IS NOT NULL ON CONFLICT DO NOTHING "
        "RETURNING app_name, user_id, id, incarnation, nonce, update_time, CAST(state AS text) AS state), "
        f"{_present('app', 'app_states', 'app_name', of_app, 'ses')}, "
        f"{_present('usr', 'user_states', 'app_name, user_id', of_user, _AFTER_APP)} "
        "SELECT ses.app_name, ses.user_id, ses.id, ses.state, a.*, u.* FROM ses "
        f"LEFT JOIN LATERAL {_found('app', 'app_states', of_app)} a ON true "
        f"LEFT JOIN LATERAL {_found('usr', 'user_states', of_user)} u ON true"
    )


_AFTER_APP: Final = "(SELECT count(*) FROM app) earlier, ses"


def _present(name: str, table: str, key: str, same: str, source: str) -> str:
    """As of one create: makes the rows of a shared scope that are missing, each once."""
    return (
        f"{name} AS (INSERT INTO {table} AS x ({key}, state, update_time, incarnation, revision, nonce) "
        f"SELECT DISTINCT ON ({key}) {key}, CAST('{{}}' AS jsonb), update_time, incarnation, 0, nonce "
        f"FROM {source} LEFT JOIN LATERAL (SELECT true AS there FROM {table} x WHERE {same} "
        f"AND x.revision IS NOT NULL LIMIT 1) t ON true WHERE there IS NULL ORDER BY {key} "
        f"ON CONFLICT ({key}) DO UPDATE SET incarnation = COALESCE(x.incarnation, EXCLUDED.incarnation), "
        "revision = COALESCE(x.revision, 0), nonce = COALESCE(x.nonce, EXCLUDED.nonce) "
        f"RETURNING {key}, {_TAG})"
    )


def _found(name: str, table: str, same: str) -> str:
    return (
        f"(SELECT incarnation, revision, nonce, update_time, state FROM {name} x WHERE {same} UNION ALL "
        f"SELECT {_TAG} FROM {table} x WHERE {same} AND x.revision IS NOT NULL LIMIT 1)"
    )


# --- deletes ---------------------------------------------------------------------------------


async def delete_group(execute: Execute, group: Sequence[Grouped[SessionKey]]) -> list[DeleteOutcome | None]:
    """Sends the statement that deletes sessions; None of those that are locked, or not there."""
    outbox = any(scopes for _, scopes in group)
    stamps = [((fresh() if scopes else None,) if outbox else ()) for _, scopes in group]
    rows = [(*key, *stamp) for (key, _), stamp in zip(group, stamps, strict=True)]
    params = _params(_KEY | (_STAMP if outbox else {}), rows)
    deleted = {SessionKey(*row) for row in await execute(delete_group_statement(outbox), params)}
    return [True if key in deleted else None for key, _ in group]


@cache
def delete_group_statement(outbox: bool) -> TextClause:
    """Generates the statement. It waits for no session, so batches cannot deadlock however they overlap.

    As that of one deletion it leaves the events to the foreign key, and does nothing without one.
    """
    same = "x.app_name = {0}.app AND x.user_id = {0}.usr AND x.id = {0}.ses"
    parts = [
        _batch(_KEY | (_STAMP if outbox else {})),
        CASCADES,
        # LATERAL keeps the planner from reading the whole table where it takes it for a small one.
        "h AS MATERIALIZED (SELECT b.* FROM b CROSS JOIN LATERAL (SELECT FROM sessions x "
        f"WHERE {same.format('b')} AND (SELECT cascades FROM fk) FOR UPDATE SKIP LOCKED) x)",
        f"gone AS (DELETE FROM sessions x USING h WHERE {same.format('h')} RETURNING h.*)",
    ]
    if outbox:
        # In the order of the drainer, which deletes several rows in a transaction.
        none = ", ".join(["CAST(NULL AS bigint)"] * 4)
        parts.append(
            f"box AS (INSERT INTO cache_outbox ({sql.OUTBOX_KEY}, {', '.join(sql.OUTBOX_COLUMNS)}) "
            f"SELECT 'session', app, usr, ses, {none}, stamp FROM gone "
            f"WHERE stamp IS NOT NULL ORDER BY app, usr, ses {sql.OUTBOX_RENEWED})"
        )
    return text(f"WITH {', '.join(parts)} SELECT app, usr, ses FROM gone")
