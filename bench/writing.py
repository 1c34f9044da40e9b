"""Workloads that write. What was written is read back at the end, from what is stored durably."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from google.adk.events.event import Event
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.session import Session

from .events import APP, Checker, WrongResultError, expected, first_state, stored_event
from .reading import open_connections, touch
from .records import Task
from .subjects.base import Subject
from .timing import Lane, Operation, Stopwatch, untimed
from .workloads import TURN, WARM_UP, WORKLOADS


class _Conversation:
    """One stored session, the object its caller holds, and how many events it has by now."""

    def __init__(self, number: int, events: int) -> None:
        self.number = number
        self.planned = events
        self.stored = events
        self.appended: set[str] = set()
        self.used = 0
        self.failed = False
        self.session: Session | None = None

    @contextlib.contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Notes that it is unknown what the session holds, if a call fails."""
        try:
            yield
        except Exception:
            self.failed = True
            raise


class Appending:
    """Appends to sessions: alone, after a get, or a chat turn of a get and several appends."""

    def __init__(self, subject: Subject, task: Task) -> None:
        self._subject = subject
        self._task = task
        self._group = task.group
        self._callers = task.cell.callers
        self._workload = WORKLOADS[task.cell.workload]
        self._checker = Checker(task.group)
        self._clock = time.time()
        lanes = 1 if self._workload.shared else self._callers
        lot = self._workload.lot(self._callers, task.limits.operations)
        first = (task.repetition * task.cell.processes + task.process) * lanes * lot
        self._waiting = [list(range(first + lane * lot, first + (lane + 1) * lot)) for lane in range(lanes)]
        self._current = [self._next(lane) for lane in range(lanes)]
        self._touched = list(self._current)

    def _next(self, lane: int) -> _Conversation:
        return _Conversation(self._waiting[lane].pop(0), self._group.events)

    async def run(self, watch: Stopwatch) -> int:
        """Measures; returns how many events were checked."""
        await open_connections(self._subject, self._callers)
        self._take(await untimed(await self._batch(WARM_UP)))
        self._subject.counters()
        while watch.running and any(lanes := await self._batch(self._workload.per_batch)):
            self._take(await watch.time(lanes))
        await self._audit()
        return self._checker.checked

    async def _batch(self, size: int) -> list[Lane]:
        for lane, conversation in enumerate(self._current):
            full = conversation.used + size > self._workload.per_session
            if (full or conversation.failed) and self._waiting[lane]:
                self._current[lane] = self._next(lane)
                self._touched.append(self._current[lane])
            if not self._workload.shared:
                # Events that were planned but not appended when the time was up are planned again.
                self._current[lane].planned = self._current[lane].stored
            self._current[lane].used += size
            if self._current[lane].session is None:
                self._current[lane].session = await self._get(self._current[lane], self._workload.window)
        if self._workload.shared:
            return [[self._operation(self._current[0]) for _ in range(size)] for _ in range(self._callers)]
        # What a session holds whose append failed is unknown: without another one its caller is out.
        return [
            [] if conversation.failed else [self._operation(conversation) for _ in range(size)]
            for conversation in self._current
        ]

    async def _get(self, conversation: _Conversation, window: int | None) -> Session:
        number = conversation.number
        session = await self._subject.service.get_session(
            app_name=APP,
            user_id=self._group.user_of(number),
            session_id=self._group.id_of(number),
            config=None if window is None else GetSessionConfig(num_recent_events=window),
        )
        if session is None:
            raise WrongResultError(f"{self._group.id_of(number)} is not there")
        return session

    def _event(self, conversation: _Conversation) -> Event:
        self._clock += 0.000_01
        name = self._group.id_of(conversation.number)
        event = stored_event(name, conversation.planned, self._clock)
        conversation.planned += 1
        return Event.model_validate(event)

    def _operation(self, conversation: _Conversation) -> Operation:
        service = self._subject.service
        if self._workload.kind == "append":
            event = self._event(conversation)

            async def append() -> tuple[_Conversation, list[Event], Session | None]:
                assert conversation.session is not None
                with conversation.noting_failure():
                    await service.append_event(conversation.session, event)
                return conversation, [event], None

            return append
        events = [
            self._event(conversation) for _ in range(1 if self._workload.kind == "get-append" else TURN)
        ]

        async def turn() -> tuple[_Conversation, list[Event], Session | None]:
            with conversation.noting_failure():
                session = await self._get(conversation, None)
                touch(session)
                for event in events:
                    await service.append_event(session, event)
            return conversation, events, session

        return turn

    def _take(self, results: list[list[Any]]) -> None:
        """Notes what was appended and checks what was read."""
        for conversation, appended, session in (result for lane in results for result in lane):
            conversation.stored += len(appended)
            conversation.appended.update(event.id for event in appended)
            if session is not None:
                self._checker.check([(conversation.number, session)], conversation.stored, None)

    async def _audit(self) -> None:
        async with self._subject.auditor() as service:
            for conversation in self._touched:
                if conversation.failed:
                    continue
                number = conversation.number
                session = await service.get_session(
                    app_name=APP, user_id=self._group.user_of(number), session_id=self._group.id_of(number)
                )
                if self._workload.shared:
                    self._same_events(conversation, session)
                else:
                    self._checker.check([(number, session)], conversation.stored, None)

    def _same_events(self, conversation: _Conversation, session: Session | None) -> None:
        """Checks a session whose callers' order nobody knows."""
        name = self._group.id_of(conversation.number)
        wanted = conversation.appended | {expected(name, number)[0] for number in range(self._group.events)}
        if session is None or {event.id for event in session.events} != wanted:
            raise WrongResultError(f"{name} does not hold the events that were appended")
        self._checker.checked += conversation.stored


