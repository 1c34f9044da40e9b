"""User and app state: one counter a client, written by nobody else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from tests.histories.history import Operation
from tests.histories.verdict import Final, Judge, Register


class Scope:
    """The state of one user, or of the app: what was written to it, and who read it.

    Args:
        column: "user state" or "app state".
        name: The user's id; "" for the app.
        operations: Reads of it, and appends of all outcomes.
    """

    def __init__(self, column: str, name: str, operations: Sequence[Operation]) -> None:
        self._column = column
        self._name = f"{column} {name}".rstrip()
        self._operations = operations
        self._attempted: dict[str, set[int]] = defaultdict(set)
        self._refused: dict[str, set[int]] = defaultdict(set)
        self._acknowledged: Counter[str] = Counter()
        self._registers: dict[str, Register] = defaultdict(Register)
        for one in operations:
            if one.kind != "append":
                continue
            for writer, value in self._counters(one).items():
                (self._refused if one.outcome == "fail" else self._attempted)[writer].add(value)
                if one.outcome == "ok":
                    self._registers[writer].wrote(one, value)
                    self._acknowledged[writer] = max(self._acknowledged[writer], value)

    def _counters(self, one: Operation) -> dict[str, int]:
        return one.user if self._column == "user state" else one.app

    def judge(self, stored: dict[str, int], judge: Judge) -> None:
        """Nothing lost, nothing made up, nothing stale, nothing backwards."""
        self._check_values("in SQL", stored.items(), judge)
        for writer, value in self._acknowledged.items():
            if stored.get(writer, 0) < value:
                judge.verdict.found(
                    "lost", f"{value} of {writer}, {self._name} in SQL is {stored.get(writer)}"
                )
        self._sweep(judge)
        for writer, register in self._registers.items():
            register.judge(f"{self._name} of {writer}", self._column, judge)

    def _sweep(self, judge: Judge) -> None:
        """Goes through time; gives the registers only what raises a level, or may be behind one."""
        known: dict[str, int] = {}
        own: dict[str, dict[str, int]] = defaultdict(dict)
        for _, ends, one in self._moments():
            seen = self._counters(one)
            mine = own[one.process]
            if ends:
                for writer, value in seen.items() - known.items():
                    known[writer] = max(value, known.get(writer, 0))
                for writer, value in seen.items() - mine.items():
                    mine[writer] = max(value, mine.get(writer, 0))
                    if one.kind != "append":
                        self._registers[writer].known(one, value)
            elif one.kind != "append":
                self._check_values(f"read by {one.client}", seen.items() - known.items(), judge)
                for writer, value in known.items() - seen.items():
                    if seen.get(writer, 0) < value:
                        self._registers[writer].read(one, seen.get(writer, 0))

    def _moments(self) -> list[tuple[int, bool, Operation]]:
        moments = []
        for one in self._operations:
            if one.outcome == "ok":
                moments.append((one.ended or 0, True, one))
                moments.append((one.begun, False, one))
        # At the same moment: what a call that begins then may not know yet comes after it.
        return sorted(moments, key=lambda moment: moment[:2])

    def _check_values(self, text: str, seen: Iterable[tuple[str, int]], judge: Judge) -> None:
        for writer, value in seen:
            if value not in self._attempted[writer]:
                kind = "refused" if value in self._refused[writer] else "phantom"
                judge.verdict.found(kind, f"{value} of {writer}, {self._name} {text}")


def check_counters(operations: Sequence[Operation], final: Final, judge: Judge) -> None:
    """Judges the state of each user, and of the app."""
    users: dict[str, list[Operation]] = defaultdict(list)
    app: list[Operation] = []
    for one in operations:
        if one.kind == "append" or (one.kind in ("get", "list") and one.log is not None):
            users[one.user_id].append(one)
            app.append(one)
    for user, found in users.items():
        Scope("user state", user, found).judge(final.users.get(user, {}), judge)
    Scope("app state", "", app).judge(final.app, judge)
