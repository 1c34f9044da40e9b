"""The demo itself: two server processes, one store, one cache, one conversation."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from ..errors import ConfigurationError
from ..urls import normalise_database_url, redact
from .demo_cache import DemoCache, OwnServer, find_server
from .demo_check import Kind, Phase, Read, Seen, State, compare
from .demo_process import ServerFailedError, ServerProcess
from .demo_recording import Recording, Turn, load_recording, with_delta
from .demo_relay import RelayedCache
from .demo_report import Incident, Report, TurnRow
from .demo_table import TurnTable

FEWEST_TURNS = 3
CACHE_RETURN_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asks for. `cache_factory` is the tests' way to plant a wrong cache."""

    db: str | None = None
    cache: str | None = None
    turns: int | None = None
    cache_factory: str | None = None


async def run_demo(options: DemoOptions, table: TurnTable) -> Report:
    """Runs the whole demo and compares what was read with SQL.

    Whatever it started has ended and its temporary folder is gone when it returns or raises.

    Raises:
        ConfigurationError: The options cannot be used; nothing was written.
        ServerFailedError: The servers did not start, or SQL could not be read in the end.
    """
    recording = load_recording()
    turns = recording.turns[: _turn_count(options.turns, recording)]
    if options.db and normalise_database_url(options.db).memory:
        raise ConfigurationError("two processes cannot share a database in memory; name a file or a server")
    started = monotonic()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiered-sessions-demo-")))
        cache = _choose_cache(options.cache, folder)
        stack.push_async_callback(cache.close)
        await cache.restore()
        db = options.db or f"sqlite+aiosqlite:///{folder / 'sessions.db'}"
        settings = {
            "db": db,
            "cache": cache.url,
            "cache_factory": options.cache_factory,
            "app_name": f"tiered_sessions_demo_{secrets.token_hex(4)}",
            "user_id": "mira",
            "session_id": "outdoor-shop",
        }
        servers = await _start_servers(settings, folder, stack)
        store = redact(options.db) if options.db else "a SQLite file in a temporary folder"
        report = Report(store, cache.label, len(turns))
        demo = _Demo(servers, cache, report, table)
        await demo.play(recording.state, turns)
        checker = await _start("SQL", {**settings, "cache": None}, folder, stack)
        await demo.compare_with(checker)
        await demo.clean_up()
        report.seconds = monotonic() - started
        return report


def _turn_count(asked: int | None, recording: Recording) -> int:
    recorded = len(recording.turns)
    if asked is None:
        return recorded
    if not FEWEST_TURNS <= asked <= recorded:
        raise ConfigurationError(f"--turns must be from {FEWEST_TURNS} to {recorded}, not {asked}")
    return asked


def _choose_cache(url: str | None, folder: Path) -> DemoCache:
    """A relay in front of the cache that was named, else a server of our own; never one found."""
    return RelayedCache(url) if url else OwnServer(find_server(), folder)


async def _start(name: str, settings: dict[str, Any], folder: Path, stack: AsyncExitStack) -> ServerProcess:
    server = await ServerProcess.start(name, settings, folder)
    stack.push_async_callback(server.stop)
    return server


async def _start_servers(
    settings: dict[str, Any], folder: Path, stack: AsyncExitStack
) -> tuple[ServerProcess, ServerProcess]:
    starting = [asyncio.create_task(_start(name, settings, folder, stack)) for name in ("A", "B")]
    try:
        first, second = await asyncio.gather(*starting)
    finally:
        # Each start ends what it began; wait for both, whichever failed or was cancelled.
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
    await asyncio.gather(first.call("prepare"), second.call("prepare"))
    return first, second


