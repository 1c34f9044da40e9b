"""What the clients of one server process do, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import os
import random
import sys
import time
from collections import Counter
from contextvars import ContextVar
from typing import Any

import orjson

from tests.histories.history import Operation
from tests.histories.server import LINE
from tiered_sessions import (
    CommitOutcomeUnknownError,
    Event,
    EventActions,
    EventIdConflictError,
    GetSessionConfig,
    Session,
    SessionExistsError,
    SessionNotFoundError,
    StaleSessionError,
    StoreUnavailableError,
    TieredConfig,
    TieredSessionService,
    metrics,
)
from tiered_sessions.tier import breaker, cache_calls

USERS = ("u0", "u1")
SHORT, LONG = 40, 120
WINDOW = 10
TRIES = 100
SETTLE_SECONDS = 20.0
PAUSE = 0.02

_current: ContextVar[Operation] = ContextVar("operation")


class Counters:
    """Adds up the service's counters, and tells of each write whether it was cut off from the cache."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, name: str, value: int = 1) -> None:
        self.counts[name] += value
        if name == metrics.OUTBOX_WRITTEN and (operation := _current.get(None)) is not None:
            operation.cut_off = True


class Server:
    """The service of this process, and what its clients share."""

    def __init__(self, settings: dict[str, Any], service: TieredSessionService, counters: Counters) -> None:
        self.app = ""
        self.counters = counters
        self.service = service
        self.clients: int = settings["clients"]
        self.number: int = settings["server"]
        self.life: int = settings["life"]
        # Unique in the fleet, whatever dies and comes again.
        self.values = itertools.count((self.number * 1000 + self.life) * 10_000_000 + 1)
        self.stopping = False
        self.generations: Counter[str] = Counter()
        self._working: list[asyncio.Task[None]] = []

    def start(self, app: str) -> None:
        """Has clients work in the sessions of `app`."""
        self.app = app
        self.stopping = False
        self.generations.clear()
        self._working = [asyncio.create_task(Client(self, number).work()) for number in range(self.clients)]

    async def stop(self) -> None:
        """Has them end what they do."""
        self.stopping = True
        await asyncio.gather(*self._working)

    async def answer(self, name: str, *arguments: Any) -> Any:
        """Does what the parent asks for."""
        match name:
            case "pause":
                await self.stop()
                await self.service.flush()
            case "resume":
                self.start(*arguments)
            case "read":
                client = Client(self, "final")
                return [[one.made, one.log] for one in [await client.surely(s) for s in arguments[0]]]
            case "counters":
                return dict(self.counters.counts)

    def session(self) -> str:
        """Chooses one: everyone's, one of a single writing server, or a long one."""
        user = random.choice(USERS)
        kind = random.choice(("shared", "own0", "own1", "own2", "long"))
        return f"{user}/{kind}{self.generations[user]}" if kind == "long" else f"{user}/{kind}"

    def writes(self, session: str) -> bool:
        """Says whether this server writes to that session."""
        kind = session.partition("/")[2]
        return not kind.startswith("own") or kind == f"own{self.number}"


def say(line: bytes) -> None:
    """Writes a line that not even `kill -9` takes back."""
    while line:
        line = line[os.write(1, line) :]


