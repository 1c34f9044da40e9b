"""Workloads that read and list."""

from __future__ import annotations

from typing import Any

from google.adk.sessions.base_session_service import BaseSessionService, GetSessionConfig
from google.adk.sessions.session import Session

from .events import APP, Checker, WrongResultError, state_after
from .records import Group, Task
from .subjects.base import Subject
from .timing import Lane, Operation, Stopwatch, untimed
from .workloads import WARM, WORKLOADS

_LONG = 1000


def touch(session: Session | None) -> None:
    """Looks at author and content of every event, as whoever builds a prompt does."""
    if session is not None:
        for event in session.events:
            _ = event.author, event.content


def get(service: BaseSessionService, group: Group, number: int, window: int | None) -> Operation:
    """Returns an operation that reads a session, touches it and returns it with its number."""
    user, name = group.user_of(number), group.id_of(number)
    config = None if window is None else GetSessionConfig(num_recent_events=window)

    async def operation() -> tuple[int, Session | None]:
        session = await service.get_session(app_name=APP, user_id=user, session_id=name, config=config)
        touch(session)
        return number, session

    return operation


async def open_connections(subject: Subject, callers: int) -> None:
    """Has a new service do its first calls on sessions that are not measured."""
    await untimed(
        [[get(subject.service, WARM, caller % WARM.sessions, None)] * 2 for caller in range(callers)]
    )


class Reading:
    """Reads stored sessions."""

    def __init__(self, subject: Subject, task: Task) -> None:
        self._subject = subject
        self._group = task.group
        self._callers = task.cell.callers
        self._workload = WORKLOADS[task.cell.workload]
        self._checker = Checker(task.group)

    async def run(self, watch: Stopwatch) -> int:
        """Measures; returns how many events were checked."""
        if self._workload.warmth == "hot":
            await self._hot(watch)
        else:
            await self._once(watch)
        return self._checker.checked

    async def _hot(self, watch: Stopwatch) -> None:
        """Each caller reads one session over and over."""
        numbers = [0 if self._workload.shared else caller for caller in range(self._callers)]
        operations = [self._get(number) for number in numbers]
        self._check([[await operation()] for operation in operations])
        if self._workload.events < _LONG:
            self._check(await untimed([[operation] * 2 for operation in operations]))
        self._subject.counters()
        size = self._workload.batch(self._callers)
        while watch.running:
            if self._callers == 1:
                # To check the results has emptied the processor's caches, and one call fills them again.
                await untimed([operations])
            self._check(await watch.time([[operation] * size for operation in operations]))

    async def _once(self, watch: Stopwatch) -> None:
        """Each session is read once by a service that does not know it, and then by a new one."""
        if self._workload.warmth == "elsewhere":
            await self._subject.warm_elsewhere(self._group)
        while watch.running:
            if self._workload.warmth == "cold":
                await self._subject.forget()
            await self._subject.restart()
            await open_connections(self._subject, self._callers)
            self._subject.counters()
            lanes: list[Lane] = [
                [self._get(number) for number in range(caller, self._group.sessions, self._callers)]
                for caller in range(self._callers)
            ]
            self._check(await watch.time(lanes))

    def _get(self, number: int) -> Operation:
        return get(self._subject.service, self._group, number, self._workload.window)

    def _check(self, results: list[list[Any]]) -> None:
        returned = [result for lane in results for result in lane]
        self._checker.check(returned, self._group.events, self._workload.window)


class Listing:
    """Lists the sessions of users who have a hundred each."""

    def __init__(self, subject: Subject, task: Task) -> None:
        self._subject = subject
        self._group = task.group
        self._callers = task.cell.callers
        self._size = WORKLOADS[task.cell.workload].per_batch
        users = task.group.users or task.group.sessions
        self._states = {
            f"{task.group.name}-u{user}": {
                task.group.id_of(n): state_after(task.group.id_of(n), 0)
                for n in range(user, task.group.sessions, users)
            }
            for user in range(users)
        }
        self._checked = 0

    async def run(self, watch: Stopwatch) -> int:
        """Measures; returns how many sessions were checked."""
        operations = [self._list(self._group.user_of(caller)) for caller in range(self._callers)]
        self._check(await untimed([[operation] * 2 for operation in operations]))
        self._subject.counters()
        while watch.running:
            self._check(await watch.time([[operation] * self._size for operation in operations]))
        return self._checked

    def _list(self, user: str) -> Operation:
        async def operation() -> tuple[str, Any]:
            return user, await self._subject.service.list_sessions(app_name=APP, user_id=user)

        return operation

    def _check(self, results: list[list[Any]]) -> None:
        for user, answer in (result for lane in results for result in lane):
            found = {
                session.id: {key: value for key, value in session.state.items() if ":" not in key}
                for session in answer.sessions
            }
            if found != self._states[user] or len(answer.sessions) != len(found):
                raise WrongResultError(f"the sessions of {user} are not those that were written")
            self._checked += len(found)
