"""A process that appends to sessions others append to, in batches.

python -m tests.faults.group_writer URL APP SESSIONS CALLERS APPENDS NAME: prints how many appends it
stored in each session, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter

from tests.conformance.grouping import share
from tests.conformance.store_backends import START, open_store
from tiered_sessions.records import Append, Committed, NewEvent, SessionKey, Stale
from tiered_sessions.store.store import SqlSessionStore


async def append_all(
    store: SqlSessionStore, keys: list[SessionKey], callers: int, appends: int, name: str
) -> Counter[str]:
    """Stores `appends` events in sessions chosen at random, each however often it is refused."""
    choice = random.Random(name)
    left = list(range(appends))
    stored: Counter[str] = Counter()

    async def caller() -> None:
        while left:
            number = left.pop()
            key = choice.choice(keys)
            event = NewEvent(f"{name}-{number}", "i", START + number, b'{"n":%d}' % number)
            tag = (await store.tags(key)).session
            outcome = None
            while not isinstance(outcome, Committed):
                outcome = await share(store, Append(key, tag, START + number, (event,)))
                assert isinstance(outcome, Committed | Stale), outcome
                tag = outcome.tag if isinstance(outcome, Committed) else outcome.current
            stored[key.session_id] += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return stored


async def main(url: str, app: str, sessions: int, callers: int, appends: int, name: str) -> None:
    keys = [SessionKey(app, "user", f"s{number}") for number in range(sessions)]
    async with open_store(url, "postgresql") as store:
        print(json.dumps(await append_all(store, keys, callers, appends, name)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6]))
