"""PostgreSQL: appends to several sessions by one statement, which commits by itself."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import TextClause, text
from sqlalchemy.sql.base import Executable

from ...records import Append, AppendOutcome, Committed, EventRecord, Missing, ScopeKey, Tag
from .. import steps, writes
from ..failures import DRIVER_ERRORS
from ..groups import Grouped
from ..steps import Params, Row
from ..values import fresh, to_time
from . import postgresql_text as sql

# JSONB writes such numbers in another form: then the server's text is the one to hand on. What
# comes after tells them from the ids of events, which are full of digits and minus signs. A pattern
# that begins with what it looks for is four times as quick, so all digits are made one here, and so on.
_ALIKE: Final = bytes.maketrans(b"123456789E+]} \t\n\r\f\v", b"000000000e-,,,,,,,,")
_EXPONENT: Final = re.compile(b"0e-?0+,")
_MINUS_ZERO: Final = re.compile(rb"-0(?:\.0+)?[,\]}\s]")

_COLUMNS: Final = {
    "app": "text",
    "usr": "text",
    "ses": "text",
    "i": "bigint",
    "r": "bigint",
    "n": "bigint",
    "t": "timestamp",
    "nonce": "bigint",
    "time": "timestamp",
    "event": "text",
    "invocation": "text",
    "at": "timestamp",
    "payload": "text",
}
Execute = Callable[[Executable, Params], Awaitable[Sequence[Row]]]
"""Executes one statement, by whichever way."""

_STATE: Final = {"delta": "text", "whole": "boolean"}
_OUTBOX: Final = {"micros": "bigint", "stamp": "bigint"}


def rewritten(payload: bytes) -> bool:
    """Says whether JSONB may write a number of this JSON object in another form."""
    return bool(_EXPONENT.search(payload.translate(_ALIKE)) or _MINUS_ZERO.search(payload))


@cache
def group_statement(state: bool, rewritten: bool, outbox: bool) -> TextClause:
    """Generates the statement; it answers the number of each append that it stored.

    It waits for no session: a row that is locked, or is not what its writer saw, is left out, so
    batches cannot deadlock however they overlap. An event whose id is taken is left out too, and
    only sessions whose event is in move on.
    """
    columns = _COLUMNS | (_STATE if state else {}) | (_OUTBOX if outbox else {})
    arrays = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in columns.items())
    same = "x.app_name = {0}.app AND x.user_id = {0}.usr AND x.id = {0}.ses"
    merged, changed = "", ""
    if state:
        merged = (
            ", state = CASE WHEN h.delta IS NULL THEN x.state WHEN h.whole THEN CAST(h.delta AS jsonb) "
            f"ELSE {sql.OBJECT.format('x')} || CAST(h.delta AS jsonb) END"
        )
        changed = ", CASE WHEN h.delta IS NOT NULL THEN CAST(x.state AS text) END AS state"
    text_of_event = ", CAST(event_data AS text) AS payload" if rewritten else ""
    parts = [
        f"b AS (SELECT * FROM unnest({arrays}) WITH ORDINALITY AS b ({', '.join(columns)}, number) "
        "ORDER BY app, usr, ses)",
        # LATERAL keeps the planner from reading the whole table where it takes it for a small one.
        "h AS MATERIALIZED (SELECT b.* FROM b CROSS JOIN LATERAL (SELECT FROM sessions x "
        f"WHERE {same.format('b')} AND x.incarnation = b.i AND x.revision = b.r AND x.nonce = b.n "
        f"AND x.update_time = b.t AND {sql.ALIVE} FOR UPDATE SKIP LOCKED) x)",
        "ins AS (INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, "
        "event_data, seq) SELECT event, app, usr, ses, invocation, at, CAST(payload AS jsonb), r + 1 FROM h "
        f"ON CONFLICT DO NOTHING RETURNING app_name, user_id, session_id{text_of_event})",
        "up AS (UPDATE sessions x SET revision = h.r + 1, nonce = h.nonce, update_time = h.time"
        f"{merged}, expires_at = {sql.SLID} FROM h JOIN ins ON ins.app_name = h.app "
        f"AND ins.user_id = h.usr AND ins.session_id = h.ses WHERE {same.format('h')} "
        f"RETURNING h.number, x.sliding_ttl{changed}{', ins.payload' if rewritten else ''}"
        f"{', h.app, h.usr, h.ses, h.i, x.revision, x.nonce, h.micros, h.stamp' if outbox else ''})",
    ]
    if outbox:
        # In the order of the drainer, which deletes several rows in a transaction.
        parts.append(
            f"box AS (INSERT INTO cache_outbox ({sql.OUTBOX_KEY}, {', '.join(sql.OUTBOX_COLUMNS)}) "
            "SELECT 'session', app, usr, ses, i, revision, nonce, micros, stamp FROM up "
            f"WHERE stamp IS NOT NULL ORDER BY app, usr, ses {sql.OUTBOX_RENEWED})"
        )
    answers = "number, sliding_ttl" + (", state" if state else "") + (", payload" if rewritten else "")
    return text(f"WITH {', '.join(parts)} SELECT {answers} FROM up")


# What became of those left out. LATERAL and LIMIT have the planner look each up by its key.
_SETTLE: Final = text(
    "SELECT b.number, x.*, e.* FROM unnest(CAST(:app AS text[]), CAST(:usr AS text[]), CAST(:ses AS text[]), "
    "CAST(:event AS text[])) WITH ORDINALITY AS b (app, usr, ses, event, number) CROSS JOIN LATERAL "
    "(SELECT incarnation, revision, nonce, update_time, EXISTS (SELECT 1 FROM events WHERE app_name = b.app "
    "AND user_id = b.usr AND session_id = b.ses AND seq IS NULL) FROM sessions x WHERE app_name = b.app "
    f"AND user_id = b.usr AND id = b.ses AND {sql.ALIVE} LIMIT 1) x LEFT JOIN LATERAL "
    "(SELECT id, seq, CAST(event_data AS text) FROM events WHERE app_name = b.app "
    "AND user_id = b.usr AND session_id = b.ses AND id = b.event LIMIT 1) e ON true"
)


async def append_group(fetch: Execute, group: Sequence[Grouped[Append]]) -> Sequence[AppendOutcome | None]:
    """Sends the statement, and settles what it left out; None: that may be tried again."""
    outcomes: list[AppendOutcome | None] = list(await _append(fetch, group))
    left = [place for place, outcome in enumerate(outcomes) if outcome is None]
    if left:
        settled = await _settle(fetch, [group[place].operation for place in left])
        for place, outcome in zip(left, settled, strict=True):
            outcomes[place] = outcome
    return outcomes


async def _settle(fetch: Execute, group: Sequence[Append]) -> list[AppendOutcome | None]:
    names = ("app", "usr", "ses", "event")
    rows = [(*write.key, write.events[0].id) for write in group]
    columns = zip(*rows, strict=True)
    params = {name: list(column) for name, column in zip(names, columns, strict=True)}
    try:
        found = await fetch(_SETTLE, params)
    except DRIVER_ERRORS:
        # The others of the batch are stored, whatever became of this.
        return [None for _ in group]
    outcomes: list[AppendOutcome | None] = [Missing() for _ in group]
    for number, *tag, foreign, event_id, seq, payload in found:
        write = group[number - 1]
        stored = {} if event_id is None else {event_id: (seq or 0, (payload or "null").encode())}
        outcomes[number - 1] = writes.settled(write, stored, steps.session_tag(tag, foreign))
    return outcomes


async def _append(fetch: Execute, group: Sequence[Grouped[Append]]) -> list[Committed | None]:
    state = any([write.session_delta is not None for write, _ in group])
    outbox = any([scopes for _, scopes in group])
    odd = [rewritten(write.events[0].payload) for write, _ in group]
    names = (*_COLUMNS, *(_STATE if state else ()), *(_OUTBOX if outbox else ()))
    rows = [_row(write, scopes, state=state, outbox=outbox) for write, scopes in group]
    params = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    found = await fetch(group_statement(state, any(odd), outbox), params)
    outcomes: list[Committed | None] = [None for _ in group]
    for row in found:
        number, sliding_ttl, *others = row
        place = number - 1
        stored = others.pop(0) if state else None
        outcomes[place] = _committed(
            group[place].operation,
            params["nonce"][place],
            others[0].encode() if odd[place] else None,
            None if stored is None else stored.encode(),
            sliding_ttl,
        )
    return outcomes


def _row(append: Append, scopes: Sequence[ScopeKey], *, state: bool, outbox: bool) -> list[Any]:
    """The values of `_COLUMNS`, and of those that are added to them."""
    (event,) = append.events
    tag = append.expected
    assert tag is not None
    values: list[Any] = [
        *append.key,
        tag.incarnation,
        tag.revision,
        tag.nonce,
        to_time(tag.update_time),
        fresh(),
        to_time(append.update_time),
        event.id,
        event.invocation_id,
        to_time(event.timestamp),
        event.payload.decode(),
    ]
    if state:
        delta = append.session_delta
        values += [None if delta is None else delta.decode(), append.replace_state]
    if outbox:
        values += [append.update_time, fresh() if scopes else None]
    return values


def _committed(
    write: Append, nonce: int, payload: bytes | None, state: bytes | None, expires_in: int | None
) -> Committed:
    assert write.expected is not None
    old = write.expected
    (event,) = write.events
    revision = old.revision + 1
    payload = event.payload if payload is None else payload
    record = EventRecord(revision, event.id, event.timestamp, payload)
    tag = Tag(old.incarnation, revision, nonce, write.update_time)
    return Committed(tag, (record,), state, None, None, expires_in=expires_in)
