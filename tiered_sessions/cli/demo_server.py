"""One server process of the demo: a service behind one JSON object a line on stdin and stdout."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import json
import os
import sys
from collections import Counter
from time import perf_counter
from typing import Any

from ..errors import TieredSessionsError
from ..metrics import CACHE_HIT, READ_CACHE, READ_PROCESS, READ_STORE
from ..models import Event, Session
from ..service import TieredSessionService

PLACES = {READ_STORE: "store", READ_CACHE: "cache", READ_PROCESS: "process"}


class Counters:
    """Counts in memory what the service reports."""

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()

    def count(self, name: str, value: int = 1) -> None:
        """Adds `value` to the counter `name`."""
        self.total[name] += value


def digest(event: Event) -> list[str]:
    """Returns an event's id and a digest of its whole content, whatever the order of its keys."""
    text = json.dumps(event.model_dump(mode="json", exclude_none=True), sort_keys=True)
    return [event.id, hashlib.sha256(text.encode()).hexdigest()[:24]]


class DemoServer:
    """Serves one session, as a web server with an agent in it would.

    Args:
        settings: `db` and `cache` (URL or None), `app_name`, `user_id`, `session_id`; and
            `cache_factory`, `module:callable` of the cache URL, where a test plants its own cache.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._key = {name: settings[name] for name in ("app_name", "user_id", "session_id")}
        self._counters = Counters()
        cache = settings["cache"]
        if cache is not None and settings["cache_factory"] is not None:
            module, _, name = settings["cache_factory"].partition(":")
            cache = getattr(importlib.import_module(module), name)(cache)
        self._service = TieredSessionService(settings["db"], cache=cache, metrics=self._counters)
        self._session: Session | None = None

    async def create(self, state: dict[str, Any]) -> dict[str, Any]:
        """Creates the session; answers with its merged state."""
        session = await self._service.create_session(**self._key, state=state)
        return {"state": session.state}

    async def prepare(self) -> dict[str, Any]:
        """Makes or adopts the tables, whichever server comes first."""
        await self._service.prepare_tables()
        return {}

    async def open(self) -> dict[str, Any]:
        """Loads the session that the next appends go to, as ADK's Runner does before a turn."""
        answer, self._session = await self._get()
        return answer

    async def append(self, event: dict[str, Any]) -> dict[str, Any]:
        """Appends one event to the session that was opened."""
        if self._session is None:
            raise TieredSessionsError("append before open")
        parsed = Event.model_validate(event)
        start = perf_counter()
        stored = await self._service.append_event(self._session, parsed)
        return {"ms": _ms(start), "event": digest(stored)}

    async def read(self) -> dict[str, Any]:
        """Reads the whole session afresh."""
        return (await self._get())[0]

    async def delete(self) -> dict[str, Any]:
        """Deletes the session."""
        await self._service.delete_session(**self._key)
        return {}

    async def close(self) -> None:
        """Closes the service."""
        await self._service.close()

    async def _get(self) -> tuple[dict[str, Any], Session | None]:
        before = self._counters.total.copy()
        start = perf_counter()
        session = await self._service.get_session(**self._key)
        ms = _ms(start)
        risen = self._counters.total - before
        place = next((place for name, place in PLACES.items() if risen[name]), "store")
        events = [] if session is None else [digest(event) for event in session.events]
        state = {} if session is None else session.state
        hit = place != "store" and risen[CACHE_HIT] > 0
        return {"place": place, "hit": hit, "ms": ms, "events": events, "state": state}, session

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Performs one request; a failure is an answer too."""
        try:
            reply: dict[str, Any] = await getattr(self, request.pop("do"))(**request)
        except TieredSessionsError as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return reply


def _ms(start: float) -> float:
    return (perf_counter() - start) * 1000


async def serve(requests: asyncio.StreamReader, reply_to: int) -> None:
    """Answers requests, one at a time, until the other side closes the pipe."""

    def send(reply: dict[str, Any]) -> None:
        data = json.dumps(reply).encode() + b"\n"
        while data:
            data = data[os.write(reply_to, data) :]

    settings = json.loads(await requests.readline())
    try:
        server = DemoServer(settings)
    except TieredSessionsError as error:
        send({"error": f"{type(error).__name__}: {error}"})
        return
    try:
        send({})
        while line := await requests.readline():
            send(await server.answer(json.loads(line)))
    finally:
        await server.close()


async def main() -> None:
    """Serves stdin; replies go to stdout, which nothing else may write to."""
    reply_to = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests = asyncio.StreamReader(limit=2**24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin.buffer)
    with contextlib.suppress(BrokenPipeError):
        await serve(requests, reply_to)


if __name__ == "__main__":
    asyncio.run(main())
