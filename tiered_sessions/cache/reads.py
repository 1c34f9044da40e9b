"""What one lookup sends to a server of Redis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from ..records import ScopeKey
from . import fields, keys
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


def reads(namespace: str, scopes: tuple[ScopeKey, ...], newest: int | None, whole: bool) -> Reads:
    """Returns what reads the entries of `scopes`."""
    # Of a session that is hot the header is read again and again, all of it once.
    return (_again if newest == 0 else _once)(namespace, scopes, newest, whole)


def _once(namespace: str, scopes: tuple[ScopeKey, ...], newest: int | None, whole: bool) -> Reads:
    names = tuple(keys.entry_key(namespace, scope) for scope in scopes)
    return _reads(names, tuple(scope.kind for scope in scopes), newest, whole)


_again: Final = lru_cache(4096)(_once)


def _reads(names: tuple[str, ...], kinds: tuple[str, ...], newest: int | None, whole: bool) -> Reads:
    commands: list[Command] = [("TIME",)]
    for name, kind in zip(names, kinds, strict=True):
        commands.append(fields.words(name, kind, newest, whole))
    packed = Packed(commands, bulk=newest != 0)
    return Reads(names, kinds, newest, whole, packed, [(None, fields.NOTHING)] * len(names))
