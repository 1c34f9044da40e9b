"""MariaDB and MySQL: a load is one statement; on MariaDB so is a write that merges no shared state."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, TypeVar

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ...config import TieredConfig
from ...records import (
    Append,
    AppendOutcome,
    Committed,
    Create,
    CreateOutcome,
    DeleteOutcome,
    Listing,
    Older,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Tag,
)
from .. import writes
from ..clock import MYSQL_NOW
from ..failures import DRIVER_ERRORS, is_duplicate, is_retryable
from ..lent import Lent, Texts, perform, watched
from ..steps import Flavour, Params, Reply, Row, Unit, first, key_params
from ..values import ascii_json, fresh, merged, to_micros, to_time
from . import mysql_life as life
from . import mysql_reads
from .explicit import ExplicitDialect
from .mysql_prepared import Prepared
from .mysql_reads import ALIVE, same_bytes
from .portable import Make

T = TypeVar("T")

_MOST_MET: Final = 10_000


class MysqlDialect(ExplicitDialect):
    """Performs units on MariaDB and MySQL."""

    begin = "START TRANSACTION"

    def __init__(self, engine: AsyncEngine, config: TieredConfig) -> None:
        super().__init__(engine, config)
        # In ASCII a document survives whatever character set its column and connection have.
        self.flavour = Flavour(text=ascii_json)
        self._texts = Texts(engine.dialect)
        # Apps and users whose shared rows have been there.
        self._met: set[tuple[str, str]] = set()
        # Connections commit by themselves, so there is nothing to roll back (`engines.py`).
        dialect: Any = engine.dialect
        self.quiet = dialect.skip_autocommit_rollback and dialect._on_connect_isolation_level == "AUTOCOMMIT"

    def alive(self, driver: Any) -> bool:
        reader = getattr(driver, "_reader", None)
        if reader is None:
            return True
        # As aiomysql's own pool looks. An idle connection has nothing to read; if it has, that is
        # the server's farewell.
        return not (reader.at_eof() or reader.exception() or reader._buffer)

    @property
    def lends(self) -> bool:
        return not watched(self.engine)

    @property
    def _compound(self) -> bool:
        """Whether the server takes statements of several, and prepares them; known since it was met.

        That is MariaDB, since 10.6.
        """
        dialect: Any = self.engine.dialect
        return bool(getattr(dialect, "is_mariadb", False)) and dialect.server_version_info >= (10, 6)

    async def _run(self, lent: Lent, statement: str, values: list[Any]) -> Reply:
        """Executes a statement the driver's way."""
        if not self._compound:
            return await lent.run(_execute(lent.driver, statement, values))
        known: Prepared = lent.info.setdefault(Prepared, Prepared())
        return await lent.run(known.run(_execute, lent.driver, statement, values))

    async def _execute(self, lent: Lent, statement: TextClause, params: Params) -> Reply:
        """Executes a statement that commits by itself: the driver's way, if nobody listens."""
        if self.lends:
            return await self._run(lent, *self._texts.of(statement, params))
        result = await (await lent.whole()).execute(statement, params)
        return Reply(result.all() if result.returns_rows else (), result.rowcount)

    async def append(self, lent: Lent, write: Append, outbox: Sequence[ScopeKey]) -> AppendOutcome:
        if self._compound and _plain(write):
            try:
                committed = await self._append(lent, write, outbox)
            except DRIVER_ERRORS as error:
                if not (is_duplicate(error) or is_retryable(error)):
                    raise
            else:
                if committed is not None:
                    return committed
        # Merges what SQL cannot (JSON_MERGE_PATCH drops nulls), and settles what found no row.
        return await super().append(lent, write, outbox)

    async def _append(self, lent: Lent, write: Append, outbox: Sequence[ScopeKey]) -> Committed | None:
        tag, k = write.expected, max(len(write.events), 1)
        assert tag is not None
        nonce = fresh()
        seen: dict[str, Any] = {
            **key_params(write.key),
            "i": tag.incarnation,
            "r": tag.revision,
            "n": tag.nonce,
            "t": to_time(tag.update_time),
        }
        state = write.session_delta
        if state is not None and not write.replace_state:
            # What writes it compares the tag again, and equal tags mean equal content.
            row = first(await self._execute(lent, _STATE, seen))
            if row is None:
                return None
            state = merged(row[0], state)
        params = seen | {
            "revision": tag.revision + k,
            "nonce": nonce,
            "time": to_time(write.update_time),
        }
        for number, event in enumerate(write.events, 1):
            params |= {
                f"id{number}": event.id,
                f"invocation{number}": event.invocation_id,
                f"time{number}": to_time(event.timestamp),
                f"payload{number}": ascii_json(event.payload),
                f"seq{number}": tag.revision + number,
            }
        if state is not None:
            params["state"] = ascii_json(state)
        if outbox:
            params |= {"micros": write.update_time, "stamp": fresh()}
        statement = _append_statement(len(write.events), state is not None, bool(outbox))
        row = first(await self._execute(lent, statement, params))
        time, expires_in = write.update_time, None
        if row is not None:
            if row[0] is None:
                return None
            time, expires_in = to_micros(row[0]), row[1]
        new = Tag(tag.incarnation, tag.revision + k, nonce, time)
        records = writes.records(write, tag.revision)
        return Committed(new, records, state, None, None, expires_in=expires_in)

    async def create(self, lent: Lent, write: Create, outbox: Sequence[ScopeKey]) -> CreateOutcome:
        plain = not (write.user_delta or write.app_delta or write.replace_expired or outbox)
        outcome: CreateOutcome | None = None
        if self._compound and plain:
            try:
                outcome = await self._create(lent, write)
            except DRIVER_ERRORS as error:
                if not (is_duplicate(error) or is_retryable(error)):
                    raise
        if outcome is None:
            # Merges, adopts, makes way, and says what is in the way.
            outcome = await super().create(lent, write, outbox)
        if isinstance(outcome, Snapshot):
            if len(self._met) >= _MOST_MET:
                self._met.clear()
            self._met.add(write.key[:2])
        return outcome

    async def _create(self, lent: Lent, write: Create) -> Snapshot | None:
        tag = Tag(fresh(), 0, fresh(), write.update_time)
        params = {**key_params(write.key), **life.create_params(write, tag)}
        if write.key[:2] in self._met:
            row = first(await self._execute(lent, life.CREATE_BESIDE, params))
            if row is not None:
                return life.created_beside(write, tag, row)
        rows = (await self._execute(lent, life.CREATE, params)).rows
        return life.created(write, tag, rows) if rows[0][0] is not None else None

    async def delete(
        self, lent: Lent, key: SessionKey, outbox: Sequence[ScopeKey], only_expired: bool
    ) -> DeleteOutcome:
        if self._compound and not outbox:
            try:
                alone = bool(lent.driver.get_autocommit())
                statement = life.delete_statement(only_expired, alone)
                reply = await self._execute(lent, statement, key_params(key))
            except DRIVER_ERRORS as error:
                if not is_retryable(error):
                    raise
            else:
                return bool(reply.rowcount if alone else reply.rows[0][0])
        return await super().delete(lent, key, outbox, only_expired)

    # --- reads ----------------------------------------------------------------------------

    async def read(self, lent: Lent, make: Make[T]) -> T:
        if not self.lends:
            return await super().read(lent, make)

        async def fetch(statement: str, values: list[Any]) -> Sequence[Row]:
            return (await self._run(lent, statement, values)).rows

        timer = self.cut_later(lent.driver, patience=10)
        try:
            return await perform(make(), self._texts, fetch)
        finally:
            timer.cancel()

    def load(self, key: SessionKey, query: Query) -> Unit[Snapshot | None]:
        return mysql_reads.load(key, query)

    def older(self, key: SessionKey, before_seq: int, query: Query) -> Unit[Older | None]:
        return mysql_reads.older(key, before_seq, query)

    def sessions(self, app_name: str, user_id: str | None) -> Unit[Listing]:
        return mysql_reads.sessions(app_name, user_id)


