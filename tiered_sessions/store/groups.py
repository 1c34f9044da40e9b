"""Group commit: appends of several callers that share one statement (consistency.md 5.2)."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

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
from ..uncut import Uncut
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
    """Hands out seats in batches, each of which has one connection and sends one statement.

    Nobody waits for company: a batch is made of those who had to wait for a connection anyway, and as
    a rule of one caller alone.

    Args:
        checkout: Checks out a connection. It may be cancelled. Raises `StoreError`.
        fits: Says whether an append may be stored together with others.
        connections: How many batches are under way at once.
        mask_age: So long after its call a statement may still be sent, in seconds.
    """

    def __init__(
        self,
        checkout: Callable[[], Awaitable[GroupWriter]],
        fits: Callable[[Append], bool],
        connections: int,
        mask_age: float,
    ) -> None:
        self.checkout = checkout
        self.fits = fits
        self.mask_age = mask_age
        self.tasks: set[asyncio.Task[Any]] = set()
        self._waiting: deque[Seat] = deque()
        self._connections = self._free = connections
        self._coming = 0

    async def writer(self) -> Seat:
        """Returns a seat in a batch that has just been sealed."""
        seat = Seat(self)
        self._waiting.append(seat)
        if self._free:
            self._free -= 1
            self._start()
        try:
            await seat.called
        except BaseException:
            # Cancelled, before or after it was called.
            if seat in self._waiting:
                self._waiting.remove(seat)
            seat.leave()
            raise
        return seat

    def again(self, seat: Seat, grouped: Grouped, outcome: Uncut[AppendOutcome]) -> None:
        """Stores alone what could not be stored together."""
        task = asyncio.create_task(seat.alone(grouped))
        outcome.follow(task)
        self._hold(task)

    def _start(self) -> None:
        # Whoever asks in the same turn of the loop is in time for this batch.
        self._coming += 1
        self._hold(asyncio.create_task(self._serve()))

    def _hold(self, task: asyncio.Task[Any]) -> None:
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _pass_on(self) -> None:
        """A connection is not used any more: those who wait are next."""
        if self._waiting:
            self._start()
        else:
            self._free += 1

    async def _serve(self) -> None:
        """Stores one batch by one connection."""
        try:
            writer = await self.checkout()
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
        try:
            if seats:
                await self._store(Batch(seats), writer)
        finally:
            await writer.release()

    async def _store(self, batch: Batch, writer: GroupWriter) -> None:
        """Stores what the seats bring: as a rule at once, else in rounds as they come."""
        waits = WAITS
        while waits and not batch.over:
            try:
                await batch.gather(GRACE)
                writes = batch.take()
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


class _Brought(NamedTuple):
    seat: Seat
    write: Grouped
    outcome: Uncut[AppendOutcome]


class Batch:
    """Seats that were called together, and the appends they have brought."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.sealed_at = asyncio.get_running_loop().time()
        self._gathering: asyncio.Future[None] | None = None
        self._missing = set(seats)
        self._closed = False
        self._brought: dict[SessionKey, _Brought] = {}
        self._under_way: list[_Brought] = []
        for seat in seats:
            seat.call(self)

    @property
    def over(self) -> bool:
        """Whether everybody has come or left, and nothing is left to be done."""
        return not self._missing and not self._brought

    async def gather(self, limit: float) -> None:
        """Waits until everybody has come or left, at most `limit` seconds."""
        if not self._missing:
            return
        loop = asyncio.get_running_loop()
        self._gathering = loop.create_future()
        timer = loop.call_later(limit, self._gathered)
        try:
            await self._gathering
        finally:
            timer.cancel()

    def bring(self, seat: Seat, write: Grouped) -> Uncut[AppendOutcome] | None:
        """Brings the append of a seat; returns what will become of it, None if it must go alone."""
        key = write.append.key
        # Of two changes of one row UPDATE .. FROM makes one, and says nothing of the other.
        if self._closed or key in self._brought:
            return None
        outcome: Uncut[AppendOutcome] = Uncut(loop=seat.called.get_loop())
        self._brought[key] = _Brought(seat, write, outcome)
        self.leave(seat)
        return outcome

    def leave(self, seat: Seat) -> None:
        """Waits for this seat no longer."""
        self._missing.discard(seat)
        if not self._missing:
            self._gathered()

    def _gathered(self) -> None:
        if self._gathering is not None and not self._gathering.done():
            self._gathering.set_result(None)

    def take(self) -> list[Grouped]:
        """Returns what was brought since the last time."""
        self._under_way, self._brought = list(self._brought.values()), {}
        return [write for _, write, _ in self._under_way]

    def close(self) -> None:
        """Ends the batch: whoever comes now goes alone."""
        self._closed = True

    def answer(self, outcomes: Sequence[AppendOutcome | None]) -> None:
        """Tells each of those taken its own outcome; has tried alone what was not stored."""
        for (seat, write, future), outcome in zip(self._under_way, outcomes, strict=True):
            if outcome is None:
                seat.again(write, future)
            else:
                future.set_result(outcome)
        self._under_way = []

    def fail(self, error: BaseException) -> None:
        """Ends the batch after an error that is nobody's outcome."""
        self._closed = True
        for _, _, future in (*self._under_way, *self._brought.values()):
            if isinstance(error, asyncio.CancelledError):
                future.lose()
            else:
                future.set_exception(error)


class Seat:
    """A writer in a batch. What cannot be stored together it stores alone, by a connection of its own.

    Its caller masks after it was called, so the time since then bounds the age of the masks (R7).
    """

    def __init__(self, groups: Groups) -> None:
        self.called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._groups = groups
        self._batch: Batch | None = None

    def call(self, batch: Batch) -> None:
        """Lets the caller go on."""
        self._batch = batch
        if self.called.done():
            batch.leave(self)
        else:
            self.called.set_result(None)

    def refuse(self, error: BaseException) -> None:
        """Tells the caller why there is no connection."""
        if isinstance(error, asyncio.CancelledError):
            self.called.cancel()
        elif not self.called.done():
            # An error of its own for each: whoever raises it writes into it.
            own = copy.copy(error)
            own.__cause__ = error
            self.called.set_exception(own)

    def append(self, append: Append, outbox: Sequence[ScopeKey] = ()) -> Awaitable[AppendOutcome]:
        """Stores `append` in the batch if it can, else alone."""
        assert self._batch is not None
        write = Grouped(append, outbox)
        outcome = self._batch.bring(self, write) if self._groups.fits(append) else None
        return self.alone(write) if outcome is None else outcome

    def again(self, write: Grouped, outcome: Uncut[AppendOutcome]) -> None:
        """Stores alone, in the background, what was brought and could not be stored together."""
        self._groups.again(self, write, outcome)

    async def alone(self, write: Grouped) -> AppendOutcome:
        """Stores an append by a connection of its own."""
        return await self._alone(lambda writer: writer.append(*write))

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
        self.leave()

    def leave(self) -> None:
        """Does without a place in the batch."""
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
                writer = await self._groups.checkout()
        except TimeoutError:
            message = "The database was busy for too long; nothing was written"
            return Failed(StoreUnavailableError(message))
        except StoreError as error:
            return Failed(error)
        try:
            return await work(writer)
        finally:
            await writer.release()
