"""Makes what is kept for long smaller: dictionaries, and objects, that have values and share their keys.

CPython builds the attributes of a class's objects so, if they are less than thirty. A dictionary copied
from them stays so, until it is given a key that the others do not have.
"""

from __future__ import annotations

from collections.abc import Collection
from gc import get_referents, is_tracked
from struct import calcsize
from sys import getsizeof
from typing import Any, Final

from .untracked import untrack

_SHARED_KEYS: Final = 30
_SHAPES: Final = 256
_CONTAINERS: Final = (dict, list)
# Bytes of a dictionary whose keys are shared: without values, and for each.
_EMPTY: Final = getsizeof({})
_VALUE: Final = calcsize("P")
_new = object.__new__
_set_field = object.__setattr__
_shapes: Final[dict[tuple[str, ...], dict[str, Any]]] = {}


def small(value: Any) -> Any:
    """Returns a JSON container as one that takes less room, untracked with all that is in it."""
    # The interpreter itself does not track a dictionary without containers.
    deep = is_tracked(value)
    if type(value) is list:
        for at, one in enumerate(value):
            if type(one) in _CONTAINERS:
                value[at] = small(one)
    elif value:
        if deep:
            for name, one in value.items():
                if type(one) in _CONTAINERS:
                    value[name] = small(one)
        names = tuple(value)
        shape = _shapes.get(names)
        if shape is None and len(names) < _SHARED_KEYS and len(_shapes) < _SHAPES:
            shape = _shapes.setdefault(names, slim(names))
        if shape is not None:
            value = shape | value
    if deep:
        untrack(value)
    return value


def slim(names: Collection[str]) -> dict[str, Any]:
    """Returns a dictionary with these keys. If they are few, its copies share them and have only values."""

    class Named:
        pass

    # Some attributes are not kept in an object's dictionary (`__class__`), and keys are anybody's.
    if len(names) >= _SHARED_KEYS or any(hasattr(Named, name) for name in names):
        return dict.fromkeys(names)
    return dict.copy(_with_fields(Named, names).__dict__)


def shares_keys(kind: type, names: Collection[str]) -> bool:
    """Says whether the class's objects with these attributes need no dictionary of their own.

    Python 3.11 and 3.12 decide that of a class when its first objects get their attributes one by one,
    and for less than thirty of them. Validation gives a whole dictionary to each, and after about as many
    objects the class has lost the room; so this must be asked early.
    """
    if len(names) >= _SHARED_KEYS:
        return False
    _with_fields(kind, names)
    probe: Any = _new(kind)
    for name in names:
        _set_field(probe, name, None)
    return all(type(part) is not dict for part in get_referents(probe))


def _with_fields(kind: type, names: Collection[str]) -> Any:
    """Returns an object with these attributes. Objects made after it have no room for more."""
    made: Any = None
    # Each new object has room for one less than the last, until some get attributes and there is none left.
    for _ in range(_SHARED_KEYS):
        made = _new(kind)
        if getsizeof(made.__dict__) <= _EMPTY + _VALUE * len(names):
            break
    for name in names:
        _set_field(made, name, None)
    return made
