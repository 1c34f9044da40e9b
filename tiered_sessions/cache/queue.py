"""Calls that share one connection: in order, bounded, each with a deadline of its own."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine
from threading import get_ident
from typing import Any, NamedTuple

from redis.exceptions import ConnectionError, ReadOnlyError, RedisClusterException, RedisError

from .resp import Packed, pack
from .scripts import script

FAULTS = (RedisError, RedisClusterException, OSError)
"""What an unreachable, refusing or broken server makes redis-py raise."""

CALLS = 10_000
"""Calls without an answer that one connection may have."""
BYTES = 64 * 1024 * 1024
"""Bytes that may wait for one connection."""

_WITHDRAWING = ("drop", "release")
_WHO = pack(
    [
        ("INFO", "server"),
        ("INFO", "replication"),
        *[("SCRIPT", "LOAD", script(name).text) for name in _WITHDRAWING],
    ]
)


class Answers(NamedTuple):
    """The replies to one call, errors of single commands among them, and who answered."""

    stamp: str
    replies: list[Any]



class Call:
    """Some commands of one caller, and what has been answered to them.

    Attributes:
        future: What the caller waits for; done already if the caller has left. None: nobody waits.
        packet: The commands as they are sent.
        wanted: How many replies they have.
        asked: When the caller asked, on the loop's clock.
        replies: Those that have come.
    """

    __slots__ = ("asked", "future", "packet", "replies", "wanted")

    def __init__(
        self, future: asyncio.Future[Any] | None, packet: bytes, wanted: int = 1, asked: float = 0.0
    ) -> None:
        self.future = future
        self.packet = packet
        self.wanted = wanted
        self.asked = asked
        self.replies: list[Any] = []

    @property
    def left(self) -> bool:
        """Whether nobody waits any more."""
        return self.future is not None and self.future.done()

    def answer(self, stamp: str) -> None:
        """Gives the caller, if there still is one, what was answered, and by whom."""
        if self.future is not None and not self.future.done():
            self.future.set_result(Answers(stamp, self.replies))

    def fail(self, error: Exception) -> None:
        """Tells the caller, if there still is one, that nobody knows what became of it."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)


