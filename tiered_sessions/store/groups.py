"""Group commit: appends of several callers that share one statement (consistency.md 5.2)."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from ..errors import StoreError, StoreUnavailableError
from ..records import (
    Append,
    AppendOutcome,
    Create,
    CreateOutcome,
    DeleteOutcome,
    Failed,
    ScopeKey,
    SessionKey,
)
from .base import StoreWriter

T = TypeVar("T")

LARGEST: Final = 32
"""How many appends a batch may have. Larger ones are slower by the row."""

GRACE: Final = 0.02
"""How long a batch waits for those who still mask what they will change, in seconds."""

WAITS: Final = 5
"""How often, while nobody comes. Together longer than a caller waits for its cache."""


class Grouped(NamedTuple):
    """An append of a batch, and the scopes whose invalidation is recorded with it."""

    append: Append
    outbox: Sequence[ScopeKey]


class GroupWriter(StoreWriter, Protocol):
    """A checked-out connection that can also store appends together."""

    on_release: Callable[[], None] | None
    """Called once, when the connection has been given back."""

    async def append_group(self, writes: Sequence[Grouped]) -> Sequence[AppendOutcome | None]:
        """Stores appends to different sessions at once; None: nothing was written, try it alone."""
        ...


class Groups:
    """Hands out connections for appends: one to whoever is alone, else seats in a batch.

    Nobody waits for company: a batch is made of those who had to wait for a connection anyway.

    Args:
        checkout: Checks out a connection. Raises `StoreError`.
        alone: Does so too, and may be cancelled.
        fits: Says whether an append may be stored together with others.
        connections: How many batches are under way at once.
        mask_age: So long after its call a statement may still be sent, in seconds.
    """

    def __init__(
        self,
        checkout: Callable[[], Awaitable[GroupWriter]],
        alone: Callable[[], Awaitable[StoreWriter]],
        fits: Callable[[Append], bool],
        connections: int,
        mask_age: float,
    ) -> None:
        self.alone = alone
        self.fits = fits
        self.mask_age = mask_age
        self.tasks: set[asyncio.Task[None]] = set()
        self._checkout = checkout
        self._waiting: deque[Seat] = deque()
        self._connections = self._free = connections
        self._coming = 0

    async def writer(self) -> StoreWriter:
        """Returns a connection, or a seat in a batch that has just been sealed."""
        seat = Seat(self)
        self._waiting.append(seat)
        if self._free:
            self._free -= 1
            self._start()
        try:
            return await seat.called
        except BaseException:
            await self._leave(seat)
            raise

    async def _leave(self, seat: Seat) -> None:
        """Does without a caller that was cancelled, before or after it was called."""
        if seat in self._waiting:
            self._waiting.remove(seat)
        elif seat.called.done() and not seat.called.cancelled() and seat.called.exception() is None:
            await seat.called.result().release()
        else:
            await seat.release()

    def _start(self) -> None:
        # Whoever asks in the same turn of the loop is in time for this batch.
        self._coming += 1
        task = asyncio.create_task(self._serve())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _pass_on(self) -> None:
        """A connection is not used any more: those who wait are next."""
        if self._waiting:
            self._start()
        else:
            self._free += 1

    async def _serve(self) -> None:
        """Gives one connection to who is alone, or stores one batch by it."""
        try:
            writer = await self._checkout()
        except BaseException as error:
            self._coming -= 1
            self._free += 1
            # Else another connection, at work now, takes those who wait.
            while self._waiting and self._free == self._connections:
                self._waiting.popleft().refuse(error)
            if not isinstance(error, StoreError):
                raise
            return
        writer.on_release = self._pass_on
        # Sealed as late as can be, so that whoever came during the checkout is in it; connections
        # that are on their way get their share.
        share = min(LARGEST, -(-len(self._waiting) // self._coming))
        self._coming -= 1
        seats = [self._waiting.popleft() for _ in range(share)]
        if len(seats) == 1 and not seats[0].called.done():
            seats[0].called.set_result(writer)
            return
        try:
            if seats:
                await self._store(Batch(seats), writer)
        finally:
            await writer.release()

    async def _store(self, batch: Batch, writer: GroupWriter) -> None:
        """Stores what the seats bring: as a rule at once, else in rounds as they come."""
        waits = WAITS
        while waits and not batch.over:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GRACE):
                    await batch.complete.wait()
            writes = batch.take()
            try:
                if writes:
                    batch.answer(await self._perform(writes, writer, batch.sealed_at))
            except BaseException as error:
                batch.fail(error)
                raise
            waits = WAITS if writes else waits - 1
        batch.close()

    async def _perform(
        self, writes: Sequence[Grouped], writer: GroupWriter, sealed_at: float
    ) -> Sequence[AppendOutcome | None]:
        if asyncio.get_running_loop().time() > sealed_at + self.mask_age:
            return [None for _ in writes]
        if len(writes) == 1:
            return [await writer.append(*writes[0])]
        return await writer.append_group(writes)


class Batch:
    """Seats that were called together, and the appends they have brought."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.sealed_at = asyncio.get_running_loop().time()
        self.complete = asyncio.Event()
        self._missing = set(seats)
        self._closed = False
        self._brought: dict[SessionKey, tuple[Grouped, asyncio.Future[AppendOutcome | None]]] = {}
        self._under_way: list[asyncio.Future[AppendOutcome | None]] = []
        for seat in seats:
            seat.call(self)

    @property
    def over(self) -> bool:
        """Whether everybody has come or left, and nothing is left to be done."""
        return not self._missing and not self._brought

    async def append(self, seat: Seat, write: Grouped) -> AppendOutcome | None:
        """Brings the append of a seat, and returns what became of it; None: try it alone."""
        key = write.append.key
        # Of two changes of one row UPDATE .. FROM makes one, and says nothing of the other.
        if self._closed or key in self._brought:
            return None
        outcome: asyncio.Future[AppendOutcome | None] = asyncio.get_running_loop().create_future()
        self._brought[key] = (write, outcome)
        self.leave(seat)
        return await outcome

    def leave(self, seat: Seat) -> None:
        """Waits for this seat no longer."""
        self._missing.discard(seat)
        if not self._missing:
            self.complete.set()

    def take(self) -> list[Grouped]:
        """Returns what was brought since the last time."""
        taken, self._brought = self._brought, {}
        self._under_way = [future for _, future in taken.values()]
        return [write for write, _ in taken.values()]

    def close(self) -> None:
        """Ends the batch: whoever comes now goes alone."""
        self._closed = True

    def answer(self, outcomes: Sequence[AppendOutcome | None]) -> None:
        """Tells each of those taken its own outcome."""
        for future, outcome in zip(self._under_way, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)

    def fail(self, error: BaseException) -> None:
        """Ends the batch after an error that is nobody's outcome."""
        self._closed = True
        for future in (*self._under_way, *(future for _, future in self._brought.values())):
            if isinstance(error, asyncio.CancelledError):
                future.cancel()
            elif not future.done():
                future.set_exception(error)


