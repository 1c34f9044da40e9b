"""Callers whose appends share a statement, and who leave half-way: everything holds for those who stay.

One server, whose one connection is in use when three callers come; each leaves at each of many moments:
waiting for a seat, called, masking, waiting for the others, while the statement runs, after it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from tests.protocol.faulty import Fault, FaultyStore, Plan
from tests.protocol.fleet_strategies import KEYS
from tests.protocol.mutations import edit
from tests.protocol.test_stateful import Fleet
from tiered_sessions.records import Create, Kind, Query, SessionKey
from tiered_sessions.store.groups import Batch, Groups

# The first has the connection. Of the others one comes too late for its session, which the first changes.
CALLS = [(0.0, KEYS[0], 0), (0.001, KEYS[0], 0), (0.001, KEYS[1], 0), (0.001, KEYS[1], 0)]
STEP = 0.0006
MOMENTS = 16

FAULTS = [
    {},
    {("write", 1): Fault("locked")},
    {("write", 1): Fault("down")},
    {("write", 1): Fault("cut")},
    {("write", 1): Fault("later", 0.01)},
    {("intent", 1): Fault("never")},
    {("intent", 2): Fault("refused"), ("intent", 3): Fault("slow", 0.03)},
]


def right(_: pytest.MonkeyPatch) -> None: ...


def crowd(
    faults: dict[tuple[str, int], Fault],
    *leaves: tuple[float, int],
    wrong: Callable[[pytest.MonkeyPatch], None] = right,
) -> None:
    fleet = Fleet()
    try:
        fleet.begin(30.0, True, True, 200)
        with pytest.MonkeyPatch.context() as monkeypatch:
            wrong(monkeypatch)
            fleet.look_around(0)
            fleet.crowd(1, CALLS, list(leaves), Plan({("write", 0): Fault("slow", 0.002), **faults}))
            # Whoever comes later finds a connection.
            fleet.append(1, KEYS[1], 0, 1, False, set(), Plan(), None)
            fleet.look_around(0)
    finally:
        fleet.teardown()


def test_they_share_a_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    together = FaultyStore.write_together

    def noted(self: FaultyStore, kind: Kind, writes: list[object], inner: object) -> object:
        sizes.append(len(writes))
        return together(self, kind, writes, inner)  # type: ignore[arg-type]

    monkeypatch.setattr(FaultyStore, "write_together", noted)
    crowd({})
    assert sizes == [2]


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_whoever_leaves_at_any_moment(faults: dict[tuple[str, int], Fault]) -> None:
    _leaving(faults, right)


def _leaving(faults: dict[tuple[str, int], Fault], wrong: Callable[[pytest.MonkeyPatch], None]) -> None:
    for moment in range(MOMENTS):
        crowd(faults, (moment * STEP, moment % 4), wrong=wrong)
        crowd(faults, (moment * STEP, 1), (moment * STEP, 2), wrong=wrong)


def lives(faults: dict[tuple[str, int], Fault], *leaves: tuple[float, int]) -> list[tuple[str, int]]:
    """Sessions end, and others begin, by statements that are shared; returns those statements."""
    fleet, statements = Fleet(), []
    together = FaultyStore.write_together

    def noted(self: FaultyStore, kind: Kind, writes: list[object], inner: object) -> object:
        statements.append((kind, len(writes)))
        return together(self, kind, writes, inner)  # type: ignore[arg-type]

    try:
        fleet.begin(30.0, True, True, 200)
        fleet.look_around(0)
        here = fleet.world.servers[1]
        new = [SessionKey("app", user, "c") for user in ("user", "other", "user")]
        works = [
            *(partial(here.delete, key) for key in (KEYS[0], KEYS[0], KEYS[1], KEYS[1])),
            *(partial(here.create, Create(key, 1, b"{}")) for key in new),
        ]
        starts = [
            (0.0 if number in (0, 4) else 0.001, lambda work=work: here.start(work()))
            for number, work in enumerate(works)
        ]
        fleet.world.plan = Plan({("write", 0): Fault("slow", 0.002), **faults})
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(FaultyStore, "write_together", noted)
            fleet.meet(starts, list(leaves))
        for key in (*KEYS, *new[:2]):
            fleet.call(0, lambda server, key=key: server.read(key, Query()), Plan(), None)
        fleet.look_around(0)
    finally:
        fleet.teardown()
    return statements


def test_lives_share_statements() -> None:
    assert ("delete", 2) in lives({}), "of a key that is there twice one goes alone"
    assert ("create", 2) in lives({("write", 1): Fault("slow", 0.002)})


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_whoever_leaves_a_deletion_or_a_create(faults: dict[tuple[str, int], Fault]) -> None:
    for moment in range(MOMENTS):
        lives(faults, (moment * STEP, moment % 7))
        lives(faults, (moment * STEP, 1), (moment * STEP, 5))


@pytest.mark.parametrize(
    ("owner", "function", "old", "new"),
    [
        (Groups, "_pass_on", "self._free += 1", "pass"),
        (Batch, "bring", " or key in self._brought", ""),
        (Batch, "answer", "future.set_result(outcome)", "pass"),
    ],
    ids=["a connection that comes free", "one session twice", "each is answered"],
)
def test_it_is_red_without(owner: type, function: str, old: str, new: str) -> None:
    with pytest.raises(AssertionError):
        _leaving({}, edit(owner, function, old, new))
