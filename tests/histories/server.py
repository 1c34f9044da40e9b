"""One server process of a fleet, and the parent's end of it.

`Server` starts `python -m tests.histories.server`, which makes a service and has clients work with it
until its standard input ends. It writes each operation to standard output, as it begins and as it
completes, so that `kill -9` loses none. Requests come as lines of JSON, `[name, arguments...]`, one at
a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.processes import dying_with_us, tail

if TYPE_CHECKING:
    from tests.histories.fleet import Fleet

ROOT = Path(__file__).parents[2]
LINE = 64 * 1024 * 1024
STOP_SECONDS = 30.0
# Seconds that the process's wall clock is wrong.
CLOCK_SHIFT = "TIERED_TEST_CLOCK_SHIFT"
# Another format of the cache's keys and values than the product's.
FORMAT = "TIERED_TEST_FORMAT"


class Server:
    """The parent's end of one process.

    Args:
        number: From 0.
        settings: For `serve`.
        fleet: Whose it is: hears each line of its history, and its last words if nobody killed it.

    Attributes:
        environment: Variables for its next start, such as `TIERED_TEST_CLOCK_SHIFT`.
        life: How often it was started.
        heard: How many lines of history came from its present life.
    """

    def __init__(
        self,
        number: int,
        settings: dict[str, Any],
        fleet: Fleet,
    ) -> None:
        self.number = number
        self.environment: dict[str, str] = {}
        self.life = 0
        self.heard = 0
        self._settings = settings
        self._fleet = fleet
        self._log = fleet.folder / f"server-{number}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._reply: asyncio.Future[Any] | None = None
        self._ending = False

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Starts it, or starts it again; returns once its clients work."""
        assert not self.alive
        # Addresses in the environment of whoever runs the tests are not for this process.
        foreign = ("DB_URL", "DATABASE_URL", "REDIS_URL")
        kept = {name: value for name, value in os.environ.items() if not name.endswith(foreign)}
        self.life += 1
        self.heard = 0
        self._ending = False
        settings = {**self._settings, "app": self._fleet.app, "life": self.life}
        command = [sys.executable, "-m", "tests.histories.server", json.dumps(settings)]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *dying_with_us(command, None),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=self._fleet.folder,
                env={**kept, "PYTHONPATH": str(ROOT), **self.environment},
                limit=LINE,
            )
        started = self._reply = asyncio.get_running_loop().create_future()
        self._listening = asyncio.create_task(self._listen(self._process))
        async with asyncio.timeout(STOP_SECONDS):
            await started

    async def kill(self) -> None:
        """Ends it as `kill -9` does; returns when it is gone and all it wrote was heard."""
        assert self._process is not None
        assert self._listening is not None
        self._ending = True
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._listening

    async def ask(self, name: str, *arguments: Any) -> Any:
        """Has it do something; returns the answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        reply = self._reply = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps([name, *arguments]).encode() + b"\n")
        async with asyncio.timeout(2 * STOP_SECONDS):
            return await reply

    async def close(self) -> None:
        """Ends it in good order if it runs, by force if it will not."""
        if not self.alive:
            return
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._listening is not None
        self._ending = True
        self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
                await self._listening
        except TimeoutError:
            await self.kill()
            raise

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            if not line.endswith(b"\n"):
                break
            if line.startswith(b'{"reply"'):
                assert self._reply is not None
                if not self._reply.done():
                    self._reply.set_result(json.loads(line)["reply"])
            else:
                self.heard += 1
                self._fleet.heard(line)
        await process.wait()
        words = f"server {self.number} ended with {process.returncode}: {tail(self._log)}"
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(RuntimeError(words))
        if not self._ending:
            self._fleet.ended(self, words)


def shift_clock(seconds: float) -> None:
    """Makes this process's wall clock wrong; must come before whatever reads it is imported."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + round(seconds * 1e9)


if __name__ == "__main__":
    shift_clock(float(os.environ.get(CLOCK_SHIFT, "0")))
    from tests.histories.workload import serve
    from tiered_sessions.cache import keys

    keys.FORMAT = os.environ.get(FORMAT, keys.FORMAT)
    asyncio.run(serve(json.loads(sys.argv[1])))
