"""Makes JSON objects of a pydantic model: each field alone, then mixtures of all."""

from __future__ import annotations

import base64
import types
from collections.abc import Iterator
from enum import Enum
from random import Random
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

_DEPTH = 3
_ANYTHING: list[Any] = [1, 1.5, "text", True, None, [1, "a"], {"a": {"b": [1.0]}}, "", -0.0, 10**20]


def documents(model: type[BaseModel], source: Random, count: int) -> Iterator[dict[str, Any]]:
    """Yields objects that `model` accepts: of each field alone, a few times, then about `count` mixed."""
    fields = list(model.model_fields)
    required = [name for name, field in model.model_fields.items() if field.is_required()]
    wanted = [[name] for name in fields for _ in range(6)]
    wanted += [source.sample(fields, source.randint(0, min(8, len(fields)))) for _ in range(count)]
    for names in wanted:
        chosen = dict.fromkeys([*required, *names])
        document = {name: value_of(model.model_fields[name].annotation, source, 0) for name in chosen}
        try:
            model.model_validate(document)
        except (ValidationError, ValueError):
            continue
        yield document


def value_of(annotation: Any, source: Random, depth: int) -> Any:
    """Returns a JSON value for `annotation`, mostly one that is accepted."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return value_of(source.choice(parts), source, depth)
    if annotation is type(None):
        return None
    if annotation is bool:
        return source.random() < 0.5
    if annotation is int:
        return source.choice([0, -3, 2**53 + 1, 7])
    if annotation is float:
        return source.choice([0.5, 3, -0.0, 1e300, 1_700_000_000.123456])
    if annotation is str:
        return source.choice(["", "text", "ü\u2028", "2024-01-01T00:00:00Z"])
    if annotation is bytes:
        return base64.urlsafe_b64encode(source.randbytes(source.randint(0, 5))).decode()
    if origin is Literal:
        return source.choice(parts)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return source.choice(list(annotation)).value
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _object(annotation, source, depth)
    length = source.choice([0, 1, 2]) if depth < _DEPTH else 0
    if origin in (list, set, tuple) or annotation is list:
        return [value_of(parts[0] if parts else Any, source, depth + 1) for _ in range(length)]
    if origin is dict or annotation is dict:
        part = parts[1] if parts else Any
        return {f"k{number}": value_of(part, source, depth + 1) for number in range(length)}
    return source.choice(_ANYTHING)


def _object(model: type[BaseModel], source: Random, depth: int) -> dict[str, Any]:
    fields = model.model_fields
    names = [name for name, field in fields.items() if field.is_required()]
    if depth < _DEPTH:
        names += source.sample(list(fields), source.randint(0, min(4, len(fields))))
    return {name: value_of(fields[name].annotation, source, depth + 1) for name in dict.fromkeys(names)}
