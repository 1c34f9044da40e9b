"""The store: one SQL database behind the contract of `base.py`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from ..config import TieredConfig
from ..errors import InvalidValueError, SchemaMismatchError, StoreError, StoreUnavailableError
from ..records import (
    Append,
    AppendOutcome,
    Conflict,
    Create,
    CreateOutcome,
    DeleteOutcome,
    Failed,
    Kind,
    Listing,
    Older,
    OutboxRow,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Tags,
    Unknown,
)
from . import listing, outbox, reads
from .base import StoreWriter
from .dialects.mysql import MysqlDialect
from .dialects.portable import InCommit, Make, PortableDialect
from .dialects.postgresql import PostgresqlDialect
from .dialects.sqlite import SqliteDialect
from .engines import in_memory, refuse_missing_file, transactional
from .failures import DRIVER_ERRORS, is_bare, is_disconnect, mapped
from .groups import Grouped, Groups
from .lent import Lent, at_hand, checkout
from .migrations.runner import prepare_schema
from .turns import Turns
from .values import check_append, check_create, distinct, readable

T = TypeVar("T")

_OPENING = 15.0
"""How long it may take to open a connection, in seconds. Most drivers give up earlier."""
_ERRORS = (*DRIVER_ERRORS, StoreError, InCommit)
"""What a write's outcome tells of."""
_NAMELESS = "The database has no cache namespace; run: tiered-sessions migrate"


