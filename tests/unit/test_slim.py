"""What is made smaller is what it was, and its own."""

from __future__ import annotations

import gc
from sys import getsizeof
from typing import Any

import pytest

from tiered_sessions import slim as module
from tiered_sessions.codec import dumps, loads
from tiered_sessions.slim import shares_keys, slim, small

EMPTY = getsizeof({})
DOCUMENT = b'{"b":[{"c":1.5,"d":null},{"c":2,"d":[[{}]]}],"a":{"x":"y"},"e":{}}'


def containers(value: Any) -> list[Any]:
    """Returns every container of a JSON value."""
    if not isinstance(value, dict | list):
        return []
    parts = value.values() if isinstance(value, dict) else value
    return [value, *(inner for part in parts for inner in containers(part))]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_shapes", {})


def test_documents_stay_as_they_were() -> None:
    """Values, the order of keys, and that no part of one is a part of another."""
    seen = set[int]()
    kept = [small(loads(DOCUMENT)) for _ in range(3)]
    for one in kept:
        assert dumps(one) == DOCUMENT
        parts = containers(one)
        assert not any(map(gc.is_tracked, parts))
        assert seen.isdisjoint(map(id, parts))
        seen |= set(map(id, parts))
    first, second, third = kept
    first["new"] = first["b"][0]["new"] = 1
    del second["a"], second["b"][0]["c"]
    second["a"] = 2
    assert dumps(third) == dumps(small(loads(DOCUMENT))) == DOCUMENT
    assert list(first) == ["b", "a", "e", "new"]
    assert list(second) == ["b", "e", "a"]


def test_dictionaries_have_room_for_their_values_only() -> None:
    """Before the first of a kind is made, as after it; one key more is in one dictionary alone."""
    for count in (1, 2, 5, 17, 29):
        names = [f"n{number}" for number in range(count)]
        made = [small(dict.fromkeys(names, 1)) for _ in range(2)]
        assert [getsizeof(one) for one in made] == [EMPTY + 8 * count] * 2
        made[0]["more"] = 1
        assert getsizeof(made[1]) == getsizeof(small(dict.fromkeys(names, 2))) == EMPTY + 8 * count
        assert list(made[1]) == names
    many = dict.fromkeys([f"n{number}" for number in range(30)], 1)
    assert small(dict(many)) == many
    assert slim(list(many)) == dict.fromkeys(many)


@pytest.mark.parametrize("made_before", [0, 1, 7, 25])
def test_objects_have_room_for_their_fields_only(made_before: int) -> None:
    class Three:
        pass

    names = ("a", "b", "c")
    before = [Three() for _ in range(made_before)]
    assert shares_keys(Three, names)
    assert shares_keys(Three, names)
    assert getsizeof(Three().__dict__) == EMPTY + 8 * len(names)
    one = Three()
    vars(one)["more"] = 1
    assert len(before) == made_before


def test_a_class_whose_objects_have_dictionaries_is_known() -> None:
    class Late:
        pass

    before = [Late() for _ in range(28)]
    assert not shares_keys(Late, ("a", "b", "c"))
    assert not shares_keys(Late, [f"n{number}" for number in range(30)])
    assert len(before) == 28


def test_keys_that_are_never_the_same_do_not_grow_without_bound() -> None:
    for number in range(1000):
        document = {f"k{number}": [number]}
        assert small(dict(document)) == document
    assert len(module._shapes) == 256


def test_keys_that_are_attributes_of_every_object_stay_keys() -> None:
    for name in {*dir(type), *dir(object()), "__dict__", "__weakref__", "__class__", "\ud800", "a\0", ""}:
        for value in (None, {"inner": [1]}, "text"):
            assert small({name: value, "b": 2}) == {name: value, "b": 2}
            assert small({name: value, "b": 3}) == {name: value, "b": 3}
