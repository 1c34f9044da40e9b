"""What the simulated processes do, and how the runs are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from tests.protocol.actors import RULES, Faults, Violation
from tests.protocol.simulation import NONE, World
from tests.protocol.toy_sql import KEY
from tiered_sessions.records import Append, NewEvent
from tiered_sessions.tier.steps import Rules

Scenario = Callable[[World], None]


def writers(world: World) -> None:
    world.turn(0, "a")
    world.turn(1, "b", user=True)
    world.read(0)
    world.read(1)
    world.read(1)


def recreated(world: World) -> None:
    world.read(0)
    world.turn(0, "a")
    world.delete(1)
    world.create(0)
    world.read(1)
    world.read(0)


def warm(world: World) -> None:
    """Fills first, so that there is an entry to be stale."""
    world.read(0)
    world.run()
    for number in range(2):
        world.turn(number, f"w{number}", user=True)
        world.read(0)
        world.read(1)


def watched(world: World) -> None:
    """One writer under the eyes of two readers."""
    world.read(0)
    world.run()
    world.write(0, "w", user=True)
    world.reads(0, 4)
    world.reads(1, 4)


def alone(world: World) -> None:
    """One writer beside a filled entry: nobody else repairs what it leaves behind."""
    world.read(0)
    world.run()
    world.write(1, "w", user=True)


def raced(world: World) -> None:
    """A reader that fills beside a writer."""
    world.read(0)
    world.write(1, "w")


def cold(world: World) -> None:
    """A reader that fills beside a writer, whose process reads on."""
    world.read(0)
    world.write(1, "w", then=lambda: world.reads(0, 2))


def expiring(world: World) -> None:
    """A session that expires among readers, a writer, a sweep and who wants its id."""
    world.sql.live(KEY, 4000, sliding=False)
    world.read(0)
    world.turn(0, "a")
    world.read(1)
    world.create(1, 4000)
    world.sweep(0)
    world.read(0)
    world.turn(1, "b", user=True)
    world.read(1)


def brief(world: World) -> None:
    """Readers all around the moment a session expires."""
    world.sql.live(KEY, 12, sliding=False)
    world.reads(0, 5)
    world.reads(1, 5)


def sliding(world: World) -> None:
    """Appends keep a session alive; without them it ends."""
    world.sql.live(KEY, 4000, sliding=True)
    world.read(0)
    world.run()
    world.turn(0, "a")
    world.read(1)
    world.sweep(1)
    world.turn(0, "b")
    world.create(1, 4000, sliding=True)
    world.read(0)
    world.read(1)


def replaced(world: World) -> None:
    """SQL's clock is set ahead: to it a cached session has expired, and its id is taken again."""
    world.read(0)
    world.run()
    world.sql.live(KEY, 60_000, sliding=False)
    world.cache._slots.clear()
    world.read(0)
    world.run()
    world.skew = 100_000
    world.create(1)
    world.read(0)
    world.read(0)


def chained(world: World) -> None:
    """Two appends, one after the other; what the cache is told may come in the other order."""
    world.read(0)
    world.run()
    world.write(1, "a", then=lambda: world.write(0, "b", then=lambda: world.reads(0, 2)))


def reborn(world: World) -> None:
    """The row of the user's state is deleted by another program and made anew (a trigger says so)."""

    def forget_user() -> None:
        world.sql.remove(KEY.user)
        world.sql.record((KEY.user,))
        world.drain(1, then=lambda: world.write(1, "b", user=True, then=lambda: world.reads(1, 3)))

    world.write(0, "a", user=True, then=forget_user)


def forgotten(world: World) -> None:
    """A cache that fails over to what it held before a session was deleted and created again."""
    world.write(1, "a")
    world.run()
    world.read(1)
    world.run()
    world.delete(1, then=lambda: world.create(1, then=lambda: world.reads(0, 4)))


def validated(world: World) -> None:
    """An entry that is due for validation, a writer, and a cache that fails over to before both."""
    world.read(0)
    world.run()
    world.now += 31_000
    world.read(0, lambda _: world.write(1, "w"))


