"""One implementation in a process of its own, told by lines of JSON what to do."""

from __future__ import annotations

import asyncio
import cProfile
import io
import json
import logging
import pstats
import sys
import traceback
from dataclasses import asdict
from typing import Any

from . import loops
from .records import Group, Task
from .subjects.base import Address, Subject
from .subjects.catalogue import make
from .timing import Stopwatch
from .workloads import WARM, WORKLOADS

_PROFILED = 25


async def measure(subject: Subject, task: Task, profile: cProfile.Profile | None = None) -> dict[str, Any]:
    """Measures one cell once."""
    from .reading import Listing, Reading
    from .writing import Appending, Creating, Deleting

    runners: dict[str, Any] = {"read": Reading, "list": Listing, "create": Creating, "delete": Deleting}
    runner = runners.get(WORKLOADS[task.cell.workload].kind, Appending)(subject, task)
    watch = Stopwatch(task.limits, subject.settle, profile)
    await subject.ready(WARM)
    checked = await runner.run(watch)
    return asdict(watch.measurement(checked, subject.counters()))


async def profiled(subject: Subject, task: Task) -> str:
    """Measures a cell under the profiler; returns the functions that took most time themselves."""
    profile = cProfile.Profile()
    measured = await measure(subject, task, profile)
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(_PROFILED)
    return f"{measured['operations']} operations{text.getvalue()}"


async def perform(subject: Subject, order: dict[str, Any]) -> Any:
    """Does what the runner asks for."""
    match order["do"]:
        case "fill":
            return await subject.fill([Group(**group) for group in order["groups"]])
        case "measure":
            return await measure(subject, Task.from_json(order["task"]))
        case "profile":
            return await profiled(subject, Task.from_json(order["task"]))
        case "trips":
            from .trips import TripCounter

            return await TripCounter(subject, WARM, order["first"]).count()
        case "outage":
            from .outage import Outage

            uncached = make("ours-uncached", subject.address)
            try:
                return await Outage(subject, uncached, WARM).measure()
            finally:
                await uncached.close()
        case "memory":
            from .memory import in_process, in_redis

            group, settling = Group(**order["group"]), Group(**order["settling"])
            found = await in_process(subject, group, settling)
            return found | (await in_redis(subject, group) if order["redis"] else {})
    raise ValueError(order["do"])


async def serve(name: str, address: Address) -> None:
    """Answers the runner's orders until its end of the pipe closes."""
    # What the library would warn of is in its counters; here it would break into the runner's display.
    logging.getLogger("tiered_sessions").addHandler(logging.NullHandler())
    subject = make(name, address)
    # Whoever is measured together with others begins with them, and not while it still imports.
    print(json.dumps({"answer": "ready"}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            answer: dict[str, Any] = {"answer": await perform(subject, json.loads(line))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        print(json.dumps(answer), flush=True)
    await subject.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loops.factory()) as runner:
        runner.run(serve(sys.argv[1], Address(**json.loads(sys.argv[2]))))
