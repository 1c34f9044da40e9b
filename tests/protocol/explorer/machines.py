"""Generators as values: a state of one is a number, and what a reply does to it is looked up.

A generator cannot be copied. Its state is named by the frames along `gi_yieldfrom`: code, position
and locals (the protocol keeps nothing else: no yield stands inside a comprehension, and every
iterator's place is told by its loop variable). A known move is looked up; a new one is made by a
generator that stands there, or by one that is fed all replies that led there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

ENDED = 0
"""The number of every generator that has returned."""


class Table:
    """Numbers values; equal values have one number."""

    def __init__(self) -> None:
        self._ids: dict[Hashable, int] = {}
        self.values: list[Any] = []

    def add(self, value: Any, name: Hashable = None) -> int:
        """Returns the number of `value`; `name` is what tells it from others, if not itself."""
        name = value if name is None else name
        number = self._ids.get(name)
        if number is None:
            number = self._ids[name] = len(self.values)
            self.values.append(value)
        return number


def freeze(value: Any) -> Hashable:
    """Returns a hashable value that is equal for equal contents (and tells True from 1)."""
    if isinstance(value, Mapping):
        return ("map", *((freeze(k), freeze(v)) for k, v in value.items()))
    if isinstance(value, tuple | list):
        return (type(value).__name__, *map(freeze, value))
    if isinstance(value, bool):
        return ("bool", value)
    if is_dataclass(value) and not isinstance(value, type) and type(value).__hash__ is None:
        return (type(value).__name__, *(freeze(getattr(value, f.name)) for f in fields(value)))
    hash(value)
    return value  # type: ignore[no-any-return]


class Move(NamedTuple):
    """What a reply makes of a generator: its next state and what it yields, or returns."""

    machine: int
    step: Any


class Machines:
    """All generator states met in one exploration."""

    def __init__(self) -> None:
        self._table = Table()
        self._table.add("ended")
        self._recipes: list[tuple[Callable[[], Any], tuple[Any, ...]]] = [(lambda: None, ())]
        self._standing: dict[int, Generator[Any, Any, Any]] = {}
        self._moves: dict[tuple[int, Hashable], Move] = {}

    def new(self, name: Hashable, make: Callable[[], Any]) -> int:
        """Returns the state of a generator made by `make` before its first step."""
        return self._name(("new", name), make, ())

    def move(self, machine: int, name: Hashable, reply: Any) -> Move:
        """Gives `reply`, named `name`, to the generator."""
        found = self._moves.get((machine, name))
        if found is None:
            found = self._moves[machine, name] = self._advance(machine, reply)
        return found

    def _advance(self, machine: int, reply: Any) -> Move:
        make, replies = self._recipes[machine]
        generator = self._standing.pop(machine, None)
        if generator is None:
            generator = make()
            for earlier in replies:
                generator.send(earlier)
        try:
            step = generator.send(reply)
        except StopIteration as stop:
            return Move(ENDED, stop.value)
        after = self._name(identity(generator), make, (*replies, reply))
        self._standing.setdefault(after, generator)
        return Move(after, step)

    def _name(self, identity: Hashable, make: Callable[[], Any], replies: tuple[Any, ...]) -> int:
        number = self._table.add(identity)
        if number == len(self._recipes):
            self._recipes.append((make, replies))
        return number


def identity(generator: Any) -> Hashable:
    """Returns what tells one state of a generator from another."""
    frames = []
    while generator is not None:
        frame = generator.gi_frame
        frames.append((id(frame.f_code), frame.f_lasti, freeze(frame.f_locals)))
        generator = generator.gi_yieldfrom
    return tuple(frames)
