"""The demo's checker: it must see each way in which a read can be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tiered_sessions.cli.demo_check import Read, Seen, State, Verdict, compare

LOG = [Seen("e1", "d1"), Seen("e2", "d2"), Seen("e3", "d3")]
STATES: list[State] = [
    {"n": 0, "user:lang": "de", "app:visits": 1},
    {"n": 1, "user:lang": "de", "app:visits": 1},
    {"n": 1, "user:lang": "da", "app:visits": 1},
    {"n": 2, "user:lang": "da", "app:visits": 2},
]


def read(count: int, acknowledged: int | None = None, **changes: Any) -> Read:
    """A right read of the first `count` events, with `changes`."""
    right = Read(
        server="A",
        turn=1,
        kind="after",
        phase="up",
        place="cache",
        ms=1.0,
        acknowledged=count if acknowledged is None else acknowledged,
        events=tuple(LOG[:count]),
        state=STATES[count],
    )
    return replace(right, **changes)


def check(
    *reads: Read, final: Sequence[Seen] = LOG, state: State = STATES[-1], appended: Sequence[Seen] = LOG
) -> Verdict:
    return compare(appended, STATES[: len(appended) + 1], reads, final, state)


def test_right_reads_are_clean() -> None:
    """Reads of every length, some of them newer than what was acknowledged when they began."""
    assert check(read(0), read(1), read(2), read(3), read(2, acknowledged=1)).clean


def test_a_missing_acknowledged_write_is_stale() -> None:
    verdict = check(read(2, acknowledged=3))
    assert len(verdict.stale) == 1
    assert "1 of 3 acknowledged events missing" in verdict.stale[0]


def test_an_acknowledged_event_that_sql_does_not_hold_is_lost() -> None:
    verdict = check(final=LOG[:2])
    assert len(verdict.lost) == 1
    assert "e3" in verdict.lost[0]


def test_an_acknowledged_event_stored_with_other_content_is_lost() -> None:
    assert check(final=[*LOG[:2], Seen("e3", "other")]).lost


@pytest.mark.parametrize(
    "final",
    [[LOG[1], LOG[0], LOG[2]], [*LOG, Seen("e4", "d4")], [*LOG, LOG[2]]],
    ids=["another order", "one more", "one twice"],
)
def test_sql_holding_something_else_is_different(final: list[Seen]) -> None:
    verdict = check(final=final)
    assert verdict.different
    assert not verdict.lost


def test_a_final_state_that_is_not_the_sum_of_the_writes_is_different() -> None:
    assert check(state=STATES[2]).different


@pytest.mark.parametrize(
    "events",
    [(LOG[0], LOG[2]), (LOG[0], Seen("e2", "torn")), (*LOG, Seen("e4", "d4")), (LOG[1],), (LOG[0], LOG[0])],
    ids=["gap", "torn", "never appended", "no beginning", "twice"],
)
def test_a_read_that_is_no_prefix_of_the_log_is_different(events: tuple[Seen, ...]) -> None:
    verdict = check(read(2, acknowledged=0, events=events))
    assert verdict.different
    assert not verdict.stale


@pytest.mark.parametrize("key", ["n", "user:lang", "app:visits"])
def test_an_older_state_in_any_scope_is_stale(key: str) -> None:
    """All events are there; one scope of the state is from before an acknowledged write."""
    verdict = check(read(3, state={**STATES[3], key: STATES[0][key]}))
    assert len(verdict.stale) == 1
    assert not verdict.different


def test_a_state_that_never_was_is_different() -> None:
    verdict = check(read(3, state={**STATES[3], "n": 99}))
    assert verdict.different
    assert not verdict.stale


def test_a_shared_scope_may_be_newer_than_the_session_beside_a_write() -> None:
    """The read began with two events acknowledged, while the third was being written."""
    assert check(read(2, state={**STATES[2], "app:visits": 2})).clean


def test_the_session_state_must_fit_the_events() -> None:
    assert check(read(2, state={**STATES[2], "n": 2})).different
