"""An event loop that turns only when told, to drive tier/flights.py one step at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _NoSelector:
    def select(self, timeout: float | None) -> list[Any]:
        return []


class StillLoop(asyncio.BaseEventLoop):
    """A loop without I/O and without a clock: there is nothing to close."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _NoSelector()

    def _process_events(self, event_list: list[Any]) -> None: ...

    def __del__(self) -> None: ...

    def here(self, work: Callable[[], T]) -> T:
        """Calls `work` as if from a task of this loop."""
        asyncio.events._set_running_loop(self)
        try:
            return work()
        finally:
            asyncio.events._set_running_loop(None)

    def turn(self) -> None:
        """Lets every task go as far as it can."""
        while self._ready:  # type: ignore[attr-defined]
            self.call_soon(self.stop)
            self.run_forever()
