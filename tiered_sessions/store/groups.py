"""Group commit: writes of several callers that share one statement (consistency.md 5.2)."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from ..errors import StoreError, StoreUnavailableError
from ..records import (
    Append,
    AppendOutcome,
    Create,
    CreateOutcome,
    DeleteOutcome,
    Failed,
    Kind,
    ScopeKey,
    SessionKey,
)
from ..uncut import Uncut
from .base import StoreWriter

T = TypeVar("T")
OperationT = TypeVar("OperationT")

LARGEST: Final = 32
"""How many writes a batch may have. Larger ones are slower by the row."""

GRACE: Final = 0.02
"""How long a batch waits for those who still mask what they will change, in seconds."""

WAITS: Final = 5
"""How often, while nobody comes. Together longer than a caller waits for its cache."""


class Grouped(NamedTuple, Generic[OperationT]):
    """A write of a batch (a deletion is a key), and the scopes whose invalidation is recorded with it."""

    operation: OperationT
    outbox: Sequence[ScopeKey]


class GroupWriter(StoreWriter, Protocol):
    """A checked-out connection that can also perform writes together."""

    on_release: Callable[[], None] | None
    """Called once, when the connection has been given back."""

    async def group(self, kind: Kind, writes: Sequence[Grouped[Any]]) -> Sequence[Any]:
        """Performs writes to different sessions at once; None: nothing was written, try it alone."""
        ...


class Groups:
    """Hands out seats in batches, each of which has one connection and sends one statement.

    All writes are of one kind, so that none waits for the statement of another.

    Nobody waits for company: a batch is made of those who had to wait for a connection anyway, and as
    a rule of one caller alone.

    Args:
        checkout: Checks out a connection. It may be cancelled. Raises `StoreError`.
        kind: What the writes do.
        fits: Says whether a write may be performed together with others.
        connections: How many batches are under way at once.
        mask_age: So long after its call a statement may still be sent, in seconds.
    """

    def __init__(
        self,
        checkout: Callable[[], Awaitable[GroupWriter]],
        kind: Kind,
        fits: Callable[[Any], bool],
        connections: int,
        mask_age: float,
    ) -> None:
        self.checkout = checkout
        self.kind = kind
        self.fits = fits
        self.mask_age = mask_age
        self.tasks: set[asyncio.Task[Any]] = set()
        self._waiting: deque[Seat] = deque()
        self._connections = self._free = connections
        self._coming = 0
        # Whether the last batch was one of several: those it has answered come again together.
        self._crowded = False

    async def writer(self) -> StoreWriter:
        """Returns a seat in a batch that has just been sealed, or a connection to whoever is alone."""
        if self._free and not self._waiting and not self._crowded:
            self._free -= 1
            try:
                writer = await self.checkout()
            except BaseException:
                self._pass_on()
                raise
            writer.on_release = self._pass_on
            return writer
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

    def again(self, seat: Seat, write: Grouped[Any], outcome: Uncut[Any]) -> None:
        """Performs alone what could not be performed together."""
        task = asyncio.create_task(seat.alone(self.kind, write))
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
        """Performs one batch by one connection."""
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
        self._crowded = len(seats) > 1
        try:
            if seats:
                await self._store(Batch(seats), writer)
        finally:
            await writer.release()

    async def _store(self, batch: Batch, writer: GroupWriter) -> None:
        """Performs what the seats bring: as a rule at once, else in rounds as they come."""
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
        self, writes: Sequence[Grouped[Any]], writer: GroupWriter, sealed_at: float
    ) -> Sequence[Any]:
        if asyncio.get_running_loop().time() > sealed_at + self.mask_age:
            return [None for _ in writes]
        if len(writes) == 1:
            return [await _single(self.kind, writer, writes[0])]
        return await writer.group(self.kind, writes)


def _single(kind: Kind, writer: StoreWriter, write: Grouped[Any]) -> Awaitable[Any]:
    perform: Any = {"append": writer.append, "create": writer.create, "delete": writer.delete}[kind]
    return perform(*write)  # type: ignore[no-any-return]


class _Brought(NamedTuple):
    seat: Seat
    write: Grouped[Any]
    outcome: Uncut[Any]


class Batch:
    """Seats that were called together, and the writes they have brought."""

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

    def bring(self, seat: Seat, key: SessionKey, write: Grouped[Any]) -> Uncut[Any] | None:
        """Brings the write of a seat; returns what will become of it, None if it must go alone."""
        # Of two changes of one row UPDATE .. FROM makes one, and says nothing of the other.
        if self._closed or key in self._brought:
            return None
        outcome: Uncut[Any] = Uncut(loop=seat.called.get_loop())
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

    def take(self) -> list[Grouped[Any]]:
        """Returns what was brought since the last time."""
        self._under_way, self._brought = list(self._brought.values()), {}
        return [write for _, write, _ in self._under_way]

    def close(self) -> None:
        """Ends the batch: whoever comes now goes alone."""
        self._closed = True

    def answer(self, outcomes: Sequence[Any]) -> None:
        """Tells each of those taken its own outcome; has tried alone what was not performed."""
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
    """A writer in a batch. What cannot go together goes alone, by a connection of its own.

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
        """Stores `append`, in the batch if it can."""
        return self._share("append", append.key, Grouped(append, outbox))

    def create(self, create: Create, outbox: Sequence[ScopeKey] = ()) -> Awaitable[CreateOutcome]:
        """Inserts a session, in the batch if it can."""
        return self._share("create", create.key, Grouped(create, outbox))

    def delete(
        self, key: SessionKey, outbox: Sequence[ScopeKey] = (), *, only_expired: bool = False
    ) -> Awaitable[DeleteOutcome]:
        """Deletes a session, in the batch if it can."""
        if only_expired:
            return self._alone(lambda writer: writer.delete(key, outbox, only_expired=True))
        return self._share("delete", key, Grouped(key, outbox))

    def _share(self, kind: Kind, key: SessionKey, write: Grouped[Any]) -> Awaitable[Any]:
        assert self._batch is not None
        outcome = None
        if kind == self._groups.kind and self._groups.fits(write.operation):
            outcome = self._batch.bring(self, key, write)
        return self.alone(kind, write) if outcome is None else outcome

    def again(self, write: Grouped[Any], outcome: Uncut[Any]) -> None:
        """Performs alone, in the background, what was brought and could not go together."""
        self._groups.again(self, write, outcome)

    async def alone(self, kind: Kind, write: Grouped[Any]) -> Any:
        """Performs a write by a connection of its own."""
        return await self._alone(lambda writer: _single(kind, writer, write))

    async def release(self) -> None:
        """Leaves the batch, unless a write was brought. Safe to repeat."""
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