class _Demo:
    """Plays the conversation and remembers every append and every read."""

    def __init__(
        self,
        servers: tuple[ServerProcess, ServerProcess],
        cache: DemoCache,
        report: Report,
        table: TurnTable,
    ) -> None:
        self._servers = servers
        self._cache = cache
        self._report = report
        self._table = table
        self._phase: Phase = "up"
        self._turn = 0
        self._appended: list[Seen] = []
        self._states: list[State] = []

    async def play(self, state: dict[str, Any], turns: tuple[Turn, ...]) -> None:
        """Serves the turns, one server after the other; takes the cache away in the middle.

        A call that fails ends the play; what was read until then is still compared.
        """
        created = await self._servers[0].call("create", state=state)
        self._states.append(created["state"])
        try:
            await self._play(turns)
        except ServerFailedError as error:
            self._report.failures.append(f"turn {self._turn}, {error}")

    async def _play(self, turns: tuple[Turn, ...]) -> None:
        killed_in = len(turns) // 3 + 1
        back_in = max(killed_in + 1, 2 * len(turns) // 3 + 1)
        for self._turn, turn in enumerate(turns, start=1):
            if self._turn == back_in:
                await self._give_cache_back()
            await self._serve(turn, kill=self._turn == killed_in)

    async def _serve(self, turn: Turn, *, kill: bool) -> None:
        writer, reader = self._servers if self._turn % 2 else reversed(self._servers)
        row = TurnRow(self._turn, writer.name, turn.agents, turn.tools)
        self._report.rows.append(row)
        await self._read(writer, "after", do="open")
        for index, event in enumerate(turn.events):
            if kill and index == 1:
                how = await self._cache.kill()
                self._phase = "dead"
                self._report.rows.append(Incident(self._turn, self._cache.went, how))
            append, beside = await asyncio.gather(
                writer.call("append", event=event), self._read(reader, "beside"), return_exceptions=True
            )
            for outcome in (append, beside):
                if isinstance(outcome, BaseException):
                    raise outcome
            assert isinstance(append, dict)
            self._appended.append(Seen(*append["event"]))
            row.appends_ms.append(append["ms"])
            await self._read(reader, "after")
            await self._read(writer, "after")
            self._table.update(self._report)

    async def _read(self, server: ServerProcess, kind: Kind, do: str = "read") -> bool:
        """Reads and remembers; says whether the cache held the session."""
        acknowledged, phase = len(self._appended), self._phase
        answer = await server.call(do)
        self._report.reads.append(
            Read(
                server=server.name,
                turn=self._turn,
                kind=kind,
                phase=phase,
                place=answer["place"],
                ms=answer["ms"],
                acknowledged=acknowledged,
                events=tuple(Seen(*event) for event in answer["events"]),
                state=answer["state"],
            )
        )
        hit: bool = answer["hit"]
        return hit

    async def _give_cache_back(self) -> None:
        """Gives the cache back and waits until both servers have noticed."""
        await self._cache.restore()
        self._phase = "back"
        start = monotonic()
        used = [await self._used_again(server, start + CACHE_RETURN_TIMEOUT) for server in self._servers]
        self._report.cache_answers_again = all(used)
        outcome = f"in use after {monotonic() - start:.1f} s" if all(used) else "not used again"
        self._report.rows.append(Incident(self._turn, self._cache.came_back, outcome))
        self._table.update(self._report)

    async def _used_again(self, server: ServerProcess, deadline: float) -> bool:
        while not await self._read(server, "waiting"):
            if monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def clean_up(self) -> None:
        """Deletes the session, from the cache too."""
        try:
            await self._servers[0].call("delete")
        except ServerFailedError as error:
            self._report.failures.append(f"in the end, {error}")

    async def compare_with(self, checker: ServerProcess) -> None:
        """Compares everything read with what a service without a cache reads now."""
        final = await checker.call("read")
        events = {event["id"]: event for turn in load_recording().turns for event in turn.events}
        for seen in self._appended:
            self._states.append(with_delta(self._states[-1], events[seen.id]))
        self._report.verdict = compare(
            self._appended,
            self._states,
            self._report.reads,
            [Seen(*event) for event in final["events"]],
            final["state"],
        )
