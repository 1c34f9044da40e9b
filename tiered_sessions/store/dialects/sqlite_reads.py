"""SQLite's statements for lists. A transaction of three of them is quicker than their union."""

from __future__ import annotations

from functools import cache
from typing import Final

from sqlalchemy import TextClause, text

from ...records import Listing
from ..clock import SQLITE_NOW
from ..steps import Params, Step, Unit, first, listing, scope_content
from ..values import to_tag

# Whatever the columns' collation, look-alikes are not what was asked for (R34).
_APP: Final = "app_name = :a COLLATE BINARY"
_USER: Final = f"{_APP} AND user_id = :u COLLATE BINARY"
_TAG: Final = "incarnation, revision, nonce, update_time, state"
_FOREIGN: Final = (
    "EXISTS (SELECT 1 FROM events e WHERE e.app_name = x.app_name AND e.user_id = x.user_id "
    "AND e.session_id = x.id AND e.seq IS NULL)"
)


def sessions(app_name: str, user_id: str | None) -> Unit[Listing]:
    """Reads sessions without events, and their shared scopes."""
    params: Params = {"a": app_name} if user_id is None else {"a": app_name, "u": user_id}
    row = first((yield Step(_APP_STATE, {"a": app_name})))
    app = None if row is None else scope_content(row)
    users = {
        user: scope_content(found)
        for user, *found in (yield Step(_user_states(user_id is not None), params)).rows
    }
    rows = [
        (user, session, to_tag(incarnation, revision, nonce, time), state)
        for user, session, incarnation, revision, nonce, time, state in (
            yield Step(_sessions(user_id is not None), params)
        ).rows
    ]
    return listing(app_name, rows, users, app)


@cache
def _sessions(of_user: bool) -> TextClause:
    # One with events that have no number is not adopted: it has no incarnation.
    return text(
        f"SELECT user_id, id, CASE WHEN NOT {_FOREIGN} THEN incarnation END, revision, nonce, update_time, "
        f"state FROM sessions x WHERE {_USER if of_user else _APP} "
        f"AND (expires_at IS NULL OR expires_at > {SQLITE_NOW}) ORDER BY update_time, user_id, id"
    )


@cache
def _user_states(of_user: bool) -> TextClause:
    return text(f"SELECT user_id, {_TAG} FROM user_states WHERE {_USER if of_user else _APP}")


_APP_STATE: Final = text(f"SELECT {_TAG} FROM app_states WHERE {_APP}")
