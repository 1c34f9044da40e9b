"""Invalidations recorded in SQL: of one scope, for writes whose cache could not be told, or of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..records import OutboxRow, ScopeKey, Tag
from . import statements as sql
from .steps import Contended, Duplicate, Params, Step, Unit, tag_values
from .values import fresh


def record(outbox: Sequence[ScopeKey], tags: Mapping[str, Tag | None]) -> Unit[None]:
    """Records invalidations, each under a fresh stamp."""
    for scope in outbox:
        tag = tags.get(scope.kind)
        values: dict[str, Any] = dict.fromkeys(("v_incarnation", "v_revision", "v_nonce", "v_update_time"))
        if tag is not None:
            values = {**tag_values(tag), "v_update_time": tag.update_time}
        values["v_stamp"] = fresh()
        key = {"scope": scope.kind, "a": scope.app_name, "u": scope.user_id, "s": scope.session_id}
        if (yield Step(sql.UPDATE_OUTBOX, {**key, **values})).rowcount == 0:
            values |= {"v_kind": scope.kind, "v_app_name": scope.app_name}
            values |= {"v_user_id": scope.user_id, "v_session_id": scope.session_id}
            try:
                yield Step(sql.INSERT_OUTBOX, values)
            except Duplicate as error:
                raise Contended from error


def recorded(limit: int) -> Unit[list[OutboxRow]]:
    """Reads recorded invalidations."""
    rows = (yield Step(sql.OUTBOX, {"n": limit})).rows
    return [
        OutboxRow(ScopeKey(*row[:4]), None if row[7] is None else Tag(row[4], row[5], row[6], row[7]), row[8])
        for row in rows
    ]


def remove(rows: Sequence[OutboxRow]) -> Unit[None]:
    """Deletes recorded invalidations that nobody renewed since."""
    done: list[Params] = [
        {
            "scope": row.scope.kind,
            "a": row.scope.app_name,
            "u": row.scope.user_id,
            "s": row.scope.session_id,
            "seen": row.stamp,
        }
        for row in rows
    ]
    if done:
        yield Step(sql.DELETE_OUTBOX, done)


def rename(namespace: str) -> Unit[bool]:
    """Changes the cache namespace; false if the database has none."""
    return (yield Step(sql.SET_NAMESPACE, {"v_value": namespace})).rowcount > 0
