"""The unit that walks over all sessions, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.sql.base import Executable

from ..records import SessionKey
from . import statements as sql
from .steps import Params, Step, Unit


def keys(
    after: SessionKey | None, limit: int, app_name: str | None, user_id: str | None
) -> Unit[list[SessionKey]]:
    """Reads a page of keys along the primary key: the rest of the user, of the app, then other apps."""
    found: list[SessionKey] = []
    for statement, params in _stretches(after, app_name, user_id):
        if len(found) < limit:
            rows = (yield Step(statement, {**params, "n": limit - len(found)})).rows
            found += [SessionKey(*row) for row in rows]
    return found


def _stretches(
    after: SessionKey | None, app_name: str | None, user_id: str | None
) -> Sequence[tuple[Executable, Params]]:
    if after is None:
        given: dict[str, str] = {} if app_name is None else {"a": app_name}
        given |= {} if user_id is None else {"u": user_id}
        return ((sql.session_keys("a" in given, "u" in given, False), given),)
    app, user, session = after
    of_user = (sql.session_keys(True, True, True), {"a": app, "u": user, "after": session})
    of_app = (sql.session_keys(True, False, True), {"a": app, "after": user})
    of_all = (sql.session_keys(False, False, True), {"after": app})
    return (of_user, of_app, of_all)[: 1 if user_id is not None else 2 if app_name is not None else 3]
