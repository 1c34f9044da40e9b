"""Which incarnation of a session id lived when: nothing comes back, nothing is missed."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from tests.histories.history import Operation
from tests.histories.verdict import Judge


@dataclass
class Incarnation:
    """One life of a session id.

    Attributes:
        created: When its creation was called.
        known: Since when it was known to be there.
        longest: The longest log that was read or written.
    """

    session: str
    made: int
    created: int
    known: int | None = None
    longest: list[int] = field(default_factory=list)
    observed: list[tuple[Operation, list[int]]] = field(default_factory=list)
    acknowledged: list[Operation] = field(default_factory=list)
    reads: list[Operation] = field(default_factory=list)

    def seen(self, operation: Operation, log: list[int]) -> None:
        """Takes an operation that proves it was there, with this log."""
        if operation.ended is not None and (self.known is None or operation.ended < self.known):
            self.known = operation.ended
        self.observed.append((operation, log))
        if len(log) > len(self.longest):
            self.longest = log


class Deletions:
    """The deletions of one session id, in the order of their calls."""

    def __init__(self, deletions: Sequence[Operation]) -> None:
        self._begun = [one.begun for one in deletions]
        done = [one for one in deletions if one.outcome == "ok"]
        self._done = [one.begun for one in done]
        # Backwards: the first end of all that were called from there on.
        self._first = _suffix_minimum([one.ended or 0 for one in done])
        masked = [one for one in done if not one.cut_off]
        self._masked = [one.begun for one in masked]
        self._first_masked = _suffix_minimum([one.ended or 0 for one in masked])
        # Forwards: until when some deletion called so far may still take effect.
        ends = [one.ended if one.outcome == "ok" and one.ended else 1 << 63 for one in deletions]
        self._last = list(accumulate(ends, max))

    def death(self, known: int, *, masked: bool) -> int | None:
        """Returns since when what was there at `known` was gone, as far as deletions tell."""
        begun, first = (self._masked, self._first_masked) if masked else (self._done, self._first)
        place = bisect_right(begun, known)
        return first[place] if place < len(first) else None

    def possible(self, after: int, before: int) -> bool:
        """Says whether one may have taken effect between these moments."""
        place = bisect_left(self._begun, before)
        return place > 0 and self._last[place - 1] > after


def _suffix_minimum(values: Sequence[int]) -> list[int]:
    return list(accumulate(reversed(values), min))[::-1]


def check_lives(
    operations: Sequence[Operation], incarnations: dict[tuple[str, int], Incarnation], judge: Judge
) -> None:
    deletions: dict[str, list[Operation]] = defaultdict(list)
    by_process: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    lives: dict[str, list[Incarnation]] = defaultdict(list)
    absent: list[Operation] = []
    for one in operations:
        # One that failed has deleted nothing.
        if one.kind == "delete" and one.outcome != "fail":
            deletions[one.session].append(one)
            by_process[one.session, one.process].append(one)
        elif one.kind == "get" and one.outcome == "ok" and one.log is None:
            absent.append(one)
    for incarnation in incarnations.values():
        lives[incarnation.session].append(incarnation)
    gone = {session: Deletions(found) for session, found in deletions.items()}
    own = {key: Deletions(found) for key, found in by_process.items()}
    for session, found in lives.items():
        _check_resurrections(session, found, gone.get(session, Deletions(())), own, judge)
        known = sorted((one for one in found if one.known is not None), key=lambda one: one.known or 0)
        times = [one.known or 0 for one in known]
        for read in [one for one in absent if one.session == session]:
            place = bisect_left(times, read.begun)
            if place == 0:
                continue
            last = known[place - 1]
            if session not in gone or not gone[session].possible(last.created, read.ended or 0):
                age = read.begun - times[place - 1]
                judge.stale("create", f"{session} not found by {read.client}", age, age)


def _check_resurrections(
    session: str,
    lives: Sequence[Incarnation],
    gone: Deletions,
    own: dict[tuple[str, str], Deletions],
    judge: Judge,
) -> None:
    ordered = sorted((one for one in lives if one.known is not None), key=lambda one: one.created)
    created = [one.created for one in ordered]
    followed = _suffix_minimum([one.known or 0 for one in ordered])
    for incarnation in ordered:
        assert incarnation.known is not None
        since = incarnation.known
        place = bisect_right(created, since)
        successor = followed[place] if place < len(followed) else None
        deleted = gone.death(since, masked=False)
        masked = gone.death(since, masked=True)
        for read in incarnation.reads:
            deaths = [death for death in (deleted, successor) if death is not None and death < read.begun]
            if not deaths:
                continue
            name = f"{session}#{incarnation.made} by {read.client}"
            column = "re-create" if successor is not None and successor < read.begun else "delete"
            surely = 0 if masked is None else max(0, read.begun - masked)
            judge.stale(column, name, read.begun - min(deaths), surely)
            mine = own.get((session, read.process))
            death = None if mine is None else mine.death(since, masked=False)
            if death is not None and death < read.begun:
                judge.verdict.found("backwards", f"{name}, which had deleted it")
