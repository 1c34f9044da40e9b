"""Agents whose model follows a script, and a session service that writes down how it is called."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from google.adk.events.event import Event
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.sessions.base_session_service import (
    BaseSessionService,
    GetSessionConfig,
    ListSessionsResponse,
)
from google.adk.sessions.session import Session
from google.adk.version import __version__
from google.genai import types
from pydantic import PrivateAttr

from tests import servers

RELEASE = tuple(map(int, __version__.split(".")[:2]))


def said(text: str) -> types.Part:
    """Returns a part of text."""
    return types.Part(text=text)


def call(tool: str, **arguments: Any) -> types.Part:
    """Returns a call of a tool, without an id: the framework gives it one, as to a real model's."""
    return types.Part(function_call=types.FunctionCall(name=tool, args=arguments))


def message(text: str) -> types.Content:
    """Returns what a user says."""
    return types.Content(role="user", parts=[said(text)])


def answer(to: types.FunctionCall, **response: Any) -> types.Content:
    """Returns what a user's system answers to a long-running call."""
    part = types.Part(function_response=types.FunctionResponse(id=to.id, name=to.name, response=response))
    return types.Content(role="user", parts=[part])


Reply = str | types.Part | list[types.Part] | Exception


class ScriptedLlm(BaseLlm):
    """Gives the replies of a script, one a request, and keeps what it was asked.

    A reply is a text, a part, several parts, or an error to raise. Streaming sends a text word by word
    before the whole.
    """

    model: str = "scripted"
    _replies: list[Reply] = PrivateAttr()
    _asked: list[list[types.Content]] = PrivateAttr(default_factory=list)
    _before: Callable[[], Any] | None = PrivateAttr(default=None)

    def __init__(self, *replies: Reply, before: Callable[[], Any] | None = None) -> None:
        super().__init__(model="scripted")
        self._replies = list(replies)
        self._before = before

    @property
    def asked(self) -> list[list[types.Content]]:
        """The contents of every request so far."""
        return self._asked

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        self._asked.append([content.model_copy(deep=True) for content in llm_request.contents])
        if self._before is not None:
            await self._before()
        assert self._replies, f"the script has no reply to {llm_request.contents[-1]}"
        reply = self._replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        parts = [said(reply)] if isinstance(reply, str) else reply if isinstance(reply, list) else [reply]
        if stream and isinstance(reply, str):
            for word in reply.split():
                yield LlmResponse(content=types.Content(role="model", parts=[said(word)]), partial=True)
        yield LlmResponse(content=types.Content(role="model", parts=parts), partial=False)


class Recorder(BaseSessionService):
    """Passes every call on to a real service, and keeps its name and what matters of its arguments."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls: list[tuple[str, Any]] = []
        self.objects: list[Session] = []

    def taken(self) -> list[tuple[str, Any]]:
        """Returns the calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    async def create_session(self, **arguments: Any) -> Session:
        self.calls.append(("create", arguments.get("session_id")))
        created: Session = await self.inner.create_session(**arguments)
        return created

    async def get_session(
        self, *, app_name: str, user_id: str, session_id: str, config: GetSessionConfig | None = None
    ) -> Session | None:
        self.calls.append(("get", config))
        session: Session | None = await self.inner.get_session(
            app_name=app_name, user_id=user_id, session_id=session_id, config=config
        )
        return session

    async def list_sessions(self, *, app_name: str, user_id: str | None = None) -> ListSessionsResponse:
        self.calls.append(("list", user_id))
        found: ListSessionsResponse = await self.inner.list_sessions(app_name=app_name, user_id=user_id)
        return found

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        self.calls.append(("delete", session_id))
        await self.inner.delete_session(app_name=app_name, user_id=user_id, session_id=session_id)

    async def append_event(self, session: Session, event: Event) -> Event:
        self.calls.append(("append", event.partial))
        self.objects.append(session)
        if RELEASE < (2, 13):
            # Old stock gives back the time of its column, of whole microseconds: where a runner compares
            # times, a script would end in one way or another by the last bit of a float.
            event.timestamp = datetime.fromtimestamp(event.timestamp).timestamp()
        stored: Event = await self.inner.append_event(session=session, event=event)
        return stored

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        self.calls.append(("user_state", user_id))
        state: dict[str, Any] = await self.inner.get_user_state(app_name=app_name, user_id=user_id)
        return state

    async def flush(self) -> None:
        self.calls.append(("flush", None))
        await self.inner.flush()

    async def close(self) -> None:
        await self.inner.close()


async def run(runner: Any, session: str, text: types.Content | str | None, **options: Any) -> list[Event]:
    """Has one turn with the user `ann`; returns what the runner yielded."""
    new = message(text) if isinstance(text, str) else text
    turn = runner.run_async(user_id="ann", session_id=session, new_message=new, **options)
    return [event async for event in turn]


def calls_in(events: Iterable[Event]) -> list[types.FunctionCall]:
    """Returns the function calls of the events."""
    return [found for event in events for found in event.get_function_calls()]


class Barrier:
    """Lets go once so many have come: what passes it ran at the same time."""

    def __init__(self, parties: int) -> None:
        self._missing = parties
        self._open = asyncio.Event()

    async def __call__(self) -> None:
        self._missing -= 1
        if self._missing <= 0:
            self._open.set()
        await self._open.wait()


_UUID = re.compile(r"(?:\b[ep]-)?[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_TIMES = {"timestamp", "last_update_time", "start_timestamp", "end_timestamp"}


class Normaliser:
    """Makes two runs comparable: ids become their order of appearance, times go.

    Events of parallel branches come in any order: they are put in the order of their branches.
    """

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def __call__(self, value: Any) -> Any:
        if hasattr(value, "model_dump"):
            value = value.model_dump(mode="json", exclude_none=True)
        if isinstance(value, dict):
            return {self(k): self(v) for k, v in sorted(value.items()) if k not in _TIMES}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        return _UUID.sub(self._number, value) if isinstance(value, str) else value

    def _number(self, match: re.Match[str]) -> str:
        return self._ids.setdefault(match[0], f"<id {len(self._ids)}>")


def ordered(events: Iterable[Event]) -> list[Event]:
    """Returns the events with those of sibling branches sorted, each branch in its own order."""
    result: list[Event] = []
    block: list[Event] = []
    for event in (*events, None):
        if event is not None and event.branch:
            block.append(event)
            continue
        result += sorted(block, key=lambda one: one.branch or "")
        block = []
        if event is not None:
            result.append(event)
    return result


@contextlib.contextmanager
def databases(kind: str, folder: Path) -> Iterator[dict[str, str]]:
    """Makes an empty database for stock and one for ours, of a kind of `servers.STORES`."""
    if kind == "sqlite":
        yield {who: f"sqlite+aiosqlite:///{folder / who}.db" for who in ("stock", "ours")}
        return
    make = {"postgresql": servers.postgresql_database, "mariadb": servers.mariadb_database}[kind]
    with make() as stock, make() as ours:
        yield {"stock": stock, "ours": ours}


def as_text(value: Any) -> str:
    """Returns JSON that a failing comparison can show line by line."""
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)
