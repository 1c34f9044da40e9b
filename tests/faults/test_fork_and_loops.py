"""One service object in several event loops and processes, cancelled at every await, and closed."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from tiered_sessions import (
    ConfigurationError,
    Event,
    EventActions,
    Session,
    SessionNotFoundError,
    StaleSessionError,
    TieredSessionService,
)
from tiered_sessions.cache.memory import MemoryCache

PAIRS = pytest.mark.parametrize(
    ("store_url", "cache"), [("sqlite", "memory"), ("postgresql", "redis")], indirect=True
)
Maker = Callable[[TieredSessionService], Awaitable[Any]]


@pytest.fixture
def app() -> str:
    return f"app-{uuid4().hex[:12]}"


def event(id: str = "") -> Event:
    return Event(id=id, author="a", actions=EventActions(state_delta={"k": id, "user:k": id}))


async def turn(service: TieredSessionService, app: str, id: str) -> list[str]:
    """Reads, appends, reads; returns the ids of the events."""
    session = await service.get_session(app, "u", "s")
    if session is None:
        session = await service.create_session(app, "u", session_id="s")
    await service.append_event(session, event(id))
    found = await service.get_session(app, "u", "s")
    assert found is not None
    return [event.id for event in found.events]


async def turn_and_close(service: TieredSessionService, app: str, id: str) -> list[str]:
    try:
        return await turn(service, app, id)
    finally:
        await service.close()


# --- event loops --------------------------------------------------------------------------------


@PAIRS
def test_loops_one_after_the_other(store_url: str, cache: Any, app: str) -> None:
    service = TieredSessionService(store_url, cache=cache)
    for number in range(3):
        events = asyncio.run(turn_and_close(service, app, f"e{number}"))
        assert events == [f"e{n}" for n in range(number + 1)]


@PAIRS
def test_loops_side_by_side(store_url: str, cache: Any, app: str) -> None:
    """Each has connections of its own; closing in one leaves the other working."""
    service = TieredSessionService(store_url, cache=cache)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        # One thread drives both by turns: what belongs to the other loop would fail or hang.
        assert first.run(turn(service, app, "e0")) == ["e0"]
        assert second.run(turn(service, app, "e1")) == ["e0", "e1"]
        assert first.run(turn(service, app, "e2")) == ["e0", "e1", "e2"]
        second.run(service.close())
        assert first.run(turn(service, app, "e3")) == ["e0", "e1", "e2", "e3"]
        first.run(service.close())


@PAIRS
def test_loops_in_threads(store_url: str, cache: Any, app: str) -> None:
    service = TieredSessionService(store_url, cache=cache)
    asyncio.run(turn_and_close(service, app, "e"))
    failures: list[BaseException] = []

    async def appends(name: str) -> None:
        for number in range(5):
            for _ in range(100):
                with contextlib.suppress(StaleSessionError):
                    await turn(service, app, f"{name}{number}")
                    break
        await service.close()

    def work(name: str) -> None:
        try:
            asyncio.run(appends(name))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    events = asyncio.run(turn_and_close(service, app, "last"))
    assert sorted(events) == sorted(["e", "last", *(f"{name}{n}" for name in "ab" for n in range(5))])


@pytest.mark.parametrize("given", ["engine", "cache", "memory database"])
def test_what_belongs_to_another_loop_is_a_typed_error(sqlite_url: str, app: str, given: str) -> None:
    with asyncio.Runner() as runner:
        engine = create_async_engine(sqlite_url)
        service = {
            "engine": lambda: TieredSessionService(db_engine=engine, cache=None),
            "cache": lambda: TieredSessionService(sqlite_url, cache=MemoryCache()),
            "memory database": lambda: TieredSessionService("sqlite+aiosqlite:///:memory:", cache=None),
        }[given]()
        assert runner.run(turn(service, app, "e0")) == ["e0"]
        with pytest.raises(ConfigurationError, match="belongs to the event loop and process"):
            asyncio.run(turn(service, app, "e1"))
        assert runner.run(turn(service, app, "e2")) == ["e0", "e2"]
        runner.run(service.close())
        runner.run(engine.dispose())


# --- fork ---------------------------------------------------------------------------------------


def forked(work: Callable[[], Any]) -> Any:
    """Runs `work` in a forked child; returns its result, or the text of what it raised."""
    context = multiprocessing.get_context("fork")
    results, sender = context.Pipe(duplex=False)

    def child() -> None:
        try:
            sender.send(work())
        except BaseException as error:
            sender.send(f"{type(error).__name__}: {error}")

    process = context.Process(target=child)
    with warnings.catch_warnings():
        # Python 3.12 and later warn of a fork beside threads: exactly what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    assert results.poll(30), "the child hangs"
    result = results.recv()
    process.join(30)
    assert process.exitcode == 0
    return result


@PAIRS
def test_fork(store_url: str, cache: Any, app: str) -> None:
    """The child makes connections of its own, and closing them leaves the parent's alone."""
    service = TieredSessionService(store_url, cache=cache)
    with asyncio.Runner() as runner:
        assert runner.run(turn(service, app, "e0")) == ["e0"]
        assert forked(lambda: asyncio.run(turn_and_close(service, app, "e1"))) == ["e0", "e1"]
        assert runner.run(turn(service, app, "e2")) == ["e0", "e1", "e2"]
        assert forked(lambda: asyncio.run(turn_and_close(service, app, "e3"))) == ["e0", "e1", "e2", "e3"]
        assert runner.run(turn(service, app, "e4")) == ["e0", "e1", "e2", "e3", "e4"]
        runner.run(service.close())


