"""MariaDB: a session's beginning, and its end, by one compound statement each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import TextClause, text

from ...records import Content, Create, Snapshot, Tag
from ..clock import MYSQL_NOW
from ..steps import Row
from ..values import ascii_json, to_time
from .mysql_reads import numbers_of, same_bytes, tag_of

_BEGIN: Final = "DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; RESIGNAL; END; START TRANSACTION;"
_APP: Final = "app_name = :a"
_USER: Final = "app_name = :a AND user_id = :u"
_SAME_APP: Final = same_bytes("app_name", ":a")
_SAME_USER: Final = f"{_SAME_APP} AND {same_bytes('user_id', ':u')}"
_CONTENT: Final = f"{numbers_of('FALSE')}, state"
_INTO_SESSIONS: Final = (
    "INSERT INTO sessions (app_name, user_id, id, state, create_time, update_time, incarnation, revision, "
    "nonce, expires_at, sliding_ttl)"
)
_NEW: Final = (
    f":a, :u, :s, :state, :time, :time, :i, 0, :n, {MYSQL_NOW} + INTERVAL :ttl * 1000 MICROSECOND, :sliding"
)


def create_params(write: Create, tag: Tag) -> dict[str, Any]:
    """The parameters of `CREATE` and `CREATE_BESIDE` beside the key."""
    return {
        "state": ascii_json(write.state),
        "time": to_time(write.update_time),
        "i": tag.incarnation,
        "n": tag.nonce,
        "ttl": write.ttl,
        "sliding": write.ttl if write.sliding else None,
    }


def created_beside(write: Create, tag: Tag, row: Row) -> Snapshot:
    """Makes the outcome of what `CREATE_BESIDE` answered."""
    app, user = map(_content, row)
    return Snapshot(write.key, Content(tag, write.state), user, app, write.ttl)


def _content(text: str) -> Content:
    *numbers, state = text.split(" ", 4)
    return Content(tag_of(" ".join(numbers)), state.encode())


def created(write: Create, tag: Tag, rows: Sequence[Row]) -> Snapshot:
    """Makes the outcome of what `CREATE` answered."""
    # As they are after the commit: a shared scope may have gone on, or be gone.
    shared = {
        kind: Content(tag_of(numbers), state.encode()) for kind, numbers, state in rows if numbers is not None
    }
    return Snapshot(write.key, Content(tag, write.state), shared.get("u"), shared.get("a"), write.ttl)


# Answers nothing and writes nothing unless both shared scopes' rows are there, are not a look-alike's
# and have a tag. Commits by itself.
CREATE_BESIDE: Final = text(
    f"{_INTO_SESSIONS} SELECT {_NEW} FROM app_states x JOIN user_states y ON y.app_name = x.app_name "
    "WHERE x.app_name = :a AND y.user_id = :u AND x.revision IS NOT NULL AND y.revision IS NOT NULL "
    f"AND {same_bytes('x.app_name', ':a')} AND {same_bytes('y.app_name', ':a')} "
    f"AND {same_bytes('y.user_id', ':u')} "
    f"RETURNING (SELECT CONCAT_WS(' ', {_CONTENT}) FROM app_states WHERE {_APP}), "
    f"(SELECT CONCAT_WS(' ', {_CONTENT}) FROM user_states WHERE {_USER})"
)
# The random numbers are the session's: a tag is compared with those of its own row only.
# Answers (NULL, ..) and writes nothing if a shared scope's row is a look-alike's or has no tag. Rows
# that are missing are made; a duplicate, which ends it with an error, is told apart by the long way.
CREATE: Final = text(
    f"BEGIN NOT ATOMIC {_BEGIN} "
    f"IF EXISTS (SELECT 1 FROM app_states WHERE {_APP} AND (revision IS NULL OR NOT {_SAME_APP})) "
    f"OR EXISTS (SELECT 1 FROM user_states WHERE {_USER} AND (revision IS NULL OR NOT ({_SAME_USER}))) "
    "THEN ROLLBACK; SELECT NULL; ELSE "
    f"{_INTO_SESSIONS} VALUES ({_NEW}); "
    f"IF NOT EXISTS (SELECT 1 FROM app_states WHERE {_APP}) THEN "
    "INSERT INTO app_states (app_name, state, update_time, incarnation, revision, nonce) "
    "VALUES (:a, '{}', :time, :i, 0, :n); END IF; "
    f"IF NOT EXISTS (SELECT 1 FROM user_states WHERE {_USER}) THEN "
    "INSERT INTO user_states (app_name, user_id, state, update_time, incarnation, revision, nonce) "
    "VALUES (:a, :u, '{}', :time, :i, 0, :n); END IF; COMMIT; "
    f"SELECT 'a', {_CONTENT} FROM app_states WHERE {_APP} AND {_SAME_APP} "
    f"UNION ALL SELECT 'u', {_CONTENT} FROM user_states WHERE {_USER} AND {_SAME_USER} "
    "UNION ALL SELECT '', NULL, NULL; END IF; END"
)


@cache
def delete_statement(only_expired: bool, alone: bool) -> TextClause:
    """Generates the statement; `alone`: the connection commits it by itself.

    It deletes some rows or none; otherwise it answers how many. The join locks the session first, and
    then sees the events of an append that it waited for. Where the tables cascade, they are gone by
    the time it comes to them.
    """
    key = "s.app_name = :a AND s.user_id = :u AND s.id = :s"
    same = " AND ".join(same_bytes(*pair.split(" = ")) for pair in key.split(" AND "))
    expired = f" AND s.expires_at <= {MYSQL_NOW}" if only_expired else ""
    statement = (
        "DELETE s, e FROM sessions s LEFT JOIN events e ON e.app_name = s.app_name "
        f"AND e.user_id = s.user_id AND e.session_id = s.id WHERE {key} AND {same}{expired}"
    )
    if alone:
        return text(statement)
    return text(
        f"BEGIN NOT ATOMIC DECLARE deleted INT DEFAULT 0; {_BEGIN} {statement}; "
        "SET deleted = ROW_COUNT(); COMMIT; SELECT deleted; END"
    )
