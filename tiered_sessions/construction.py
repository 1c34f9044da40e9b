"""Makes session objects without validating what this package has made itself, equal to validated ones."""

from __future__ import annotations

from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)

_PLAIN: Final = (str, int, float, bool, type(None))
# A model has these four slots, and `setattr` of its own.
_new = object.__new__
_set_fields = BaseModel.__dict__["__dict__"].__set__
_set_given = BaseModel.__dict__["__pydantic_fields_set__"].__set__
_set_extra = BaseModel.__dict__["__pydantic_extra__"].__set__
_set_private = BaseModel.__dict__["__pydantic_private__"].__set__

SAMPLE: Final[dict[str, Any]] = {
    "id": "id",
    "app_name": "app",
    "user_id": "user",
    "state": {"key": 1},
    "events": [],
    "last_update_time": 1.5,
}
"""The fields of a session, as ADK's and this package's have them."""


class Constructor(Generic[M]):
    """Makes objects of one class, several times faster than its own constructor does.

    Where the class does more than to keep its fields (validators, `__init__`, an unknown release of
    somebody else's class), its own constructor is used.

    Args:
        model: The class.
        mark: A private attribute that is given, too.
        sample: A valid value of every field that will be given.
    """

    def __init__(self, model: type[M], mark: str, sample: dict[str, Any]) -> None:
        self._model = model
        self._mark = mark
        validated = model(**sample)
        self._fields = dict(validated.__dict__)
        self._private = dict(validated.__pydantic_private__ or {})
        self._given = set(sample)
        # Then what is given is all that an object has.
        self._whole = list(self._fields) == list(sample)
        self._trusted = self._understood(sample) and _same(self._made(sample, None), validated)

    def __call__(self, fields: dict[str, Any], mark: Any) -> M:
        """Makes an object that keeps `fields` and its values themselves; they are not looked at.

        `fields` names what the sample named, in that order.
        """
        if self._trusted:
            return self._made(fields, mark)
        # Containers afterwards, as validation would copy them and walk over all that is in them.
        kept = {name: value for name, value in fields.items() if isinstance(value, list)}
        made = self._model(**{name: value for name, value in fields.items() if name not in kept})
        for name, value in kept.items():
            setattr(made, name, value)
        setattr(made, self._mark, mark)
        return made

    def _made(self, fields: dict[str, Any], mark: Any) -> M:
        made = _new(self._model)
        _set_fields(made, fields if self._whole else self._fields | fields)
        _set_given(made, self._given.copy())
        _set_extra(made, None)
        _set_private(made, {**self._private, self._mark: mark})
        return made

    def _understood(self, sample: dict[str, Any]) -> bool:
        model = self._model
        decorators = model.__pydantic_decorators__
        own = (
            decorators.validators,
            decorators.field_validators,
            decorators.root_validators,
            decorators.model_validators,
            model.__pydantic_custom_init__,
            any(field.metadata for field in model.model_fields.values()),
        )
        others = [value for name, value in self._fields.items() if name not in sample]
        return (
            not any(own)
            and self._mark in self._private
            and all(type(value) in _PLAIN for value in (*others, *self._private.values()))
        )


def _same(one: BaseModel, other: BaseModel) -> bool:
    return (
        one == other
        and list(one.__dict__) == list(other.__dict__)
        and one.model_fields_set == other.model_fields_set
        and one.__pydantic_extra__ == other.__pydantic_extra__
        and one.__pydantic_private__ == other.__pydantic_private__
    )
