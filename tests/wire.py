"""Reads commands off the wire: the client's half of PostgreSQL's, MariaDB's and Redis' protocols."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol


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
# What keeps a connection usable and is no work of the call: counted apart.
UPKEEP = ["BEGIN", "ROLLBACK", "COMMIT", "START TRANSACTION", "PING", "HELLO", "CLIENT", "AUTH"]
UPKEEP += ["INFO", "SCRIPT LOAD"]


def is_upkeep(command: str) -> bool:
    """Returns whether a command is transaction control, a ping or a greeting."""
    text = command.upper().rstrip("; ")
    if text.startswith("BEGIN NOT ATOMIC"):  # MariaDB's compound statement
        return False
    return text.startswith("<") or any(text == word or text.startswith(f"{word} ") for word in UPKEEP)