class Seat:
    """A writer in a batch. What cannot be stored together it stores alone, by a connection of its own.

    Its caller masks after it was called, so the time since then bounds the age of the masks (R7).
    """

    def __init__(self, groups: Groups) -> None:
        self.called: asyncio.Future[StoreWriter] = asyncio.get_running_loop().create_future()
        self._groups = groups
        self._batch: Batch | None = None

    def call(self, batch: Batch) -> None:
        """Lets the caller go on."""
        self._batch = batch
        if not self.called.done():
            self.called.set_result(self)

    def refuse(self, error: BaseException) -> None:
        """Tells the caller why there is no connection."""
        if isinstance(error, asyncio.CancelledError):
            self.called.cancel()
        elif not self.called.done():
            # An error of its own for each: whoever raises it writes into it.
            own = copy.copy(error)
            own.__cause__ = error
            self.called.set_exception(own)

    async def append(self, append: Append, outbox: Sequence[ScopeKey] = ()) -> AppendOutcome:
        """Stores `append` in the batch if it can, else alone."""
        assert self._batch is not None
        if self._groups.fits(append):
            outcome = await self._batch.append(self, Grouped(append, outbox))
            if outcome is not None:
                return outcome
        return await self._alone(lambda writer: writer.append(append, outbox))

    async def create(self, create: Create, outbox: Sequence[ScopeKey] = ()) -> CreateOutcome:
        """Inserts a session, alone."""
        return await self._alone(lambda writer: writer.create(create, outbox))

    async def delete(
        self, key: SessionKey, outbox: Sequence[ScopeKey] = (), *, only_expired: bool = False
    ) -> DeleteOutcome:
        """Deletes a session, alone."""
        return await self._alone(lambda writer: writer.delete(key, outbox, only_expired=only_expired))

    async def release(self) -> None:
        """Leaves the batch, unless an append was brought. Safe to repeat."""
        if self._batch is not None:
            self._batch.leave(self)

    async def _alone(self, work: Callable[[StoreWriter], Awaitable[T]]) -> T | Failed:
        assert self._batch is not None
        self._batch.leave(self)
        end = self._batch.sealed_at + self._groups.mask_age
        try:
            # A time-out that is over is not noticed by what never waits.
            if asyncio.get_running_loop().time() > end:
                raise TimeoutError
            async with asyncio.timeout_at(end):
                writer = await self._groups.alone()
        except TimeoutError:
            message = "The database was busy for too long; nothing was written"
            return Failed(StoreUnavailableError(message))
        except StoreError as error:
            return Failed(error)
        try:
            return await work(writer)
        finally:
            await writer.release()
