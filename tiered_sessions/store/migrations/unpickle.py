"""Reads the pickled `actions` of google-adk's V0 layout as plain data, without running anything.

A pickle is a program: it names classes and calls them. Here a name leads to nothing but a class made
for this one reading, which only remembers what it was given, or to one of a few constructors of the
standard library that make immutable data. Nothing is imported on a pickle's behalf, so google-adk
need not be installed.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from pydantic_core import to_jsonable_python

from ...errors import UnknownPickleError

_MODULES: Final = frozenset(
    {
        "google.adk.events.event_actions",
        "google.adk.auth.auth_tool",
        "google.adk.auth.auth_schemes",
        "google.adk.auth.auth_credential",
        "google.adk.tools.tool_confirmation",
        "google.genai.types",
        "fastapi.openapi.models",
    }
)
"""Where `EventActions`, and the models and enums that it can hold, live in every release with V0."""

_NAMES: Final = frozenset(
    {("uuid", "UUID"), ("builtins", "bytearray"), ("pydantic.networks", "AnyUrl")}
    | {
        (module, name)
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    }
)

# Each is an immutable type of C that makes data of its arguments and nothing else.
_SAFE: Final[Mapping[tuple[str, str], Any]] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("builtins", "str"): str,
    ("builtins", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "bool"): bool,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("datetime", "date"): date,
    ("datetime", "datetime"): datetime,
    ("datetime", "time"): time,
    ("datetime", "timedelta"): timedelta,
    ("datetime", "timezone"): timezone,
    ("decimal", "Decimal"): Decimal,
}

# A pickle of a kilobyte can name one list in itself a billion times over.
_LARGEST: Final = 2_000_000


class _Inert:
    """What a pickled object leaves behind: its class's name, its arguments, its attributes."""

    origin: tuple[str, str] = ("", "")
    known = True

    def __new__(cls, *arguments: Any, **_: Any) -> _Inert:
        made = super().__new__(cls)
        made.__dict__["arguments"] = arguments
        made.__dict__["state"] = None
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes whatever a pickle calls it with."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def append(self, _: Any) -> None:
        """Takes what a pickle adds to a list of another class."""

    def __setitem__(self, _: Any, __: Any) -> None:
        """Takes what a pickle adds to a mapping of another class."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, unknown_as_text: bool) -> None:
        super().__init__(io.BytesIO(data))
        self._unknown_as_text = unknown_as_text
        self._made: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        origin = (module, name)
        if origin in _SAFE:
            return _SAFE[origin]
        known = module in _MODULES or origin in _NAMES
        if not known and not self._unknown_as_text:
            raise UnknownPickleError(f"{module}.{name}")
        # Made anew for each reading: a pickle can set attributes of a class, and then sets them here.
        if origin not in self._made:
            self._made[origin] = type("_Inert", (_Inert,), {"origin": origin, "known": known})
        return self._made[origin]

    def persistent_load(self, _: Any) -> Any:
        raise UnknownPickleError("a persistent id")


def read_actions(data: bytes, *, unknown_as_text: bool = False) -> dict[str, Any]:
    """Returns pickled actions as the JSON object that google-adk's V1 layout holds.

    Args:
        data: The column.
        unknown_as_text: Gives the name of a class that is not known in place of its objects.

    Raises:
        UnknownPickleError: The pickle names a class that actions cannot hold; the message is its name.
        ValueError: It is not a pickle of actions.
    """
    try:
        value = _Plain().of(_Unpickler(data, unknown_as_text).load())
    except UnknownPickleError:
        raise
    except RecursionError as error:
        raise ValueError("the pickle contains itself") from error
    except Exception as error:
        # A damaged pickle raises whatever its bytes happen to lead to.
        raise ValueError(f"the pickle is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(value, dict):
        raise ValueError("the pickle holds no actions")
    return value


class _Plain:
    """Turns what was unpickled into JSON values, as google-adk's own `model_dump` does."""

    def __init__(self) -> None:
        self._left = _LARGEST

    def of(self, value: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError("too large")
        match value:
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else to_jsonable_python(value)
            case _Inert():
                return self._object(value)
            case dict():
                return {self._key(key): self.of(item) for key, item in value.items()}
            case list() | tuple() | set() | frozenset():
                return [self.of(item) for item in value]
            case type():
                return f"<class '{'.'.join(getattr(value, 'origin', (value.__name__,)))}'>"
            case _:
                return to_jsonable_python(value, bytes_mode="base64")

    def _key(self, key: Any) -> str:
        plain = self.of(key)
        return plain if isinstance(plain, str) else str(to_jsonable_python({plain: 0}).popitem()[0])

    def _object(self, value: _Inert) -> Any:
        arguments, state = value.__dict__["arguments"], value.__dict__["state"]
        if not value.known:
            return f"<{'.'.join(value.origin)}>"
        make = _MAKERS.get(value.origin[0])
        if make is not None:
            return make(arguments, state)
        if state is None:
            # An enum: pickled as its class called with the value.
            return self.of(arguments[0])
        fields = {**state["__dict__"], **(state.get("__pydantic_extra__") or {})}
        return {name: self.of(item) for name, item in fields.items() if item is not None}


def _uuid(_: tuple[Any, ...], state: Any) -> str:
    return str(UUID(int=state["int"]))


def _path(arguments: tuple[Any, ...], _: Any) -> str:
    first, *rest = (str(part) for part in arguments)
    return first.rstrip("/") + "/" + "/".join(rest) if rest else first


def _bytes(arguments: tuple[Any, ...], _: Any) -> Any:
    data = arguments[0] if arguments else b""
    if not isinstance(data, bytes):
        raise TypeError("a bytearray of a number would be memory, not data")
    return to_jsonable_python(data, bytes_mode="base64")


def _url(_: tuple[Any, ...], state: Any) -> str:
    return str(state["__dict__"]["_url"])


_MAKERS: Final[Mapping[str, Callable[[tuple[Any, ...], Any], Any]]] = {
    "uuid": _uuid,
    "pathlib": _path,
    "pathlib._local": _path,
    "builtins": _bytes,
    "pydantic.networks": _url,
}
