"""Builds pydantic objects from stored JSON, equal to validated ones and several times faster.

Validation asks of each value what it could be. Stored objects repeat a few *shapes* (the keys of
one object in their order, and the JSON types of their values), so a shape is planned once: which
values are used as they are, which become objects. A plan proves itself on the first object of its
shape, where its result is compared with pydantic's; a plan that differs, or a value it does not
expect, leaves that object to validation. So the worst that an unknown model, or a new release of
one, can cost is time.

Objects that many readers will be given are built smaller, and unknown to the garbage collector
(`untracked.py`): a full collection would walk every event that is kept.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any, Final, Generic, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from .building import Builder, Kind, builder
from .slim import shares_keys, slim, small
from .untracked import untrack

M = TypeVar("M", bound=BaseModel)
Converter = Callable[[Any], Any]

_SHAPES: Final = 256
_PLAIN: Final = (str, int, float, bool, type(None))
# What else may be configured can change a value.
_CONFIG: Final = {
    "alias_generator",
    "populate_by_name",
    "extra",
    "from_attributes",
    "protected_namespaces",
    "arbitrary_types_allowed",
    "ser_json_bytes",
    "ser_json_inf_nan",
    "val_json_bytes",
    "ignored_types",
    "defer_build",
    "title",
}


class _Surprise(Exception):
    """A value is none that was planned for."""


class Decoder(Generic[M]):
    """Builds objects of `model` from JSON objects that nobody else uses.

    Args:
        model: The class of the objects.
        harmless: Names, with their modules, of validators and `__init__` of this model, or of those in
            it, that do nothing to an object whose keys are names of fields.
        shared: Whether the objects are for many readers, who leave them as they are. Then those of one
            shape share the set of the names they were given, and the collector does not know them.
    """

    def __init__(self, model: type[M], harmless: Collection[str] = (), *, shared: bool = False) -> None:
        self.shared = shared
        # Asked now, before many objects of these classes are made (`shares_keys`).
        parts = _parts(model) if shared else set()
        self.bare = {part for part in parts if shares_keys(part, part.model_fields)}
        self._model = model
        self._harmless = frozenset(harmless)
        self._nodes: dict[type[BaseModel], _Node] = {}
        self._root = self.node(model)

    def __call__(self, stored: dict[str, Any]) -> M:
        """Builds one object.

        Raises:
            pydantic.ValidationError: `stored` is not such an object.
        """
        try:
            return self._root(stored)  # type: ignore[no-any-return]
        except ValidationError:
            # Its parts were validated by themselves: the whole one says where in it they are.
            return self._model.model_validate(stored)

    def node(self, model: type[BaseModel]) -> _Node:
        """Returns what builds objects of `model`, wherever they are."""
        found = self._nodes.get(model)
        if found is None:
            found = self._nodes[model] = _Node(self, model)
        return found

    def harmless(self, function: Any) -> bool:
        """Says whether a validator or `__init__` was named as harmless."""
        function = getattr(function, "__func__", function)
        return f"{function.__module__}.{function.__qualname__}" in self._harmless


class _Node:
    """Builds objects of one class, wherever in a tree they are."""

    def __init__(self, decoder: Decoder[Any], model: type[BaseModel]) -> None:
        self._decoder = decoder
        self._model = model
        self._plans: dict[tuple[str | type, ...], Builder | None] = {}
        self._kind: Kind | None = None
        self._open = False
        self._shared = decoder.shared
        # Without a dictionary of its own an object takes half the room, where the class allows it.
        self._bare = decoder.shared and model in decoder.bare
        # What is done to containers that were given, with all that is in them, and to those made here.
        self._given: Converter = small if decoder.shared else _as_it_is
        self._made: Converter = _untracked_itself if decoder.shared else _as_it_is

    def __call__(self, value: Any) -> Any:
        if type(value) is not dict:
            raise _Surprise
        shape = (*value, *map(type, value.values()))
        try:
            build = self._plans[shape]
        except KeyError:
            return self._learn(shape, value)
        if build is None:
            return self._model.model_validate(value)
        try:
            return build(value)
        except _Surprise:
            return self._model.model_validate(value)

    def _learn(self, shape: tuple[str | type, ...], value: dict[str, Any]) -> Any:
        # Validation may keep parts of what it is given; both results must be their own.
        validated = self._model.model_validate(_copied(value))
        build = None
        if len(self._plans) < _SHAPES:
            build = self._plan({name: type(one) for name, one in value.items()})
        if build is not None:
            try:
                if not _same(build(value), validated):
                    build = None
            except _Surprise:
                # Another value of this shape may be planned for; this one says nothing.
                return validated
        self._plans[shape] = build
        return validated

    def _plan(self, given: dict[str, type]) -> Builder | None:
        if self._kind is None:
            self._open = self._understood()
            after = self._model.__pydantic_post_init__ is not None
            extra = self._model.model_config.get("extra") == "allow"
            self._kind = Kind(self._model, self._shared, self._bare, extra, after)
        fields = self._model.model_fields
        if not self._open or not given.keys() <= fields.keys():
            return None
        decorators = self._model.__pydantic_decorators__.field_validators.values()
        validated = {name for decorator in decorators for name in decorator.info.fields}
        defaults: dict[str, Any] = slim(fields) if self._shared else {}
        factories: dict[str, Callable[[], Any]] = {}
        for name, field in fields.items():
            defaults[name] = None
            if name in given:
                continue
            if field.default_factory is not None:
                factories[name] = self._factory(field)
            elif field.is_required() or not _unchanging(field.default):
                return None
            else:
                defaults[name] = field.default
        converters: dict[str, Converter] = {}
        for name, kind in given.items():
            known = not fields[name].metadata and not validated & {name, "*"}
            convert = self._rule(fields[name].annotation, kind) if known else _empty
            if convert is None:
                return None
            if convert is not _as_it_is:
                converters[name] = convert
        return builder(self._kind, tuple(given), defaults, factories, converters)

    def _factory(self, field: FieldInfo) -> Callable[[], Any]:
        made, factory = self._made, field.default_factory
        if factory is dict:
            return dict
        if factory is list:
            return lambda: made([])
        if isinstance(factory, type) and issubclass(factory, BaseModel):
            node = self._decoder.node(factory)
            return lambda: node({})
        return lambda: field.get_default(call_default_factory=True)

    def _understood(self) -> bool:
        """Says whether nothing but its fields decides what an object of the class becomes."""
        model = self._model
        model.model_rebuild()
        decorators = model.__pydantic_decorators__
        own = [decorator.func for decorator in decorators.model_validators.values()]
        own += [model.__init__] if model.__pydantic_custom_init__ else []
        schema = _function(model.__get_pydantic_core_schema__)
        by_name = model.model_config.get("populate_by_name", False)
        return (
            set(model.model_config) <= _CONFIG
            and not model.__pydantic_root_model__
            and not decorators.validators
            and not decorators.root_validators
            and (by_name or all(field.validation_alias is None for field in model.model_fields.values()))
            and all(self._decoder.harmless(function) for function in own)
            and schema is _function(BaseModel.__get_pydantic_core_schema__)
        )

    def _rule(self, annotation: Any, given: type) -> Converter | None:
        """Returns what makes a value of JSON type `given` one of `annotation`; None: not known."""
        members = _members(annotation)
        if given is type(None):
            return _as_it_is if {type(None), Any, object} & set(members) else None
        kinds = [kind for kind in members if kind is not type(None)]
        if len(kinds) != 1:
            return None
        kind, origin, parts = kinds[0], get_origin(kinds[0]), get_args(kinds[0])
        if kind is Any or kind is object:
            return self._given if given in (dict, list) else _as_it_is
        if kind in _PLAIN:
            if kind is float and given is int:
                return float
            return _as_it_is if kind is given else None
        if given is str:
            return self._of_text(kind)
        if given is list and (origin in (list, set) or kind is list):
            return self._collection(set if origin is set else list, parts[0] if parts else Any)
        if given is not dict:
            return None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return self._decoder.node(kind)
        if kind is dict or (origin is dict and parts[0] is str):
            return self._mapping(parts[1] if parts else Any)
        return _empty

    def _of_text(self, kind: Any) -> Converter | None:
        if kind is bytes:
            config = ConfigDict(val_json_bytes=self._model.model_config.get("val_json_bytes", "utf8"))
            return TypeAdapter(bytes, config=config).validate_python
        if get_origin(kind) is Literal:
            return _one_of({part: part for part in get_args(kind) if type(part) is str})
        if isinstance(kind, type) and issubclass(kind, Enum):
            return _one_of({member.value: member for member in kind if type(member.value) is str})
        return None

    def _each(self, annotation: Any) -> Converter:
        """Returns what makes any JSON value one of `annotation`."""
        if annotation is Any or annotation is object:
            return _as_it_is
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return self._decoder.node(annotation)
        rules: dict[type, Converter | None] = {}

        def convert(value: Any) -> Any:
            given = type(value)
            if given not in rules:
                rules[given] = self._rule(annotation, given)
            rule = rules[given]
            if rule is None:
                raise _Surprise
            return rule(value)

        return convert

    def _collection(self, origin: type, annotation: Any) -> Converter:
        each, made = self._each(annotation), self._made
        if origin is set:
            return lambda value: made(set(map(each, value)))
        if each is _as_it_is:
            return self._given
        # Most often it is one, and a list that never grew is the smallest.
        return lambda value: made([each(value[0])] if len(value) == 1 else list(map(each, value)))

    def _mapping(self, annotation: Any) -> Converter:
        each, made = self._each(annotation), self._made
        if each is _as_it_is:
            return self._given
        return lambda value: made({name: each(one) for name, one in value.items()}) if value else value


def _untracked_itself(value: Any) -> Any:
    untrack(value)
    return value


def _parts(model: type[BaseModel]) -> set[type[BaseModel]]:
    """Returns the class with those of all objects that may be in its objects."""
    found: set[type[BaseModel]] = set()
    todo: list[Any] = [model]
    while todo:
        one = todo.pop()
        todo += get_args(one)
        if isinstance(one, type) and issubclass(one, BaseModel) and one not in found:
            found.add(one)
            todo += [field.annotation for field in one.model_fields.values()]
    return found


def _as_it_is(value: Any) -> Any:
    return value


def _empty(value: Any) -> Any:
    # Of a field that is not understood only emptiness repeats what the first object has shown.
    if value == {} or value == []:
        return value
    raise _Surprise


def _one_of(members: Mapping[str, Any]) -> Converter | None:
    def convert(value: Any) -> Any:
        if value not in members:
            raise _Surprise
        return members[value]

    return convert if members else None


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _unchanging(default: Any) -> bool:
    return type(default) in _PLAIN or isinstance(default, Enum)


def _function(method: Any) -> Any:
    return getattr(method, "__func__", method)


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {name: _copied(one) for name, one in value.items()}
    if type(value) is list:
        return [_copied(one) for one in value]
    return value


def _same(one: Any, other: Any) -> bool:
    """Says whether two objects are the same in every respect that a caller can see."""
    if type(one) is not type(other):
        return False
    if isinstance(one, BaseModel):
        return (
            one.model_fields_set == other.model_fields_set
            and one.__pydantic_extra__ == other.__pydantic_extra__
            and one.__pydantic_private__ == other.__pydantic_private__
            and list(one.__dict__) == list(other.__dict__)
            and _same(one.__dict__, other.__dict__)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
