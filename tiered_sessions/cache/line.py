"""A connection of the package's own that many callers share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, InvalidResponse

from .queue import FAULTS, CallQueue
from .resp import MISSING, PUSH, new_reader

PIECE = 64 * 1024
"""Bytes after which a packet is full."""
LINGER = 0.002
"""How long what nobody waits for may wait for company, in seconds."""
WINDOW = 256
"""Calls under way at once. Behind a server that hangs, the others can still be taken back."""


class Wire(asyncio.Protocol):
    """An open connection: bytes out, replies in.

    redis-py has connected and said hello (TLS, password, database); from then on its streams stand
    aside: they would cost a future for each piece that arrives and an await for each element of a
    reply. They still hear of the end, for which redis-py waits when it closes.
    """

    def __init__(self, line: Line, connection: AbstractConnection) -> None:
        """Takes the connection over.

        Raises:
            ConnectionError: This is no connection of redis-py's over asyncio's streams.
        """
        writer: Any = getattr(connection, "_writer", None)
        transport = getattr(writer, "transport", None)
        if transport is None:
            raise ConnectionError("the connection has no transport")
        self._line = line
        self._connection = connection
        self._transport = transport
        self._streams = transport.get_protocol()
        self._reader = new_reader()
        self.paused = False
        transport.set_protocol(self)

    @property
    def closing(self) -> bool:
        """Whether what is written now would go nowhere."""
        return bool(self._transport.is_closing())

    def write(self, packet: bytes) -> None:
        """Sends a packet, as soon as the socket takes it."""
        self._transport.write(packet)

    def abort(self) -> None:
        """Closes the connection at once, whatever still waits to be written."""
        self._transport.abort()

    async def end(self) -> None:
        """Returns once it is closed, for redis-py as well."""
        await hang_up(self._connection)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self._line.arrived(self, self._reader.gets)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._line.resumed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.connection_lost(exc)
        self._line.lost(self)


class Line(CallQueue):
    """Calls to one server on one connection, opened for the first and kept.

    A caller who is alone is sent at once. Others leave together, when the event loop has come round:
    no timer delays them. What is posted waits for the next of them, but not longer than `LINGER`: a
    packet of its own costs this process and the server more than its commands do.
    """

    def __init__(
        self, dial: Callable[[], AbstractConnection], timeout: float, demoted: Callable[[], None]
    ) -> None:
        """Prepares; `dial` makes a connection that is not open yet."""
        super().__init__(timeout, demoted)
        self._dial = dial
        self._wire: Wire | None = None
        self._opening: asyncio.Task[None] | None = None
        self._leaving = False
        self._urgent = False
        self._lingering: asyncio.TimerHandle | None = None

    # --- what the wire tells ----------------------------------------------------------------------

    def arrived(self, wire: Wire, gets: Callable[[], Any]) -> None:
        """Gives each reply that is complete to its caller."""
        sent = self._sent
        try:
            # A reply may end the connection: what came behind it is nobody's.
            while wire is self._wire and (reply := gets()) is not MISSING:
                if type(reply) is PUSH:
                    continue
                if not sent:
                    raise InvalidResponse("a reply to nothing")
                # All but the last of a call as `_add` does it: it is most of them.
                call = sent[0]
                if len(call.replies) + 1 < call.wanted and not isinstance(reply, Exception):
                    call.replies.append(reply)
                else:
                    self._add(reply)
        except InvalidResponse as error:
            self._end(error)
        if self._waiting and self._urgent and wire is self._wire:
            self._send()

    def resumed(self, wire: Wire) -> None:
        """Goes on sending."""
        if wire is self._wire:
            self._send()

    def lost(self, wire: Wire) -> None:
        """Notes that the connection is gone."""
        if wire is self._wire:
            self._end(ConnectionError("the server closed the connection"))

    # --- inside -----------------------------------------------------------------------------------

    def _linger(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._wire is None:
            self._wake()
        elif self._lingering is None and not self._leaving:
            self._lingering = loop.call_later(LINGER, self._lingered)

    def _lingered(self) -> None:
        self._lingering = None
        self.hurry()

    def _wake(self) -> None:
        self._urgent = True
        if self._wire is None:
            if self._opening is None:
                self._opening = self._background(self._open())
        elif not self._leaving:
            if self._sent:
                self._leaving = True
                self._running_loop().call_soon(self._send)
            else:
                self._send()

    def _send(self) -> None:
        """Sends what waits, in packets that callers share."""
        self._leaving = False
        wire = self._wire
        if wire is not None and wire.closing:
            self._end(ConnectionError("the server closed the connection"))
            return
        while wire is not None and self._waiting and len(self._sent) < WINDOW and not wire.paused:
            packets, size = [], 0
            while self._waiting and size < PIECE and len(self._sent) < WINDOW:
                if (call := self._next()) is None:
                    break
                packets.append(call.packet)
                size += len(call.packet)
                call.packet = b""
            if packets:
                wire.write(packets[0] if len(packets) == 1 else b"".join(packets))
        self._urgent = bool(self._waiting)

    async def _open(self) -> None:
        """Opens the connection and sends what has come meanwhile, the question who answers first."""
        connection = None
        try:
            async with asyncio.timeout(self._timeout):
                connection = self._dial()
                await connection.connect()  # type: ignore[no-untyped-call]
                if await connection.can_read():
                    raise ConnectionError("the server spoke unasked")
            wire = Wire(self, connection)
        except BaseException as error:
            self._opening = None
            if isinstance(error, Exception):
                self._fail_waiting(error)
            if connection is not None:
                await hang_up(connection)
            if not isinstance(error, Exception):
                raise
            return
        self._opening = None
        self._wire = wire
        wire.write(self._greeting(asyncio.get_running_loop().time()).packet)
        self._send()

    def _end(self, error: Exception) -> None:
        wire, self._wire = self._wire, None
        self._fail_sent(error)
        if wire is not None:
            wire.abort()
            self._background(wire.end())
        if self._waiting:
            self._wake()

    def _forget(self) -> None:
        super()._forget()
        self._wire = self._opening = self._lingering = None
        self._leaving = self._urgent = False

    def _stop(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None


async def hang_up(connection: AbstractConnection) -> None:
    """Closes a connection of redis-py's, whatever state it is in."""
    # Should it fail, it is closed all the same.
    with contextlib.suppress(*FAULTS):
        await connection.disconnect()
