"""Watches a running fleet: compares the entries of a few calls with SQL, at once and later."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from .. import metrics as counters
from ..cache.base import SessionCache
from ..config import TieredConfig
from ..errors import StoreError
from ..metrics import Metrics
from ..records import Query, SessionKey, Snapshot, Tag, Tags
from .breaker import Breaker
from .verifier import Finding, Verdict, Verifier

logger = logging.getLogger("tiered_sessions")

_LIMIT: Final = 32
"""How many samples are under way at once: one a second begins at a `max_staleness` of 30 s."""
_PATIENCE: Final = 5.0


class Sampler:
    """Compares after 0 s, 1 s and `max_staleness` what the cache and SQL hold of a sampled session.

    Args:
        cache: A shared one.
        load: Reads a session from SQL, within the limit on reads.
        tags: Reads the tags of a session's scopes, likewise.
        config: `sample_rate`, more than 0, and `max_staleness`.
        breaker: While it is open nothing is compared.
        metrics: Receives the counters.
        clock: Seconds, monotonic, the same as the event loop's.
    """

    def __init__(
        self,
        cache: SessionCache,
        load: Callable[[SessionKey, Query], Awaitable[Snapshot | None]],
        tags: Callable[[SessionKey], Awaitable[Tags]],
        config: TieredConfig,
        breaker: Breaker,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        staleness = config.max_staleness
        self._verifier = Verifier(cache, load, None if staleness is None else round(staleness * 1000))
        self._tags = tags
        self._breaker = breaker
        self._metrics = metrics
        self._clock = clock
        ages = [(0.0, counters.SAMPLED_AT_ONCE), (1.0, counters.SAMPLED_LATER)]
        if staleness:
            ages.append((staleness, counters.SAMPLED_AT_BOUND))
        self._ages = sorted(ages)
        self._every = round(1 / config.sample_rate)
        self._left = self._every
        self._samples: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """The samples under way."""
        return list(self._samples)

    def offer(self, key: SessionKey) -> None:
        """Notes a call that has just ended; one of `1 / sample_rate` is sampled."""
        self._left -= 1
        if self._left:
            return
        # Drawn anew each time, so that no rhythm of the callers hides one kind of call.
        self._left = random.randint(1, 2 * self._every - 1)
        if self._stopped or len(self._samples) >= _LIMIT:
            return
        sample = asyncio.create_task(self._sample(key))
        self._samples.add(sample)
        sample.add_done_callback(self._samples.discard)

    def stop(self) -> None:
        """Begins nothing more."""
        self._stopped = True

    async def _sample(self, key: SessionKey) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                held = await self._tags(key)
            began = self._clock()
            for age, names in self._ages:
                await asyncio.sleep(max(0.0, began + age - self._clock()))
                # Asked each time: a driver may swallow a cancellation (wait_for of Python 3.11).
                if self._stopped:
                    return
                if not self._breaker.open:
                    async with asyncio.timeout(_PATIENCE):
                        findings = await self._verifier.compare(key)
                    self._count(names, findings, held if age else None)
        except (StoreError, TimeoutError) as error:
            logger.debug("a sample was given up: %s", error)
        except Exception:
            logger.exception("comparing a sample failed")

    def _count(self, names: counters.Sampled, findings: list[Finding], held: Tags | None) -> None:
        """Counts one comparison; `held`: what SQL held when the sample began, None: just now."""
        compared = [finding for finding in findings if finding.compared]
        wrong = [finding for finding in compared if finding.verdict is Verdict.WRONG]
        stale = [
            finding
            for finding in compared
            if finding.verdict is Verdict.STALE
            # What no read is served from is no inconsistency that anybody could see.
            and finding.allowed
            and (held is None or _older(finding.cached, held.tag(finding.scope)))
        ]
        for name, found in (
            (names.compared, compared),
            (names.inconsistent, wrong + stale),
            (counters.SAMPLED_WRONG, wrong),
        ):
            if found:
                self._metrics.count(name, len(found))
        for finding in wrong:
            logger.error("the cache entry of %s has SQL's tag and differs: %s", finding.scope, finding.reason)
        if names is counters.SAMPLED_AT_BOUND:
            for finding in stale:
                logger.error("the cache entry of %s is too old: %s", finding.scope, finding.reason)


def _older(entry: Tag | None, held: Tag | None) -> bool:
    """Says whether an entry is older than `held`: a change that came later is not that old yet."""
    if entry is None or held is None or entry.incarnation != held.incarnation:
        return True
    return entry != held and entry.revision <= held.revision
