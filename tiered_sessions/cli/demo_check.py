"""Comparing everything the demo's servers read with what SQL holds in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

State = Mapping[str, Any]
Kind = Literal["after", "beside", "waiting"]
Phase = Literal["up", "dead", "back"]


class Seen(NamedTuple):
    """One event as a server returned it: its id and a digest of its whole content."""

    id: str
    digest: str


@dataclass(frozen=True, slots=True)
class Read:
    """One `get_session` of one server.

    `acknowledged` counts the events whose append had returned before this read was sent.
    `place` is where it was answered: `process`, `cache` or `store`. `kind`: `after` a write,
    `beside` one (sent while it was under way), or `waiting` for the cache to come back. `phase`:
    the cache is `up`, `dead`, or `back`.
    """

    server: str
    turn: int
    kind: Kind
    phase: Phase
    place: str
    ms: float
    acknowledged: int
    events: tuple[Seen, ...]
    state: State


@dataclass(slots=True)
class Verdict:
    """What the comparison found, one sentence a finding.

    `lost`: acknowledged writes that SQL does not hold. `stale`: reads that miss a write
    acknowledged before them. `different`: anything else that is not what SQL holds.
    """

    lost: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.stale or self.different)


def compare(
    appended: Sequence[Seen],
    states: Sequence[State],
    reads: Sequence[Read],
    final_events: Sequence[Seen],
    final_state: State,
) -> Verdict:
    """Checks every read of one session against what SQL holds.

    Args:
        appended: The acknowledged events, in the order their appends returned.
        states: The merged state after 0, 1, 2, ... of them, worked out without the library.
        reads: Every read that was answered.
        final_events: The log in SQL, read without a cache.
        final_state: The state in SQL, read without a cache.
    """
    verdict = Verdict()
    held = set(final_events)
    gone = [event.id for event in appended if event not in held]
    verdict.lost += [f"event {event_id}: not in SQL as it was acknowledged" for event_id in gone]
    if tuple(final_events) != tuple(appended) and not verdict.lost:
        verdict.different.append("SQL holds the events in another order, or more of them")
    if final_state != states[-1]:
        verdict.different.append("the state in SQL is not the sum of the acknowledged writes")
    for number, read in enumerate(reads, start=1):
        _compare_read(verdict, number, read, states, tuple(final_events))
    return verdict


def _compare_read(
    verdict: Verdict, number: int, read: Read, states: Sequence[State], final_events: tuple[Seen, ...]
) -> None:
    where = f"read {number} (turn {read.turn}, server {read.server}, from {read.place})"
    count = len(read.events)
    if read.events != final_events[:count]:
        verdict.different.append(f"{where}: its {count} events are not the first {count} in SQL")
        return
    if count < read.acknowledged:
        missing = read.acknowledged - count
        verdict.stale.append(f"{where}: {missing} of {read.acknowledged} acknowledged events missing")
        return
    if count >= len(states):
        verdict.different.append(f"{where}: more events than were appended")
        return
    for scope in ("session", "app", "user"):
        part = _scope(read.state, scope)
        # Each scope is fresh by its own tag: beside a write in flight, a shared scope may be
        # newer than the session, but never older than what was acknowledged.
        allowed = states[count : count + 1] if scope == "session" else states[read.acknowledged :]
        if any(part == _scope(state, scope) for state in allowed):
            continue
        older = any(part == _scope(state, scope) for state in states[: read.acknowledged])
        finding = f"{where}: {scope} state {'is an older one' if older else 'is not one SQL ever held'}"
        (verdict.stale if older else verdict.different).append(finding)


def _scope(state: State, scope: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if _scope_of(key) == scope}


def _scope_of(key: str) -> str:
    prefix = key.partition(":")[0] if ":" in key else ""
    return prefix if prefix in ("app", "user") else "session"
