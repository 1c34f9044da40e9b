"""Judges a history: what was lost, doubled, out of order, torn, raised from the dead, or stale for too long.

A pure function, of linear time but for binary searches. One final reading of SQL and the order of calls
in real time are all it knows; nothing of the product.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.histories.counters import check_counters
from tests.histories.history import Operation
from tests.histories.lives import Incarnation, check_lives
from tests.histories.verdict import Bounds, Final, Judge, Register, Verdict

STORE_ERRORS = ("StoreUnavailableError", "PoolTimeoutError", "CommitOutcomeUnknownError")


def check(operations: Sequence[Operation], final: Final, bounds: Bounds) -> Verdict:
    """Judges the history, whose `final` reading was made when nothing was under way any more."""
    verdict = Verdict()
    judge = Judge(bounds, verdict)
    for one in operations:
        if one.outcome is not None:
            verdict.operations[one.kind] += 1
        verdict.cut_off += one.cut_off
        if one.error is not None:
            name = one.error.partition(":")[0]
            verdict.errors[name] += 1
            if not (bounds.store_fails and name in STORE_ERRORS):
                verdict.found("error", f"{one.kind} of {one.session} by {one.client}: {one.error}")
    if bounds.loses_commits:
        return verdict
    incarnations = _incarnations(operations, verdict)
    appends = {one.value: one for one in operations if one.kind == "append" and one.value is not None}
    for incarnation in incarnations.values():
        _check_log(incarnation, appends, final, judge)
    check_lives(operations, incarnations, judge)
    check_counters(operations, final, judge)
    for session, (made, _) in final.sessions.items():
        if (session, made) not in incarnations:
            verdict.found("phantom", f"{session} is of incarnation {made}, which nobody created")
    return verdict


def _incarnations(operations: Sequence[Operation], verdict: Verdict) -> dict[tuple[str, int], Incarnation]:
    found: dict[tuple[str, int], Incarnation] = {}
    for one in operations:
        if one.kind == "create" and one.made is not None:
            incarnation = Incarnation(one.session, one.made, one.begun)
            found[one.session, one.made] = incarnation
            if one.outcome == "ok":
                incarnation.seen(one, [])
            elif one.outcome == "fail":
                incarnation.created = -1
    for one in operations:
        if one.kind not in ("get", "list", "append") or one.outcome != "ok" or one.log is None:
            continue
        incarnation_seen = found.get((one.session, one.made or 0))
        if incarnation_seen is None or incarnation_seen.created < 0:
            verdict.found("phantom", f"{one.session} read as incarnation {one.made} by {one.client}")
            continue
        incarnation_seen.seen(one, one.log)
        (incarnation_seen.acknowledged if one.kind == "append" else incarnation_seen.reads).append(one)
    return {key: incarnation for key, incarnation in found.items() if incarnation.created >= 0}


def _check_log(incarnation: Incarnation, appends: dict[int, Operation], final: Final, judge: Judge) -> None:
    """One order, nothing lost, nothing twice; events and state of a read agree; every read is fresh."""
    verdict, name = judge.verdict, f"{incarnation.session}#{incarnation.made}"
    made, stored = final.sessions.get(incarnation.session, (0, []))
    if made == incarnation.made:
        if len(stored) > len(incarnation.longest):
            incarnation.longest = stored
        places = set(stored)
        for one in incarnation.acknowledged:
            if one.value not in places:
                verdict.found("lost", f"{one.value} in {name}, acknowledged to {one.client}")
        if incarnation.longest[: len(stored)] != stored:
            verdict.found("order", f"{name} in SQL is no beginning of what was read")
        elif len(stored) < len(incarnation.longest):
            verdict.found("lost", f"{incarnation.longest[len(stored) :]} in {name} were read before")
    longest = incarnation.longest
    if len(set(longest)) != len(longest):
        verdict.found("duplicated", f"in the log of {name}")
    for value in longest:
        append = appends.get(value)
        if append is None:
            verdict.found("phantom", f"{value} in {name}, which nobody appended")
        elif append.outcome == "fail":
            verdict.found("refused", f"{value} in {name}: nothing was written, it said")
    for one, log in incarnation.observed:
        if log != longest[: len(log)]:
            verdict.found("order", f"{one.client} saw {log[-5:]} at {len(log)} of {name}")
        if one.kind == "get" and one.events is not None:
            _check_events(one, log, verdict)

    register = Register()
    for one in incarnation.acknowledged:
        register.wrote(one, len(one.log or ()))
    for one in incarnation.reads:
        register.known(one, len(one.log or ()))
        register.read(one, len(one.log or ()))
    register.judge(name, "long history" if "/long" in name else "append", judge)


def _check_events(one: Operation, log: list[int], verdict: Verdict) -> None:
    events = one.events or []
    if events == (log if one.window is None else log[-one.window :]):
        return
    kind = "torn" if len(set(events)) == len(events) else "duplicated"
    verdict.found(kind, f"events {events[-5:]} with log {log[-5:]} of {one.session} for {one.client}")
