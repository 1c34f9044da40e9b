"""A TCP relay in front of a real server: counts round trips, names commands, makes faults.

A *flight* is what a client sends before it hears from the server again: one round trip, however
many packets or pipelined commands it holds. Commands are read off the wire for PostgreSQL, MariaDB
and Redis, so that a test can tell an append's statement from a BEGIN, a ping or a pool's greeting.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self
from urllib.parse import urlsplit

from tests.servers import with_port

SSL_REQUEST = struct.pack("!II", 8, 80877103)


@dataclass
class Flight:
    """What one client sent in one go.

    Attributes:
        connection: Number of the connection, from 0.
        commands: SQL texts or Redis commands executed, in order; a prepared statement shows the
            text it was made from. Protocol steps without execution are in angle brackets.
        size: Bytes sent.
    """

    connection: int
    commands: list[str] = field(default_factory=list)
    size: int = 0


class Reader(Protocol):
    """Takes what a client sends, in pieces, and returns the commands that became complete."""

    def feed(self, data: bytes) -> list[str]: ...


class PostgresqlReader:
    """Reads the frontend messages of PostgreSQL's protocol 3."""

    def __init__(self) -> None:
        self._buffer = b""
        self._greeted = False
        self._prepared: dict[bytes, str] = {}
        self._bound = ""

    def feed(self, data: bytes) -> list[str]:
        self._buffer += data
        commands: list[str] = []
        while True:
            # Only the first messages of a connection come without a type byte.
            offset = 1 if self._greeted else 0
            if len(self._buffer) < offset + 4:
                return commands
            (length,) = struct.unpack_from("!I", self._buffer, offset)
            if len(self._buffer) < offset + length:
                return commands
            kind = self._buffer[:offset]
            body = self._buffer[offset + 4 : offset + length]
            self._buffer = self._buffer[offset + length :]
            if not self._greeted:
                self._greeted = body[:4] == struct.pack("!I", 0x00030000)
                commands.append("<startup>")
                continue
            command = self._message(kind, body)
            if command is not None:
                commands.append(command)

    def _message(self, kind: bytes, body: bytes) -> str | None:
        if kind == b"Q":
            return body.rstrip(b"\0").decode()
        if kind == b"P":
            name, text = body.split(b"\0")[:2]
            self._prepared[name] = text.decode()
            return f"<prepare> {text.decode()}"
        if kind == b"B":
            self._bound = self._prepared.get(body.split(b"\0")[1], "")
            return None
        return self._bound if kind == b"E" else {b"p": "<password>", b"X": "<quit>"}.get(kind)


MYSQL_COMMANDS = {1: "<quit>", 14: "<ping>", 22: "<prepare>", 23: "<execute>", 31: "<reset>"}


class MysqlReader:
    """Reads the command packets of MySQL's protocol: texts of queries, names of the rest."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[str]:
        self._buffer += data
        commands: list[str] = []
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:3], "little")
            if len(self._buffer) < 4 + length:
                break
            number, body = self._buffer[3], self._buffer[4 : 4 + length]
            self._buffer = self._buffer[4 + length :]
            if number:
                commands.append("<startup>")
            elif body[:1] == b"\x03":
                commands.append(body[1:].decode(errors="replace"))
            else:
                commands.append(MYSQL_COMMANDS.get(body[0], f"<{body[0]}>"))
        return commands


class RedisReader:
    """Reads arrays of bulk strings: a command with its first argument."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[str]:
        self._buffer += data
        commands: list[str] = []
        while (parsed := self._array()) is not None:
            words, used = parsed
            self._buffer = self._buffer[used:]
            commands.append(b" ".join([words[0].upper(), *words[1:2]]).decode(errors="replace"))
        return commands

    def _array(self) -> tuple[list[bytes], int] | None:
        head, found, _ = self._buffer.partition(b"\r\n")
        if not found:
            return None
        position = len(head) + 2
        words = []
        for _ in range(int(head[1:])):
            end = self._buffer.find(b"\r\n", position)
            if end < 0:
                return None
            length = int(self._buffer[position + 1 : end])
            position = end + 2 + length + 2
            if len(self._buffer) < position:
                return None
            words.append(self._buffer[end + 2 : end + 2 + length])
        return words, position


READERS: dict[str, Callable[[], Reader]] = {
    "postgresql": PostgresqlReader,
    "mysql": MysqlReader,
    "redis": RedisReader,
}
PORTS = {"postgresql": 5432, "mysql": 3306, "redis": 6379}
# What keeps a connection usable and is no work of the call: counted apart.
UPKEEP = ["BEGIN", "ROLLBACK", "COMMIT", "START TRANSACTION", "PING", "HELLO", "CLIENT", "AUTH", "INFO"]


def is_upkeep(command: str) -> bool:
    """Returns whether a command is transaction control, a ping or a greeting."""
    text = command.upper().rstrip("; ")
    return text.startswith("<") or any(text == word or text.startswith(f"{word} ") for word in UPKEEP)


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
        self._connections.clear()

    def swallow_next_reply(self) -> None:
        """Loses the server's next reply and cuts its connection: the command ran, nobody knows."""
        self._swallow = True

    # -- plumbing --

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuse:
            reset(writer)
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
            await asyncio.sleep(delay)
        await self._open[direction].wait()

    async def _hold_back(self, direction: str, flight: Flight) -> None:
        text = self._hold[direction]
        if text and any(text in command for command in flight.commands if not is_upkeep(command)):
            self.held.append(flight)
            async with self.arrived:
                self.arrived.notify_all()
            await self._released.wait()

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
                    self._relay.flights.append(self._flight)
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
                    break
                await self._relay._hold_back("reply", self._flight)
                await self._relay._pass("reply", self._relay.reply_delay)
                self._answered = True
                self._client.write(data)
                await self._client.drain()
        self._close()

    def _close(self) -> None:
        for writer in (self._client, self._server):
            self._relay._connections.discard(writer)
            writer.close()