def drained(world: World) -> None:
    """A drainer while a writer records one invalidation after the other."""

    def recorded() -> None:
        world.drain(1)
        world.read(1, lambda _: world.write(0, "b"))

    world.write(0, "a", then=recorded)


def foreign(world: World) -> None:
    """Another program writes beside ours: of a row's tag it changes the update time only."""
    world.read(0)
    world.run()
    world.foreign(lambda: world.sql.foreign_append(1))
    world.turn(0, "a")
    world.read(1)
    world.foreign(lambda: world.sql.foreign_append(2))
    world.read(0)


def long(world: World) -> None:
    """A history longer than the window is replaced by another under the same id."""
    for number in range(4):
        world.write(0, f"old{number}")
        world.run()
    world.read(0)
    world.run()
    world.delete(0, then=lambda: world.create(0, then=lambda: world.write(0, "new")))
    world.read(1)


def lost(world: World) -> None:
    """Two writers of one revision, of which the record keeps the second."""
    world.read(0)
    world.run()
    world.turn(0, "a")
    world.turn(1, "b")


def repeated(world: World) -> None:
    """A reader after each of many appends that were stored before."""
    _after_each(world, stored=True)


def outdated(world: World) -> None:
    """A reader after each of many appends to what the session no longer is."""
    _after_each(world, stored=False)


def _after_each(world: World, *, stored: bool) -> None:
    """Reads after each of ten appends that change nothing: their event is stored, or their tag is old."""
    old = world.sql.tag(KEY.session)
    world.write(0, "a", user=True)
    world.run()
    world.read(1)
    world.run()
    world.served.clear()
    for number in range(10):
        name = "a" if stored else str(number)
        event = NewEvent(name, "i", 1, b'{"n":"%s"}' % name.encode())
        world.append(0, Append(KEY, old, 1, (event,), user_delta=b"{}"))
        world.run()
        world.read(1)
        world.run()


def quiesce(world: World) -> None:
    """Lets what is left happen: masks expire, the outbox is drained."""
    world.run()
    world.now += 5000
    for _ in range(20):
        world.drain(0)
        world.run()
        if not world.sql.outbox:
            return


# --- verdicts: each runs a scenario to its end and says whether a promise was broken ------------


def always(world: World) -> bool:
    """I4, I5, I6: no answer is stale, whenever it was given."""
    quiesce(world)
    # Who has no floor is told first.
    for number in (2, 0, 1):
        world.read(number)
        world.run()
    return any(world.stale(each) or world.backwards(each) for each in world.served)


def settled(world: World) -> bool:
    """No answer is stale once everything under way, and every fault, has ended."""
    quiesce(world)
    world.faults = NONE
    world.served.clear()
    return always(world)


def in_time(world: World) -> bool:
    """No answer is stale that is asked for `max_staleness` after everything has ended."""
    quiesce(world)
    world.faults = NONE
    world.now += (world.rules.max_staleness or 0) + 1000
    world.served.clear()
    return always(world)


def for_itself(world: World) -> bool:
    """I6: no process goes back behind what it wrote or served."""
    quiesce(world)
    for number in (0, 1):
        world.read(number)
        world.run()
    return any(world.backwards(each) for each in world.served)


def all_hits(world: World) -> bool:
    """Every read was answered by the cache."""
    return any(each.answer.source == "store" for each in world.served)


def violations(
    scenario: Scenario,
    verdict: Callable[[World], bool],
    seeds: Iterable[int],
    faults: Faults = NONE,
    rules: Rules = RULES,
    window: int = 200,
) -> list[int]:
    """Returns the seeds under which a promise was broken."""
    found = []
    for seed in seeds:
        world = World(seed, faults, rules, window)
        try:
            scenario(world)
            broken = verdict(world)
        except Violation:
            broken = True
            world.close()
        if broken:
            found.append(seed)
    return found


def within(max_staleness: int | None) -> Rules:
    """Returns the rules with another bound."""
    return replace(RULES, max_staleness=max_staleness)