class Creating:
    """Creates sessions whose ids the service chooses."""

    def __init__(self, subject: Subject, task: Task) -> None:
        self._subject = subject
        self._group = task.group
        self._callers = task.cell.callers
        self._size = WORKLOADS[task.cell.workload].per_batch
        self._made: dict[str, dict[str, dict[str, Any]]] = {}
        self._numbers = iter(range(1_000_000))

    async def run(self, watch: Stopwatch) -> int:
        """Measures; returns how many sessions were checked."""
        self._take(await untimed(self._batch(WARM_UP)))
        self._subject.counters()
        while watch.running:
            self._take(await watch.time(self._batch(self._size)))
        return await self._audit()

    def _batch(self, size: int) -> list[Lane]:
        return [
            [self._create(self._group.user_of(lane)) for _ in range(size)] for lane in range(self._callers)
        ]

    def _create(self, user: str) -> Operation:
        state = first_state(f"new {next(self._numbers)}")

        async def operation() -> tuple[str, dict[str, Any], Session]:
            return (
                user,
                state,
                await self._subject.service.create_session(app_name=APP, user_id=user, state=state),
            )

        return operation

    def _take(self, results: list[list[Any]]) -> None:
        for user, state, session in (result for lane in results for result in lane):
            self._made.setdefault(user, {})[session.id] = state

    async def _audit(self) -> int:
        async with self._subject.auditor() as service:
            for user, made in self._made.items():
                answer = await service.list_sessions(app_name=APP, user_id=user)
                found = {session.id: session.state for session in answer.sessions}
                for name, state in made.items():
                    if name not in found or not found[name].items() >= state.items():
                        raise WrongResultError(f"session {name} of {user} was not stored as it was created")
        return sum(map(len, self._made.values()))


class Deleting:
    """Deletes sessions that have a few events."""

    def __init__(self, subject: Subject, task: Task) -> None:
        self._subject = subject
        self._group = task.group
        self._callers = task.cell.callers
        workload = WORKLOADS[task.cell.workload]
        self._size = workload.per_batch
        lot = workload.lot(self._callers, task.limits.operations) * self._callers
        first = (task.repetition * task.cell.processes + task.process) * lot
        self._left = list(range(first, first + lot))
        self._deleted: list[int] = []

    async def run(self, watch: Stopwatch) -> int:
        """Measures; returns how many sessions were checked."""
        self._deleted += _flat(await untimed(self._batch(WARM_UP)))
        self._subject.counters()
        while watch.running and self._left:
            lanes = self._batch(self._size)
            self._deleted += _flat(await watch.time(lanes))
        return await self._audit()

    def _batch(self, size: int) -> list[Lane]:
        lanes: list[Lane] = []
        for _ in range(self._callers):
            taken, self._left = self._left[:size], self._left[size:]
            lanes.append([self._delete(number) for number in taken])
        return lanes

    def _delete(self, number: int) -> Operation:
        user, name = self._group.user_of(number), self._group.id_of(number)

        async def operation() -> int:
            await self._subject.service.delete_session(app_name=APP, user_id=user, session_id=name)
            return number

        return operation

    async def _audit(self) -> int:
        deleted = {self._group.id_of(number) for number in self._deleted}
        async with self._subject.auditor() as service:
            for user in {self._group.user_of(number) for number in self._deleted}:
                answer = await service.list_sessions(app_name=APP, user_id=user)
                if any(session.id in deleted for session in answer.sessions):
                    raise WrongResultError(f"a deleted session of {user} is still there")
        return len(deleted)


def _flat(results: list[list[int]]) -> list[int]:
    return [number for lane in results for number in lane]
