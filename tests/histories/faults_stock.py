"""Stock google-adk, in a process of its own, appends to the sessions that the fleet's servers use."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from tests.conformance import stock_adk
from tests.conformance.stock_adk import StockAdk
from tests.histories.faults_common import NEVER, Injection, require
from tests.histories.history import Operation
from tests.servers import python_for_adk
from tiered_sessions.store.migrations.triggers import install_triggers, remove_triggers

if TYPE_CHECKING:
    from tests.histories.fleet import Fleet

TURNS = 40
# Above the numbers of any server.
FIRST = 900_000_000_000
REFUSED = ("StaleSessionError", "ValueError", "no session")


class StockBeside(Injection):
    """Stock ADK writes beside the fleet.

    Args:
        triggers: Whether the triggers that tell of its writes are installed.
    """

    hides_cache = False

    def __init__(self, *, triggers: bool) -> None:
        self.name = f"stock ADK writes beside, with{'' if triggers else 'out'} triggers"
        self.config: dict[str, Any] = {} if triggers else {"max_staleness": 2.0}
        # With triggers it is as if stock were cut off from the cache, and its operations say that.
        self.staleness = NEVER if triggers else self.config["max_staleness"]
        # On SQLite stock reads a state, then writes it, without a lock in between: it loses our writes.
        # On MariaDB it gives the rows of shared state times of whole seconds: of two writes within one only
        # a trigger can tell, and a reader who saw the second may be shown the first (docs/mixed-fleet.md).
        self.databases = ("postgresql", "mysql") if triggers else ("postgresql",)
        self._triggers = triggers
        self._value = FIRST
        self._unknown = 0

    @contextlib.asynccontextmanager
    async def inject(self, fleet: Fleet) -> AsyncIterator[None]:
        engine = create_async_engine(fleet.database_url, poolclass=NullPool)
        await (install_triggers if self._triggers else remove_triggers)(engine)
        await engine.dispose()
        with contextlib.ExitStack() as stack:
            running = stack.enter_context(stock_adk.start(python_for_adk()))
            stored = 0
            for _ in range(TURNS):
                stored += await self._turn(fleet, running)
            require(stored, "stock stored an event")
            await self._call(fleet, running, "close")
            yield

    async def _turn(self, fleet: Fleet, stock: StockAdk) -> bool:
        """Reads a session and appends to it; says whether that was stored."""
        user = random.choice(("u0", "u1"))
        self._value += 1
        one = Operation(
            f"stock.1.0.{self._unknown}", "append", f"{user}/shared", time.monotonic_ns(), value=self._value
        )
        one.cut_off = True
        try:
            found = await self._call(fleet, stock, "get", user=user)
        except RuntimeError:
            return False
        if found is None:
            return False
        one.made, one.log = found["state"]["made"], [*found["state"]["log"], self._value]
        delta: dict[str, Any] = {"log": one.log}
        if random.random() < 0.5:
            one.user = one.app = {one.client: self._value}
            delta |= {f"user:{one.client}": self._value, f"app:{one.client}": self._value}
        fleet.record(**_fields(one))
        try:
            # The moment as the fleet's clients give it: one clock for all events.
            event = {"id": str(self._value), "delta": delta, "timestamp": one.begun / 1e9}
            await self._call(fleet, stock, "append", user=user, reuse=True, **event)
        except RuntimeError as error:
            one.outcome = "fail" if str(error).startswith(REFUSED) else "info"
            self._unknown += one.outcome == "info"
        else:
            one.outcome = "ok"
        one.ended = time.monotonic_ns()
        fleet.record(**_fields(one))
        return one.outcome == "ok"

    async def _call(self, fleet: Fleet, stock: StockAdk, operation: str, **arguments: Any) -> Any:
        call = {"url": fleet.database_url, "app": fleet.app, "session": "shared", **arguments}
        return await asyncio.to_thread(lambda: stock.call(operation, **call))


def _fields(one: Operation) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Operation.__slots__}
