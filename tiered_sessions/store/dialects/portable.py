"""The portable way: a unit is a short transaction of Core statements. Also the base of all others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ...config import TieredConfig
from ...errors import StoreUnavailableError
from ...records import (
    Append,
    AppendOutcome,
    Create,
    CreateOutcome,
    DeleteOutcome,
    Exists,
    Expired,
    Failed,
    Listing,
    Older,
    Query,
    ScopeKey,
    SessionKey,
    Snapshot,
    Tags,
    Unknown,
)
from .. import reads, writes
from ..failures import (
    DRIVER_ERRORS,
    is_disconnect,
    is_duplicate,
    is_retryable,
    mapped,
    unknown,
)
from ..groups import Grouped
from ..lent import Lent
from ..steps import Contended, Duplicate, Flavour, Reply, Rollback, Step, Unit

T = TypeVar("T")
Make = Callable[[], Unit[T]]

# How often a transaction is repeated that the database gave up (deadlock, serialization), and one
# that found its row changed where locks do nothing: then somebody else made progress each time.
TRIES = 3
ROUNDS = 10


class InCommit(Exception):
    """The COMMIT failed: what it did is not known."""


class Timer(Protocol):
    """What will happen unless it is cancelled."""

    def cancel(self) -> None: ...


class _NoTimer:
    def cancel(self) -> None:
        pass


_NO_TIMER = _NoTimer()


class PortableDialect:
    """Performs units of work on any database that SQLAlchemy drives asynchronously."""

    flavour = Flavour()
    quiet = False
    """Whether a connection's return to the pool asks nothing of the server."""
    group_connections = 0
    """How many connections perform writes of one kind together; 0: each write goes alone."""

    def __init__(self, engine: AsyncEngine, config: TieredConfig) -> None:
        self.engine = engine
        self.config = config
        if engine.dialect.name == "postgresql":
            self.flavour = Flavour(rewrites=True)

    def cut_later(self, driver: Any, patience: int = 1) -> Timer:
        """Bounds one operation in time, all its tries together, where the driver lets us.

        Cuts the connection if the server has long been due to answer and the timer is not cancelled.
        """
        return _NO_TIMER

    # --- performing -----------------------------------------------------------------------

    @property
    def lends(self) -> bool:
        """Whether single statements go the driver's own way now: nobody listens to SQLAlchemy's."""
        return False

    async def read(self, lent: Lent, make: Make[T]) -> T:
        """Performs a unit that writes nothing."""
        return await self.perform(lent, make)

    async def perform(self, lent: Lent, make: Make[T]) -> T:
        """Performs a unit in a transaction of its own, again if another one came between."""
        failures = 0
        # Whoever called holds masks, and they outlive one time-out, not several (R7).
        deadline = time.monotonic() + self.config.statement_timeout
        for _ in range(ROUNDS):
            try:
                return await self.transaction(lent, make())
            except Rollback as ended:
                outcome: T = ended.outcome
                return outcome
            except Contended:
                pass
            except DRIVER_ERRORS as error:
                failures += 1
                if failures == TRIES or not is_retryable(error) or time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                break
        raise StoreUnavailableError("Other transactions kept coming between; nothing was written")

    async def transaction(self, lent: Lent, unit: Unit[T]) -> T:
        """Performs a unit and commits. Raises `InCommit` if the commit itself failed."""
        connection = await lent.whole()
        transaction = await connection.begin()
        try:
            result = await drive(connection, unit)
        except BaseException:
            await transaction.rollback()
            raise
        try:
            await transaction.commit()
        except DRIVER_ERRORS as error:
            if is_retryable(error):
                raise
            raise InCommit from error
        return result

    # --- the operations -------------------------------------------------------------------

    def load(self, key: SessionKey, query: Query) -> Unit[Snapshot | None]:
        """Reads a session at one moment."""
        return reads.load(key, query, self.flavour)

    def older(self, key: SessionKey, before_seq: int, query: Query) -> Unit[Older | None]:
        """Reads the events before a window, with the tag."""
        return reads.older(key, before_seq, query, self.flavour)

    def tags(self, key: SessionKey) -> Unit[Tags]:
        """Reads the tags of the three scopes."""
        return reads.tags(key)

    def sessions(self, app_name: str, user_id: str | None) -> Unit[Listing]:
        """Reads sessions without events."""
        return reads.sessions(app_name, user_id)

    def check(self, write: Append | Create) -> None:
        """Refuses values this database cannot store. Raises `InvalidValueError`."""

    async def append(self, lent: Lent, write: Append, outbox: Sequence[ScopeKey]) -> AppendOutcome:
        """Stores an append, and settles one that a unique index refused."""
        for _ in range(TRIES):
            try:
                return await self.perform(lent, lambda: writes.append(write, outbox, self.flavour))
            except Duplicate:
                settled = await self.settle(lent, write)
            if settled is not None:
                return settled
        return Failed(StoreUnavailableError("Other appends kept coming between; nothing was written"))

    async def append_group(
        self, lent: Lent, writes: Sequence[Grouped[Append]]
    ) -> Sequence[AppendOutcome | None]:
        """Stores appends to different sessions at once; None: nothing was written, try it alone."""
        return [None for _ in writes]

    async def create_group(
        self, lent: Lent, writes: Sequence[Grouped[Create]]
    ) -> Sequence[CreateOutcome | None]:
        """Inserts sessions that change no shared scope; None as of `append_group`."""
        return [None for _ in writes]

    async def delete_group(
        self, lent: Lent, writes: Sequence[Grouped[SessionKey]]
    ) -> Sequence[DeleteOutcome | None]:
        """Deletes sessions; None as of `append_group`."""
        return [None for _ in writes]

    async def settle(self, lent: Lent, write: Append) -> AppendOutcome | None:
        """Says what became of an append that wrote nothing; None: try again."""
        return await self.perform(lent, lambda: writes.settle(write))

    async def create(self, lent: Lent, write: Create, outbox: Sequence[ScopeKey]) -> CreateOutcome:
        """Inserts a session; says of one in the way whether it has expired."""
        outcome = await self.perform(lent, lambda: writes.create(write, outbox, self.flavour))
        # The refused INSERT has ended its transaction, so this is another one.
        if (
            isinstance(outcome, Exists)
            and not write.replace_expired
            and await self.read(lent, lambda: reads.is_expired(write.key))
        ):
            return Expired()
        return outcome

    async def delete(
        self, lent: Lent, key: SessionKey, outbox: Sequence[ScopeKey], only_expired: bool
    ) -> DeleteOutcome:
        """Deletes a session."""
        return await self.perform(lent, lambda: writes.delete(key, outbox, only_expired=only_expired))

    def alive(self, driver: Any) -> bool:
        """Says whether a checked-out connection looks usable, without asking the server."""
        return True

    def failed(self, error: Exception) -> Failed | Unknown:
        """Says what an error of a write means. Before COMMIT a lost connection wrote nothing."""
        if isinstance(error, InCommit):
            cause = error.__cause__ or error
            # A server that answers has refused the commit; one that is gone may have done it.
            return Unknown(unknown(cause)) if is_disconnect(cause) else Failed(mapped(cause))
        return Failed(mapped(error))


async def drive(connection: AsyncConnection, unit: Unit[T]) -> T:
    """Executes the statements of a unit one by one."""
    try:
        step = next(unit)
        while True:
            try:
                reply = await _execute(connection, step)
            except DRIVER_ERRORS as error:
                if not is_duplicate(error):
                    raise
                step = unit.throw(Duplicate(str(type(error))))
            else:
                step = unit.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def _execute(connection: AsyncConnection, step: Step) -> Reply:
    result = await connection.execute(step.statement, step.params)
    return Reply(result.all() if result.returns_rows else (), result.rowcount)
