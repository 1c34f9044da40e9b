"""The stateful machine has teeth: without a part of the protocol a play of a few of its calls turns red.

Hypothesis comes upon such plays by chance, sooner or later; here each is played on purpose, and nothing
in it is random. What takes a lost commit or a foreign writer the machine cannot see (test_teeth.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.protocol.faulty import Fault, Plan
from tests.protocol.fleet_strategies import KEYS
from tests.protocol.mutations import MUTATIONS
from tests.protocol.test_stateful import ALL, Fleet

pytestmark = pytest.mark.slow

KEY = KEYS[0]
SLOW = Fault("slow", 0.03)
REFUSED = Fault("refused")


def meets(name: str, fault: Fault, *others: tuple[str, Fault]) -> Plan:
    """The first command of each name meets a fault."""
    return Plan({(command, 0): what for command, what in ((name, fault), *others)})


def append(fleet: Fleet, server: int, plan: Plan | None = None) -> None:
    fleet.append(server, KEY, 0, 1, False, set(), plan or Plan(), None)


def read(fleet: Fleet, server: int, plan: Plan | None = None, pause: float | None = None) -> None:
    fleet.read(server, KEY, ALL, plan or Plan(), pause)


def anew(fleet: Fleet, ttl: int) -> None:
    """The session begins again, and expires after `ttl` ms."""
    fleet.call(0, lambda server: server.delete(KEY), Plan(), None)
    fleet.create(0, KEY, ttl, False, set(), Plan(), None)


def append_then_fail_over(fleet: Fleet, server: int) -> None:
    """Appends; then what the cache held before comes back."""
    append(fleet, server)
    fleet.time_passes(0.01, Plan())
    fleet.mishap("fail over", 0, KEY.session, 3)


# --- the plays ---------------------------------------------------------------------------------------


def filled_late(fleet: Fleet, *others: tuple[str, Fault]) -> None:
    fleet.race(KEY, [(0, 0, "read"), (0.002, 1, "append")], True, meets("fill", SLOW, *others))
    fleet.time_passes(0.06, Plan())


def leased_twice(fleet: Fleet) -> None:
    filled_late(fleet, ("lease", Fault("twice", 0.02)))


def written(fleet: Fleet) -> None:
    fleet.look_around(0)
    append(fleet, 1)
    read(fleet, 0)


def never_applied(fleet: Fleet) -> None:
    fleet.look_around(0)
    append(fleet, 1, meets("apply", REFUSED))
    fleet.look_around(4.1)


def cut_in_the_commit(fleet: Fleet) -> None:
    fleet.look_around(0)
    append(fleet, 1, meets("write", Fault("cut")))
    fleet.time_passes(0.01, Plan())


def expired(fleet: Fleet) -> None:
    anew(fleet, 500)
    fleet.look_around(0.01)
    fleet.look_around(0.6)


def replaced(fleet: Fleet) -> None:
    expired(fleet)
    fleet.create(1, KEY, None, False, set(), Plan(), None)


def filled_late_and_expired(fleet: Fleet) -> None:
    anew(fleet, 5000)
    read(fleet, 0, meets("fill", Fault("slow", 1.5)))
    fleet.time_passes(4.1, Plan())
    fleet.time_passes(1.1, Plan())
    read(fleet, 0)


def applied_out_of_order(fleet: Fleet) -> None:
    fleet.look_around(0)
    append(fleet, 0, meets("apply", SLOW))
    append(fleet, 1)
    fleet.time_passes(0.01, Plan())


def failed_over(fleet: Fleet) -> None:
    fleet.look_around(0)
    append_then_fail_over(fleet, 2)
    fleet.look_around(0)


def failed_over_to_the_former(fleet: Fleet) -> None:
    fleet.look_around(0)
    fleet.replace(0, 0, KEY, Plan(), None)
    read(fleet, 0)
    fleet.mishap("fail over", 0, KEY.session, 4)
    read(fleet, 0)


def cut_off(fleet: Fleet) -> None:
    fleet.look_around(0)
    append(fleet, 1, meets("intent", REFUSED, ("drop", REFUSED)))
    fleet.heal()


def touched_late(fleet: Fleet) -> None:
    fleet.look_around(0)
    fleet.mishap("restart", 0, KEY.session, 1)
    read(fleet, 0, meets("touch", SLOW))
    append_then_fail_over(fleet, 1)
    fleet.time_passes(0.06, Plan())


def filled_late_after_a_failover(fleet: Fleet) -> None:
    read(fleet, 0, meets("fill", SLOW))
    append_then_fail_over(fleet, 1)
    fleet.time_passes(0.06, Plan())


def joined_late(fleet: Fleet) -> None:
    calls = [(0.0, 0, "read"), (0.002, 1, "append"), (0.0056, 0, "read")]
    fleet.race(KEY, calls, True, meets("load", Fault("after", 0.4)))


def created_between_window_and_rest(fleet: Fleet) -> None:
    read(fleet, 0)
    read(fleet, 2, meets("older", Fault("slow", 0.4)), pause=0.002)
    fleet.replace(1, 1, KEY, Plan(), None)
    append(fleet, 1)
    fleet.time_passes(0.6, Plan())


def extended_by_another(fleet: Fleet) -> None:
    fleet.look_around(0)
    append(fleet, 1)
    append(fleet, 0)
    read(fleet, 0)


Play = Callable[[Fleet], None]
NO_STAMPS = {"stamps": False}
UNMASKED = "I4: session 2 is unmasked after 3"
MISSED = "I4: session 3 of .* is missed"
MIXED = "I1: not the events asked for"
UNGUARDED = "I4: session neither masked nor recorded"
PLAYS: dict[str, tuple[Play, str, dict[str, Any]]] = {
    "lease": (filled_late, UNMASKED, {}),
    "grant-time": (leased_twice, UNMASKED, {}),
    "mask": (written, UNMASKED, {}),
    "mask-purge": (never_applied, UNMASKED, {}),
    "mask-of-an-unknown-commit": (cut_in_the_commit, UNMASKED, {}),
    "mask-of-what-is-replaced": (replaced, UNGUARDED, {}),
    "predecessor": (applied_out_of_order, "I2: not a tail of the log", {}),
    "incarnation-in-floor": (failed_over_to_the_former, "I6: session 2 after 4", NO_STAMPS),
    "floor": (failed_over, "I6: session 2 after 3", NO_STAMPS),
    "outbox": (cut_off, UNGUARDED, {}),
    "keep-by-tag": (cut_off, "I4: session is older than a drained row", {}),
    "server-stamp": (failed_over, MISSED, {}),
    "stamp-of-the-lookup": (touched_late, UNMASKED, {}),
    "stamp-of-the-lease": (filled_late_after_a_failover, UNMASKED, {}),
    "flight-rule": (joined_late, MISSED, {}),
    "seal": (joined_late, MISSED, {}),
    "private-caches": (written, MISSED, {"shared": False}),
    "tag-of-what-is-kept": (written, MISSED, {}),
    "tag-of-older-events": (created_between_window_and_rest, MIXED, {"window": 3}),
    "predecessor-of-what-is-kept": (extended_by_another, MIXED, {}),
    "expiry": (expired, "it had expired before the read began", {}),
    "expiry-from-the-grant": (filled_late_and_expired, "it had expired before the read began", {}),
}
OFF = {mutation.name: mutation.off for mutation in MUTATIONS}


def perform(play: Play, shared: bool = True, stamps: bool = True, window: int = 200) -> None:
    fleet = Fleet()
    try:
        fleet.begin(30.0, shared, stamps, window)
        play(fleet)
    finally:
        fleet.teardown()


@pytest.mark.parametrize("part", PLAYS)
def test_it_is_red_without(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    play, seen, world = PLAYS[part]
    perform(play, **world)
    OFF[part](monkeypatch)
    with pytest.raises(AssertionError, match=seen):
        perform(play, **world)