class Client:
    """Does one operation after the other."""

    def __init__(self, server: Server, number: int | str) -> None:
        self._server = server
        self._service = server.service
        self._number = number
        self._retired = 0
        self._counter = 0
        self._begun: Operation | None = None

    @property
    def name(self) -> str:
        return f"{self._server.number}.{self._server.life}.{self._number}.{self._retired}"

    async def work(self) -> None:
        """Does random operations until the server stops."""
        while not self._server.stopping:
            await self._turn()
            await asyncio.sleep(random.uniform(0, 2 * PAUSE))

    async def _turn(self) -> None:
        session = self._server.session()
        dice = random.random()
        if dice < 0.03:
            await self._list(session.partition("/")[0])
            return
        found = await self.get(session, None if random.random() < 0.6 else WINDOW)
        if found is None or not self._server.writes(session) or dice > 0.5:
            return
        read, loaded = found
        if loaded is None:
            await self._create(session)
        elif session.partition("/")[2].startswith("long") and len(read.log or ()) >= LONG:
            self._server.generations[read.user_id] += 1
        elif "/long" not in session and (dice < 0.06 or len(read.log or ()) >= SHORT):
            await self._delete(session)
        else:
            await self._append(read, loaded)

    # --- operations --------------------------------------------------------------------------------

    async def get(self, session: str, window: int | None) -> tuple[Operation, Session | None] | None:
        """Reads; None: that failed."""
        operation = self._begin("get", session, write=False)
        operation.window = window
        config = None if window is None else GetSessionConfig(num_recent_events=window)
        try:
            loaded = await self._service.get_session(self._server.app, *session.split("/"), config)
        except Exception as error:
            self._end(operation, "fail", error)
            return None
        if loaded is not None:
            _seen(operation, loaded)
            operation.events = [int(event.id) for event in loaded.events]
        self._end(operation, "ok")
        return operation, loaded

    async def surely(self, session: str) -> Operation:
        """Reads the whole session, again and again while that fails."""
        for _ in range(TRIES):
            found = await self.get(session, None)
            if found is not None:
                return found[0]
            await asyncio.sleep(PAUSE)
        raise AssertionError(f"{session} could not be read {TRIES} times")

    async def _list(self, user: str) -> None:
        begun = self._begin("list", user, write=False)
        try:
            listed = await self._service.list_sessions(self._server.app, user)
        except Exception as error:
            self._end(begun, "fail", error)
            return
        for loaded in listed.sessions:
            operation = Operation(begun.client, "list", f"{user}/{loaded.id}", begun.begun)
            _seen(operation, loaded)
            self._end(operation, "ok")

    async def _create(self, session: str) -> None:
        operation = self._begin("create", session, write=False)
        operation.made = next(self._server.values)
        self._invoke(operation)
        state = {"made": operation.made, "log": []}
        user, name = session.split("/")
        try:
            await self._service.create_session(self._server.app, user, state, session_id=name)
        except SessionExistsError:
            self._end(operation, "fail")
        except CommitOutcomeUnknownError as error:
            self._end(operation, "info", error)
        except Exception as error:
            self._end(operation, _definite(error), error)
        else:
            self._end(operation, "ok")

    async def _delete(self, session: str) -> None:
        operation = self._begin("delete", session)
        try:
            await self._service.delete_session(self._server.app, *session.split("/"))
        except CommitOutcomeUnknownError as error:
            self._end(operation, "info", error)
        except Exception as error:
            self._end(operation, _definite(error), error)
        else:
            self._end(operation, "ok")

    async def _append(self, read: Operation, loaded: Session | None) -> None:
        """Appends to what was read; loads and tries again as long as it is stale."""
        operation = self._begin("append", read.session, write=False)
        operation.value = next(self._server.values)
        operation.made = read.made
        self._counter += 1
        if random.random() < 0.25:
            operation.user = {operation.client: self._counter}
        if random.random() < 0.25:
            operation.app = {operation.client: self._counter}
        self._invoke(operation)
        for _ in range(TRIES):
            if loaded is None or read.made != operation.made:
                # What it was to be appended to is gone; nothing was written.
                self._end(operation, "fail")
                return
            operation.log = [*(read.log or ()), operation.value]
            event = _event(operation)
            begun = time.monotonic_ns()
            try:
                await self._service.append_event(loaded, event)
            except StaleSessionError:
                found = await self.get(read.session, read.window)
                if found is None:
                    self._end(operation, "fail")
                    return
                read, loaded = found
                _current.set(operation)
                continue
            except SessionNotFoundError:
                self._missing(read.session, begun)
                self._end(operation, "fail")
            except CommitOutcomeUnknownError as error:
                operation.cut_off = True
                settled = await self._settle(operation, loaded, event)
                self._end(operation, settled, error)
            except Exception as error:
                self._end(operation, _definite(error), error)
            else:
                self._end(operation, "ok")
            return
        self._end(operation, "fail", AssertionError(f"stale {TRIES} times"))

    async def _settle(self, operation: Operation, loaded: Session | None, event: Event) -> str:
        """Appends the same event again until it is known to be stored; else says `info`."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline and loaded is not None:
            _current.set(operation)
            try:
                await self._service.append_event(loaded, event)
                return "ok"
            except (StaleSessionError, EventIdConflictError):
                pass
            except SessionNotFoundError:
                return "info"
            except (CommitOutcomeUnknownError, StoreUnavailableError):
                await asyncio.sleep(PAUSE)
                continue
            found = await self.get(operation.session, None)
            if found is None:
                await asyncio.sleep(PAUSE)
                continue
            read, loaded = found
            if read.made != operation.made:
                return "info"
            log = read.log or []
            if operation.value in log:
                operation.log = log[: log.index(operation.value) + 1]
                return "ok"
            # The id stays, so that whatever became of the first one, one of them is stored.
            operation.log = [*log, operation.value or 0]
            event = _event(operation)
        return "info"

    # --- the history -------------------------------------------------------------------------------

    def _begin(self, kind: str, session: str, *, write: bool = True) -> Operation:
        operation = Operation(self.name, kind, session, time.monotonic_ns())
        _current.set(operation)
        if write:
            self._invoke(operation)
        return operation

    def _invoke(self, operation: Operation) -> None:
        say(operation.line())

    def _end(self, operation: Operation, outcome: str, error: Exception | None = None) -> None:
        operation.ended = time.monotonic_ns()
        operation.outcome = outcome
        if error is not None:
            operation.error = f"{type(error).__name__}: {error}"
        say(operation.line())
        if outcome == "info":
            # As Jepsen has it: what is unknown may still happen, so nothing follows it under its name.
            self._retired += 1
            self._counter = 0

    def _missing(self, session: str, begun: int) -> None:
        """Notes that an append found no session: that is a read, too."""
        operation = Operation(self.name, "get", session, begun)
        self._end(operation, "ok")


def _seen(operation: Operation, loaded: Session) -> None:
    state = loaded.state
    operation.made, operation.log = state.get("made"), state.get("log", [])
    operation.user = {name[5:]: value for name, value in state.items() if name.startswith("user:")}
    operation.app = {name[4:]: value for name, value in state.items() if name.startswith("app:")}


def _event(operation: Operation) -> Event:
    delta: dict[str, Any] = {"log": operation.log}
    delta |= {f"user:{name}": value for name, value in operation.user.items()}
    delta |= {f"app:{name}": value for name, value in operation.app.items()}
    # Repeating an append must repeat its content: the time belongs to the operation.
    timestamp = operation.begun / 1e9
    actions = EventActions(state_delta=delta)
    return Event(id=str(operation.value), author="a", timestamp=timestamp, actions=actions)


def _definite(error: Exception) -> str:
    return "fail" if isinstance(error, StoreUnavailableError) else "info"


def _cache(settings: dict[str, Any]) -> Any:
    factory = settings.get("cache_factory")
    if factory is None:
        return settings["cache"]
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(settings["cache"])


async def serve(settings: dict[str, Any]) -> None:
    """Has clients work until the parent closes the pipe; answers its requests.

    Args:
        settings: `app`, `server` and `life` (its numbers), `clients` (how many), `db_url`, `cache`,
            `config`; `patience`: seconds that the cache may take before it counts as unavailable;
            `cache_factory`: `module:name` of another cache.
    """
    patience = settings["patience"]
    breaker._SHORTEST = breaker.LONGEST = cache_calls.LONGEST = patience
    config = {"cache_budget": patience, **settings["config"]}
    counters = Counters()
    pool = {} if settings["db_url"].startswith("sqlite") else {"pool_size": 8}
    reader = asyncio.StreamReader(limit=LINE)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
    )
    async with TieredSessionService(
        settings["db_url"], cache=_cache(settings), config=TieredConfig(**config), metrics=counters, **pool
    ) as service:
        server = Server(settings, service, counters)
        server.start(settings["app"])
        say(b'{"reply":null}\n')
        async for line in reader:
            say(orjson.dumps({"reply": await server.answer(*orjson.loads(line))}) + b"\n")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await server.stop()
