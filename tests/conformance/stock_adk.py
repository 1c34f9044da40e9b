"""Stock google-adk in a process of its own, spoken to by lines of JSON.

Run by the interpreter that has google-adk; imported by tests for `StockAdk`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any


class StockAdk:
    """A running stock `DatabaseSessionService` per database URL."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, operation: str, url: str, **arguments: Any) -> Any:
        """Does one operation; raises `RuntimeError` with stock's own error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": operation, "url": url, **arguments}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer["result"]
        raise RuntimeError("stock google-adk ended")


@contextlib.contextmanager
def start(python: str) -> Iterator[StockAdk]:
    """Starts stock ADK under that interpreter."""
    with subprocess.Popen(
        [python, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield StockAdk(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


async def _serve() -> None:
    from google.adk.events import Event, EventActions
    from google.adk.sessions.database_session_service import DatabaseSessionService
    from google.genai import types

    services: dict[str, DatabaseSessionService] = {}
    loaded: dict[tuple[str, ...], Any] = {}

    def shown(session: Any) -> dict[str, Any]:
        return {
            "id": session.id,
            "state": session.state,
            "events": [event.id for event in session.events],
            "texts": [e.content.parts[0].text if e.content else None for e in session.events],
            "last_update_time": session.last_update_time,
        }

    async def perform(op: str, service: DatabaseSessionService, r: dict[str, Any]) -> Any:
        key = (r["app"], r["user"], r.get("session", ""))
        if op == "create":
            session = await service.create_session(
                app_name=r["app"], user_id=r["user"], session_id=r["session"], state=r.get("state")
            )
            loaded[r["url"], *key] = session
            return shown(session)
        if op == "append":
            # `reuse`: the object loaded or created before, as a turn under way holds it.
            session = loaded.get((r["url"], *key)) if r.get("reuse") else None
            session = session or await service.get_session(
                app_name=r["app"], user_id=r["user"], session_id=r["session"]
            )
            event = Event(
                id=r["id"],
                author="user",
                invocation_id="i",
                content=types.Content(role="user", parts=[types.Part(text=r.get("text", r["id"]))]),
                actions=EventActions(state_delta=r.get("delta") or {}),
                **({"timestamp": r["timestamp"]} if "timestamp" in r else {}),
            )
            await service.append_event(session, event)
            loaded[r["url"], *key] = session
            return shown(session)
        if op == "get":
            session = await service.get_session(app_name=r["app"], user_id=r["user"], session_id=r["session"])
            loaded[r["url"], *key] = session
            return shown(session) if session else None
        if op == "list":
            found = await service.list_sessions(app_name=r["app"], user_id=r["user"])
            return [session.id for session in found.sessions]
        if op == "delete":
            return await service.delete_session(app_name=r["app"], user_id=r["user"], session_id=r["session"])
        raise ValueError(op)

    for line in sys.stdin:
        request = json.loads(line)
        url = request["url"]
        try:
            if request["op"] == "close":
                result = None
                if url in services:
                    await services.pop(url).close()
            else:
                if url not in services:
                    services[url] = DatabaseSessionService(db_url=url)
                if request["op"] == "prepare":
                    result = await services[url].prepare_tables()
                else:
                    result = await perform(request["op"], services[url], request)
            answer = {"result": result}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve())