async def _execute(driver: Any, statement: str, values: list[Any] | None) -> Reply:
    async with driver.cursor() as cursor:
        await cursor.execute(statement, values)
        return Reply(await cursor.fetchall(), cursor.rowcount)


def _plain(write: Append) -> bool:
    return (
        write.expected is not None
        and write.expected.adopted
        and write.user_delta is None
        and write.app_delta is None
    )


_SAME: Final = " AND ".join(
    same_bytes(column, name) for column, name in (("app_name", ":a"), ("user_id", ":u"), ("id", ":s"))
)
_SEEN: Final = (
    f"WHERE app_name = :a AND user_id = :u AND id = :s AND {_SAME} "
    f"AND incarnation = :i AND revision = :r AND nonce = :n AND update_time = :t AND {ALIVE}"
)
_STATE: Final = text(f"SELECT state FROM sessions {_SEEN}")


@cache
def _append_statement(events: int, state: bool, outbox: bool) -> TextClause:
    """One compound statement that begins, compares, writes and commits.

    It answers nothing where all was stored as it was sent; else the time that was stored and the life
    of a sliding session, or that it wrote nothing.
    """
    writes = []
    if events:
        rows = ", ".join(
            f"(:id{n}, :a, :u, :s, :invocation{n}, :time{n}, :payload{n}, :seq{n})"
            for n in range(1, events + 1)
        )
        writes.append(
            "INSERT INTO events (id, app_name, user_id, session_id, invocation_id, timestamp, event_data, "
            f"seq) VALUES {rows};"
        )
    if outbox:
        writes.append(
            "INSERT INTO cache_outbox (kind, app_name, user_id, session_id, incarnation, revision, nonce, "
            "update_time, stamp) VALUES ('session', :a, :u, :s, :i, :revision, :nonce, :micros, :stamp) "
            "ON DUPLICATE KEY UPDATE incarnation = VALUES(incarnation), revision = VALUES(revision), "
            "nonce = VALUES(nonce), update_time = VALUES(update_time), stamp = VALUES(stamp);"
        )
    # Those of old releases store whole seconds.
    answer = (
        "FROM sessions WHERE app_name = :a AND user_id = :u AND id = :s AND nonce = :nonce "
        "AND (update_time <> :time OR sliding_ttl IS NOT NULL)"
    )
    return text(
        "BEGIN NOT ATOMIC DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; RESIGNAL; END; "
        "START TRANSACTION; UPDATE sessions SET revision = :revision, nonce = :nonce, update_time = :time, "
        f"{'state = :state, ' if state else ''}"
        f"expires_at = IFNULL({MYSQL_NOW} + INTERVAL sliding_ttl * 1000 MICROSECOND, expires_at) {_SEEN}; "
        f"IF ROW_COUNT() = 1 THEN {' '.join(writes)} COMMIT; "
        f"IF EXISTS (SELECT 1 {answer}) THEN SELECT update_time, sliding_ttl {answer}; END IF; "
        "ELSE ROLLBACK; SELECT CAST(NULL AS DATETIME), CAST(NULL AS SIGNED); END IF; END"
    )
