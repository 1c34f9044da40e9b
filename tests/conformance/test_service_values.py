"""Values: what the cache answers is what SQL answers, and what was sent; or nothing was stored."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tiered_sessions import Event, EventActions, InvalidValueError, TieredSessionService
from tiered_sessions.codec import dumps, same_json

TEXTS = st.text(max_size=8) | st.sampled_from(["\ud800", "a\0b", "\\u0000", "NaN", "\\ud800", "é😀", '"'])
# pydantic writes no lone surrogate in a key: such a state is refused (tests/unit/test_state.py).
KEYS = st.text(max_size=8) | st.sampled_from(["a\0b", "\\ud800", ""])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.sampled_from([2**64, -(2**70), 1e16, -0.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


def exact(value: Any) -> str:
    """Returns a text that tells 1 from 1.0 and 0.0 from -0.0, but not the order of keys."""
    return json.dumps(value, sort_keys=True)


async def check(cached: TieredSessionService, plain: TieredSessionService, value: Any) -> None:
    app = f"app-{uuid4().hex[:12]}"
    session = await cached.create_session(app, "u")
    # The second read finds the entry that the append must bring up to date.
    for _ in range(2):
        await cached.get_session(app, "u", session.id)
    delta = {"k": value, "user:k": value, "app:k": value}
    sent = Event(content={"value": value}, actions=EventActions(state_delta=dict(delta)))
    try:
        await cached.append_event(session, sent)
    except InvalidValueError:
        assert cached.db_engine.dialect.name == "postgresql"
        found = await plain.get_session(app, "u", session.id)
        assert found is not None
        assert (found.events, found.state) == ([], {})
        return
    await cached.flush()
    truth = await plain.get_session(app, "u", session.id)
    assert truth is not None
    assert same_json(dumps(truth.state), dumps(delta))
    assert same_json(dumps(truth.events[0].content), dumps({"value": value}))
    for reader in (cached, cached, plain):
        found = await reader.get_session(app, "u", session.id)
        assert found is not None
        assert exact(found.state) == exact(truth.state)
        assert exact(found.events[0].model_dump(mode="json")) == exact(
            truth.events[0].model_dump(mode="json")
        )


@pytest.mark.parametrize("cache", ["memory", "redis"], indirect=True)
def test_cache_and_sql_agree(store_url: str, cache: Any) -> None:
    cached = TieredSessionService(store_url, cache=cache)
    plain = TieredSessionService(store_url, cache=None)
    with asyncio.Runner() as runner:

        @settings(max_examples=25, suppress_health_check=list(HealthCheck))
        @given(VALUES)
        @example([1e16, -1e300, 1e-7, -0.0, 0.0, 1.0, 1, 2**70, True])
        @example([math.nan, math.inf, "\ud800", "a\0b", {"a\0": None}])
        @example({"text": "NaN \\u0000 \\ud800 Infinity"})
        def agree(value: Any) -> None:
            runner.run(check(cached, plain, value))

        try:
            agree()
        finally:
            runner.run(cached.close())
            runner.run(plain.close())
