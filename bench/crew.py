"""The runner's side of its workers: starts them, gives orders, hears answers."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

from .records import Group, Measurement, Task
from .subjects.base import Address

# A line holds one measurement; an error with its trace is the longest there is.
_LINE = 4 * 1024 * 1024


class WorkerError(Exception):
    """A worker could not do what it was told."""


class Worker:
    """One implementation in a process of its own. It idles while another one is measured."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    @classmethod
    async def start(cls, name: str, address: Address) -> Worker:
        """Starts the process; returns when it can take orders."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bench.worker",
            name,
            json.dumps(asdict(address)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE,
        )
        worker = cls(name, process)
        await worker._answer()
        return worker

    async def fill(self, groups: list[Group]) -> None:
        """Stores what is there before anything is measured."""
        await self.order("fill", groups=[asdict(group) for group in groups])

    async def measure(self, task: Task) -> Measurement:
        """Measures a cell once."""
        return Measurement(**await self.order("measure", task=task.to_json()))

    async def order(self, do: str, **arguments: Any) -> Any:
        """Has the worker do something and returns its answer.

        Raises:
            WorkerError: It failed, or ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        await self._process.stdin.drain()
        return await self._answer()

    async def _answer(self) -> Any:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            # Libraries print now and then.
            if line.startswith(b'{"'):
                answer = json.loads(line)
                if "error" in answer:
                    raise WorkerError(f"{self.name}: {answer['error']}\n{answer['trace']}")
                return answer["answer"]
        raise WorkerError(f"{self.name} ended with {await self._process.wait()}")

    async def stop(self) -> None:
        """Ends the process."""
        if self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), 10)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