def test_fork_before_first_use(sqlite_url: str, app: str) -> None:
    service = TieredSessionService(sqlite_url)
    assert forked(lambda: asyncio.run(turn_and_close(service, app, "e0"))) == ["e0"]
    assert asyncio.run(turn_and_close(service, app, "e1")) == ["e0", "e1"]


def test_fork_with_an_injected_engine(sqlite_url: str, app: str) -> None:
    with asyncio.Runner() as runner:
        engine = create_async_engine(sqlite_url)
        service = TieredSessionService(db_engine=engine, cache=None)
        assert runner.run(turn(service, app, "e0")) == ["e0"]
        answer = forked(lambda: asyncio.run(turn(service, app, "e1")))
        assert answer.startswith("ConfigurationError: The engine given as db_engine belongs to")
        assert runner.run(turn(service, app, "e2")) == ["e0", "e2"]
        runner.run(service.close())
        runner.run(engine.dispose())


# --- close --------------------------------------------------------------------------------------


@PAIRS
async def test_close_leaves_nothing_behind(store_url: str, cache: Any, app: str) -> None:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    async with TieredSessionService(store_url, cache=cache) as service:
        await turn(service, app, "e0")
        await asyncio.gather(*(service.get_session(app, "u", "s") for _ in range(10)))
        # Not flushed: the applies of these are under way when it closes.
        await turn(service, app, "e1")
    assert asyncio.all_tasks() == tasks
    # aiosqlite's thread reports the end of its connection just before its own.
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive()
    await service.close()
    assert await turn_and_close(service, app, "e2") == ["e0", "e1", "e2"]
    assert asyncio.all_tasks() == tasks


# --- cancellation -------------------------------------------------------------------------------


class Counted(Coroutine[Any, Any, Any]):
    """A coroutine that reports each await it comes to."""

    def __init__(self, work: Coroutine[Any, Any, Any], waits: Callable[[], None]) -> None:
        self._work = work
        self._waits = waits

    def send(self, value: Any) -> Any:
        awaited = self._work.send(value)
        self._waits()
        return awaited

    def throw(self, *error: Any) -> Any:
        awaited = self._work.throw(*error)
        self._waits()
        return awaited

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError("run by a task")


