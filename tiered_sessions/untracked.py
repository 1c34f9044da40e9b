"""Takes objects that are kept for long out of the garbage collector's lists.

The collector exists for cycles, and finds them by walking every container there is. Events that were
read are trees: counting references frees them, and walking a hundred thousand of them takes 100 ms, in
the middle of somebody's call. The one consequence: a cycle that a caller builds *through* such an
object (puts into a shared event something that refers to that event) is never freed.

An object that is not tracked is safe wherever it goes: what it refers to has a reference the collector
cannot account for, so it stays. A dictionary is tracked again when it is given a container.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, Final


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
