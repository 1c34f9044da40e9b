"""Two workers with default settings on one SQLite file: each reads what the other just wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiered_sessions

WORKER = """
import asyncio, json, sys
from tiered_sessions import Event, EventActions, StaleSessionError, TieredSessionService

async def main():
    async with TieredSessionService() as service:
        session = None
        for line in iter(sys.stdin.readline, ""):
            what, value = json.loads(line)
            answer = None
            if what == "create":
                await service.create_session("app", "u", session_id="s")
            elif what == "load":
                session = await service.get_session("app", "u", "s")
                answer = [[event.author for event in session.events], session.state]
            elif what == "append":
                delta = {"last": value, "user:last": value, "app:last": value}
                event = Event(author=value, actions=EventActions(state_delta=delta))
                try:
                    await service.append_event(session, event)
                except StaleSessionError:
                    answer = "stale"
            elif what == "delete":
                await service.delete_session("app", "u", "s")
            elif what == "exists":
                answer = await service.get_session("app", "u", "s") is not None
            print(json.dumps(answer), flush=True)

asyncio.run(main())
"""


class Worker:
    """A process with a service of its own."""

    def __init__(self, folder: Path) -> None:
        environment = {
            k: v for k, v in os.environ.items() if not k.endswith(("DATABASE_URL", "DB_URL", "REDIS_URL"))
        }
        environment["PYTHONPATH"] = str(Path(tiered_sessions.__file__).parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment,
        )

    def __call__(self, what: str, value: str = "") -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, value]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                assert process.wait(10) == 0
            finally:
                process.kill()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[Worker, Worker]]:
    both = Worker(tmp_path), Worker(tmp_path)
    yield both
    for worker in both:
        worker.end()


def test_default_settings_across_processes(workers: tuple[Worker, Worker]) -> None:
    first, second = workers
    first("create")
    said: list[str] = []
    for n in range(12):
        writer, reader = (first, second) if n % 2 else (second, first)
        # Both have it in their caches before it changes.
        reader("load")
        writer("load")
        said.append(str(n))
        assert writer("append", said[-1]) is None
        last = {"last": said[-1], "user:last": said[-1], "app:last": said[-1]}
        assert reader("load") == [said, last]
        assert writer("load") == [said, last]
    second("load")
    first("append", "unseen")
    assert second("append", "stale") == "stale"
    assert second("load")[0] == [*said, "unseen"]
    first("delete")
    assert second("exists") is False
    second("create")
    assert first("load")[0] == []
