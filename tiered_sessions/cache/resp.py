"""The wire format of Redis: commands to bytes, bytes to replies (RESP 2 and 3).

hiredis reads the replies where it is installed. Without it a reader of our own does: redis-py's
awaits each element, and takes five times as long for the reply to one lookup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, Final, Protocol

from redis.asyncio.connection import DefaultParser
from redis.exceptions import InvalidResponse

hiredis: ModuleType | None
try:
    import hiredis
except ImportError:
    hiredis = None
if not hasattr(hiredis, "PushNotification"):  # before 3.2 it did not tell them from replies
    hiredis = None

Command = tuple[str | bytes | int, ...]

_LENGTHS: Final = [b"\r\n$%d\r\n" % length for length in range(1024)]

MISSING: Final = object()
"""What a reader returns while the next reply is not complete."""


class Push(list[Any]):
    """A message of the server's that answers no command (RESP 3)."""


class Reader(Protocol):
    """Takes bytes in pieces of any size and gives replies."""

    def feed(self, data: bytes, /) -> object:
        """Takes what has arrived."""
        ...

    def gets(self) -> Any:
        """Returns the next reply, an error as an exception; `MISSING` if it is not complete.

        Raises:
            InvalidResponse: This is not RESP. The reader is of no use any more.
        """
        ...


def pack(commands: Iterable[Command]) -> bytes:
    """Returns `commands` as a server reads them."""
    return b"".join(map(pack_one, commands))


def pack_in_python(command: Command) -> bytes:
    """Does for one command what hiredis does."""
    pieces = [b"*%d" % len(command)]
    for word in command:
        if not isinstance(word, bytes):
            word = word.encode() if isinstance(word, str) else b"%d" % word
        length = len(word)
        pieces.append(_LENGTHS[length] if length < len(_LENGTHS) else b"\r\n$%d\r\n" % length)
        pieces.append(word)
    pieces.append(b"\r\n")
    return b"".join(pieces)


pack_one: Final[Callable[[Command], bytes]] = pack_in_python if hiredis is None else hiredis.pack_command
"""Returns one command as a server reads it."""


class Packed(list[Command]):
    """Commands and, once they were sent, their bytes: they may be sent again.

    `bulk`: they carry whole entries, behind whose bytes what is small need not wait.
    """

    __slots__ = ("_packet", "bulk")

    def __init__(self, commands: Iterable[Command], *, bulk: bool = False) -> None:
        super().__init__(commands)
        self.bulk = bulk
        self._packet: bytes | None = None

    @property
    def packet(self) -> bytes:
        """The commands as they are sent."""
        packet = self._packet
        if packet is None:
            packet = self._packet = pack(self)
        return packet


def error(text: bytes | str) -> Exception:
    """Returns the exception of redis-py that an error reply stands for."""
    words = text if isinstance(text, str) else text.decode(errors="replace")
    found: Exception = DefaultParser.parse_error(words)  # type: ignore[no-untyped-call]
    return found


_LINES: Final[dict[int, Callable[[bytes], Any]]] = {
    ord("+"): bytes,
    ord("-"): error,
    ord(":"): int,
    ord("("): int,
    ord(","): float,
    ord("#"): b"t".__eq__,
    ord("_"): lambda line: None,
}
_BULKS: Final[dict[int, Callable[[bytes], Any]]] = {
    ord("$"): bytes,
    ord("!"): error,
    ord("="): lambda text: text[4:],
}
_NESTS: Final[dict[int, Callable[[list[Any]], Any]]] = {
    ord("*"): list,
    ord("~"): list,
    ord(">"): Push,
    ord("%"): lambda items: dict(zip(items[::2], items[1::2], strict=True)),
}


class PythonReader:
    """A `Reader` without hiredis.

    A reply that arrives in pieces is read on where the last piece ended: never twice.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._position = 0
        # What is begun and not complete, outermost first: kind, number of items, items.
        self._nests: list[tuple[int, int, list[Any]]] = []

    def feed(self, data: bytes, /) -> None:
        self._buffer = self._buffer[self._position :] + data
        self._position = 0

    def gets(self) -> Any:
        buffer, nests = self._buffer, self._nests
        value: Any
        try:
            while (end := buffer.find(b"\r\n", self._position)) >= 0:
                kind, line = buffer[self._position], buffer[self._position + 1 : end]
                after = end + 2
                if kind in _BULKS:
                    size = int(line)
                    if size >= 0:
                        stop = after + size
                        if len(buffer) < stop + 2:
                            break
                        value = _BULKS[kind](buffer[after:stop])
                        after = stop + 2
                    else:  # the null of RESP 2
                        value = None
                elif kind in _NESTS:
                    size = int(line) * (2 if kind == ord("%") else 1)
                    if size > 0:
                        nests.append((kind, size, []))
                        self._position = after
                        continue
                    value = _NESTS[kind]([]) if size == 0 else None
                else:
                    value = _LINES[kind](line)
                self._position = after
                while nests:
                    kind, size, items = nests[-1]
                    items.append(value)
                    if len(items) < size:
                        break
                    value = _NESTS[kind](items)
                    nests.pop()
                else:
                    return value
        except (ValueError, KeyError, TypeError):
            raise InvalidResponse("what the server sends is not RESP") from None
        return MISSING


def new_reader() -> Reader:
    """Returns the fastest reader there is."""
    if hiredis is None:
        return PythonReader()
    reader: Reader = hiredis.Reader(protocolError=InvalidResponse, replyError=error, notEnoughData=MISSING)
    return reader


PUSH: Final[type] = Push if hiredis is None else hiredis.PushNotification
"""The type of what answers no command, as `new_reader()` gives it."""
