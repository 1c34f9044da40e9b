"""What a cached session costs: resident memory of the process, and bytes in Redis."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

import orjson
import redis.asyncio

from tiered_sessions.cache.keys import entry_key
from tiered_sessions.records import SessionKey

from .events import APP, stored_event
from .places import namespace
from .reading import open_connections
from .records import Group
from .subjects.base import Subject

_PASSES = 2


def resident() -> int:
    """Returns how much memory of this process is resident, in bytes, after giving back what is free."""
    gc.collect()
    # Another allocator may have no such function: then freed memory counts, for everybody.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


async def in_process(subject: Subject, group: Group, settling: Group) -> dict[str, float]:
    """Reads every session of `group` and returns how much more memory is resident afterwards.

    Stock keeps nothing; what it grows by is the noise of this way to measure.
    """
    await open_connections(subject, 1)
    # Sessions of the same length first: buffers and the allocator's arenas reach their size.
    for _ in range(_PASSES):
        await _read(subject, settling, range(settling.sessions))
    await subject.restart()
    await open_connections(subject, 1)
    before = resident()
    for _ in range(_PASSES):
        await _read(subject, group, range(group.sessions))
    await subject.settle()
    grown = resident() - before
    written = sum(
        len(orjson.dumps(stored_event(group.id_of(number), index)))
        for number in range(group.sessions)
        for index in range(group.events)
    )
    return {
        "sessions": group.sessions,
        "json_bytes": written / group.sessions,
        "process_bytes": grown / group.sessions,
        "process_ratio": grown / written,
    }


async def in_redis(subject: Subject, group: Group) -> dict[str, float]:
    """Returns how many bytes the entries of the group's sessions take in Redis."""
    name = await namespace(subject.address.database)
    taken, entries = 0, 0
    async with redis.asyncio.Redis.from_url(subject.address.redis) as client:
        for number in range(group.sessions):
            session = SessionKey(APP, group.user_of(number), group.id_of(number)).session
            used = await client.memory_usage(entry_key(name, session), samples=0)
            taken += used or 0
            entries += used is not None
    return {"redis_entries": entries, "redis_bytes": taken / max(entries, 1)}


async def _read(subject: Subject, group: Group, numbers: range) -> None:
    for number in numbers:
        await subject.service.get_session(
            app_name=APP, user_id=group.user_of(number), session_id=group.id_of(number)
        )
