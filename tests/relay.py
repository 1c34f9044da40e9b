"""A TCP relay in front of a real server: counts round trips, names commands, makes faults.

A *flight* is what a client sends before it hears from the server again: one round trip, however
many packets or pipelined commands it holds. Commands are read off the wire for PostgreSQL, MariaDB
and Redis, so that a test can tell an append's statement from a BEGIN, a ping or a pool's greeting.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from tests.servers import with_port
from tests.wire import READERS, Reader, is_upkeep

PORTS = {"postgresql": 5432, "mysql": 3306, "redis": 6379}
SSL_REQUEST = struct.pack("!II", 8, 80877103)
# A relay that runs for hours forgets its oldest flights.
FLIGHTS = 100_000


@dataclass
class Flight:
    """What one client sent in one go.

    Attributes:
        connection: Number of the connection, from 0.
        commands: SQL texts or Redis commands executed, in order; a prepared statement shows the
            text it was made from. Protocol steps without execution are in angle brackets.
        size: Bytes sent.
        answered: Whether a reply was passed on.
    """

    connection: int
    commands: list[str] = field(default_factory=list)
    size: int = 0
    answered: bool = False


def reset(writer: asyncio.StreamWriter) -> None:
    """Cuts a connection at once; the other end sees a TCP reset, not an orderly end."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Relay:
    """Passes bytes between clients and the server of a URL; `async with` opens and closes it.

    Attributes:
        url: The server's URL, leading through the relay.
        flights: Everything clients sent, by round trip, in order.
        held: Flights that `hold_requests()` or `hold_replies()` holds back now.
        injected: How often each fault met traffic: "delayed", "held", "swallowed", "refused", "reset".
        request_delay: Seconds each piece waits on its way to the server.
        reply_delay: Seconds each piece waits on its way back.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        kind = parts.scheme.partition("+")[0]
        self._reader = READERS[kind]
        self._original = url
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or PORTS[kind]
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = {"request": asyncio.Event(), "reply": asyncio.Event()}
        self._released = asyncio.Event()
        self._swallow = False
        self._refuse = False
        self._hold = {"request": "", "reply": ""}
        self._numbers = iter(range(1_000_000))
        self.arrived = asyncio.Condition()
        self.url = ""
        self.flights: list[Flight] = []
        self.held: list[Flight] = []
        self.injected: Counter[str] = Counter()
        self.request_delay = 0.0
        self.reply_delay = 0.0
        self.heal()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = with_port(self._original, self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.reset_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what was seen --

    def commands(self) -> list[str]:
        """Returns the commands that did a call's work, in order."""
        return [c for flight in self.flights for c in flight.commands if not is_upkeep(c)]

    def upkeep(self) -> list[str]:
        """Returns BEGIN, COMMIT, ROLLBACK, pings, greetings and preparations, in order."""
        return [c for flight in self.flights for c in flight.commands if is_upkeep(c)]

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Flight]]:
        """Yields the list that fills with the flights sent from now on."""
        self.flights = []
        yield self.flights

    async def wait_for(self, seen: Callable[[list[Flight]], bool]) -> None:
        """Returns once the recorded flights satisfy `seen`."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: seen(self.flights))

    async def until(self, reached: Callable[[], bool]) -> None:
        """Returns once `reached` is true, looking after each flight and each fault that met one."""
        async with self.arrived:
            await self.arrived.wait_for(reached)

    # -- faults --

    def black_hole(self, *, requests: bool = True, replies: bool = True) -> None:
        """Holds everything back in the chosen directions; connections stay open."""
        for direction, held in (("request", requests), ("reply", replies)):
            if held:
                self._open[direction].clear()

    def hold_requests(self, to: str) -> None:
        """Holds back each command that contains `to`: it does not run, its client waits."""
        self._hold["request"] = to
        self._released.clear()

    def hold_replies(self, to: str) -> None:
        """Holds back the reply to each command that contains `to`: it ran, its client waits."""
        self._hold["reply"] = to
        self._released.clear()

    def heal(self) -> None:
        """Ends black hole, holding and refusal; what was held back is delivered."""
        self._refuse = False
        self._hold = {"request": "", "reply": ""}
        self.held = []
        for event in (*self._open.values(), self._released):
            event.set()

    def refuse(self) -> None:
        """Cuts every connection and each new one at once, until `heal()`."""
        self._refuse = True
        self.reset_all()

    def reset_all(self) -> None:
        """Cuts every open connection with a TCP reset."""
        for writer in self._connections:
            reset(writer)
        self.injected["reset"] += len(self._connections) // 2
        self._connections.clear()

    def swallow_next_reply(self) -> None:
        """Loses the server's next reply and cuts its connection: the command ran, nobody knows."""
        self._swallow = True

    # -- plumbing --

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuse:
            reset(writer)
            await self._met("refused")
            return
        try:
            upstream, upstream_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            reset(writer)
            return
        link = Link(self, next(self._numbers), self._reader(), writer, upstream_writer)
        self._connections |= {writer, upstream_writer}
        for coroutine in (link.requests(reader), link.replies(upstream)):
            task = asyncio.ensure_future(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, direction: str, delay: float) -> None:
        if delay:
            await self._met("delayed")
            await asyncio.sleep(delay)
        if not self._open[direction].is_set():
            await self._met("held")
            await self._open[direction].wait()

    async def _met(self, fault: str) -> None:
        self.injected[fault] += 1
        async with self.arrived:
            self.arrived.notify_all()

    async def _hold_back(self, direction: str, flight: Flight) -> None:
        text = self._hold[direction]
        # From the beginning of a word: COMMIT is not the end of AUTOCOMMIT.
        wanted = re.compile(rf"(?<!\w){re.escape(text)}")
        if text and any(wanted.search(c) for c in flight.commands if not c.startswith("<")):
            self.held.append(flight)
            await self._met("held")
            await self._released.wait()

    def _remember(self, flight: Flight) -> None:
        if len(self.flights) >= FLIGHTS:
            del self.flights[: FLIGHTS // 2]
        self.flights.append(flight)

    async def _record(self, flight: Flight, commands: list[str], size: int) -> None:
        flight.commands += commands
        flight.size += size
        async with self.arrived:
            self.arrived.notify_all()


class Link:
    """One client's connection through a relay."""

    def __init__(
        self,
        relay: Relay,
        number: int,
        reader: Reader,
        client: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
    ) -> None:
        self._relay = relay
        self._number = number
        self._reader = reader
        self._client = client
        self._server = server
        self._answered = True
        self._flight = Flight(number)

    async def requests(self, reader: asyncio.StreamReader) -> None:
        """Carries the client's bytes to the server until either goes away."""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if data == SSL_REQUEST:
                    # The relay reads what passes, so it declines encryption in the server's name.
                    self._client.write(b"N")
                    continue
                if self._answered:
                    self._flight = Flight(self._number)
                    self._relay._remember(self._flight)
                    self._answered = False
                await self._relay._record(self._flight, self._reader.feed(data), len(data))
                await self._relay._hold_back("request", self._flight)
                await self._relay._pass("request", self._relay.request_delay)
                self._server.write(data)
                await self._server.drain()
        self._close()

    async def replies(self, reader: asyncio.StreamReader) -> None:
        """Carries the server's bytes to the client until either goes away."""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._relay._swallow:
                    self._relay._swallow = False
                    reset(self._client)
                    await self._relay._met("swallowed")
                    break
                await self._relay._hold_back("reply", self._flight)
                await self._relay._pass("reply", self._relay.reply_delay)
                self._answered = self._flight.answered = True
                self._client.write(data)
                await self._client.drain()
        self._close()

    def _close(self) -> None:
        for writer in (self._client, self._server):
            self._relay._connections.discard(writer)
            writer.close()
