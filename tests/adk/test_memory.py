"""What the decoded events of ADK take in memory is what the bound on it counts."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc

import pytest

from tiered_sessions import adk
from tiered_sessions.codec import loads
from tiered_sessions.conversions import stored_event
from tiered_sessions.records import EventRecord, SessionKey
from tiered_sessions.shared_events import KeptRecord, SharedEvents

EVENTS = 300

# What Python stores in one, two and four bytes a character.
TEXTS = ["", "words and a number 17; " * 20, "Wörter und eine “Zahl” 17; " * 20, "\U0001f600 " * 200]
PARTS = [
    *(f'{{"text":"%d {text}"}}' for text in TEXTS),
    '{"function_call":{"id":"c%d","name":"search","args":{"query":"words","limit":17,"language":"en"}}}',
    '{"function_response":{"id":"c%d","name":"search","response":{"rows":['
    + ",".join(f'{{"id":{row + 1000},"name":"row {row}","price":{row}.5,"ok":true}}' for row in range(20))
    + "]}}}",
]
# Of an event without a word, and of one with 22 documents, where every dictionary of its own keys takes
# another hundred bytes.
MOST = {0: 2200, 5: 6200}


def test_kept_events_are_as_large_as_estimated() -> None:
    """Within a fifth, and no larger than they must be, if none was made by validation before."""
    fresh = subprocess.run([sys.executable, "-m", __name__], capture_output=True, check=True, timeout=60)
    measured = json.loads(fresh.stdout)
    assert [estimated / taken for estimated, taken in measured] == pytest.approx([1] * len(PARTS), abs=0.2)
    for kind, most in MOST.items():
        assert measured[kind][1] / EVENTS < most


def test_an_id_is_kept_once() -> None:
    """As the reader of JSON gives it, which keeps short texts itself for a while."""
    found = record(17, PARTS[0])
    kept = KeptRecord(found, adk._decode_shared(stored_event(found)))
    assert kept.id is kept.event.id is loads(found.payload)["id"]
    foreign = found._replace(id="another")
    assert stored_event(foreign)["id"] == "another"


def measure(part: str) -> tuple[int, int]:
    """Returns how many bytes the events of a session take by the estimate, and by the allocator."""
    kept = SharedEvents(lambda some: [adk._decode_shared(stored_event(one)) for one in some], 10**9)
    for session in "ab":
        records = tuple(record(number, part) for number in range(EVENTS))
        if session == "b":
            gc.collect()
            tracemalloc.start()
            before, known = tracemalloc.get_traced_memory()[0], kept._bytes
        kept.of(SessionKey("app", "u", session), records)
    del records
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return int(kept._bytes - known), taken


def record(number: int, part: str) -> EventRecord:
    payload = (
        f'{{"content":{{"parts":[{part % number}],"role":"model"}},"invocation_id":"i{number}",'
        '"author":"a","actions":{"state_delta":{},"artifact_delta":{},"requested_auth_configs":{},'
        f'"requested_tool_confirmations":{{}}}},"id":"{number:036}","timestamp":{number + 1.5}}}'
    )
    return EventRecord(number + 1000, f"{number:036}", number + 10**15, payload.encode())


if __name__ == "__main__":
    print(json.dumps([measure(part) for part in PARTS]))
