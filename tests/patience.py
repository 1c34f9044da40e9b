"""Patience, for tests that look at something else than time: machines stand still for a second or two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tiered_sessions import TieredConfig
from tiered_sessions.cache.redis import RedisSessionCache
from tiered_sessions.tier import cache_calls
from tiered_sessions.tier.breaker import Breaker

__all__ = ["PATIENCE", "PATIENT", "UNREFUSED", "patient", "patient_caches"]

PATIENCE = 30.0
"""Seconds that a server may take where that is not what is looked at."""

PATIENT = TieredConfig(
    cache_budget=PATIENCE,
    lock_timeout=PATIENCE,
    statement_timeout=PATIENCE,
    mask_age=PATIENCE,
    mask_life=3 * PATIENCE,
    lease_life=PATIENCE,
)

UNREFUSED = {"lock_timeout": 2.0, "statement_timeout": 3.0, "mask_age": 2.0, "mask_life": 5.5}
"""Settings with which no write is refused either, for tests that wait for what comes after a mask's life."""


@contextlib.contextmanager
def patient_caches() -> Iterator[None]:
    """Has caches that are made while it lasts, and are told no time-out, wait long for their server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RedisSessionCache.__init__.__kwdefaults__, "timeout", PATIENCE)
        yield


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Has tiers wait for their cache while it lasts, and `patient_caches` for their server.

    With the settings of `PATIENT` nobody is cut off, and no time-out leaves a mask.
    """
    with pytest.MonkeyPatch.context() as patch, patient_caches():
        patch.setattr(Breaker, "timeout", PATIENCE)
        for name in ("_LATER_TIMEOUT", "LONGEST"):
            patch.setattr(cache_calls, name, PATIENCE)
        yield
