"""Writes the function that builds the objects of one shape (`decoding.py`).

A loop over a plan finds out again for every object what is the same for all of its shape; what is
written here is that loop unrolled, and takes a fifth less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from .untracked import untrack

Builder = Callable[[dict[str, Any]], Any]

# A model has these four slots, and `setattr` of its own.
_SETTERS: Final = {
    "new": object.__new__,
    "set_field": object.__setattr__,
    "set_fields": BaseModel.__dict__["__dict__"].__set__,
    "set_given": BaseModel.__dict__["__pydantic_fields_set__"].__set__,
    "set_extra": BaseModel.__dict__["__pydantic_extra__"].__set__,
    "set_private": BaseModel.__dict__["__pydantic_private__"].__set__,
    "untrack": untrack,
}


class Kind(NamedTuple):
    """How objects of a class are made, whatever they are given.

    Attributes:
        model: The class.
        shared: Whether they are for many readers: then they say they were given the same set of names, and
            the collector does not know them.
        bare: Whether they have no dictionary of their own.
        extra: Whether the class takes any field.
        after: Whether it is told when an object is made.
    """

    model: type[BaseModel]
    shared: bool
    bare: bool
    extra: bool
    after: bool


def builder(
    kind: Kind,
    names: Sequence[str],
    defaults: dict[str, Any],
    factories: Mapping[str, Callable[[], Any]],
    converters: Mapping[str, Callable[[Any], Any]],
) -> Builder:
    """Returns what builds an object of a dictionary with the keys `names`, in that order.

    `defaults` has every field, in the model's order.
    """
    known: dict[str, Any] = {**_SETTERS, "model": kind.model, "defaults": defaults, "kept": [set(names)]}
    given = {name: f"given{at}" for at, name in enumerate(names)}
    values = {}
    for at, name in enumerate(defaults):
        value = f"known{at}"
        known[value] = converters.get(name) or factories.get(name) or defaults[name]
        if name in converters:
            value = f"{value}({given[name]})"
        elif name in factories:
            value = f"{value}()"
        elif name in given:
            value = given[name]
        values[name] = value
    lines = [f"{', '.join(given.values())}, = value.values()"] if given else []
    if kind.bare:
        lines.append("made = new(model)")
        lines += [f"set_field(made, {name!r}, {value})" for name, value in values.items()]
    else:
        lines.append("fields = defaults | value")
        lines += [f"fields[{name!r}] = {values[name]}" for name in (*converters, *factories)]
        lines += ["made = new(model)", "set_fields(made, fields)"]
    if kind.shared:
        # Or somebody set a field of an object that was not only theirs.
        lines += [f"if len(kept[0]) != {len(names)}:", f"    kept[0] = {{{', '.join(map(repr, names))}}}"]
        lines.append("set_given(made, kept[0])")
    else:
        lines.append("set_given(made, kept[0].copy())")
    lines += [f"set_extra(made, {'{}' if kind.extra else None})", "set_private(made, None)"]
    if kind.after:
        lines.append("made.model_post_init(None)")
    if kind.shared:
        lines += ["untrack(made)"] if kind.bare else ["untrack(made)", "untrack(fields)"]
    exec("\n    ".join(["def build(value):", *lines, "return made"]), known)
    build: Builder = known["build"]
    return build
