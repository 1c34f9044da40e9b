"""What one lookup sends to a server of Redis, and what the replies say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from ..records import ScopeKey
from ..untracked import untrack
from . import fields, keys
from .base import Lookup, Unavailable
from .queue import Call
from .resp import Command, Packed
from .scripts import script


class Reads(NamedTuple):
    """The server's time, then each entry: of a session the `newest` events, perhaps out of the `whole`.

    `seen`: for each entry its last reply, and what it said.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    newest: int | None
    whole: bool
    commands: Packed
    seen: list[tuple[Any, fields.Entry]]

    @property
    def with_text(self) -> Packed:
        """The commands for a server that does not know the script."""
        text = script("tail").text
        sent: list[Command] = []
        for command in self.commands:
            sent.append(("EVAL", text, *command[2:]) if command[0] == "EVALSHA" else command)
        return Packed(sent, bulk=self.commands.bulk)

    def some(self, names: Sequence[str]) -> Reads:
        """Returns the reads of those entries that one server holds."""
        kinds = dict(zip(self.names, self.kinds, strict=True))
        return _reads(tuple(names), tuple(kinds[name] for name in names), self.newest, self.whole)

    def found(self, stamp: str, replies: Sequence[Any]) -> tuple[Lookup, ...]:
        """Returns what the server of this stamp says by its replies."""
        clock = replies[0]
        if isinstance(clock, ResponseError):
            return (Unavailable(reason(clock)),) * len(self.names)
        now, seen = time_of(clock), self.seen
        looked: list[Lookup] = []
        for position, kind in enumerate(self.kinds):
            # What is hot and not changed answers with the same bytes, and need not be read again.
            reply, (last, entry) = replies[position + 1], seen[position]
            if reply != last:
                refused = refusal(reply)
                if refused is not None:
                    looked.append(refused)
                    continue
                entry = fields.read(reply, self.newest, self.whole and kind == "session")
                content = entry.small
                if content is not None:
                    pair = seen[position] = reply, entry
                    for part in (pair, reply, entry, content, content.tag):
                        untrack(part)
            looked.append(entry.shown(now, stamp))
        return tuple(looked)

    def failed(self, error: BaseException) -> tuple[Lookup, ...]:
        """Returns what is known when the server did not serve."""
        return (Unavailable(reason(error)),) * len(self.names)


def reads(namespace: str, scopes: tuple[ScopeKey, ...], newest: int | None, whole: bool) -> Reads:
    """Returns what reads the entries of `scopes`."""
    names = tuple(keys.entry_key(namespace, scope) for scope in scopes)
    return _reads(names, tuple(scope.kind for scope in scopes), newest, whole)


reads_again: Final = lru_cache(4096)(reads)
"""Remembers what it has returned."""


def _reads(names: tuple[str, ...], kinds: tuple[str, ...], newest: int | None, whole: bool) -> Reads:
    commands: list[Command] = [("TIME",)]
    for name, kind in zip(names, kinds, strict=True):
        commands.append(fields.words(name, kind, newest, whole))
    packed = Packed(commands, bulk=newest != 0)
    made = Reads(names, kinds, newest, whole, packed, [(None, fields.NOTHING)] * len(names))
    for part in (made, packed, made.seen):
        untrack(part)
    return made


class Looked(Call):
    """A lookup that nobody awaits yet: `taker` makes the future's result of what was found."""

    __slots__ = ("_taker", "_wanted")

    def __init__(self, wanted: Reads, taker: Callable[[Any], Any]) -> None:
        commands = wanted.commands
        super().__init__(None, commands.packet, len(commands))
        self._wanted = wanted
        self._taker = taker

    def answer(self, stamp: str) -> None:
        if self.left:
            return
        try:
            found = self._wanted.found(stamp, self.replies)
        except (ValueError, TypeError, IndexError):
            found = (Unavailable("the reply is not one to a lookup"),) * len(self._wanted.names)
        self._take(found)

    def fail(self, error: Exception) -> None:
        self._take(self._wanted.failed(error))

    def _take(self, found: tuple[Lookup, ...]) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(self._taker(found))


def time_of(reply: Any) -> int:
    """Returns the reply to TIME in ms."""
    return int(reply[0]) * 1000 + int(reply[1]) // 1000


def refusal(reply: Any) -> Unavailable | None:
    """Returns what an error reply means, None for any other."""
    return Unavailable(reason(reply)) if isinstance(reply, ResponseError) else None


def reason(error: BaseException) -> str:
    """Returns why the server did not serve.

    A server's message may quote arguments, a client's may show its settings: both stay out, but
    for an error code and the plain troubles of a connection.
    """
    name = type(error).__name__
    if type(error) in (ConnectionError, TimeoutError) and str(error):
        return f"{name}: {error}"
    code = re.match(r"[A-Z]{2,}\b", str(error)) if isinstance(error, ResponseError) else None
    return f"{name}: {code[0]}" if code else name
