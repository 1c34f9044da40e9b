"""A server process of the demo, seen from the demo."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import TieredSessionsError

START_TIMEOUT = 30.0
CALL_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0


class ServerFailedError(TieredSessionsError):
    """A server process of the demo failed."""


def die_with_parent() -> Callable[[], None] | None:
    """Returns what a child runs before its program, so that it never outlives a killed parent.

    Only Linux offers this; elsewhere the ordinary clean-up has to do.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded here: after the fork only the call itself is safe

    def ask_kernel() -> None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    return ask_kernel


class ServerProcess:
    """One process running `demo_server`. Requests are answered one at a time."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls, name: str, settings: dict[str, Any], folder: Path) -> ServerProcess:
        """Starts a process and waits until its service stands.

        Settings go through the pipe: a command line, and the passwords in it, anyone may read.
        """
        log = folder / f"server-{name}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tiered_sessions.cli.demo_server",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                limit=2**24,
                start_new_session=True,  # Ctrl-C is the demo's to handle, not each child's
                preexec_fn=die_with_parent(),
            )
        server = cls(name, process, log)
        try:
            await server._exchange(settings, START_TIMEOUT)
        except BaseException:
            await server.stop()
            raise
        return server

    @property
    def pid(self) -> int:
        return self._process.pid

    async def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends one request and returns the answer.

        Raises:
            ServerFailedError: The service raised, or the process ended or hangs.
        """
        return await self._exchange({"do": do, **arguments}, CALL_TIMEOUT)

    async def _exchange(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        async with self._turn:
            try:
                async with asyncio.timeout(seconds):
                    stdin.write(json.dumps(request).encode() + b"\n")
                    await stdin.drain()
                    line = await stdout.readline()
            except (TimeoutError, ConnectionError) as error:
                raise ServerFailedError(f"server {self.name} does not answer{self._last_words()}") from error
        if not line:
            raise ServerFailedError(f"server {self.name} ended{self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ServerFailedError(f"server {self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    async def stop(self) -> None:
        """Closes the pipe, which ends the process in good order; kills it if it will not end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