class CallQueue(ABC):
    """Calls to one server on one connection; what the two kinds of connections have in common.

    What comes while the event loop turns, or while a flight is under way, leaves in one packet.
    Replies come in the order of the commands, so the oldest unanswered call is whose the next reply
    is; nothing else joins reply and caller. Hence, of the races:

    - R31: each call sends commands of its own and is answered by their replies alone. No caller can
      be given what was read before it asked.
    - A caller that is cancelled, or whose time is over, leaves at once. What it had not sent yet is
      never sent. What it had sent stays in its place until its replies have come and are thrown away:
      taking it out would hand them to the next caller.
    - A call is in `_waiting` before it is sent and in `_sent` afterwards, never in both and never
      back: a connection that breaks fails all of `_sent`, whose outcome is unknown, and `_waiting`
      goes to the next connection. So nothing is sent twice.
    - What withdraws a late mask may be executed long after this side has left, so a server that does not
      know the script could not say so to anybody: each connection begins by making it known (R6).
    - The first commands of each connection ask who answers (5.6). They are ahead of every call in
      `_sent`, so `_stamp` is set before a call is answered, and a call leaves `_sent` with its
      connection: each reply carries the stamp of the server process that gave it.
    """

    def __init__(self, timeout: float, demoted: Callable[[], None]) -> None:
        self._timeout = timeout
        self._demoted = demoted
        self._waiting: deque[Call] = deque()
        self._sent: deque[Call] = deque()
        self._bytes = 0
        self._stamp = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def fly(self, commands: Packed) -> asyncio.Future[Answers]:
        """Sends `commands`; the result will be the replies.

        Raises:
            RedisError, RedisClusterException, OSError: The outcome is unknown; at once if too much
                waits already.
            RuntimeError: This belongs to another event loop.
        """
        loop = self._running_loop()
        future: asyncio.Future[Answers] = loop.create_future()
        self._add_call(loop, Call(future, commands.packet, len(commands)))
        self._wake()
        return future

    def post(self, call: Call) -> None:
        """Sends a call soon, and gives it a future unless it has one.

        It leaves with what is sent next, at the latest when `hurry()` is called or after a moment.

        Raises:
            RedisError: Too much waits already; nothing was sent.
            RuntimeError: This belongs to another event loop.
        """
        loop = self._running_loop()
        if call.future is None:
            call.future = loop.create_future()
        self._add_call(loop, call)
        self._linger(loop)

    def hurry(self) -> None:
        """Sends what was posted."""
        if self._waiting:
            self._wake()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        # Cheaper than to ask which loop is running, which costs a system call before Python 3.12.
        if loop is None or get_ident() != self._thread or not loop.is_running():
            loop = self._check_loop()
        return loop

    def _add_call(self, loop: asyncio.AbstractEventLoop, call: Call) -> None:
        size = len(call.packet)
        if len(self._waiting) + len(self._sent) >= CALLS or self._bytes + size > BYTES:
            raise ConnectionError("too many commands wait for the server")
        call.asked = loop.time()
        self._waiting.append(call)
        self._bytes += size
        if self._timer is None:
            self._timer = loop.call_at(call.asked + self._timeout, self._watch)

    async def close(self) -> None:
        """Ends what flies and closes the connection. A later call would open another.

        A close that is cancelled has closed all the same; a second one waits for the rest.

        Raises:
            RuntimeError: This belongs to another event loop, which is not over.
        """
        if self._loop is not None and self._loop.is_closed():
            self._forget()
        elif self._loop is not None:
            self._check_loop()
            self._stop()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._fail_waiting(ConnectionError("the cache was closed"))
            self._end(ConnectionError("the cache was closed"))
            if self._tasks:
                # Not `gather`, which would cancel the tasks with the caller.
                await asyncio.wait(tuple(self._tasks))
        self._loop = None

    def leave(self) -> None:
        """Gives the connection up: its server is no longer the one to ask."""
        self._end(ConnectionError("the server is no longer the master"))

    def _check_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                raise RuntimeError("the connections of this cache belong to another event loop")
            self._loop = loop
            self._thread = get_ident()
        return loop

    # --- for the two kinds ------------------------------------------------------------------------

    @abstractmethod
    def _wake(self) -> None:
        """Sees to it that what waits is sent."""

    def _linger(self, loop: asyncio.AbstractEventLoop) -> None:
        """Sees to it that what waits is sent soon."""
        self._wake()

    @abstractmethod
    def _end(self, error: Exception) -> None:
        """Closes the connection, if there is one, and fails what was sent on it."""

    @abstractmethod
    def _stop(self) -> None:
        """Ends an attempt to connect."""

    @abstractmethod
    def _forget(self) -> None:
        """Drops what belonged to an event loop that is over: nobody waits, nothing can be closed."""
        self._waiting.clear()
        self._sent.clear()
        self._tasks.clear()
        self._bytes = 0
        self._timer = None

    def _next(self) -> Call | None:
        """Moves the next call whose caller still waits to those that were sent; None: there is none."""
        while self._waiting:
            call = self._waiting.popleft()
            self._bytes -= len(call.packet)
            future = call.future
            if future is None or not future.done():
                self._sent.append(call)
                return call
        return None

    def _greeting(self, now: float) -> Call:
        """Returns the first call of a connection: it asks who answers, and nobody waits for it."""
        self._stamp = ""
        # As old as the calls behind it, lest it hide that they are overdue.
        call = Call(None, _WHO, 2 + len(_WITHDRAWING), self._waiting[0].asked if self._waiting else now)
        self._sent.append(call)
        return call

    def _add(self, reply: Any) -> None:
        """Gives the next reply of the connection to the call it belongs to."""
        call = self._sent[0]
        replies = call.replies
        replies.append(reply)
        error = isinstance(reply, RedisError)
        if error and isinstance(reply, ConnectionError):  # such as "loading": it serves nobody yet
            call.fail(reply)
        if len(replies) == call.wanted:
            self._sent.popleft()
            if call.future is None:
                self._stamp = _stamp(*replies[:2])
            else:
                call.answer(self._stamp)
        if error and isinstance(reply, ReadOnlyError):
            self._demoted()

    def _fail_waiting(self, error: Exception) -> None:
        while self._waiting:
            call = self._waiting.popleft()
            self._bytes -= len(call.packet)
            call.fail(error)

    def _fail_sent(self, error: Exception) -> None:
        while self._sent:
            self._sent.popleft().fail(error)

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _watch(self) -> None:
        """Ends what is overdue. One timer serves all calls, for they became due in their order."""
        self._timer = None
        loop = asyncio.get_running_loop()
        overdue = loop.time() - self._timeout
        while self._waiting and self._waiting[0].asked <= overdue:
            call = self._waiting.popleft()
            self._bytes -= len(call.packet)
            call.fail(TimeoutError())
        if self._sent and self._sent[0].asked <= overdue:
            # Nothing has come for so long that nothing is going to: whoever asked later need not
            # wait to learn it.
            self._end(TimeoutError())
        oldest = self._sent or self._waiting
        if oldest and self._timer is None:
            self._timer = loop.call_at(oldest[0].asked + self._timeout, self._watch)


def _stamp(server: Any, replication: Any) -> str:
    """Returns what names the process and its history, "" if it does not say."""
    names = []
    for reply, field in ((server, rb"run_id:(\w{16})"), (replication, rb"master_replid:(\w{16})")):
        found = re.search(field, reply) if isinstance(reply, bytes) else None
        if found is None:
            return ""
        names.append(found[1].decode())
    return "-".join(names)
