"""What runs beside the callers: draining the outbox, sweeping expired sessions, following the namespace."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from ..config import TieredConfig
from ..errors import StoreError
from .namespace import Namespace
from .steps import Swept

logger = logging.getLogger("tiered_sessions")

OUTBOX_BATCH = 500
SWEEP_BATCH = 100


class Upkeep:
    """One task of a process. With a shared cache it drains every `outbox_poll`; else it only sweeps.

    Args:
        drain: Drains one batch; None if another process is elected to.
        sweep: Deletes one batch of expired sessions.
        config: `outbox_poll`, `sweep_every`.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        drain: Callable[[], Awaitable[int | None]],
        sweep: Callable[[], Awaitable[Swept]],
        config: TieredConfig,
        clock: Callable[[], float],
    ) -> None:
        self._drain = drain
        self._sweep = sweep
        self._config = config
        self._clock = clock
        self._sweep_at = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self, namespace: Namespace | None) -> None:
        """Begins; `namespace`: of the shared cache, None if there is none."""
        self._plan_sweep()
        if namespace is not None:
            self._task = asyncio.create_task(self._maintain(namespace))
        else:
            self._await_sweep()

    def stop(self) -> None:
        """Begins nothing more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    async def cancel(self) -> None:
        """Ends what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _maintain(self, namespace: Namespace) -> None:
        # Not for ever: a driver may swallow the cancellation (wait_for of Python 3.11, when it is done then).
        while not self._stopped:
            drained = None
            try:
                await namespace.follow()
                drained = await self._drain()
                if drained is not None and self._clock() >= self._sweep_at:
                    # A batch at a time, so that draining never waits for long.
                    await self._sweep_batch()
            except StoreError as error:
                logger.debug("the outbox could not be drained now: %s", error)
            except Exception:
                logger.exception("draining the outbox failed; it is tried again")
            await asyncio.sleep(0 if drained == OUTBOX_BATCH else self._config.outbox_poll)

    def _await_sweep(self) -> None:
        """Sweeps when it is time, where no shared cache elects one process to do it."""
        if self._sweep_at < float("inf") and not self._stopped:
            # No task that waits: many a short program leaves its service open.
            wait = max(0.0, self._sweep_at - self._clock())
            self._timer = asyncio.get_running_loop().call_later(wait, self._start_sweep)

    def _start_sweep(self) -> None:
        self._task = asyncio.create_task(self._sweep_alone())

    async def _sweep_alone(self) -> None:
        try:
            await self._sweep_batch()
        except StoreError as error:
            logger.debug("expired sessions could not be deleted now: %s", error)
        except Exception:
            logger.exception("deleting expired sessions failed; it is tried again")
        self._await_sweep()

    def _plan_sweep(self) -> None:
        # Drawn anew each time, so that processes which started together do not sweep together.
        if self._config.sweep_every:
            self._sweep_at = self._clock() + self._config.sweep_every * random.uniform(0.5, 1.5)

    async def _sweep_batch(self) -> None:
        """Deletes one batch; the next is due at once if there is more."""
        self._plan_sweep()
        swept = await self._sweep()
        if swept.failed is not None:
            logger.debug("an expired session could not be deleted now: %s", swept.failed.error)
        elif swept.found == SWEEP_BATCH and swept.deleted:
            self._sweep_at = self._clock()
