"""Makes new tables hold what old ones hold, in batches, whatever they hold already."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Select, Table, delete, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ... import codec
from ...errors import StoreError
from .adopt import beyond, transaction

BATCH: Final = 200

Key = tuple[str, ...]
Rows = Sequence[Mapping[str, Any]]

_SESSION: Final = ("app_name", "user_id", "id")


@dataclass(frozen=True)
class Pair:
    """An old table and the new one.

    Attributes:
        old: The source.
        new: The target.
        convert: Turns a row of the one into a row of the other.
        sessions: For events, which never change: the new table that their session must be in.
    """

    old: Table
    new: Table
    convert: Callable[[Mapping[str, Any]], dict[str, Any]]
    sessions: Table | None = None

    @property
    def key(self) -> Sequence[str]:
        """The names of the primary key's columns."""
        return [column.name for column in self.new.primary_key.columns]


class Verified(NamedTuple):
    """How many rows a table had, and how many were copied; `orphans` had no session and were not."""

    table: str
    old: int
    new: int
    orphans: int = 0


class Copier:
    """Copies between two connections, or between tables of one.

    Args:
        read: Where the old tables are.
        write: Where the new ones are; the same one, or another.
        locked: A transaction that holds the tables is open already, so no batch begins its own.
    """

    def __init__(self, read: AsyncConnection, write: AsyncConnection, *, locked: bool = False) -> None:
        self._read = read
        self._write = write
        self._locked = locked

    async def copy(self, pair: Pair, progress: Callable[[int], None] | None = None) -> int:
        """Adds the rows that are missing and corrects those that differ; returns how many."""
        changed = 0

        async def bring(rows: Rows) -> None:
            nonlocal changed
            changed += await (self._add(pair, rows) if pair.sessions is not None else self._set(pair, rows))
            if progress is not None:
                progress(len(rows))

        columns = pair.key if pair.sessions is not None else [column.name for column in pair.old.columns]
        await self._in_batches(self._read, pair.old, pair.key, columns, bring)
        return changed

    async def prune(self, pair: Pair) -> int:
        """Removes the new rows whose original is gone; returns how many."""
        removed = 0

        async def remove(rows: Rows) -> None:
            nonlocal removed
            keys = _keys(rows, pair.key)
            have = await _find(self._read, pair.old, pair.key, pair.key, keys)
            for key in keys:
                if key not in have:
                    await self._write.execute(delete(pair.new).where(*_is(pair, key)))
                    removed += 1

        await self._in_batches(self._write, pair.new, pair.key, pair.key, remove)
        return removed

    async def count_old(self, pair: Pair) -> int:
        """Counts the rows of the old table."""
        async with self._batch():
            return await _count(self._read, select(func.count()).select_from(pair.old))

    async def count_new(self, pair: Pair) -> int:
        """Counts the rows of the new table."""
        async with self._batch():
            return await _count(self._write, select(func.count()).select_from(pair.new))

    async def count_orphans(self, events: Pair, sessions: Pair) -> int:
        """Counts the old events without a session, which SQLite keeps where nothing cascades."""
        old, parent = events.old.c, sessions.old.c
        session = exists(
            select(parent.id).where(
                parent.app_name == old.app_name, parent.user_id == old.user_id, parent.id == old.session_id
            )
        )
        async with self._batch():
            return await _count(self._read, select(func.count()).select_from(events.old).where(~session))

    async def _add(self, pair: Pair, rows: Rows) -> int:
        assert pair.sessions is not None
        sessions = [(row["app_name"], row["user_id"], row["session_id"]) for row in rows]
        known = await _find(self._write, pair.sessions, _SESSION, _SESSION, sessions)
        keys = [key for key, session in zip(_keys(rows, pair.key), sessions, strict=True) if session in known]
        have = await _find(self._write, pair.new, pair.key, pair.key, keys)
        missing = [key for key in keys if key not in have]
        names = [column.name for column in pair.old.columns]
        found = await _find(self._read, pair.old, pair.key, names, missing)
        if found:
            await self._write.execute(insert(pair.new), [pair.convert(row) for row in found.values()])
        return len(found)

    async def _set(self, pair: Pair, rows: Rows) -> int:
        names = [column.name for column in pair.old.columns]
        wanted = dict(zip(_keys(rows, pair.key), map(pair.convert, rows), strict=True))
        have = await _find(self._write, pair.new, pair.key, names, list(wanted))
        missing = [row for key, row in wanted.items() if key not in have]
        if missing:
            await self._write.execute(insert(pair.new), missing)
        changed = [key for key, row in have.items() if not _same(row, wanted[key])]
        for key in changed:
            await self._write.execute(update(pair.new).where(*_is(pair, key)).values(**wanted[key]))
        return len(missing) + len(changed)

    async def _in_batches(
        self,
        connection: AsyncConnection,
        table: Table,
        key: Sequence[str],
        names: Sequence[str],
        act: Callable[[Rows], Awaitable[None]],
    ) -> None:
        columns = [table.c[name] for name in key]
        query = select(*(table.c[name] for name in names)).order_by(*columns).limit(BATCH)
        after: Key = ()
        while True:
            page = query.where(beyond(connection.dialect.name, columns, after)) if after else query
            async with self._batch():
                rows = _named(names, await connection.execute(page))
                await act(rows)
            if len(rows) < BATCH:
                return
            after = _keys(rows[-1:], key)[0]

    @asynccontextmanager
    async def _batch(self) -> AsyncIterator[None]:
        if self._locked:
            yield
        else:
            async with transaction(self._write):
                yield


async def verify(copier: Copier, pairs: Sequence[Pair]) -> list[Verified]:
    """Counts both sides.

    Args:
        copier: What copied them.
        pairs: Sessions and events are the last two.

    Raises:
        StoreError: They differ.
    """
    found = []
    for pair in pairs:
        orphans = await copier.count_orphans(pair, pairs[-2]) if pair.sessions is not None else 0
        row = Verified(pair.old.name, await copier.count_old(pair), await copier.count_new(pair), orphans)
        if row.new != row.old - row.orphans:
            raise StoreError(f"Of {row.old} rows of {row.table}, {row.new} arrived. Run again.")
        found.append(row)
    return found


async def _count(connection: AsyncConnection, query: Select[Any]) -> int:
    return int((await connection.execute(query)).scalar_one())


async def _find(
    connection: AsyncConnection, table: Table, key: Sequence[str], names: Sequence[str], wanted: Sequence[Key]
) -> dict[Key, Mapping[str, Any]]:
    """Finds rows by one column of their keys, as every database can, and compares the whole key here."""
    if not wanted:
        return {}
    place = list(key).index("id") if "id" in key else len(key) - 1
    values = {one[place] for one in wanted}
    query = select(*(table.c[name] for name in names)).where(table.c[key[place]].in_(values))
    rows = _named(names, await connection.execute(query))
    keys = set(wanted)
    return {one: row for one, row in zip(_keys(rows, key), rows, strict=True) if one in keys}


def _named(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> Rows:
    return [dict(zip(names, row, strict=True)) for row in rows]


def _keys(rows: Rows, key: Sequence[str]) -> list[Key]:
    return [tuple(row[name] for name in key) for row in rows]


def _is(pair: Pair, key: Key) -> list[ColumnElement[bool]]:
    return [pair.new.c[name] == value for name, value in zip(pair.key, key, strict=True)]


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(
        codec.same_json(a[name].encode(), value.encode()) if name == "state" else a[name] == value
        for name, value in b.items()
    )
