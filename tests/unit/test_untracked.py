"""What is kept for long is none of the collector's business, and is freed all the same."""

from __future__ import annotations

import gc
import time
import weakref
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from tiered_sessions.cache.base import Hit
from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.cache.reads import reads
from tiered_sessions.config import TieredConfig
from tiered_sessions.decoding import Decoder
from tiered_sessions.models import Event, Session
from tiered_sessions.records import Content, EventRecord, SessionKey, Snapshot, Tag
from tiered_sessions.service import TieredSessionService
from tiered_sessions.shared_events import SharedEvents
from tiered_sessions.slim import small
from tiered_sessions.tier.floors import Floors
from tiered_sessions.untracked import untrack, untrack_json


class Leaf(BaseModel):
    texts: list[str] = Field(default_factory=list)


class Tree(BaseModel):
    id: str = ""
    document: dict[str, object] = Field(default_factory=dict)
    leaves: list[Leaf] = Field(default_factory=list)
    named: dict[str, Leaf] = Field(default_factory=dict)
    some: set[str] | None = None


def stored(number: int) -> dict[str, object]:
    return {
        "id": f"e{number}",
        "document": {"a": [{"b": [number]}]},
        "leaves": [{"texts": ["x"]}, {}],
        "named": {"n": {"texts": []}},
        "some": ["s"],
    }


def tracked(roots: list[object]) -> list[object]:
    """Returns what the collector walks of some trees, without classes."""
    found, seen, todo = [], set[int](), list(roots)
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen.add(id(one))
        if gc.is_tracked(one):
            found.append(one)
        todo += gc.get_referents(one)
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_only_shared_objects_are_unknown_to_the_collector(shared: bool) -> None:
    decode = Decoder(Tree, shared=shared)
    for _ in range(3):
        decode(stored(0))
    trees: list[object] = [decode(stored(number)) for number in range(50)]
    # The names that were given are one set for each of the four shapes.
    assert (len(tracked(trees)) <= 4) == shared


def test_what_is_dropped_is_freed_without_a_collection() -> None:
    decode = Decoder(Tree, shared=True)
    gc.disable()
    try:
        trees = [decode(stored(number)) for number in range(100)]
        ends = [weakref.ref(tree) for tree in trees]
        ends += [weakref.ref(leaf) for tree in trees for leaf in (*tree.leaves, *tree.named.values())]
        for tree in trees:
            # Whatever a reader does: it is an object like any other.
            tree.document["more"] = [tree.id, {}]
            assert tree.model_copy(deep=True) == tree
            assert Tree.model_validate_json(tree.model_dump_json()) == tree
        del tree, trees
        assert [end for end in ends if end() is not None] == []
    finally:
        gc.enable()
    gc.collect()


async def test_listed_sessions_are_unknown_to_the_collector_and_freed(tmp_path: Path) -> None:
    state = {"a": {"b": [1, {}]}, "app:limits": {"tools": ["x"]}, "user:seats": ["aisle"], "n": 1}
    async with TieredSessionService(f"sqlite+aiosqlite:///{tmp_path}/s.db") as service:
        for number in range(20):
            await service.create_session("app", "u", state, f"s{number}")
        gc.disable()
        try:
            ends = await _ends_of_listed(service, state)
            assert [end for end in ends if end() is not None] == []
        finally:
            gc.enable()


async def _ends_of_listed(
    service: TieredSessionService, state: dict[str, object]
) -> list[weakref.ref[Session]]:
    # In a frame of its own: pydantic may look at the variables of whoever uses a model first, and a frame
    # keeps what was looked at.
    listed = (await service.list_sessions("app", "u")).sessions
    assert [one.state for one in listed] == [state] * 20
    for one in listed:
        assert not any(map(gc.is_tracked, (one, one.__dict__, one.events)))
        assert tracked([one.state]) == []
        # Whatever a caller does: it is an object like any other.
        one.state["more"] = [one.id, {}]
        one.events.append(Event(id="e"))
        again = Session.model_validate_json(one.model_dump_json())
        assert again.model_dump() == one.model_copy(deep=True).model_dump()
    return [weakref.ref(one) for one in listed]


