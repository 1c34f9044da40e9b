"""Suites that a cache or a store of your own has to pass, a clock for them, and a cache that fails on order.

docs/testing.md shows how they are used.
"""

from __future__ import annotations

try:
    import pytest
    import pytest_asyncio  # noqa: F401 (without it every rule would be skipped, not run)
except ImportError as error:
    raise ImportError(
        "tiered_sessions.testing needs pytest and its asyncio plugin: pip install pytest pytest-asyncio"
    ) from error

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{module}"
        for module in (
            "cache_entries",
            "cache_masks",
            "cache_samples",
            "cache_sequences",
            "cache_windows",
            "store_expiry",
            "store_reads",
            "store_samples",
            "store_writes",
        )
    )
)

from .cache_suite import CacheRules, CacheSuite  # noqa: E402
from .clocks import Clock, ManualClock, WaitingClock  # noqa: E402
from .faulty import Fault, FaultyCache  # noqa: E402
from .store_suite import StoreSuite  # noqa: E402

__all__ = [
    "CacheRules",
    "CacheSuite",
    "Clock",
    "Fault",
    "FaultyCache",
    "ManualClock",
    "StoreSuite",
    "WaitingClock",
]
