"""Servers over one database and one cache, on a loop of virtual time, and what must hold of them.

A commit that a reader misses is a fault of the product, unless table 5.5 of consistency.md allows for
it: then `Version.exposed` says so, for as long as something older is left in the cache.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tests.protocol.doubles import VirtualLoop
from tests.protocol.faulty import Plan
from tests.protocol.fleet_server import Errand, Moment, Server, make_task
from tests.protocol.inline import database, rename_namespace
from tests.protocol.truth import Truth, Version
from tiered_sessions.cache.base import CacheLimits
from tiered_sessions.cache.memory import MemoryCache, Slot, State
from tiered_sessions.config import TieredConfig
from tiered_sessions.records import ScopeKey

Name = tuple[str, ScopeKey]
# How long a server that has heard of another namespace checks every hit (tier/namespace.py).
_DOUBT = 7.0


class World:
    """One database, one cache (`shared` False: one for each server), and the servers."""

    def __init__(
        self, config: TieredConfig, servers: int, *, shared: bool = True, stamps: bool = True
    ) -> None:
        self.loop = VirtualLoop()
        self.loop.set_task_factory(make_task)
        self.errors: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(str(context)))
        self._unseen = _Unseen(self.errors)
        logging.getLogger("tiered_sessions").addHandler(self._unseen)
        self.config = config
        self.shared, self.stamps = shared, stamps
        self.raw = database(self.now)
        self.limits = CacheLimits(
            idle_ttl=round(config.idle_ttl * 1000),
            max_age=round(config.max_age * 1000),
            window_events=config.window_events,
            window_bytes=config.window_bytes,
        )
        self.cache = self.new_cache()
        self.truth = Truth(self.now)
        self.plan = Plan()
        self.past: list[State] = []
        """What the cache held after the last steps."""
        self._numbers, self._sent = itertools.count(1), itertools.count(1)
        self._lost: set[tuple[str, ScopeKey, str]] = set()
        self._deadlines: dict[tuple[str, ScopeKey, str], int] = {}
        self._wires: set[asyncio.Task[Any]] = set()
        self.stamp()
        self.servers = [Server(self) for _ in range(servers)]

    def new_cache(self) -> MemoryCache:
        """Makes an empty cache."""
        return MemoryCache(self.limits, clock=self.now, shared=self.shared)

    def now(self) -> int:
        """The clock of database and cache, in ms."""
        return int(self.loop.time() * 1000)

    def run(self, work: Awaitable[Any]) -> Any:
        """Runs the loop until `work` is done."""
        return self.loop.run_until_complete(work)

    def carry(self, server: Server, work: Callable[[], Awaitable[Any]], out: float, back: float) -> Any:
        """Performs `work` after `out` seconds, whoever waits for it, and answers `back` seconds later."""

        # What is sent at the same time arrives in the order it was sent.
        out += self.plan.lag() + next(self._sent) * 1e-11
        back += self.plan.lag()

        async def travel() -> Any:
            await asyncio.sleep(out)
            if server.silenced:
                await asyncio.Event().wait()
            reply = await work()
            await asyncio.sleep(back)
            return reply

        # Not a task of the server: it does not die with it.
        task = self.loop.create_task(travel(), context=contextvars.Context())
        self._wires.add(task)
        task.add_done_callback(self._arrived)
        return task

    def _arrived(self, wire: asyncio.Task[Any]) -> None:
        self._wires.discard(wire)
        if not wire.cancelled() and wire.exception() is not None:
            self.errors.append(repr(wire.exception()))

    # --- the cache ----------------------------------------------------------------------------

    async def execute(
        self, cache: MemoryCache, namespace: str, name: str, scopes: Sequence[ScopeKey], arguments: Any
    ) -> Any:
        """Performs one command of the cache, and looks at what it made of the entry."""
        cache.namespace = namespace
        before = [self.slot(cache, (namespace, scope)).entry for scope in scopes]
        reply = await getattr(cache, name)(*arguments)
        if name == "intent":
            mask = (namespace, scopes[0], arguments[1])
            self._deadlines[mask] = self.now() + self.limits.mask_life
        for scope, old in zip(scopes, before, strict=True):
            entry = self.slot(cache, (namespace, scope)).entry
            if entry is not None and entry is not old:
                version = self.truth.check_entry(scope, entry.content())
                if old is not None and old.tag != entry.tag:
                    step = version.number - self.truth.find(scope, old.tag).number
                    assert step == 1 or (step > 1 and scope.kind != "session"), f"I3: moved by {step}"
            if self.shared:
                self.settle((namespace, scope))
                self.check_unmasked((namespace, scope))
        return reply

    def slot(self, cache: MemoryCache, name: Name) -> Slot:
        """Returns what a cache holds of a key whose life is not over."""
        slot: Slot | None = cache._slots.get(name)
        return Slot() if slot is None or slot.expires < self.now() else slot

    def evict(self, name: Name) -> None:
        """The cache drops one key."""
        slot: Slot | None = self.cache._slots.pop(name, None)
        if slot is not None:
            self._lose(name, slot, Slot())

    def flush(self) -> None:
        """The cache drops every key."""
        for name in [*self.cache._slots]:
            self.evict(name)

    def fail_over(self, back: int) -> None:
        """Another process of the cache takes over, with what the first one held `back` rules ago."""
        before = dict(self.cache._slots.items())
        if back and self.past:
            self.cache.restore(self.past[-min(back, len(self.past))])
        self.stamp()
        after = dict(self.cache._slots.items())
        for name in before.keys() | after.keys():
            if not self.stamps:
                # Nothing tells that the key is older than it was.
                for version in self.truth.versions(name[1]):
                    version.exposed[name[0]] = None
                    version.recorded = False
            self._lose(name, before.get(name, Slot()), after.get(name, Slot()))

    def stamp(self) -> None:
        """From now on another process of the cache answers."""
        self.cache.stamp = f"s{next(self._numbers)}" if self.stamps else ""

    def _lose(self, name: Name, before: Slot, after: Slot) -> None:
        self._lost |= {(*name, token) for token, _ in before.masks if token not in dict(after.masks)}
        self.settle(name)

    # --- what a reader may miss -----------------------------------------------------------------

    def committed(
        self, made: list[tuple[ScopeKey, Version]], errand: Errand, outbox: Sequence[ScopeKey]
    ) -> None:
        """Notes, at the commit, where a fault has left something older unmasked."""
        if not self.shared:
            return
        namespaces = {server.cache.namespace for server in self.servers}
        namespaces |= {namespace for namespace, _ in self.cache._slots}
        for scope, version in made:
            before = self.truth.versions(scope)[version.number - 1]
            masks = {n: (n, scope, errand.tokens.get(scope, "")) for n in namespaces}
            taken = any(mask in self._deadlines for mask in masks.values())
            # What was not there before needs no mask.
            guarded = taken or scope in outbox
            assert guarded or before.tag is None, f"I4: {scope.kind} neither masked nor recorded"
            version.recorded = scope in outbox and len(namespaces) == 1
            for namespace, mask in masks.items():
                whole = mask not in self._lost and self._deadlines.get(mask, 0) > self.now()
                exposed = scope in outbox or not whole
                if not guarded:
                    exposed = before.exposed.get(namespace, 0.0) is None
                if exposed:
                    version.exposed[namespace] = None
                    self.settle((namespace, scope))
                self.check_unmasked((namespace, scope))

    def settle(self, name: Name) -> None:
        """Notes of which versions nothing older is left in this key, nor a lease from before."""
        namespace, scope = name
        slot = self.slot(self.cache, name)
        leased = slot.lease.granted_at if slot.lease and slot.lease.deadline > self.now() else None
        held = None if slot.entry is None else self.truth.find(scope, slot.entry.tag).number
        for version in self.truth.versions(scope):
            if version.exposed.get(namespace, 0.0) is None:
                kept = held is not None and held < version.number
                if not kept and (leased is None or leased > version.at):
                    version.exposed[namespace] = self.loop.time()

    def check_unmasked(self, name: Name) -> None:
        """I4: an entry that readers may be served is not older than SQL, or table 5.5 allows for it."""
        namespace, scope = name
        slot = self.slot(self.cache, name)
        entry = slot.entry
        if entry is None or slot.masks or entry.stamp != self.cache.stamp or entry.expired(self.now()):
            return
        held = self.truth.find(scope, entry.tag).number
        for version in self.truth.versions(scope)[held + 1 :]:
            allowed = version.exposed.get(namespace, 0.0) is None
            assert allowed, f"I4: {scope.kind} {held} is unmasked after {version.number}"

    def check_fresh(self, server: Server, scope: ScopeKey, served: Version, began: Moment) -> None:
        """I4: every commit before the read began is in the answer, or table 5.5 allows for it."""
        staleness = self.config.max_staleness
        for version in self.truth.versions(scope)[served.number + 1 :]:
            if version.order > began.commits:
                continue
            text = f"I4: {scope.kind} {version.number} of {version.at} is missed at {began.at}"
            heard = server.cache.renamed_at
            doubted = began.at >= heard and version.at < (heard + _DOUBT) * 1000
            assert self.shared, text
            assert staleness != 0, text
            assert not doubted, text
            namespaces = {began.namespace, server.cache.namespace}
            until = [version.exposed[n] for n in namespaces if n in version.exposed]
            assert any(time is None or time >= began.at for time in until), text
            if staleness is not None:
                assert began.at * 1000 - version.at <= staleness * 1000 + 1, f"{text}: longer than the bound"

    def check(self) -> None:
        """Nothing has failed unseen. I8: each key has a life, and its entry keeps to the sizes."""
        assert not self.errors, self.errors
        self.past = [*self.past[-4:], self.cache.snapshot()]
        config, limits = self.config, self.limits
        for cache in {id(c): c for c in (self.cache, *(s.inner for s in self.servers))}.values():
            for slot in cache._slots.values():
                assert 0 < slot.expires - self.now() <= limits.idle_ttl or slot.expires <= self.now()
                if slot.entry is None:
                    continue
                assert slot.entry.size <= config.window_bytes + config.state_bytes
                assert len(slot.entry.state) <= config.state_bytes
                content = slot.entry.content()
                assert all(len(event.payload) <= config.event_bytes for event in content.events)

    def check_healed(self) -> None:
        """I4: what was recorded in the outbox has been carried out."""
        if not self.shared:
            return
        (left,) = self.raw.execute("SELECT count(*) FROM cache_outbox").fetchone()
        assert not left, f"{left} invalidations are not drained"
        now = self.servers[0].cache.namespace
        for scope in [scope for namespace, scope in self.cache._slots if namespace == now]:
            self.settle((now, scope))
            for version in self.truth.versions(scope):
                kept = version.recorded and version.exposed.get(now, 0.0) is None
                assert not kept, f"I4: {scope.kind} is older than a drained row"

    # --- the database and the servers ---------------------------------------------------------

    def rename(self) -> None:
        """Does what `tiered-sessions cache reset` does."""
        rename_namespace(self.raw, f"n{next(self._numbers)}")

    def kill(self, number: int, *, silenced: bool) -> None:
        """One process dies; another takes its place."""
        self.servers[number].kill(silenced=silenced)
        self.servers[number] = Server(self)

    def close(self) -> None:
        """Ends what is on the wires; the servers are closed or dead."""
        logging.getLogger("tiered_sessions").removeHandler(self._unseen)
        for task in [*self._wires]:
            task.cancel()
        for _ in range(3):
            self.run(asyncio.sleep(0))
        left = [str(task) for task in asyncio.all_tasks(self.loop) if not task.done()]
        self.loop.close()
        self.raw.close()
        assert not left, f"left under way: {left}"


class _Unseen(logging.Handler):
    """Keeps the errors that only a log tells of."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._errors = errors

    def emit(self, record: logging.LogRecord) -> None:
        self._errors.append(record.getMessage())
