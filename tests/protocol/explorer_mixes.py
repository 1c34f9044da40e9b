"""Explores every mix and every change that must be noticed; prints a table (`make model`).

    python -m tests.protocol.explorer_mixes [--minutes N] [--small] [part of a name ...]

Exit status: 0 if all hold, 1 if a promise is broken or a change is not noticed, 2 if the time was up.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.protocol.explorer.mixes import LARGE, SMALL
from tests.protocol.explorer.search import Result, explore
from tests.protocol.explorer.state import Scenario
from tests.protocol.explorer.teeth import TEETH, Tooth

_LIMIT = 3_000_000
"""States of one mix: what a machine of 8 GB can remember."""
_HEAD = f"{'promise':<10} {'states':>10} {'transitions':>12} {'seconds':>8}"


class Progress:
    """Says how far a mix is, on stderr, and stops it when the time is up."""

    def __init__(self, minutes: float) -> None:
        self._ends = time.monotonic() + minutes * 60
        self._name = ""
        self._said = 0.0

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._ends

    def begins(self, name: str) -> None:
        self._name, self._said = name, time.monotonic()

    def seen(self, states: int) -> bool:
        now = time.monotonic()
        if now - self._said >= 5:
            self._said = now
            left = max(0, round(self._ends - now))
            print(f"  {self._name}: {states:,} states so far, {left} s left", file=sys.stderr, flush=True)
        return now < self._ends


def _mixes(mixes: list[Scenario], progress: Progress) -> tuple[int, bool]:
    """Explores the mixes; returns how many break their promise, and whether all were explored whole."""
    bad, states, whole = 0, 0, True
    print(f"{'mix':<42} {_HEAD}  verdict")
    for mix in mixes:
        if progress.over:
            print(f"{mix.name:<42} {mix.promise.value:<10} not explored: the time is up")
            whole = False
            continue
        progress.begins(mix.name)
        found = explore(mix, limit=_LIMIT, seen=progress.seen)
        verdict = "holds" if found.complete else "VIOLATED" if found.violation else "holds so far, cut off"
        print(f"{mix.name:<42} {mix.promise.value:<10} {_numbers(found)}  {verdict}", flush=True)
        if found.violation is not None:
            print(found.violation)
            bad += 1
        states += found.states
        whole = whole and (found.complete or found.violation is not None)
    print(f"{len(mixes)} mixes, {states:,} states, {bad} violated\n")
    return bad, whole


def _teeth(teeth: list[Tooth]) -> int:
    """Makes the changes; returns how many are not noticed."""
    bad = 0
    print(f"{'change':<46} {'noticed in the mix':<42} {'states':>10} {'steps':>6}  what broke")
    for tooth in teeth:
        found = tooth.explore()
        broken = found.violation
        steps = len(broken.trace) if broken else 0
        what = broken.reason.partition(":")[0] if broken else "NOT NOTICED"
        print(f"{tooth.name:<46} {tooth.mix:<42} {found.states:>10,} {steps:>6}  {what}", flush=True)
        bad += broken is None
    print(f"{len(teeth)} changes, {bad} not noticed")
    return bad


def _numbers(found: Result) -> str:
    return f"{found.states:>10,} {found.transitions:>12,} {found.seconds:>8.1f}"


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="Explores the protocol to the end.")
    parser.add_argument("names", nargs="*", help="only mixes and changes whose name holds one of these")
    parser.add_argument("--minutes", type=float, default=10, help="when to stop exploring (default: 10)")
    parser.add_argument("--small", action="store_true", help="only the mixes of every test run")
    chosen = parser.parse_args(arguments)

    def wanted(name: str) -> bool:
        return not chosen.names or any(part in name for part in chosen.names)

    mixes = [mix for mix in (SMALL if chosen.small else (*SMALL, *LARGE)) if wanted(mix.name)]
    # The changes first: they take seconds.
    bad = _teeth([tooth for tooth in TEETH if wanted(tooth.name)])
    print()
    violated, whole = _mixes(mixes, Progress(chosen.minutes))
    return 1 if bad or violated else 0 if whole else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
