"""What is built by plan equals what is validated, in every respect that a caller can see."""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import Enum
from typing import Any, Literal

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from tests.unit.documents import documents
from tiered_sessions import decoding
from tiered_sessions.codec import dumps, loads
from tiered_sessions.decoding import Decoder
from tiered_sessions.models import Event


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Leaf(BaseModel):
    name: str = "leaf"
    weight: float | None = None
    raw: bytes | None = None
    _private: int = PrivateAttr(default=3)

    model_config = ConfigDict(val_json_bytes="base64", ser_json_bytes="base64")


class Tree(BaseModel):
    id: str = ""
    count: int
    colour: Colour | None = None
    kind: Literal["a", "b"] = "a"
    tags: set[str] | None = None
    numbers: list[int] = Field(default_factory=list)
    leaf: Leaf | None = None
    always: Leaf = Field(default_factory=Leaf)
    leaves: list[Leaf] = Field(default_factory=list)
    named: dict[str, Leaf] = Field(default_factory=dict)
    free: Any = None
    either: int | str | None = None
    document: dict[str, Any] = Field(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        if not self.id:
            self.id = f"made for {self.count}"


def cases() -> Iterator[tuple[type[BaseModel], dict[str, Any]]]:
    source = random.Random(5)
    for model in (Tree, Leaf, Event):
        for document in documents(model, source, 400):
            # What an event takes from the clock no two of them have in common.
            yield model, {"timestamp": 1.5, "id": "e", **document} if model is Event else document


@pytest.mark.parametrize("shared", [True, False])
def test_plans_equal_validation(shared: bool) -> None:
    """Objects of every field, one at a time and mixed, twice each: first seen and planned."""
    decoders = {model: Decoder(model, shared=shared) for model in (Tree, Leaf, Event)}
    planned = 0
    for model, document in cases():
        for _ in range(2):
            made = decoders[model](loads(dumps(document)))
            validated = model.model_validate(loads(dumps(document)))
            assert decoding._same(made, validated), document
            assert made.model_dump_json() == validated.model_dump_json()
        planned += 1
    assert planned > 1000
    for decoder in decoders.values():
        plans = [plan for node in decoder._nodes.values() for plan in node._plans.values()]
        assert sum(plan is not None for plan in plans) > len(plans) / 2


def test_results_are_their_own() -> None:
    """Neither defaults nor what was given is shared by two objects."""
    decode = Decoder(Tree)
    trees = [decode({"count": 1, "document": {"a": []}}) for _ in range(3)]
    for tree in trees:
        tree.document["a"].append(1)
        tree.numbers.append(1)
        tree.always.name = "changed"
        tree.__pydantic_fields_set__.add("free")
    fresh = decode({"count": 1, "document": {"a": []}})
    assert (fresh.document, fresh.numbers, fresh.always) == ({"a": []}, [], Leaf())
    assert fresh.model_fields_set == {"id", "count", "document"}


@pytest.mark.parametrize(
    "wrong", [{"count": "x"}, {"count": 1, "leaf": {"weight": "x"}}, {"count": 1, "colour": "pink"}, {}]
)
def test_what_is_invalid_is_refused_as_by_validation(wrong: dict[str, Any]) -> None:
    decode = Decoder(Tree)
    for right in ({"count": 1}, {"count": 1, "leaf": {"weight": 1.0}}, {"count": 1, "colour": "red"}):
        decode(right)
    with pytest.raises(ValidationError) as refused:
        decode(dict(wrong))
    with pytest.raises(ValidationError) as expected:
        Tree.model_validate(wrong)
    assert refused.value.errors(include_url=False) == expected.value.errors(include_url=False)


class Upper(BaseModel):
    name: str = ""

    @field_validator("name")
    @classmethod
    def _shout(cls, name: str) -> str:
        return name.upper()


class Renaming(BaseModel):
    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, data: Any) -> Any:
        return {"name": data.get("name", "") + "!"}


class Short(BaseModel):
    name: str = Field(default="", max_length=3)


class Stripping(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)
    name: str = ""


class Renamed(BaseModel):
    name: str = Field(default="", alias="Name")


class Greeting(BaseModel):
    name: str = ""

    def __init__(self, **data: Any) -> None:
        super().__init__(**{**data, "name": "hello " + data.get("name", "")})


@pytest.mark.parametrize("model", [Upper, Renaming, Short, Stripping, Renamed, Greeting])
def test_what_a_class_does_to_its_values_is_done(model: type[BaseModel]) -> None:
    """Validators, constraints, settings, aliases and constructors make a class one to validate."""
    decode = Decoder(model)
    for name in ("", "a", " b ", "c"):
        assert decode({"name": name}) == model.model_validate({"name": name})


def test_a_harmless_validator_that_is_none_is_found_out() -> None:
    """A plan that differs from validation on its first object is not used."""
    decode = Decoder(Renaming, harmless={f"{__name__}.Renaming._rename"})
    assert [decode({"name": "a"}).name for _ in range(3)] == ["a!"] * 3


def test_many_shapes_do_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_SHAPES", 3)
    decode = Decoder(Tree)
    for name in Tree.model_fields.keys() - {"count", "leaf"}:
        document = {"count": 1, name: None}
        try:
            expected: Any = Tree.model_validate(document)
        except ValidationError:
            continue
        assert decode(document) == expected
    assert len(decode._root._plans) < 12
