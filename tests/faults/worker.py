"""A process of a fleet, for tests: serves calls of one service as lines of JSON.

`Worker` starts `python -m tests.faults.worker` and calls it; calls may overlap, as the requests of
a server do. The process keeps nothing between calls but the service itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Self

from tiered_sessions import (
    Event,
    EventActions,
    Session,
    StaleSessionError,
    TieredConfig,
    TieredSessionService,
)

ROOT = Path(__file__).parents[2]
TRIES = 500
LINE = 16 * 1024 * 1024


class Counters:
    """Adds up the service's counters."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, name: str, value: int = 1) -> None:
        self.counts[name] += value


class Worker:
    """The parent's end of one process; `async with` starts it and ends it.

    Args:
        cwd: Working directory of the process.
        **settings: Arguments of `TieredSessionService`; none: its defaults. `config`: a dictionary.
    """

    def __init__(self, cwd: Path, **settings: Any) -> None:
        self._cwd = cwd
        self._settings = settings
        self._numbers = itertools.count()
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._began: dict[int, asyncio.Event] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # Addresses in the environment of whoever runs the tests are not for this process.
        foreign = ("DB_URL", "DATABASE_URL", "REDIS_URL")
        kept = {name: value for name, value in os.environ.items() if not name.endswith(foreign)}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.faults.worker", json.dumps(self._settings)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=self._cwd,
            env={**kept, "PYTHONPATH": str(ROOT)},
            limit=LINE,
        )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._listening is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(20):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            raise
        await self._listening

    async def kill(self) -> None:
        """Ends the process as `kill -9` does, and waits until it is gone."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    def call(self, name: str, *arguments: Any) -> asyncio.Future[Any]:
        """Has the process perform a call; the future is its answer, or raises what it raised."""
        assert self._process is not None
        assert self._process.stdin is not None
        number = next(self._numbers)
        future = self._replies[number] = asyncio.get_running_loop().create_future()
        self._began[number] = asyncio.Event()
        self._process.stdin.write(json.dumps([number, name, *arguments]).encode() + b"\n")
        return future

    async def began(self) -> None:
        """Returns once the call that was made last has begun in the process."""
        await self._began[max(self._began)].wait()

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            number, kind, value = json.loads(line)
            if kind == "began":
                self._began[number].set()
            elif kind == "done":
                self._replies.pop(number).set_result(value)
            else:
                self._replies.pop(number).set_exception(RuntimeError(value))
        for future in self._replies.values():
            future.cancel()


class Served:
    """The calls, by name. A session is (app, user, id); a read is the ids of its events and its state."""

    def __init__(self, service: TieredSessionService, counters: Counters) -> None:
        self._service = service
        self._counters = counters

    async def create(self, key: list[str]) -> None:
        await self._service.create_session(key[0], key[1], session_id=key[2])

    async def delete(self, key: list[str]) -> None:
        await self._service.delete_session(*key)

    async def get(self, key: list[str]) -> dict[str, Any] | None:
        session = await self._service.get_session(*key)
        return None if session is None else _seen(session)

    async def append(self, key: list[str], event_id: str, delta: dict[str, Any]) -> list[dict[str, Any]]:
        """Loads and appends until it is not stale; returns every read it made."""
        reads = []
        for _ in range(TRIES):
            session = await self._service.get_session(*key)
            assert session is not None
            reads.append(_seen(session))
            with contextlib.suppress(StaleSessionError):
                actions = EventActions(state_delta=delta)
                await self._service.append_event(session, Event(id=event_id, author="a", actions=actions))
                return reads
        raise AssertionError(f"stale {TRIES} times")

    async def flush(self) -> None:
        await self._service.flush()

    async def counters(self) -> dict[str, int]:
        return dict(self._counters.counts)


def _seen(session: Session) -> dict[str, Any]:
    return {"events": [event.id for event in session.events], "state": session.state}


async def serve(settings: dict[str, Any]) -> None:
    """Performs calls until the parent closes the pipe."""
    counters = Counters()
    config = TieredConfig(**settings.pop("config", {}))
    reader = asyncio.StreamReader(limit=LINE)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
    )

    def say(number: int, kind: str, value: Any = None) -> None:
        print(json.dumps([number, kind, value]), flush=True)

    async with TieredSessionService(**settings, config=config, metrics=counters) as service:
        served = Served(service, counters)

        async def perform(number: int, name: str, *arguments: Any) -> None:
            say(number, "began")
            try:
                say(number, "done", await getattr(served, name)(*arguments))
            except Exception as error:
                say(number, "failed", f"{type(error).__name__}: {error}")

        async with asyncio.TaskGroup() as calls:
            async for line in reader:
                calls.create_task(perform(*json.loads(line)))


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
