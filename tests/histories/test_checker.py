"""Each thing the checker looks for, planted by hand into a history that is well without it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.histories.checker import check
from tests.histories.history import Operation, elle, load
from tests.histories.verdict import Bounds, Final, Verdict

SESSION = "u0/shared"
MADE = 7
MS = 1_000_000


class Story:
    """A history told in steps of 10 ms; every operation takes 2 ms."""

    def __init__(self) -> None:
        self.now = 1000 * MS
        self.operations: list[Operation] = []

    def add(self, client: str, kind: str, **fields: Any) -> Operation:
        self.now += 10 * MS
        fields = {"outcome": "ok", "session": SESSION, "ended": self.now + 2 * MS, **fields}
        operation = Operation(client=client, kind=kind, begun=self.now, **fields)
        self.operations.append(operation)
        return operation

    def create(self, made: int = MADE, **fields: Any) -> Operation:
        return self.add("0.1.0.0", "create", made=made, **fields)

    def append(self, *log: int, client: str = "0.1.0.0", made: int = MADE, **fields: Any) -> Operation:
        return self.add(client, "append", made=made, log=list(log), value=log[-1], **fields)

    def get(self, *log: int, client: str = "1.1.0.0", made: int = MADE, **fields: Any) -> Operation:
        return self.add(client, "get", made=made, **{"log": list(log), "events": list(log), **fields})

    def absent(self, client: str = "1.1.0.0") -> Operation:
        return self.add(client, "get")

    def delete(self, client: str = "0.1.0.0", **fields: Any) -> Operation:
        return self.add(client, "delete", **fields)

    def check(self, final: Final, **bounds: Any) -> Verdict:
        return check(self.operations, final, Bounds(**{"cut_off": 0.02, **bounds}))


@pytest.fixture
def story() -> Story:
    """One session that was created, and appended to twice."""
    story = Story()
    story.create()
    story.append(1)
    story.append(1, 2)
    return story


def final(*log: int, made: int = MADE, **others: Any) -> Final:
    return Final({SESSION: (made, list(log))}, **others)


def test_nothing_is_found_where_nothing_is_wrong(story: Story) -> None:
    story.get(1, 2)
    story.get(1, 2, window=10)
    story.append(1, 2, 3, client="1.1.0.0", user={"1.1.0.0": 1}, app={"1.1.0.0": 4})
    story.get(1, 2, 3, window=2, events=[2, 3], user={"1.1.0.0": 1}, app={"1.1.0.0": 4})
    story.add("1.1.0.0", "list", made=MADE, log=[1, 2, 3], user={"1.1.0.0": 1}, app={"1.1.0.0": 4})
    story.delete()
    story.absent()
    story.create(8)
    story.create(9, outcome="fail")
    story.append(4, made=8, outcome="fail")
    story.get(made=8, client="0.1.1.0", user={"1.1.0.0": 1}, app={"1.1.0.0": 4})
    counters = {"1.1.0.0": 1}
    verdict = story.check(final(made=8, users={"u0": counters}, app={"1.1.0.0": 4}))
    assert verdict.anomalies == Counter()
    assert not verdict.ages
    assert verdict.operations == {"create": 3, "append": 4, "get": 5, "list": 1, "delete": 1}


# --- one anomaly each ------------------------------------------------------------------------------


def lost(story: Story) -> Final:
    return final(1)


def lost_though_read(story: Story) -> Final:
    story.append(1, 2, 3, outcome="info")
    story.get(1, 2, 3)
    return final(1, 2)


def lost_counter(story: Story) -> Final:
    story.append(1, 2, 3, user={"0.1.0.0": 5})
    return final(1, 2, 3, users={"u0": {"0.1.0.0": 4}})


def duplicated(story: Story) -> Final:
    story.append(1, 2, 3)
    return final(1, 2, 3, 2)


def duplicated_event(story: Story) -> Final:
    story.get(1, 2, events=[1, 2, 2])
    return final(1, 2)


def out_of_order(story: Story) -> Final:
    story.get(2, 1)
    return final(1, 2)


def forked(story: Story) -> Final:
    story.append(1, 3, client="1.1.0.0")
    return final(1, 2)


def torn(story: Story) -> Final:
    story.get(1, 2, events=[1])
    return final(1, 2)


def torn_window(story: Story) -> Final:
    story.get(1, 2, events=[1], window=1)
    return final(1, 2)


def refused(story: Story) -> Final:
    story.append(1, 2, 3, outcome="fail")
    story.get(1, 2, 3)
    return final(1, 2, 3)


def refused_counter(story: Story) -> Final:
    story.append(1, 2, 3, outcome="fail", app={"0.1.0.0": 1})
    story.get(1, 2, app={"0.1.0.0": 1})
    return final(1, 2)


def phantom(story: Story) -> Final:
    story.get(1, 2, 99)
    return final(1, 2, 99)


def phantom_counter(story: Story) -> Final:
    story.get(1, 2, app={"0.1.0.0": 1})
    return final(1, 2)


def phantom_incarnation(story: Story) -> Final:
    story.get(1, 2, made=99)
    return final(1, 2)


def phantom_in_sql(story: Story) -> Final:
    return final(made=99)


def stale(story: Story) -> Final:
    story.get(1)
    return final(1, 2)


def stale_after_a_read(story: Story) -> Final:
    """Nobody acknowledged it, but it has been seen."""
    story.append(1, 2, 3, outcome=None, ended=None)
    story.get(1, 2, 3)
    story.now += 50 * MS
    story.get(1, 2, client="2.1.0.0")
    return final(1, 2, 3)


def stale_user_state(story: Story) -> Final:
    story.append(1, 2, 3, user={"0.1.0.0": 1})
    story.get(1, 2, 3)
    return final(1, 2, 3, users={"u0": {"0.1.0.0": 1}})


def stale_app_state(story: Story) -> Final:
    story.append(1, 2, 3, app={"0.1.0.0": 1})
    story.append(1, 2, 3, 4, app={"0.1.0.0": 2})
    story.get(1, 2, 3, 4, app={"0.1.0.0": 1})
    return final(1, 2, 3, 4, app={"0.1.0.0": 2})


def created_but_not_found(story: Story) -> Final:
    story.absent()
    return final(1, 2)


def resurrected(story: Story) -> Final:
    story.delete()
    story.get(1, 2)
    return Final()


def resurrected_after_its_successor(story: Story) -> Final:
    """Nobody knows that the first was deleted, but the second has been seen."""
    story.delete(outcome=None, ended=None)
    story.create(8)
    story.now += 50 * MS
    story.get(1, 2)
    return final(made=8)


def own_write_not_read(story: Story) -> Final:
    story.get(1, client="0.1.1.0")
    return final(1, 2)


def own_counter_not_read(story: Story) -> Final:
    story.append(1, 2, 3, user={"0.1.0.0": 1})
    story.get(1, 2, 3, client="0.1.1.0")
    return final(1, 2, 3, users={"u0": {"0.1.0.0": 1}})


def gone_back(story: Story) -> Final:
    story.get(1, 2)
    story.get(1)
    return final(1, 2)


def own_deletion_undone(story: Story) -> Final:
    story.delete(client="1.1.1.0")
    story.get(1, 2)
    return Final()


def cache_error(story: Story) -> Final:
    story.get(1, 2, outcome="fail", log=None, events=None, error="ConnectionError: refused")
    return final(1, 2)


def store_error(story: Story) -> Final:
    story.get(1, 2, outcome="fail", log=None, events=None, error="StoreUnavailableError: gone")
    return final(1, 2)


PLANTED: list[tuple[str, Callable[[Story], Final]]] = [
    ("lost", lost),
    ("lost", lost_though_read),
    ("lost", lost_counter),
    ("duplicated", duplicated),
    ("duplicated", duplicated_event),
    ("order", out_of_order),
    ("order", forked),
    ("torn", torn),
    ("torn", torn_window),
    ("refused", refused),
    ("refused", refused_counter),
    ("phantom", phantom),
    ("phantom", phantom_counter),
    ("phantom", phantom_incarnation),
    ("phantom", phantom_in_sql),
    ("stale", stale),
    ("stale", stale_after_a_read),
    ("stale", stale_user_state),
    ("stale", stale_app_state),
    ("stale", created_but_not_found),
    ("resurrected", resurrected),
    ("resurrected", resurrected_after_its_successor),
    ("backwards", own_write_not_read),
    ("backwards", own_counter_not_read),
    ("backwards", gone_back),
    ("backwards", own_deletion_undone),
    ("error", cache_error),
    ("error", store_error),
]


@pytest.mark.parametrize(("kind", "plant"), PLANTED, ids=[plant.__name__ for _, plant in PLANTED])
def test_a_planted_anomaly_is_found(story: Story, kind: str, plant: Callable[[Story], Final]) -> None:
    verdict = story.check(plant(story))
    assert kind in verdict.anomalies, verdict.examples


@pytest.mark.parametrize("plant", [stale, stale_user_state, stale_app_state, resurrected])
def test_what_is_allowed_is_measured_and_not_found(story: Story, plant: Callable[[Story], Final]) -> None:
    verdict = story.check(plant(story), staleness=0.05)
    assert verdict.anomalies == Counter()
    [[age]] = verdict.ages.values()
    # It began 10 ms after the one it misses, which took 2.
    assert age == 8.0


@pytest.mark.parametrize("staleness", [0.0, 0.007])
def test_what_is_older_than_allowed_is_found(story: Story, staleness: float) -> None:
    assert story.check(stale(story), staleness=staleness).anomalies == {"stale": 1}


def test_going_back_is_never_allowed(story: Story) -> None:
    assert story.check(gone_back(story), staleness=10.0).anomalies == {"backwards": 1}


def test_a_write_through_the_outbox_may_take_longer(story: Story) -> None:
    story.operations[-1].cut_off = True
    assert story.check(stale(story)).anomalies == Counter()
    assert story.check(final(1, 2), cut_off=0.007).anomalies == {"stale": 1}


def test_a_masked_write_after_one_through_the_outbox_may_not(story: Story) -> None:
    story.operations[-1].cut_off = True
    story.append(1, 2, 3)
    story.get(1)
    assert story.check(final(1, 2, 3)).anomalies == {"stale": 1}


def test_what_overlaps_may_be_seen_or_not(story: Story) -> None:
    """A read that began before the append returned."""
    append = story.append(1, 2, 3, ended=story.now + 100 * MS)
    story.get(1, 2)
    story.get(1, 2, 3)
    assert append.ended is not None
    assert story.check(final(1, 2, 3)).anomalies == Counter()


def test_an_unknown_outcome_may_be_either(story: Story) -> None:
    story.append(1, 2, 3, outcome="info", user={"0.1.0.0": 9})
    story.append(1, 2, 4, outcome=None, ended=None)
    assert story.check(final(1, 2)).anomalies == Counter()
    assert story.check(final(1, 2, 4)).anomalies == Counter()
    assert story.check(final(1, 2, 3, users={"u0": {"0.1.0.0": 9}})).anomalies == Counter()


def test_an_unknown_deletion_may_come_at_any_time(story: Story) -> None:
    story.delete(outcome="info")
    story.get(1, 2)
    story.absent()
    assert story.check(final(1, 2)).anomalies == Counter()


def test_the_databases_errors_are_allowed_where_it_fails(story: Story) -> None:
    verdict = story.check(store_error(story), store_fails=True)
    assert verdict.anomalies == Counter()
    assert verdict.errors == {"StoreUnavailableError": 1}
    assert story.check(cache_error(story), store_fails=True).anomalies == {"error": 1}


def test_lost_commits_are_not_looked_for_where_they_are_declared(story: Story) -> None:
    assert story.check(lost(story), loses_commits=True).anomalies == Counter()


def test_a_list_is_never_stale(story: Story) -> None:
    story.add("1.1.0.0", "list", made=MADE, log=[1])
    assert story.check(final(1, 2), staleness=10.0).anomalies == {"stale": 1}


# --- size and form ---------------------------------------------------------------------------------


def long_story(appends: int) -> tuple[Story, Final]:
    """Ten readers after each append; a new incarnation every fifty."""
    story, log, made = Story(), [], 0
    counters: dict[str, int] = {}
    for number in range(appends):
        if number % 50 == 0:
            if made:
                story.delete()
            made, log = number + 1_000_000, []
            story.create(made)
        log = [*log, number]
        counters = {"0.1.0.0": number + 1}
        story.append(*log, made=made, user=counters, app=counters)
        for reader in range(10):
            story.get(*log, client=f"{reader}.1.0.0", made=made, user=counters, app=counters)
    return story, final(*log, made=made, users={"u0": counters}, app=counters)


def test_work_is_linear_in_the_length() -> None:
    def calls(appends: int) -> int:
        story, stored = long_story(appends)
        count = 0

        def counted(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(counted)
        try:
            verdict = story.check(stored)
        finally:
            sys.setprofile(None)
        assert verdict.anomalies == Counter()
        return count

    assert calls(2000) < 12 * calls(200)


@pytest.fixture
def written(tmp_path: Path, story: Story) -> Path:
    path = tmp_path / "history.jsonl"
    begun = story.append(1, 2, 3)
    lost = Operation("2.1.0.0", "append", SESSION, story.now + 1, made=MADE, value=4)
    waiting = Operation(begun.client, begun.kind, SESSION, begun.begun, made=MADE, value=3)
    fault = orjson.dumps({"kind": "fault", "text": "pulled the plug", "at": 5}) + b"\n"
    lines = [waiting.line(), fault, lost.line(), *(one.line() for one in story.operations)]
    path.write_bytes(b"".join(lines))
    return path


def test_a_history_is_read_back(written: Path, story: Story) -> None:
    history = load(written)
    assert [one for one in history.operations if one.outcome] == story.operations
    assert [one.value for one in history.operations if one.outcome is None] == [4]
    assert history.faults == [(5, "pulled the plug")]


def test_elles_form(written: Path) -> None:
    entries = elle(load(written).operations)
    assert [entry[":index"] for entry in entries] == list(range(len(entries)))
    key = f"{SESSION}#{MADE}"
    assert [(entry[":type"], entry[":value"]) for entry in entries[-3:]] == [
        (":invoke", [[":r", key, None], [":append", key, 3]]),
        (":invoke", [[":r", key, None], [":append", key, 4]]),
        (":ok", [[":r", key, [1, 2]], [":append", key, 3]]),
    ]
    assert {entry[":f"] for entry in entries} == {":txn"}
    assert entries[-1][":process"] != entries[-2][":process"]
