"""What makes a figure believable: wrong results are found, and time is counted as it should be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from google.adk.events.event import Event
from google.adk.sessions.session import Session

from bench import plan
from bench.cli import _cell
from bench.events import (
    APP,
    APP_STATE,
    USER_STATE,
    Checker,
    WrongResultError,
    expected,
    fingerprint,
    state_after,
    stored_event,
)
from bench.plan import MODES, Choice
from bench.records import Cell, Family, Group, Limits, Measurement, Task
from bench.report import lines
from bench.results import Results, joined, together
from bench.subjects.catalogue import L1, OURS, RAW, REFERENCE, available
from bench.targets import TARGETS, Target
from bench.timing import Operation, Stopwatch, percentile
from bench.workloads import WORKLOADS

GROUP = Group("sample", 2, 10)
FAMILIES: tuple[Family, ...] = ("postgresql", "sqlite", "mariadb")


def session(number: int = 0, first: int = 0, count: int = GROUP.events) -> Session:
    """Returns a session as a correct service returns it."""
    name = GROUP.id_of(number)
    shared = {f"app:{key}": value for key, value in APP_STATE.items()}
    shared |= {f"user:{key}": value for key, value in USER_STATE.items()}
    return Session(
        app_name=APP,
        user_id=GROUP.user_of(number),
        id=name,
        state=state_after(name, count) | shared,
        events=[Event.model_validate(stored_event(name, index)) for index in range(first, count)],
    )


def text_changed(wrong: Session) -> None:
    content = wrong.events[2].content
    assert content is not None
    assert content.parts
    content.parts[0].text = "something else"


def response_changed(wrong: Session) -> None:
    content = wrong.events[4].content
    assert content is not None
    assert content.parts
    response = content.parts[0].function_response
    assert response is not None
    response.response = {"status": "lost"}


def delta_changed(wrong: Session) -> None:
    wrong.events[4].actions.state_delta["step"] = 0


def author_changed(wrong: Session) -> None:
    wrong.events[3].author = "somebody"


def event_lost(wrong: Session) -> None:
    del wrong.events[5]


def events_swapped(wrong: Session) -> None:
    wrong.events[1], wrong.events[2] = wrong.events[2], wrong.events[1]


def event_doubled(wrong: Session) -> None:
    wrong.events[1] = wrong.events[0]


def state_changed(wrong: Session) -> None:
    wrong.state["step"] = 1


def another_session(wrong: Session) -> None:
    wrong.id = GROUP.id_of(1)


@pytest.mark.parametrize(
    "spoil",
    [
        text_changed,
        response_changed,
        delta_changed,
        author_changed,
        event_lost,
        events_swapped,
        event_doubled,
        state_changed,
        another_session,
    ],
)
def test_a_wrong_session_is_found(spoil: Callable[[Session], None]) -> None:
    wrong = session()
    spoil(wrong)
    with pytest.raises(WrongResultError):
        Checker(GROUP).check([(0, wrong)], GROUP.events, None)


def test_an_event_changed_after_the_first_look_is_found() -> None:
    checker, right = Checker(GROUP), session()
    checker.check([(0, right)], GROUP.events, None)
    text_changed(right)
    with pytest.raises(WrongResultError):
        checker.check([(0, right)], GROUP.events, None)


def test_right_sessions_pass_and_are_counted() -> None:
    checker = Checker(GROUP)
    checker.check([(0, session(0)), (1, session(1))], GROUP.events, None)
    checker.check([(0, session(0, first=7))], GROUP.events, 3)
    assert checker.checked == 2 * GROUP.events + 3


def test_events_are_of_the_size_and_kind_the_targets_name() -> None:
    whole = session(0, count=10)
    size = sum(len(event.model_dump_json(exclude_none=True)) for event in whole.events) / 10
    assert 750 < size < 1000
    responses = [event for event in whole.events if event.get_function_responses()]
    assert len(responses) == 2
    assert all(event.actions.state_delta for event in responses)
    event = whole.events[4]
    assert (event.id, event.author, fingerprint(event)) == expected(whole.id, 4)


async def _nothing() -> None:
    return None


def _counted(calls: list[int], number: int, until: Awaitable[object] | None = None) -> Operation:
    async def operation() -> int:
        calls.append(number)
        if until is not None:
            await until
        return number

    return operation


async def test_no_operation_begins_after_the_time_is_up() -> None:
    calls: list[int] = []
    watch = Stopwatch(Limits(0.0, 100), _nothing)
    await watch.time([[_counted(calls, number) for number in range(5)]])
    assert calls == [0]
    assert not watch.running


async def test_background_work_counts() -> None:
    settled = []

    async def settle() -> None:
        await asyncio.sleep(0)
        settled.append(True)

    watch = Stopwatch(Limits(60, 3), settle)
    assert await watch.time([[_counted([], number) for number in range(3)]]) == [[0, 1, 2]]
    assert settled == [True]
    assert not watch.running
    assert watch.measurement(0, {}).operations == 3


async def test_a_failing_operation_ends_its_lane_and_is_counted_apart() -> None:
    calls: list[int] = []

    async def fail() -> None:
        raise OSError("refused")

    watch = Stopwatch(Limits(60, 100), _nothing)
    lanes = [[_counted(calls, 0), fail, _counted(calls, 1)], [_counted(calls, 2)]]
    assert await watch.time(lanes) == [[0], [2]]
    found = watch.measurement(0, {})
    assert (found.operations, found.failed, found.failure) == (2, 1, "OSError('refused')")


async def test_a_wrong_result_is_no_mere_failure() -> None:
    async def wrong() -> None:
        raise WrongResultError

    with pytest.raises(WrongResultError):
        await Stopwatch(Limits(60, 100), _nothing).time([[wrong]])


def test_percentiles() -> None:
    values = [float(number) for number in range(100)]
    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 99.0]
    assert percentile([], 0.5) == 0.0


def _measured(rate: float) -> Measurement:
    return Measurement(int(rate * 100), 100.0, 1.0, 1.0, 2.0, 3.0, 0)


def test_rates_of_processes_add_up() -> None:
    both = together([_measured(10), Measurement(40, 2.0, 1.0, 1.0, 2.0, 3.0, 0)])
    assert both.operations / both.seconds == pytest.approx(30)


@pytest.mark.parametrize(("ours", "verdict"), [(5.9, "BELOW"), (6, "floor"), (8, "goal"), (None, "-")])
def test_verdicts(ours: float | None, verdict: str) -> None:
    results = Results({})
    cell = Cell("postgresql", "append", 1)
    results.add(cell, REFERENCE, _measured(100))
    if ours is not None:
        results.add(cell, OURS, _measured(100 * ours))
    (target,) = (one for one in TARGETS if one.cell == cell.name)
    assert target.verdict([results]) == verdict
    assert Results.from_json(results.to_json()) == results


def test_several_runs_are_reported_by_their_medians() -> None:
    runs = []
    for reference, ours, kept in ((100, 600, 900), (50, 500, 400), (200, 1400, 1000)):
        results = Results({}, memory={OURS: {"process_bytes": ours, "redis_bytes": 1, "json_bytes": 1}})
        results.add(Cell("postgresql", "append", 1), REFERENCE, _measured(reference))
        results.add(Cell("postgresql", "append", 1), OURS, _measured(ours))
        results.add(Cell("postgresql", "append", 1), L1, _measured(kept))
        runs.append(results)
    (line,) = (line for line in lines(runs) if line.cells[:2] == ("append", "c1"))
    # The ratios of the medians would be 9 and 6.
    assert line.cells[4:7] == ("", "8x", "7x (6 - 10)")
    assert line.verdict == "floor"
    assert joined(runs).memory[OURS]["process_bytes"] == 600
    assert len(joined(runs).cells["postgresql/append/c1"][OURS]) == 3


def _hot(p99: float) -> Measurement:
    return Measurement(1000, 1.0, 1.0, 1.0, p99, p99, 0)


def test_the_bounds_stand_beside_what_is_no_ratio_to_adk() -> None:
    results = Results({}, outage={"refused": {"extra": 20.0}})
    for number, workload in enumerate(("hot-all-20", "hot-all-2000", "hot-last20-200")):
        cell = Cell("postgresql", workload, 1)
        results.add(cell, OURS, _hot((3, 5, 4)[number]))
        results.add(cell, L1, _hot((2, 6, 1)[number]))
    for length, p50 in ((10, 1.0), (10_000, 1.5)):
        results.add(
            Cell("postgresql", f"growth-get-{length}", 1), RAW, Measurement(9, 1.0, 1.0, p50, 2.0, 2.0, 0)
        )
    table = {line.cells[:2]: line.cells[4:7] for line in lines([results])}
    assert table["p99 / p50 of hot gets", "c1, worst"] == ("", "6x", "5x")
    assert table["growth from 10 to 10,000 events, p50", "get, last 20"] == ("1.5x", "", "-")
    assert table["Redis gone", "first failing call, over SQL"] == ("", "", "20 ms")


def test_less_may_be_better() -> None:
    target = Target("tail", "", lambda *_: 3.0, 4, 2, most=True)
    assert target.verdict([Results({})]) == "floor"


def test_every_target_has_its_cell_in_the_long_form() -> None:
    measured = {cell.name for family in FAMILIES for cell in plan.cells(MODES["full"], family, Choice())}
    assert {target.cell for target in TARGETS if target.cell} <= measured


@pytest.mark.parametrize("mode", list(MODES.values()), ids=lambda mode: mode.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_sessions_suffice_for_every_cell(mode: plan.Mode, family: Family) -> None:
    cells = plan.cells(mode, family, Choice())
    stored = {group.name: group for group in plan.groups(mode, cells)}
    for cell in cells:
        group, workload = plan.group(mode, cell), WORKLOADS[cell.workload]
        task = Task(cell, group, 0, 0, plan.limits(mode, cell))
        assert Task.from_json(task.to_json()) == task
        assert stored[group.name].sessions >= group.sessions
        assert stored[group.name].events == workload.events
        if workload.kind in ("append", "get-append", "turn", "delete"):
            lanes = 1 if workload.shared else cell.callers
            lot = workload.lot(cell.callers, task.limits.operations) * lanes
            assert group.sessions >= lot * cell.processes * mode.scale.repetitions
        elif workload.kind == "read" and not workload.growth and not workload.shared:
            assert group.sessions >= cell.callers
        assert plan.subjects(mode, cell, available(family), Choice())[:2] == [REFERENCE, OURS]


def test_a_cell_to_profile_is_named_with_its_family_or_without() -> None:
    found = _cell("postgresql/cold-20/c1")
    assert found == _cell("cold-20/c1") == Cell("postgresql", "cold-20", 1)
    for name in ("cold-20", "cold-20/c7", "turn/2x16", "mariadb/append/c1"):
        with pytest.raises(SystemExit, match="--list"):
            _cell(name)
