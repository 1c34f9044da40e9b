"""Takes objects that are kept for long, or that are many, out of the garbage collector's lists.

The collector exists for cycles, and finds them by walking every container there is. Events that were
read, and the sessions of a list, are trees: counting references frees them, and walking a hundred
thousand objects takes 100 ms, in the middle of somebody's call. The one consequence: a cycle that a
caller builds *through* such an object (puts into a shared event, or into the state of a listed session,
something that refers to it) is never freed.

An object that is not tracked is safe wherever it goes: what it refers to has a reference the collector
cannot account for, so it stays. A dictionary is tracked again when it is given a container.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from gc import is_tracked
from typing import Any, Final

_CONTAINERS: Final = (dict, list)


def _of_interpreter() -> Callable[[object], None] | None:
    # Another collector has no such lists, and without the global lock nobody may take from them.
    if sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    function: Any = ctypes.pythonapi.PyObject_GC_UnTrack
    function.argtypes, function.restype = [ctypes.py_object], None
    return function  # type: ignore[no-any-return]


def _nothing(_: object) -> None:
    return None


untrack: Final[Callable[[object], None]] = _of_interpreter() or _nothing
"""Takes one container, not what is in it, out of the collector's lists; repeating it is harmless."""


def untrack_json(value: dict[str, Any] | list[Any]) -> None:
    """Takes a JSON container, and all that are in it, out of the collector's lists."""
    todo: list[Any] = [value]
    while todo:
        one = todo.pop()
        # The interpreter itself does not track a dictionary without containers.
        if is_tracked(one):
            parts = one.values() if type(one) is dict else one
            todo += [part for part in parts if type(part) in _CONTAINERS]
            untrack(one)
