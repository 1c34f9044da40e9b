"""Connections of a caller's client, borrowed for as long as something flies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, ResponseError

from .queue import CallQueue

_FLIGHTS = 64
"""Flights after which a connection goes back, whatever waits: others may wait for it, too."""


class Loan(CallQueue):
    """Calls to one server on connections of a pool that others use, too.

    What comes while a flight is under way goes with the next one, on the same connection; with
    nothing left to send the connection goes back. Only what redis-py documents is used, for a pool
    may hold connections of any kind (fakeredis), with handlers for messages that are not ours.
    """

    def __init__(
        self,
        acquire: Callable[[], Awaitable[Any]],
        release: Callable[[Any], Awaitable[None]],
        timeout: float,
        demoted: Callable[[], None],
    ) -> None:
        super().__init__(timeout, demoted)
        self._acquire = acquire
        self._release = release
        self._stamps: WeakKeyDictionary[AbstractConnection, str] = WeakKeyDictionary()
        self._connection: AbstractConnection | None = None
        self._borrowing: asyncio.Task[None] | None = None
        self._returning = False
        self._left = False

    def leave(self) -> None:
        # Its replies are read first. Those in the pool are the pool's business; ask them again who answers.
        self._left = True
        self._stamps.clear()

    def _wake(self) -> None:
        if self._borrowing is None:
            self._borrowing = self._background(self._borrow())

    async def _borrow(self) -> None:
        """Takes a connection, flies until nothing waits, gives it back; closed if it is not to be trusted."""
        connection: AbstractConnection | None = None
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._acquire()
                # Another server may answer after a reconnect.
                connection.register_connect_callback(self._reconnected)
                await connection.connect()
            self._left = False
            for _ in range(_FLIGHTS):
                await self._flight(connection)
                if self._left or not self._waiting:
                    break
        except BaseException as error:
            if isinstance(error, Exception):
                if connection is None or not self._sent:
                    self._fail_waiting(error)
                self._fail_sent(error)
            if connection is not None:
                await self._return(connection, broken=True)
            if not isinstance(error, Exception):
                raise
        else:
            await self._return(connection, broken=self._left)
        finally:
            self._borrowing = None
            self._returning = False
            if self._waiting:
                self._wake()

    async def _flight(self, connection: AbstractConnection) -> None:
        """Sends all that waits and gives out the replies."""
        packets = []
        self._connection = connection
        known = connection in self._stamps
        if known:
            self._stamp = self._stamps[connection]
        else:
            packets.append(self._greeting(asyncio.get_running_loop().time()).packet)
        while (call := self._next()) is not None:
            packets.append(call.packet)
            call.packet = b""
        unread = sum(call.wanted for call in self._sent)
        await connection.send_packed_command(packets)
        for _ in range(unread):
            # R31: `_end` has failed them all, and redis-py, on Python 3.11, has lost the cancellation. What
            # was sent will be answered: were the connection given back, somebody else would read it.
            if not self._sent:
                raise ConnectionError("the flight was ended")
            try:
                reply = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
            except ResponseError as error:
                reply = error
            self._add(reply)
        if not known:
            self._stamps[connection] = self._stamp

    async def _return(self, connection: AbstractConnection, *, broken: bool) -> None:
        self._returning = True
        try:
            if broken:
                await connection.disconnect(nowait=True)
        finally:
            await self._release(connection)

    def _stop(self) -> None:
        pass  # `_end` does it

    def _forget(self) -> None:
        super()._forget()
        self._connection = self._borrowing = None
        self._returning = False

    def _reconnected(self, connection: AbstractConnection) -> None:
        self._stamps.pop(connection, None)
        if connection is self._connection:
            self._stamp = ""

    def _end(self, error: Exception) -> None:
        self._fail_sent(error)
        # A pool that is interrupted while it takes a connection back has lost it.
        if self._borrowing is not None and not self._returning:
            self._borrowing.cancel()
