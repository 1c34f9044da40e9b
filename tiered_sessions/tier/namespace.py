"""Follows the cache namespace kept in SQL: changing it orphans every entry of a fleet at once."""

from __future__ import annotations

from collections.abc import Callable

from ..cache.base import SessionCache
from ..store.base import SessionStore
from .breaker import Breaker

_LIFE = 5.0


class Namespace:
    """Keeps `cache.namespace` what SQL says. `forget`: drops what this process knows of entries."""

    def __init__(
        self,
        store: SessionStore,
        cache: SessionCache,
        breaker: Breaker,
        clock: Callable[[], float],
        forget: Callable[[], None],
    ) -> None:
        self._store = store
        self._cache = cache
        self._breaker = breaker
        self._clock = clock
        self._forget = forget
        self._read_at: float | None = None
        self._doubted_until: float | None = None

    @property
    def doubted(self) -> bool:
        """Whether another process may still write under the namespace before this one."""
        return self._doubted_until is not None

    async def follow(self) -> None:
        """Reads it anew, if what was read last is 5 s old."""
        if self._read_at is None or self._clock() - self._read_at >= _LIFE:
            await self.read()
        await self._trust_again()

    async def read(self) -> None:
        """Reads it from SQL."""
        namespace = await self._store.namespace()
        known = self._read_at is not None
        self._read_at = self._clock()
        if namespace != self._cache.namespace:
            # Floors and contents speak of entries that nobody can reach any more (R35).
            self._forget()
            if known:
                # Other processes hear of it later, and until then mask and apply elsewhere.
                self._doubted_until = self._clock() + _LIFE + 2
            self._cache.namespace = namespace

    async def _trust_again(self) -> None:
        """Ends the doubt after a change: what was validated before it is checked once."""
        if self._doubted_until is not None and self._clock() >= self._doubted_until:
            now = await self._cache.probe()
            if isinstance(now, int):
                self._breaker.probed = now
                self._doubted_until = None
