"""What the clients of a fleet did and saw: lines of JSON, and Elle's form of them.

Appends carry unique integers. Each is the id of an event *and* the end of the list `log` in the
session's state, which the writer read, extended and stored with the event (Elle's list-append). So
every read, however few events it asked for, shows the whole list and thereby its place in the order.
A created session carries a unique integer too, `made`: the incarnation. User and app state hold one
counter a client, which only that client writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson


@dataclass(slots=True)
class Operation:
    """One operation of one client; a client does one after the other.

    Attributes:
        client: `<server>.<life>.<client>.<n>`; a name is not used again after an unknown outcome.
        kind: get, list, append, create or delete.
        session: `<user>/<session id>`.
        begun: When it was called: `time.monotonic_ns()`, one clock for all processes of a machine.
        ended: When it returned.
        outcome: ok, fail (nothing was written) or info (unknown); None: nobody heard of it again.
        made: The incarnation read, appended to or created.
        value: What was appended.
        log: The list read (None: there is no such session), or written: `value` is its end.
        events: The ids of the events read; of a list: none are.
        window: How many of the newest events were asked for; None: all.
        user: The counters of the user's state that were read, or written.
        app: The same for the app's.
        cut_off: Whether an entry could not be masked, so that the write went through the outbox; also if
            that is not known.
        error: What the caller got instead of an answer, if no answer of the service's allows it.
    """

    client: str
    kind: str
    session: str
    begun: int
    ended: int | None = None
    outcome: str | None = None
    made: int | None = None
    value: int | None = None
    log: list[int] | None = None
    events: list[int] | None = None
    window: int | None = None
    user: dict[str, int] = field(default_factory=dict)
    app: dict[str, int] = field(default_factory=dict)
    cut_off: bool = False
    error: str | None = None

    @property
    def process(self) -> str:
        """Which life of which server."""
        return ".".join(self.client.split(".")[:2])

    @property
    def user_id(self) -> str:
        """Whose session it is."""
        return self.session.partition("/")[0]

    def line(self) -> bytes:
        """Returns it as a line of the history."""
        return orjson.dumps(asdict(self)) + b"\n"


@dataclass
class History:
    """Everything in the order of its calls, and what was done to the fleet meanwhile."""

    operations: list[Operation]
    faults: list[tuple[int, str]] = field(default_factory=list)


def load(path: Path) -> History:
    """Reads a history. Writes whose completion was never heard keep the outcome None."""
    found: dict[tuple[str, int, str], Operation] = {}
    faults: list[tuple[int, str]] = []
    with path.open("rb") as lines:
        for line in lines:
            record: dict[str, Any] = orjson.loads(line)
            if record.get("kind") == "fault":
                faults.append((record["at"], record["text"]))
                continue
            operation = Operation(**record)
            # A list reads several sessions in one call.
            found[operation.client, operation.begun, operation.session] = operation
    return History(sorted(found.values(), key=lambda one: one.begun), faults)


def elle(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """Returns the history in the form Elle's list-append checker reads: keys are incarnations."""
    processes: dict[str, int] = {}
    entries: list[tuple[int, dict[str, Any]]] = []
    for one in operations:
        if one.made is None or one.kind not in ("get", "append"):
            continue
        process = processes.setdefault(one.client, len(processes))
        for at, kind, value in _steps(one):
            entries.append(
                (at, {":type": kind, ":f": ":txn", ":value": value, ":process": process, ":time": at})
            )
    entries.sort(key=lambda entry: entry[0])
    return [{":index": index, **entry} for index, (_, entry) in enumerate(entries)]


def _steps(one: Operation) -> Iterator[tuple[int, str, list[list[Any]]]]:
    key = f"{one.session}#{one.made}"
    asked: list[list[Any]] = [[":r", key, None]]
    told: list[list[Any]] = [[":r", key, one.log]]
    if one.kind == "append":
        asked.append([":append", key, one.value])
        told = [[":r", key, (one.log or [])[:-1]], [":append", key, one.value]]
    yield one.begun, ":invoke", asked
    if one.outcome in ("ok", "fail", "info"):
        assert one.ended is not None
        yield one.ended, f":{one.outcome}", told if one.outcome == "ok" else asked
