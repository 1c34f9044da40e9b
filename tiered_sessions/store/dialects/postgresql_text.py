"""The text of PostgreSQL's statements, generated for each combination of parts and kept."""

from __future__ import annotations

from functools import cache
from typing import Final, NamedTuple

from sqlalchemy import TextClause, text

from ..clock import POSTGRESQL_NOW

_KEY = "app_name = :a AND user_id = :u AND session_id = :s"
ALIVE: Final = f"(x.expires_at IS NULL OR x.expires_at > {POSTGRESQL_NOW})"
SLID: Final = (
    f"COALESCE({POSTGRESQL_NOW} + CAST(x.sliding_ttl AS double precision) * interval '1 millisecond', "
    "x.expires_at)"
)
"""When a session expires that is appended to now."""
OBJECT: Final = "(CASE WHEN jsonb_typeof({0}.state) = 'object' THEN {0}.state ELSE CAST('{{}}' AS jsonb) END)"


LIMITS: Final = text(
    "SELECT set_config('lock_timeout', :lock, true), set_config('statement_timeout', :statement, true)"
)


# --- the append statement --------------------------------------------------------------------


class Shape(NamedTuple):
    """Which parts an append statement has; each combination is one prepared statement.

    `events`: how many, of which 2 are several.
    """

    compared: bool
    events: int
    rewritten: bool
    session: str
    app: bool
    user: bool
    outbox: tuple[str, ...]


@cache
def append_statement(shape: Shape) -> TextClause:
    """Generates the statement of consistency.md 5.2.

    Everything after `up` selects from it, so that nothing is written if it changed no row; the
    counts keep the lock order session, app, user.
    """
    state = {
        "": "",
        "replace": ", state = CAST(:delta AS jsonb)",
        "merge": f", state = {OBJECT.format('x')} || CAST(:delta AS jsonb)",
    }[shape.session]
    compared = (
        "x.incarnation = :i AND x.revision = :r AND x.nonce = :n AND x.update_time = CAST(:t AS timestamp)"
        if shape.compared
        else f"x.revision IS NOT NULL AND NOT EXISTS (SELECT 1 FROM events WHERE {_KEY} AND seq IS NULL)"
    )
    k = "CAST(:k AS bigint)" if shape.events > 1 else "1"
    parts = [
        "cfg AS MATERIALIZED (SELECT set_config('lock_timeout', :lock, true) AS x)",
        f"up AS (UPDATE sessions x SET revision = x.revision + {k}, nonce = :nonce, "
        f"update_time = CAST(:time AS timestamp){state}, expires_at = {SLID} "
        "WHERE x.app_name = :a AND x.user_id = :u AND x.id = :s "
        f"AND (SELECT x FROM cfg) IS NOT NULL AND {compared} AND {ALIVE} "
        "RETURNING x.incarnation, x.revision, x.nonce, x.update_time, x.sliding_ttl"
        f"{', CAST(x.state AS text) AS state' if shape.session else ''})",
    ]
    columns, joins = ["up.*"], ""
    if shape.events:
        # Arrays take the driver and the server longer, and most appends are of one event.
        source = (
            "(SELECT CAST(:id AS text), CAST(:invocation AS text), CAST(:at AS timestamp), "
            "CAST(:payload AS text), 1)"
            if shape.events == 1
            else "unnest(CAST(:ids AS text[]), CAST(:invocations AS text[]), CAST(:times AS timestamp[]), "
            "CAST(:payloads AS text[])) WITH ORDINALITY"
        )
        parts.append(
            "ins AS (INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, "
            "event_data, seq) SELECT e.id, :a, :u, :s, e.invocation, e.time, CAST(e.payload AS jsonb), "
            f"up.revision - {k} + e.number FROM up, {source} "
            "AS e (id, invocation, time, payload, number)"
            f"{' RETURNING seq, CAST(event_data AS text) AS payload' if shape.rewritten else ''})"
        )
        if shape.rewritten:
            columns.append("(SELECT array_agg(payload ORDER BY seq) FROM ins) AS payloads")
    if shape.app:
        parts.append(scope_part("app", "up", ""))
        columns.append(_scope_columns("app", "a"))
        joins += " LEFT JOIN app ON true"
    if shape.user:
        order = ", (SELECT count(*) FROM app) earlier" if shape.app else ""
        parts.append(scope_part("usr", "up", order))
        columns.append(_scope_columns("usr", "u"))
        joins += " LEFT JOIN usr ON true"
    if shape.outbox:
        parts.append(outbox_part(shape.outbox, "up", app=shape.app, user=shape.user))
    return text(f"WITH {', '.join(parts)} SELECT {', '.join(columns)} FROM up{joins}")


