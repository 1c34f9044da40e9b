"""What is kept for long is none of the collector's business, and is freed all the same."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from tiered_sessions.decoding import Decoder
from tiered_sessions.models import Event, Session
from tiered_sessions.service import TieredSessionService
from tiered_sessions.slim import small
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