class SqlSessionStore:
    """Sessions in one SQL database, through SQLAlchemy's asyncio engines.

    Args:
        engine: Its pool bounds the connections in total.
        owns_engine: Whether `close()` disposes it.
        config: Time-outs.
        create_tables: Whether `prepare()` may make or extend tables.
    """

    def __init__(
        self, engine: AsyncEngine, *, owns_engine: bool, config: TieredConfig, create_tables: bool = True
    ) -> None:
        self._engine = engine
        self._owned = owns_engine
        self._create_tables = create_tables
        self._given_up: set[asyncio.Task[None]] = set()
        self._dialect = _dialect(engine, config, owns_engine)
        self._close_timeout = config.close_timeout
        self._turns = Turns(engine)
        pool = engine.sync_engine.pool
        self._longest = _OPENING + (pool.timeout() if isinstance(pool, AsyncAdaptedQueuePool) else 0)
        self._groups: dict[Kind, Groups] = {}
        if self._dialect.group_connections:
            # A create that is shareable has masked nothing that could end before it does.
            age = config.mask_age
            ages: dict[Kind, float] = {"append": age, "create": math.inf, "delete": age}
            self._groups = {kind: self._make_groups(kind, age) for kind, age in ages.items()}
        # Whoever else holds an injected engine reaches the data too.
        self.exclusive = owns_engine and engine.dialect.name == "sqlite" and in_memory(engine)

    def _make_groups(self, kind: Kind, mask_age: float) -> Groups:
        return Groups(self._checkout, kind, self._fits, self._dialect.group_connections, mask_age)

    @property
    def engine(self) -> AsyncEngine:
        """The engine in its usual mode: `begin()` and `commit()` work on it."""
        return transactional(self._engine) if self._owned else self._engine

    async def prepare(self) -> None:
        """Makes or adopts the tables."""
        if not self._create_tables:
            refuse_missing_file(self._engine)
        try:
            await prepare_schema(self.engine, create_tables=self._create_tables)
        except Exception as error:
            if isinstance(error, DRIVER_ERRORS) or is_bare(error):
                raise mapped(error) from error
            raise

    async def close(self) -> None:
        """Disposes the engine if this object owns it."""
        for groups in self._groups.values():
            if groups.tasks:
                await asyncio.wait(groups.tasks)
        if self._given_up:
            # Nobody waits for these connections, and one that never opens must not keep this waiting.
            _, stuck = await asyncio.wait(self._given_up, timeout=self._close_timeout)
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)
        if self._owned:
            await self._engine.dispose()

    # --- reads ----------------------------------------------------------------------------

    async def namespace(self) -> str:
        """Reads the cache namespace of this database."""
        found = await self._perform(reads.namespace)
        if found is None:
            raise SchemaMismatchError(_NAMELESS)
        return found

    async def reset_namespace(self) -> str:
        """Changes the cache namespace, which orphans every entry."""
        fresh = secrets.token_hex(8)
        # Writing the same twice is harmless, so this may be repeated like a read.
        if not await self._read(lambda lent: self._dialect.perform(lent, lambda: outbox.rename(fresh))):
            raise SchemaMismatchError(_NAMELESS)
        return fresh

    async def load(self, key: SessionKey, query: Query) -> Snapshot | None:
        """Reads session and shared scopes at one moment."""
        if not readable(*key):
            return None
        return await self._perform(lambda: self._dialect.load(key, query))

    async def older(self, key: SessionKey, before_seq: int, query: Query) -> Older | None:
        """Reads the events older than `before_seq`, and the tag with them."""
        if not readable(*key):
            return None
        return await self._perform(lambda: self._dialect.older(key, before_seq, query))

    async def tags(self, key: SessionKey) -> Tags:
        """Reads the tags of the three scopes by one statement."""
        if not readable(*key):
            return Tags(None, None, None)
        return await self._perform(lambda: self._dialect.tags(key))

    async def sessions(self, app_name: str, user_id: str | None) -> Listing:
        """Reads sessions without events, the least recently updated first."""
        if not readable(app_name, user_id or ""):
            return Listing(app_name, (), (), (), (), {}, None)
        return await self._perform(lambda: self._dialect.sessions(app_name, user_id))

    async def keys(
        self, after: SessionKey | None, limit: int, app_name: str | None = None, user_id: str | None = None
    ) -> Sequence[SessionKey]:
        """Reads a page of keys, in the order of the primary key."""
        if not readable(app_name or "", user_id or ""):
            return ()
        return await self._perform(lambda: listing.keys(after, limit, app_name, user_id))

    async def count(self, app_name: str, user_id: str | None) -> int:
        """Counts the sessions of an app, or of one user."""
        if not readable(app_name, user_id or ""):
            return 0
        return await self._perform(lambda: reads.count(app_name, user_id))

    async def expired(self, limit: int) -> Sequence[SessionKey]:
        """Reads which sessions have expired, the longest expired first."""
        return await self._perform(lambda: reads.expired(limit))

    async def user_state(self, app_name: str, user_id: str) -> bytes:
        """Reads one user's state."""
        if not readable(app_name, user_id):
            return b"{}"
        return await self._perform(lambda: reads.user_state(app_name, user_id))

    async def outbox(self, limit: int) -> Sequence[OutboxRow]:
        """Reads recorded invalidations, without locks."""
        return await self._perform(lambda: outbox.recorded(limit))

    async def outbox_done(self, rows: Sequence[OutboxRow]) -> None:
        """Deletes recorded invalidations whose stamp is still the one seen."""
        # Deleting twice is harmless, so this may be repeated like a read.
        await self._read(lambda lent: self._dialect.perform(lent, lambda: outbox.remove(rows)))

    async def _perform(self, make: Make[T]) -> T:
        return await self._read(lambda lent: self._dialect.read(lent, make))

    async def _read(self, work: Callable[[Lent], Awaitable[T]]) -> T:
        """Runs a read; once more if a pooled connection is dead."""
        for last in (False, True):
            connection = await self._checkout()
            try:
                return await work(connection.lent)
            except InCommit as error:
                raise mapped(error.__cause__ or error) from error
            except DRIVER_ERRORS as error:
                if last or not is_disconnect(error):
                    raise mapped(error) from error
            finally:
                await connection.release()
        raise AssertionError("unreachable")

    # --- writes ---------------------------------------------------------------------------

    def writer(self, *, grouped: Kind | None = None) -> Coroutine[Any, Any, StoreWriter]:
        """Checks out a connection; if `grouped`, or takes part in one with others."""
        groups = self._groups.get(grouped) if grouped else None
        return groups.writer() if groups else self._checkout()

    async def _checkout(self) -> SqlWriter:
        """Takes a connection from the pool, when it is this caller's turn, and not for ever."""
        ended = await self._turns.take()
        if at_hand(self._engine) is not None:
            return await self._take(ended)
        # Pool and driver lose a connection that is cancelled on its way out.
        taking = asyncio.create_task(self._take(ended))
        try:
            done, _ = await asyncio.wait((taking,), timeout=self._longest)
            if done:
                return taking.result()
        except asyncio.CancelledError:
            self._give_up(taking)
            raise
        self._give_up(taking)
        raise StoreUnavailableError("The database accepts connections and does not answer on them")

    def _give_up(self, taking: asyncio.Task[SqlWriter]) -> None:
        """Has a connection returned that nobody waits for any more, once it is there."""
        giving_back = asyncio.create_task(_give_back(taking))
        self._given_up.add(giving_back)
        giving_back.add_done_callback(self._given_up.discard)

    def _fits(self, operation: Append | Create | SessionKey) -> bool:
        if isinstance(operation, SessionKey):
            return readable(*operation)
        try:
            if isinstance(operation, Append):
                check_append(operation)
            else:
                check_create(operation)
            self._dialect.check(operation)
        except InvalidValueError:
            return False
        return operation.shareable

    async def _take(self, ended: Callable[[], None]) -> SqlWriter:
        """Takes a connection from the pool, in a turn that `ended` ends."""
        engine = self._dialect.engine
        try:
            while True:
                lent = Lent(engine, await checkout(self._engine), quiet=self._dialect.quiet)
                # Nothing is sent yet, so a connection that died in the pool can be exchanged.
                if self._dialect.alive(lent.driver):
                    return SqlWriter(lent, self._dialect, ended)
                await lent.discard()
        except BaseException as error:
            ended()
            if isinstance(error, DRIVER_ERRORS) or is_bare(error):
                raise mapped(error) from error
            raise