def test_what_is_kept_for_each_session_is_unknown_to_the_collector() -> None:
    key, tag = SessionKey("app", "u", "s"), Tag(1, 2, 3, 4)
    floors = Floors(30.0, time.monotonic)
    floors.wrote(key.session, tag)
    wanted = reads("ns", key.scopes, 0, False)
    header: list[bytes | None] = [None, b"1", b"2", b"3", b"4", b"5", b"s", b"1", None, None, b"0"]
    replies = [[b"1", b"0"], header, [*header, b"{}"], [*header, b'{"a":1}']]
    session, user, app = wanted.found("stamp", replies)
    assert isinstance(session, Hit)
    assert isinstance(user, Hit)
    assert isinstance(app, Hit)
    shared = SharedEvents[Event](lambda records: [Event(id=one.id) for one in records], 10**6)
    events = (EventRecord(1, "e", 1, b"{}"),)
    shared.keep(key, Content(tag, b"{}", events))
    shared.of(key, events)
    shared.answered(Snapshot(key, Content(tag, b"{}", events), user.content, app.content))
    kept = shared._sessions[key]
    assert kept.shared == (user.content, app.content)
    floor = floors._floors[key.session]
    assert kept.shared is not None
    for part in (floor, kept, kept.content, kept.content and kept.content.tag, kept.records, kept.events):
        assert part is not None
        assert not gc.is_tracked(part)
    for one in (wanted, wanted.commands, wanted.seen, *wanted.seen, kept.shared, *kept.shared):
        assert not gc.is_tracked(one)
    for reply, entry in wanted.seen:
        for part in (reply, entry, entry.content, entry.content and entry.content.tag):
            assert not gc.is_tracked(part)
    assert not any(map(gc.is_tracked, [*floors._floors, *shared._sessions]))


@pytest.mark.parametrize(("mode", "made"), [("on", 2), ("off", 1)])
async def test_what_is_decoded_for_each_reader_is_not_made_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Literal["on", "off"], made: int
) -> None:
    """An answer that was not expected would have every event decoded twice."""
    cache, url = MemoryCache(shared=True), f"sqlite+aiosqlite:///{tmp_path}/s.db"
    config = TieredConfig(shared_events=mode)
    async with (
        TieredSessionService(url, cache=cache, config=config) as here,
        TieredSessionService(url, cache=cache, config=config) as there,
    ):
        await here.create_session("app", "u", None, "s")
        for number in range(3):
            for service in (here, there):
                found = await service.get_session("app", "u", "s")
                await service.flush()
            assert found is not None
            await there.append_event(found, Event(id=f"e{number}", invocation_id="i"))
            await there.flush()
        for _ in range(2):
            await here.get_session("app", "u", "s")
            await here.flush()
        assert found is not None
        await there.append_event(found, Event(id="last", invocation_id="i"))
        await there.flush()
        calls: list[int] = []
        assembled = TieredSessionService._assembled

        def counting(service: TieredSessionService, snapshot: Snapshot) -> Session:
            calls.append(len(snapshot.session.events))
            return assembled(service, snapshot)

        monkeypatch.setattr(TieredSessionService, "_assembled", counting)
        again = await here.get_session("app", "u", "s")
        assert again is not None
        assert [event.id for event in again.events] == ["e0", "e1", "e2", "last"]
        assert calls == [3, 4][-made:]


def test_json_of_any_depth_is_untracked() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    untrack_json(deep)
    assert tracked([deep]) == []
    while deep:  # the interpreter's own way to free it is not made for so many
        deep = deep.pop()  # type: ignore[assignment]


def test_what_an_untracked_object_refers_to_is_left_alone() -> None:
    holder = small({"a": [[1]]})
    cycle: list[object] = []
    cycle.append(cycle)
    holder["cycle"] = cycle
    untrack(holder)
    gc.collect()
    assert holder["cycle"] is cycle
    assert cycle[0] is cycle


def test_a_field_set_by_a_reader_does_not_reach_what_is_decoded_later() -> None:
    decode = Decoder(Event, shared=True)
    first, second = [decode({"id": "e", "timestamp": 1.0}) for _ in range(3)][1:]
    first.partial = False
    assert second.partial is None
    later = decode({"id": "e", "timestamp": 1.0})
    assert later.model_fields_set == {"id", "timestamp"}
    assert later == Event.model_validate({"id": "e", "timestamp": 1.0})
