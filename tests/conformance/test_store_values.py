"""Values survive every database with their type, or are refused before anything is stored."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.store_backends import (
    START,
    append,
    backend_url,
    create_with,
    event,
    new_key,
    open_store,
)
from tiered_sessions.codec import dumps, loads
from tiered_sessions.errors import InvalidValueError
from tiered_sessions.records import Append, Committed, Content, Create, Failed, Query, SessionKey, Snapshot
from tiered_sessions.store.store import SqlSessionStore

BACKENDS = ("memory", "postgresql", "postgresql-psycopg", "mariadb", "portable-postgresql")
pytestmark = pytest.mark.parametrize("backend", BACKENDS)

_text = st.text(st.characters(), max_size=8)
_leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**64, -(2**70), 10**40, 0, -1]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([-0.0, 1e16, 1.5e300, 5e-324, 1e22, 1.0, 123456789012345680.0]),
    _text,
    st.sampled_from(["\0", "a\\u0000", "\ud800", "\\ud800", "NaN", "Infinity", "é😀", "%s :a"]),
)
_value = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=6,
)
_document = st.dictionaries(_text, _value, max_size=3)


@pytest.fixture
async def store(request: pytest.FixtureRequest, backend: str) -> AsyncIterator[SqlSessionStore]:
    async with open_store(backend_url(request, backend), backend) as opened:
        yield opened


def exact(value: Any) -> Any:
    """A form that compares with the numeric type, NaN equal to itself and -0.0 unequal to 0.0."""
    if isinstance(value, float):
        return ("float", repr(value))
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    return (type(value).__name__, value)


def as_jsonb(value: Any) -> Any:
    """What JSONB makes of a value: floats from 1e16 on become integers, -0.0 becomes 0.0."""
    if isinstance(value, float):
        return int(Decimal(repr(value))) if abs(value) >= 1e16 else value + 0.0
    if isinstance(value, dict):
        return {key: as_jsonb(item) for key, item in value.items()}
    return [as_jsonb(item) for item in value] if isinstance(value, list) else value


def refused_by_jsonb(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, str):
        return "\0" in value or any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(refused_by_jsonb(key) or refused_by_jsonb(item) for key, item in value.items())
    return isinstance(value, list) and any(map(refused_by_jsonb, value))


def read(content: Content | None) -> Any:
    assert content is not None
    return exact(loads(content.state))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=_document, state=_document, shared=_document)
async def test_what_was_committed_is_loaded(
    store: SqlSessionStore, backend: str, payload: Any, state: Any, shared: Any
) -> None:
    key = new_key()
    documents = {"payload": dumps(payload), "state": dumps(state), "shared": dumps(shared)}
    jsonb = "postgresql" in backend
    expected = as_jsonb if jsonb else lambda value: value
    made = await create_with(store, Create(key, START, documents["state"], app_delta=documents["shared"]))
    if jsonb and (refused_by_jsonb(state) or refused_by_jsonb(shared)):
        await _was_refused(store, key, made)
        made = await create_with(store, Create(key, START, b"{}"))
    else:
        assert isinstance(made, Snapshot)
        loaded = await store.load(key, Query())
        assert loaded is not None
        assert read(loaded.session) == read(made.session) == exact(expected(state))
        assert read(loaded.app) == read(made.app) == exact(expected(shared))
    assert isinstance(made, Snapshot)
    write = Append(
        key,
        made.session.tag,
        START + 1,
        (event("e", 0, documents["payload"]),),
        session_delta=documents["shared"],
        user_delta=documents["state"],
    )
    done = await append(store, write)
    if jsonb and any(map(refused_by_jsonb, (payload, state, shared))):
        assert isinstance(done, Failed)
        assert isinstance(done.error, InvalidValueError)
        assert await store.load(key, Query()) == made
        return
    assert isinstance(done, Committed), done
    loaded = await store.load(key, Query())
    assert loaded is not None
    assert done.state is not None
    stored = exact(loads(loaded.session.events[0].payload))
    assert stored == exact(loads(done.events[0].payload)) == exact(expected(payload))
    assert read(loaded.session) == exact(loads(done.state))
    assert read(loaded.user) == read(done.user) == exact(expected(state))


async def _was_refused(store: SqlSessionStore, key: SessionKey, outcome: object) -> None:
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, InvalidValueError)
    assert await store.load(key, Query()) is None
    assert await store.tags(key) == (None, None, None)


@pytest.mark.parametrize(
    "payload", [b'{"a":"\\u0000"}', b'{"a":"\\ud800"}', b'{"a":NaN}', b'{"a":-Infinity}']
)
async def test_what_jsonb_cannot_hold_is_refused_there_and_kept_elsewhere(
    store: SqlSessionStore, backend: str, payload: bytes
) -> None:
    key = new_key()
    made = await create_with(store, Create(key, START, b"{}"))
    assert isinstance(made, Snapshot)
    done = await append(store, Append(key, made.session.tag, START, (event("e", 0, payload),)))
    if "postgresql" in backend and not backend.startswith("portable"):
        assert isinstance(done, Failed)
        assert isinstance(done.error, InvalidValueError)
        assert await store.load(key, Query()) == made
    elif "postgresql" not in backend:
        loaded = await store.load(key, Query())
        assert loaded is not None
        assert exact(loads(loaded.session.events[0].payload)) == exact(loads(payload))


async def test_a_long_history_and_a_large_event(store: SqlSessionStore) -> None:
    key = new_key()
    made = await create_with(store, Create(key, START, b"{}"))
    assert isinstance(made, Snapshot)
    events = (*(event(f"e{n}", n) for n in range(300)), event("big", 300, dumps({"x": "é" * 300_000})))
    done = await append(store, Append(key, made.session.tag, START, events))
    assert isinstance(done, Committed), done
    loaded = await store.load(key, Query())
    assert loaded is not None
    assert [record.seq for record in loaded.session.events] == list(range(1, 302))
    assert loads(loaded.session.events[-1].payload) == {"x": "é" * 300_000}
