"""The moment of an upgrade in place in which the new tables get the names of the old ones."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from ...errors import StoreError
from ..schema import events, events_by_time, sessions
from .adopt import transaction
from .v0_copy import Copier, Pair, Verified, verify
from .v0_tables import KEPT_EVENTS, KEPT_SESSIONS, new_events, new_sessions, old_events, old_state
from .writers import look

RENAMES: Final = (
    ("sessions", KEPT_SESSIONS),
    ("events", KEPT_EVENTS),
    (new_sessions.name, "sessions"),
    (new_events.name, "events"),
)


async def swap(
    connection: AsyncConnection, pairs: list[Pair], before: tuple[Any, ...] | None
) -> list[Verified]:
    """Makes the copies exact, verifies them, and exchanges the names.

    Args:
        connection: Of `open_session`.
        pairs: Sessions, then events.
        before: What `look` said before the copying; None where changes since do not matter.

    Raises:
        StoreError: The tables changed since then; nothing was exchanged.
    """
    if connection.dialect.name in ("mysql", "mariadb"):
        return await _on_mysql(connection, pairs, before)
    async with transaction(connection):
        if connection.dialect.name == "postgresql":
            await connection.execute(text("LOCK TABLE sessions, events IN ACCESS EXCLUSIVE MODE"))
        _refuse(before, await look(connection))
        copier = Copier(connection, connection, locked=True)
        await _make_exact(copier, pairs)
        verified = await verify(copier, pairs)
        for statement in await exchange_statements(connection):
            await connection.execute(text(statement))
    await analyse(connection)
    return verified


async def analyse(connection: AsyncConnection) -> None:
    """Counts anew what the planner knows of the tables.

    Without that PostgreSQL numbers a long session by reading the whole of it for each of its events.
    """
    if connection.dialect.name == "postgresql":
        async with transaction(connection):
            await connection.execute(text("ANALYZE sessions, events"))


async def _on_mysql(
    connection: AsyncConnection, pairs: list[Pair], before: tuple[Any, ...] | None
) -> list[Verified]:
    # No lock outlives a RENAME here, so a row may still be written between the copy and the exchange.
    copier = Copier(connection, connection)
    await _make_exact(copier, pairs)
    async with transaction(connection):
        last = await look(connection)
    _refuse(before, last)
    verified = await verify(copier, pairs)
    async with transaction(connection):
        for statement in await exchange_statements(connection):
            await connection.execute(text(statement))
    if before is None:
        # Nobody writes the old tables any more: what came in between is added.
        for pair in _renamed(pairs):
            await copier.copy(pair)
    return verified


def _refuse(before: tuple[Any, ...] | None, now: tuple[Any, ...]) -> None:
    if before is not None and now != before:
        raise StoreError(
            "The database changed while it was copied. Stop the writers, then run again: what was copied is "
            "kept. The tables in use are as they were."
        )


async def _make_exact(copier: Copier, pairs: list[Pair]) -> None:
    for pair in pairs:
        await copier.copy(pair)
    for pair in reversed(pairs):
        await copier.prune(pair)


async def exchange_statements(connection: AsyncConnection) -> list[str]:
    """Lists what gives the new tables the names, and on PostgreSQL the owners and rights, of the old ones."""
    if connection.dialect.name in ("mysql", "mariadb"):
        return [f"RENAME TABLE {', '.join(f'{old} TO {new}' for old, new in RENAMES)}"]
    made = [f"ALTER TABLE {old} RENAME TO {new}" for old, new in RENAMES]
    if connection.dialect.name == "sqlite":
        return [f"DROP INDEX IF EXISTS {events_by_time.name}", *made]
    # An index keeps its name, which is one for the whole schema.
    made.append(f"ALTER INDEX IF EXISTS {events_by_time.name} RENAME TO {KEPT_EVENTS}_by_time")
    # Looked up under the names they have now.
    for name in ("sessions", "events"):
        made += await _grants(connection, name)
    return made


def _renamed(pairs: list[Pair]) -> list[Pair]:
    of_sessions, of_events = pairs
    columns = [column.name for column in of_events.old.columns]
    return [
        Pair(old_state(sessions, KEPT_SESSIONS), sessions, of_sessions.convert),
        Pair(old_events(columns, KEPT_EVENTS), events, of_events.convert, sessions),
    ]


async def _grants(connection: AsyncConnection, name: str) -> list[str]:
    """Lists what gives the new table the owner and the rights of the old one."""
    quote = connection.dialect.identifier_preparer.quote
    owners = await connection.execute(
        text(
            "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass(:name) "
            "AND pg_get_userbyid(relowner) <> current_user"
        ),
        {"name": name},
    )
    rights = await connection.execute(
        text(
            "SELECT r.privilege_type, r.is_grantable, "
            "CASE r.grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(r.grantee) END AS grantee "
            "FROM pg_class, aclexplode(relacl) r WHERE oid = to_regclass(:name) AND r.grantee <> relowner"
        ),
        {"name": name},
    )
    return [f"ALTER TABLE {name} OWNER TO {quote(owner)}" for owner in owners.scalars()] + [
        f"GRANT {row.privilege_type} ON {name} TO {'PUBLIC' if row.grantee is None else quote(row.grantee)}"
        + (" WITH GRANT OPTION" if row.is_grantable else "")
        for row in rights
    ]