def scope_part(name: str, source: str, order: str) -> str:
    """Merges a delta into the row of a shared scope, or makes the row, if `source` has one."""
    kind, table, key, values = {
        "app": ("app", "app_states", "app_name", "CAST(:a AS text)"),
        "usr": ("user", "user_states", "app_name, user_id", "CAST(:a AS text), CAST(:u AS text)"),
    }[name]
    return (
        f"{name} AS (INSERT INTO {table} AS x ({key}, state, update_time, incarnation, revision, nonce) "
        f"SELECT {values}, CAST(:{kind}_delta AS jsonb), CAST(:time AS timestamp), "
        f"CAST(:{kind}_i AS bigint), 0, CAST(:{kind}_n AS bigint) FROM {source}{order} "
        f"ON CONFLICT ({key}) DO UPDATE SET state = {OBJECT.format('x')} || EXCLUDED.state, "
        "update_time = EXCLUDED.update_time, incarnation = COALESCE(x.incarnation, EXCLUDED.incarnation), "
        "revision = COALESCE(x.revision + 1, 0), nonce = EXCLUDED.nonce "
        "RETURNING incarnation, revision, nonce, update_time, CAST(state AS text) AS state)"
    )


def _scope_columns(name: str, mark: str) -> str:
    state = "ast" if mark == "a" else "us"
    return (
        f"{name}.incarnation AS {mark}i, {name}.revision AS {mark}r, {name}.nonce AS {mark}n, "
        f"{name}.update_time AS {mark}t, {name}.state AS {state}"
    )


OUTBOX_KEY: Final = "kind, app_name, user_id, session_id"
OUTBOX_COLUMNS: Final = ("incarnation", "revision", "nonce", "update_time", "stamp")
OUTBOX_RENEWED: Final = f"ON CONFLICT ({OUTBOX_KEY}) DO UPDATE SET " + ", ".join(
    f"{column} = EXCLUDED.{column}" for column in OUTBOX_COLUMNS
)


def outbox_part(kinds: tuple[str, ...], session: str, *, app: bool, user: bool) -> str:
    """Records invalidations, if the part named `session` has a row; without a tag where none is made."""
    sources = {
        "session": (session, ":a, :u, :s"),
        "app": ("app", ":a, '', ''"),
        "user": ("usr", ":a, :u, ''"),
    }
    rows = []
    for kind in kinds:
        name, key = sources[kind]
        known = kind == "session" or (app if kind == "app" else user)
        source = session if name == session or not known else f"{session}, {name}"
        tag = f"{name}.incarnation, {name}.revision, {name}.nonce, CAST(:micros AS bigint)"
        if not known:
            tag = "CAST(NULL AS bigint), CAST(NULL AS bigint), CAST(NULL AS bigint), CAST(NULL AS bigint)"
        rows.append(f"SELECT '{kind}', {key}, {tag}, CAST(:stamp_{kind} AS bigint) FROM {source}")
    return (
        f"box AS (INSERT INTO cache_outbox ({OUTBOX_KEY}, {', '.join(OUTBOX_COLUMNS)}) "
        f"{' UNION ALL '.join(rows)} {OUTBOX_RENEWED})"
    )


# --- statements that read --------------------------------------------------------------------

_EXISTS_FOREIGN = f"EXISTS (SELECT 1 FROM events WHERE {_KEY} AND seq IS NULL)"
_SESSION = f"x.app_name = :a AND x.user_id = :u AND x.id = :s AND {ALIVE}"

SETTLE: Final = text(
    f"SELECT x.incarnation, x.revision, x.nonce, x.update_time, {_EXISTS_FOREIGN} AS foreign_rows, "
    "e.ids, e.seqs, e.payloads FROM sessions x LEFT JOIN LATERAL (SELECT array_agg(id) AS ids, "
    "array_agg(seq) AS seqs, array_agg(CAST(event_data AS text)) AS payloads FROM events "
    f"WHERE {_KEY} AND id = ANY(CAST(:ids AS text[]))) e ON true WHERE {_SESSION}"
)
