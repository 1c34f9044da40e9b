"""The calls that the processes of a scenario make, one after the other."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

from tests.protocol.explorer.sql import FIRST, KEY, Foreign
from tests.protocol.explorer.state import Calls, Program
from tiered_sessions.records import Append, Create, NewEvent, Query, Unknown
from tiered_sessions.tier.steps import Answer, Delete, Send, Wait

What = Literal["event", "state", "no user"]

# --- what programs yield besides the protocol's steps ------------------------------------------


class Begins(NamedTuple):
    """A call begins."""


class Answered(NamedTuple):
    """A read returned."""

    answer: Answer
    query: Query


class Returned(NamedTuple):
    """A write returned."""

    outcome: Any


# --- programs ----------------------------------------------------------------------------------


def _reading(query: Query, calls: Calls) -> Generator[Any, Any, Answer]:
    yield Begins()
    answer: Answer = yield from calls.protocol.read(KEY, query, calls.rules)
    yield Answered(answer, query)
    return answer


def _reads(times: int, query: Query, calls: Calls) -> Generator[Any, Any, None]:
    for _ in range(times):
        yield from _reading(query, calls)


def _delta(name: str, user: bool) -> bytes | None:
    return b'{"by":"%s"}' % name.encode() if user else None


def _turn(name: str, query: Query, user: bool, retry: bool, calls: Calls) -> Generator[Any, Any, None]:
    answer = yield from _reading(query, calls)
    if answer.snapshot is None:
        return
    event = NewEvent(name, "i", 1, b"{}")
    operation = Append(KEY, answer.snapshot.session.tag, 0, (event,), user_delta=_delta(name, user))
    del answer
    for _ in range(2 if retry else 1):
        yield Begins()
        outcome = yield from calls.protocol.append(operation, calls.rules)
        yield Returned(outcome)
        if not isinstance(outcome, Unknown):
            break


def _append(name: str, compare: bool, user: bool, calls: Calls) -> Generator[Any, Any, None]:
    yield Begins()
    expected = FIRST.tag(KEY.session) if compare else None
    operation = Append(KEY, expected, 0, (NewEvent(name, "i", 1, b"{}"),), user_delta=_delta(name, user))
    outcome = yield from calls.protocol.append(operation, calls.rules)
    yield Returned(outcome)


def _delete(calls: Calls) -> Generator[Any, Any, None]:
    yield Begins()
    outcome = yield from calls.protocol.delete(Delete(KEY), calls.rules)
    yield Returned(outcome)


def _create(user: bool, calls: Calls) -> Generator[Any, Any, None]:
    yield Begins()
    operation = Create(KEY, 0, b"{}", user_delta=_delta("c", user))
    outcome = yield from calls.protocol.create(operation, calls.rules)
    yield Returned(outcome)


def _drain(times: int, calls: Calls) -> Generator[Any, Any, None]:
    for _ in range(times):
        yield Begins()
        yield from calls.chores.drain()


def _sweep(calls: Calls) -> Generator[Any, Any, None]:
    yield Begins()
    yield from calls.chores.sweep(calls.rules)


def _foreign(name: str, what: What, calls: Calls) -> Generator[Any, Any, None]:
    handle = yield Send(Foreign(name, what))  # type: ignore[arg-type]
    yield Wait((handle,))


def _apart(program: Program, calls: Calls) -> Generator[Any, Any, None]:
    yield from program(calls._replace(rules=replace(calls.rules, cached=False)))


def _sequence(parts: tuple[Program, ...], calls: Calls) -> Generator[Any, Any, None]:
    for part in parts:
        yield from part(calls)


def read(times: int = 1, *, limit: int | None = None, after: int | None = None) -> Program:
    """Reads the session, or the newest of its events; those of the first state have the time 0."""
    return partial(_reads, times, Query(limit, after))


def turn(name: str, *, limit: int | None = None, user: bool = False, retry: bool = False) -> Program:
    """Reads, then appends to what was read; `retry`: once more if the outcome was not told."""
    return partial(_turn, name, Query(limit), user, retry)


def append(name: str, *, compare: bool = True, user: bool = False) -> Program:
    """Appends to the session as it was at first, without reading it; or as it is."""
    return partial(_append, name, compare, user)


def delete() -> Program:
    """Deletes the session."""
    return _delete


def create(*, user: bool = False) -> Program:
    """Creates the session."""
    return partial(_create, user)


def drain(times: int = 1) -> Program:
    """Drains the outbox."""
    return partial(_drain, times)


def sweep() -> Program:
    """Deletes the session if it has expired."""
    return _sweep


def foreign(name: str, what: What = "event") -> Program:
    """Writes as another program does, unknown to the cache."""
    return partial(_foreign, name, what)


def apart(program: Program) -> Program:
    """Does it as a process with a private cache of its own: this cache never hears of it."""
    return partial(_apart, program)


def then(*parts: Program) -> Program:
    """Does one after the other."""
    return partial(_sequence, parts)
