"""What the decoded events of ADK take in memory is what the bound on it counts."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc

import pytest

from tiered_sessions import adk
from tiered_sessions.conversions import stored_event
from tiered_sessions.records import EventRecord, SessionKey
from tiered_sessions.shared_events import SharedEvents

# What Python stores in one, two and four bytes a character.
TEXTS = ["", "words and a number 17; " * 20, "Wörter und eine “Zahl” 17; " * 20, "\U0001f600 " * 200]


def test_kept_events_are_as_large_as_estimated() -> None:
    """Within a fifth, in a process whose events were not made by validation before."""
    fresh = subprocess.run([sys.executable, "-m", __name__], capture_output=True, check=True, timeout=60)
    measured = json.loads(fresh.stdout)
    assert [estimated / taken for estimated, taken in measured] == pytest.approx([1] * len(TEXTS), abs=0.25)


def measure(text: str) -> tuple[int, int]:
    """Returns how many bytes 300 events take by the estimate, and by the allocator."""
    kept = SharedEvents(lambda one: adk._decode_shared(stored_event(one)), 10**9)
    for session in "ab":
        records = tuple(record(number, text) for number in range(300))
        if session == "b":
            gc.collect()
            tracemalloc.start()
            before, known = tracemalloc.get_traced_memory()[0], kept._sessions.currsize
        kept.of(SessionKey("app", "u", session), records)
    del records
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return int(kept._sessions.currsize - known), taken


def record(number: int, text: str) -> EventRecord:
    payload = (
        f'{{"content":{{"parts":[{{"text":"{number} {text}"}}],"role":"model"}},"invocation_id":"i{number}",'
        '"author":"a","actions":{"state_delta":{},"artifact_delta":{},"requested_auth_configs":{},'
        f'"requested_tool_confirmations":{{}}}},"id":"{number:036}","timestamp":{number + 1.5}}}'
    )
    return EventRecord(number + 1000, f"{number:036}", number + 10**15, payload.encode())


if __name__ == "__main__":
    print(json.dumps([measure(text) for text in TEXTS]))
