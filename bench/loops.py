"""The event loop on which every implementation is measured."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Final

LOOPS: Final = ("uvloop", "asyncio")
_VARIABLE: Final = "TIERED_SESSIONS_BENCH_LOOP"


def choose(name: str) -> None:
    """Has workers that are started from now on use this loop."""
    os.environ[_VARIABLE] = name


def chosen() -> str:
    """Returns which loop is used: uvloop where it is installed, as uvicorn does, which runs ADK's server."""
    name = os.environ.get(_VARIABLE, LOOPS[0])
    return name if name != "uvloop" or importlib.util.find_spec("uvloop") else "asyncio"


def factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Returns what makes the loop; None: asyncio does."""
    if chosen() == "asyncio":
        return None
    make: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return make
