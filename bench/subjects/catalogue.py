"""Every implementation that can be measured, by name and kind of database."""

from __future__ import annotations

import importlib.util
from typing import Final

from ..records import Family
from .base import Address, Subject

REFERENCE: Final = "adk"
OURS: Final = "ours"
RAW: Final = "raw"
L1: Final = "l1"
_CLASSES: Final = {
    "ours": ("ours", "Ours"),
    "ours-uncached": ("ours", "OursUncached"),
    "ours-cache-gone": ("ours", "OursCacheGone"),
    "adk-redis": ("stock", "StockRedis"),
    RAW: ("raw", "Raw"),
    L1: ("l1", "L1"),
}


def make(name: str, address: Address) -> Subject:
    """Makes the implementation of that name."""
    module, kind = _CLASSES.get(name, ("stock", "StockDatabase"))
    if address.family == "sqlite":
        module, kind = {"adk": ("stock", "StockSqlite"), "ours": ("ours", "OursInProcess")}.get(
            name, (module, kind)
        )
    found = importlib.import_module(f"bench.subjects.{module}")
    made: Subject = getattr(found, kind)(address)
    return made


def available(family: Family) -> list[str]:
    """Returns the implementations that this environment can measure on that kind of database."""
    if family == "sqlite":
        return ["adk", "adk-database", "ours"]
    if family == "mariadb":
        return [REFERENCE, OURS, RAW]
    names = [REFERENCE, OURS, RAW, L1, "ours-uncached", "ours-cache-gone"]
    if importlib.util.find_spec("google.adk.integrations.redis") is not None:
        names.append("adk-redis")
    return names


def copied_from(family: Family, name: str) -> str | None:
    """Returns whose database serves as the pattern of another implementation's, None if nobody's."""
    if family != "postgresql":
        return None
    return {RAW: REFERENCE, L1: REFERENCE, "ours-uncached": OURS, "ours-cache-gone": OURS}.get(name)
