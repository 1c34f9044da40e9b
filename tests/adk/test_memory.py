"""What the decoded events of ADK take in memory is what the bound on it counts."""

from __future__ import annotations

import gc
import tracemalloc

from tiered_sessions import adk
from tiered_sessions.conversions import stored_event
from tiered_sessions.records import EventRecord, SessionKey
from tiered_sessions.shared_events import SharedEvents


def test_kept_events_are_as_large_as_estimated() -> None:
    """Within a fifth, of texts that Python stores in one, two and four bytes a character."""
    texts = ["", "words and a number 17; " * 20, "Wörter und eine “Zahl” 17; " * 20, "\U0001f600 " * 200]
    for text in texts:
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
        took = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert 0.8 < (kept._sessions.currsize - known) / took < 1.25, (text[:10], took / 300)


def record(number: int, text: str) -> EventRecord:
    payload = (
        f'{{"content":{{"parts":[{{"text":"{number} {text}"}}],"role":"model"}},"invocation_id":"i{number}",'
        '"author":"a","actions":{"state_delta":{},"artifact_delta":{},"requested_auth_configs":{},'
        f'"requested_tool_confirmations":{{}}}},"id":"{number:036}","timestamp":{number + 1.5}}}'
    )
    return EventRecord(number + 1000, f"{number:036}", number + 10**15, payload.encode())