async def _give_back(taking: asyncio.Task[SqlWriter]) -> None:
    with contextlib.suppress(StoreError):
        await (await taking).release()


class SqlWriter:
    """A checked-out connection, for one unit of work."""

    def __init__(self, lent: Lent, dialect: PortableDialect, ended: Callable[[], None]) -> None:
        self.on_release: Callable[[], None] | None = None
        self.lent = lent
        self._ended = ended
        self._released = False
        self._dialect = dialect

    async def append(self, append: Append, outbox: Sequence[ScopeKey] = ()) -> AppendOutcome:
        """Stores `append` if the session's tag is `append.expected`."""
        dialect = self._dialect
        try:
            check_append(append)
            dialect.check(append)
        except InvalidValueError as error:
            return Failed(error)
        if len(append.events) > 1:
            events = distinct(append.events)
            if isinstance(events, str):
                return Conflict(events)
            if len(events) != len(append.events):
                append = replace(append, events=events)
        timer = dialect.cut_later(self.lent.driver)
        try:
            return await dialect.append(self.lent, append, outbox)
        except _ERRORS as error:
            return dialect.failed(error)
        finally:
            timer.cancel()

    async def group(self, kind: Kind, writes: Sequence[Grouped[Any]]) -> Sequence[Any]:
        """Performs writes to different sessions at once; None: nothing was written, try it alone."""
        dialect = self._dialect
        perform: Any = {
            "append": dialect.append_group,
            "create": dialect.create_group,
            "delete": dialect.delete_group,
        }[kind]
        timer = dialect.cut_later(self.lent.driver)
        try:
            return await perform(self.lent, writes)  # type: ignore[no-any-return]
        except _ERRORS as error:
            # An error of its own for each: whoever raises it writes into it.
            outcomes = [dialect.failed(error) for _ in writes]
        finally:
            timer.cancel()
        return [outcome if isinstance(outcome, Unknown) else None for outcome in outcomes]

    async def create(self, create: Create, outbox: Sequence[ScopeKey] = ()) -> CreateOutcome:
        """Inserts a session, and the rows of its shared scopes where they are missing."""
        dialect = self._dialect
        try:
            check_create(create)
            dialect.check(create)
        except InvalidValueError as error:
            return Failed(error)
        timer = dialect.cut_later(self.lent.driver)
        try:
            return await dialect.create(self.lent, create, outbox)
        except _ERRORS as error:
            return dialect.failed(error)
        finally:
            timer.cancel()

    async def delete(
        self, key: SessionKey, outbox: Sequence[ScopeKey] = (), *, only_expired: bool = False
    ) -> DeleteOutcome:
        """Deletes a session and its events; with `only_expired` unless it lives."""
        if not readable(*key):
            return False
        dialect = self._dialect
        timer = dialect.cut_later(self.lent.driver)
        try:
            return await dialect.delete(self.lent, key, outbox, only_expired)
        except _ERRORS as error:
            return dialect.failed(error)
        finally:
            timer.cancel()

    async def release(self) -> None:
        """Gives the connection back. Safe to repeat."""
        if self._released:
            return
        self._released = True
        if self.lent.close_at_once():
            self._done()
        else:
            # Shielded, as a connection that is cancelled on its way back is lost to the pool.
            await asyncio.shield(asyncio.create_task(self._close()))

    async def _close(self) -> None:
        try:
            await self.lent.close()
        except DRIVER_ERRORS:
            await self.lent.discard()
        finally:
            self._done()

    def _done(self) -> None:
        self._ended()
        done, self.on_release = self.on_release, None
        if done is not None:
            done()


def _dialect(engine: AsyncEngine, config: TieredConfig, owned: bool) -> PortableDialect:
    match engine.dialect.name:
        case "postgresql":
            return PostgresqlDialect(engine, config)
        case "mysql" | "mariadb":
            return MysqlDialect(engine, config)
        case "sqlite" if engine.dialect.driver == "aiosqlite":
            return SqliteDialect(engine, config, owned=owned)
    return PortableDialect(engine, config)
