"""Has workers measure cell after cell, in turns, while the others idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from . import plan
from .crew import Worker, WorkerError
from .places import Places
from .plan import Choice, Mode
from .records import Cell, Family, Task
from .results import Results, together
from .subjects.base import Address
from .subjects.catalogue import OURS, REFERENCE, available, copied_from
from .workloads import WARM, WORKLOADS

Progress = Callable[[str, float], None]
"""Told what happens, and which part of the family's work is done."""


class Runner:
    """Measures what a mode says, in databases that belong to this run."""

    def __init__(self, places: Places, mode: Mode, choice: Choice, results: Results) -> None:
        self._places = places
        self._mode = mode
        self._choice = choice
        self._results = results
        self._began = time.monotonic()

    async def family(self, family: Family, progress: Progress) -> None:
        """Measures every cell on one kind of database; if that fails, the others may do."""
        try:
            await self._family(family, progress)
        except (WorkerError, SQLAlchemyError, OSError) as error:
            self._results.missing.append(f"{family}: {type(error).__name__}: {error}")

    async def _family(self, family: Family, progress: Progress) -> None:
        cells = plan.cells(self._mode, family, self._choice)
        if not cells:
            return
        addresses = await self._fill(family, cells, progress)
        async with AsyncExitStack() as stack:
            crew: dict[str, Worker] = {}
            # Time and again through all cells: if the time runs out, each has been measured as often.
            for repetition in range(self._mode.scale.repetitions):
                for number, cell in enumerate(cells):
                    if self._late(family):
                        self._results.cut.append(f"{cell.name}, repetition {repetition + 1}")
                        continue
                    done = (repetition + number / len(cells)) / self._mode.scale.repetitions
                    progress(cell.name, done)
                    for name in plan.subjects(self._mode, cell, addresses, self._choice):
                        if name not in crew:
                            crew[name] = await Worker.start(name, addresses[name])
                            stack.push_async_callback(crew[name].stop)
                        await self._measure(cell, repetition, name, crew[name], addresses[name])
        if self._mode.extras and family == "postgresql":
            progress("round trips, memory, outage", 1.0)
            await self._extras(addresses)

    async def profile(self, task: Task) -> str:
        """Measures one cell with ours under the profiler."""
        addresses = await self._fill(task.cell.family, [task.cell], lambda *_: None)
        return str(await self._alone(OURS, addresses[OURS], "profile", task=task.to_json()))

    def _late(self, family: Family) -> bool:
        """Says whether a family's part of the time is over; what one leaves the next may use."""
        families = self._mode.families
        shares = [plan.SHARES[one] for one in families]
        until = sum(shares[: families.index(family) + 1]) / sum(shares)
        return time.monotonic() - self._began > 60 * self._mode.minutes * until

    async def _measure(self, cell: Cell, repetition: int, name: str, first: Worker, address: Address) -> None:
        group, limits = plan.group(self._mode, cell), plan.limits(self._mode, cell)
        tasks = [Task(cell, group, repetition, process, limits) for process in range(cell.processes)]
        async with AsyncExitStack() as stack:
            workers = [first]
            for _ in tasks[1:]:
                # Only for this cell: idle, their pools would take the connections that others need.
                workers.append(await Worker.start(name, address))
                stack.push_async_callback(workers[-1].stop)
            try:
                parts = await asyncio.gather(
                    *(worker.measure(task) for worker, task in zip(workers, tasks, strict=True))
                )
            except WorkerError as error:
                # A wrong result is a finding about one implementation, not the end of the run.
                self._results.missing.append(f"{cell.name}, {name}: {error}")
            else:
                measured = together(parts) if len(parts) > 1 else parts[0]
                self._results.add(cell, name, measured)
                if measured.failed and name.startswith(OURS):
                    # A rival's failures stand in the table; ours fail the run.
                    self._results.missing.append(
                        f"{cell.name}, {name}: {measured.failed} calls: {measured.failure}"
                    )

    # --- data ------------------------------------------------------------------------------------

    async def _fill(self, family: Family, cells: list[Cell], progress: Progress) -> dict[str, Address]:
        """Makes a database for each implementation and stores the same sessions in each."""
        groups = plan.groups(self._mode, cells)
        known = available(family)
        names = {name for cell in cells for name in plan.subjects(self._mode, cell, known, self._choice)}
        events = sum(group.sessions * group.events for group in groups)
        progress(f"{family}: storing {events:,} events for each implementation", 0.0)
        filled = [name for name in known if name in names and copied_from(family, name) not in names]
        found = {name: await self._address(family, name) for name in filled}

        async def fill(name: str) -> None:
            worker = await Worker.start(name, found[name])
            try:
                await worker.fill(groups)
            finally:
                await worker.stop()
            if name != "adk-redis":
                await self._places.tidy(family, found[name].database)
            if name.startswith(OURS):
                await self._places.keep_track(found[name].database)

        await asyncio.gather(*(fill(name) for name in filled))
        for name in names - found.keys():
            source = copied_from(family, name)
            assert source is not None
            found[name] = await self._address(family, name, found[source].database)
        return found

    async def _address(self, family: Family, name: str, template: str | None = None) -> Address:
        database = await self._places.database(family, name, template)
        return Address(family, database, self._places.servers.redis, self._places.prefix)

    # --- beside the cells ------------------------------------------------------------------------

    async def _extras(self, addresses: dict[str, Address]) -> None:
        for number, name in enumerate((REFERENCE, OURS)):
            if name in addresses:
                # Sessions at the group's end; each call of each implementation changes one of its own.
                trips = await self._alone(
                    name, addresses[name], "trips", first=WARM.sessions - 3 * (number + 1)
                )
                if trips is not None:
                    self._results.trips[name] = trips
                await self._memory(name, addresses[name])
        if OURS in addresses:
            outage = await self._alone(OURS, addresses[OURS], "outage")
            if outage is not None:
                self._results.outage = outage

    async def _memory(self, name: str, address: Address) -> None:
        cell = Cell("postgresql", "hot-all-200", 1)
        if not self._choice.workload(cell.workload):
            return
        group = WORKLOADS[cell.workload].group(cell, self._mode.scale)
        order = {"group": asdict(group), "settling": asdict(WARM), "redis": name == OURS}
        found = await self._alone(name, address, "memory", **order)
        if found is not None:
            self._results.memory[name] = found

    async def _alone(self, name: str, address: Address, do: str, **arguments: Any) -> Any:
        """Has a new worker do one thing."""
        worker = await Worker.start(name, address)
        try:
            return await worker.order(do, **arguments)
        except WorkerError as error:
            self._results.missing.append(f"{do}, {name}: {error}")
        finally:
            await worker.stop()