async def cancelled_at(work: Coroutine[Any, Any, Any], number: int) -> bool:
    """Cancels `work` at its `number`-th await, those of the tasks it starts included.

    Returns:
        False if it ended before.
    """
    loop = asyncio.get_running_loop()
    waits = 0
    reached = False

    def count() -> None:
        nonlocal waits, reached
        waits += 1
        if waits == number:
            reached = task.cancel()

    def counted(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(Counted(work, count), loop=loop, **options)

    loop.set_task_factory(counted)
    try:
        task = asyncio.create_task(work)
        await asyncio.wait((task,))
    finally:
        loop.set_task_factory(None)
    if not task.cancelled():
        task.result()
    return reached


Call = Callable[[TieredSessionService, Session], Coroutine[Any, Any, Any]]
CALLS: dict[str, Call] = {
    "get": lambda service, session: service.get_session(session.app_name, "u", session.id),
    "append": lambda service, session: service.append_event(session, event("new")),
    "create": lambda service, session: service.create_session(session.app_name, "u", {"user:k": "c"}, "new"),
    "delete": lambda service, session: service.delete_session(session.app_name, "u", session.id),
    "flush": lambda service, session: append_and_flush(service, session),
}


async def append_and_flush(service: TieredSessionService, session: Session) -> None:
    await service.append_event(session, event("new"))
    await service.flush()


@pytest.mark.parametrize("hot", [True, False], ids=["hot", "cold"])
@pytest.mark.parametrize("cache", ["none", "memory", "redis"], indirect=True)
@pytest.mark.parametrize("name", CALLS)
async def test_cancelled_at_every_await(sqlite_url: str, cache: Any, app: str, name: str, hot: bool) -> None:
    """The call has happened whole or not at all, both tiers agree, and nothing is left behind."""
    tasks = asyncio.all_tasks()
    number, done, undone = 0, 0, 0
    async with TieredSessionService(sqlite_url, cache=None) as truth:
        while True:
            number += 1
            assert number < 100
            async with TieredSessionService(sqlite_url, cache=cache) as service:
                here = f"{app}-{number}"
                session = await service.create_session(here, "u", {"user:k": "0"}, "s")
                await service.append_event(session, event("old"))
                if hot:
                    await service.get_session(here, "u", "s")
                    await service.flush()
                reached = await cancelled_at(CALLS[name](service, session), number)
                stored = await truth.get_session(here, "u", "s")
                assert await service.get_session(here, "u", "s") == stored
                new = await truth.get_session(here, "u", "new")
                assert await service.get_session(here, "u", "new") == new
                old = ["old"]
                happened = {"create": new is not None, "delete": stored is None}.get(
                    name, stored is not None and [e.id for e in stored.events] != old
                )
                done, undone = done + happened, undone + (not happened)
                if stored is None:
                    with pytest.raises(SessionNotFoundError):
                        await service.append_event(session, event("after"))
                else:
                    wanted = [*old, *(["new"] if name in ("append", "flush") and happened else [])]
                    assert [e.id for e in stored.events] == wanted
                    assert stored.state["user:k"] == ("c" if new else wanted[-1])
                    # Nothing of the cancelled call stands in the way of the next one.
                    await service.append_event(stored, event("after"))
                    await service.flush()
                    for _ in range(2):
                        found = await service.get_session(here, "u", "s")
                        assert found is not None
                        assert [e.id for e in found.events] == [*wanted, "after"]
                await service.flush()
                assert service.db_engine.pool.checkedout() <= 1  # type: ignore[attr-defined]
            assert asyncio.all_tasks() == tasks
            if not reached:
                break
    print(f"\n{name}: {number - 1} awaits; {done} times it had happened, {undone} times not")


async def test_close_while_calls_run(tmp_path: Path, app: str) -> None:
    """It waits for writes under way: they are whole, and neither a task nor a connection is left."""
    tasks = asyncio.all_tasks()
    url = f"sqlite+aiosqlite:///{tmp_path / 'closing.db'}"
    service = TieredSessionService(url)
    sessions = [await service.create_session(app, "u", session_id=f"s{n}") for n in range(5)]
    calls = [asyncio.create_task(service.append_event(session, event("e"))) for session in sessions]
    await asyncio.sleep(0)
    await service.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    await service.close()
    assert asyncio.all_tasks() == tasks
    async with TieredSessionService(url, cache=None) as truth:
        for session, outcome in zip(sessions, outcomes, strict=True):
            found = await truth.get_session(app, "u", session.id)
            assert found is not None
            assert len(found.events) == (0 if isinstance(outcome, BaseException) else 1)
