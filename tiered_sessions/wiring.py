"""From a user's arguments to tiers: which database, which cache, for which event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, cast

from .cache.base import CacheLimits, SessionCache
from .config import TieredConfig
from .errors import ConfigurationError
from .metrics import Metrics
from .shared_events import SharedEvents
from .tier.tier import SessionTier
from .urls import normalise_cache_url, normalise_database_url, redact

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

logger = logging.getLogger("tiered_sessions")

DEFAULT_DATABASE: Final = "sqlite+aiosqlite:///./tiered_sessions.db"
_DATABASES: Final = ("TIERED_SESSIONS_DB_URL", "DATABASE_URL")

_forks = 0
"""How many forks lie between the first process and this one."""


def _forked() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

# What a forked child inherited is kept and never touched: closing a connection there would end the
# parent's TLS session, or drop the parent's locks on a SQLite file.
_inherited: list[object] = []


@dataclass(frozen=True, slots=True)
class _Wired:
    loop: weakref.ref[asyncio.AbstractEventLoop]
    engine: AsyncEngine
    tier: SessionTier


class Wiring:
    """Builds a tier for each event loop of each process, on first use, and remembers it.

    Args:
        db_url: Address of the database; None with `db_engine` None: from the environment, else a file.
        db_engine: The caller's engine instead: it is never disposed of.
        cache: `...` for the environment's, else one in the process; None for none; "memory"; a URL; a
            client of redis.asyncio; or a `SessionCache`.
        config: The numbers.
        metrics: Receives the counters.
        create_tables: Whether missing tables are made.
        engine_options: For `create_async_engine`.
        kept: What was read last, of all event loops.

    Raises:
        ConfigurationError: Something among these cannot be used.
    """

    def __init__(
        self,
        db_url: str | None,
        db_engine: AsyncEngine | None,
        cache: str | SessionCache | object | EllipsisType | None,
        config: TieredConfig,
        metrics: Metrics | None,
        create_tables: bool,
        engine_options: dict[str, Any],
        kept: SharedEvents[Any],
    ) -> None:
        if db_url is not None and db_engine is not None:
            raise ConfigurationError("Give db_url or db_engine, not both")
        if db_engine is not None and engine_options:
            names = ", ".join(sorted(engine_options))
            raise ConfigurationError(f"{names}: set on the engine itself when db_engine is given")
        self._config = config
        self._metrics = metrics
        self._kept = kept
        self._create_tables = create_tables
        self._options = engine_options
        self._given_engine = db_engine
        self._url = "" if db_engine is not None else _database_url(db_url)
        self._cache = _read_cache(cache)
        self._bound = self._what_is_bound()
        self._owner: Callable[[], asyncio.AbstractEventLoop | None] | None = None
        self._forks = _forks
        self._lock = threading.Lock()
        self._wired: list[_Wired] = []
        # Built at once, so that a missing driver is an error of the constructor.
        self._spare: AsyncEngine | None = db_engine or self._build_engine()
        database = self._url if db_engine is None else db_engine.url.render_as_string(hide_password=True)
        logger.info("sessions in %s, cache: %s", redact(database), self._cache_name())

    def _what_is_bound(self) -> str | None:
        if self._given_engine is not None:
            return "The engine given as db_engine"
        if normalise_database_url(self._url).memory:
            return "A database in memory"
        if self._cache is not None and not isinstance(self._cache, str):
            return "The object given as cache"
        return None

    def _cache_name(self) -> str:
        if self._cache is None:
            return "none"
        return redact(self._cache) if isinstance(self._cache, str) else type(self._cache).__name__

    @property
    def engine(self) -> AsyncEngine:
        """The engine of the running event loop, or the one the first loop will get."""
        if self._given_engine is not None:
            return self._given_engine
        from .store.engines import transactional

        return transactional(self._own_engine())

    def _own_engine(self) -> AsyncEngine:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            with self._lock:
                self._leave_the_parents()
                if self._spare is None and self._wired:
                    return self._wired[0].engine
                return self._take_spare(keep=True)
        return self._of(loop).engine

    def tier(self) -> SessionTier:
        """Returns the tier of the running event loop.

        Raises:
            ConfigurationError: Something the caller gave, or a database in memory, belongs to another
                event loop or process.
        """
        loop = asyncio.get_running_loop()
        # As `_of` does: every call of the service comes by here.
        if self._forks == _forks:
            for wired in self._wired:
                if wired.loop() is loop:
                    return wired.tier
        return self._of(loop).tier

    async def close(self) -> None:
        """Closes the tier of the running event loop; those of other loops are left to them."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._leave_the_parents()
            found = self._find(loop)
            if found is not None:
                self._wired.remove(found)
            spare, self._spare = self._spare, self._given_engine
        if found is not None:
            await found.tier.close()
        if spare is not None and spare is not self._given_engine:
            await spare.dispose()

    async def flush(self) -> None:
        """Waits until the cache has been told of every write of this loop."""
        found = self._find(asyncio.get_running_loop())
        if found is not None:
            await found.tier.flush()

    def _of(self, loop: asyncio.AbstractEventLoop) -> _Wired:
        if self._forks == _forks:
            found = self._find(loop)
            if found is not None:
                return found
        with self._lock:
            self._leave_the_parents()
            self._claim(loop)
            # Those of closed loops can only be dropped: their connections died with the loop.
            self._wired = [wired for wired in self._wired if not _closed(wired.loop)]
            wired = self._wire(loop)
            self._wired.append(wired)
            return wired

    def _find(self, loop: asyncio.AbstractEventLoop) -> _Wired | None:
        for wired in self._wired:
            if wired.loop() is loop:
                return wired
        return None

    def _claim(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._bound is None:
            return
        if self._owner is not None and self._owner() is not loop:
            raise ConfigurationError(
                f"{self._bound} belongs to the event loop and process that used it first; "
                "make a service of its own for each, or give URLs: then every loop gets its own connections"
            )
        self._owner = weakref.ref(loop)

    def _leave_the_parents(self) -> None:
        if self._forks == _forks:
            return
        self._forks = _forks
        if self._wired:
            _inherited.extend(self._wired)
            self._wired = []
            if self._owner is not None:
                self._owner = lambda: None

    def _wire(self, loop: asyncio.AbstractEventLoop) -> _Wired:
        from .store.store import SqlSessionStore

        engine = self._take_spare(keep=False)
        store = SqlSessionStore(
            engine,
            owns_engine=self._given_engine is None,
            config=self._config,
            create_tables=self._create_tables,
        )
        cache = self._build_cache()
        tier = SessionTier(
            store,
            cache,
            self._config,
            self._metrics,
            owns_cache=cache is not self._cache,
            kept=self._kept,
        )
        return _Wired(weakref.ref(loop), engine, tier)

    def _take_spare(self, *, keep: bool) -> AsyncEngine:
        engine = self._spare or self._build_engine()
        self._spare = engine if keep else self._given_engine
        return engine

    def _build_engine(self) -> AsyncEngine:
        from .store.engines import build_engine

        return build_engine(self._url, self._config, **self._options)

    def _build_cache(self) -> SessionCache | None:
        cache, limits = self._cache, _limits(self._config)
        if cache is None:
            return None
        if cache == "memory":
            from .cache.memory import MemoryCache

            return MemoryCache(limits)
        if not isinstance(cache, str) and _is_cache(cache):
            return cast("SessionCache", cache)
        from .cache.redis import RedisSessionCache

        return RedisSessionCache(cast("Any", cache), limits)


def database_named() -> bool:
    """Says whether the environment names a database."""
    return any(os.environ.get(name) for name in _DATABASES)


def _database_url(given: str | None) -> str:
    for text in (given, *(os.environ.get(name) for name in _DATABASES)):
        if text is not None and (text or text is given):
            normalise_database_url(text)
            return text
    return DEFAULT_DATABASE


def _read_cache(given: object) -> object:
    if given is ...:
        variables = ("TIERED_SESSIONS_REDIS_URL", "REDIS_URL")
        given = next((os.environ[name] for name in variables if os.environ.get(name)), "memory")
    if isinstance(given, str):
        return given if given == "memory" else normalise_cache_url(given)
    return given


def _is_cache(given: object) -> bool:
    return all(callable(getattr(given, step, None)) for step in ("lookup", "intent", "lease", "apply"))


def _closed(reference: weakref.ref[asyncio.AbstractEventLoop]) -> bool:
    loop = reference()
    return loop is None or loop.is_closed()


def _limits(config: TieredConfig) -> CacheLimits:
    return CacheLimits(
        idle_ttl=round(config.idle_ttl * 1000),
        max_age=round(config.max_age * 1000),
        window_events=config.window_events,
        window_bytes=config.window_bytes,
        mask_life=round(config.mask_life * 1000),
        lease_life=round(config.lease_life * 1000),
    )
