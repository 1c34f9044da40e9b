"""What the fleet does besides its callers' calls: generators, as those of protocol.py."""

from __future__ import annotations

from collections.abc import Sequence

from ..cache.base import Unavailable
from ..records import Failed, OutboxRow, SessionKey, Unknown
from .protocol import delete
from .steps import (
    Ask,
    Delete,
    Drop,
    Elect,
    ForgetOutbox,
    ReadExpired,
    ReadOutbox,
    Reply,
    Rules,
    Send,
    Steps,
    Swept,
    Timer,
    Wait,
)

_DROPS = 16
_FAILURES = 3


def sweep(rules: Rules) -> Steps[Swept]:
    """Deletes sessions that have expired, each as any deletion, if it has still expired by then.

    A locked one is left for the next sweep; after a few failures so is the rest.
    """
    keys: Sequence[SessionKey] = yield Ask(ReadExpired())
    deleted, failures = 0, 0
    failed: Failed | Unknown | None = None
    for key in keys:
        outcome = yield from delete(Delete(key, only_expired=True), rules)
        if isinstance(outcome, Failed | Unknown):
            failed, failures = outcome, failures + 1
        elif outcome:
            deleted += 1
        # A connection that broke in a commit serves no other deletion.
        if outcome is None or isinstance(outcome, Unknown) or failures == _FAILURES:
            break
    return Swept(len(keys), deleted, failed)


def drain() -> Steps[int | None]:
    """Carries recorded invalidations to the cache. None: another process does, or no cache.

    No row is locked: a drainer that held one would block the writer recording it again. A row is
    deleted only with the stamp that was read, so an invalidation recorded meanwhile stays.
    """
    elected = yield Ask(Elect())
    if elected is not True:
        return None
    rows: Sequence[OutboxRow] = yield Ask(ReadOutbox())
    done: list[OutboxRow] = []
    for first in range(0, len(rows), _DROPS):
        asked: dict[int, OutboxRow] = {}
        for row in rows[first : first + _DROPS]:
            asked[(yield Send(Drop(row.scope, None, row.tag)))] = row
        while asked:
            got = yield Wait(tuple(asked), Timer.CACHE)
            if not isinstance(got, Reply):
                break
            row = asked.pop(got.handle)
            if not isinstance(got.value, Unavailable):
                done.append(row)
    if done:
        yield Ask(ForgetOutbox(tuple(done)))
    return len(done)

