"""Sessions that are not validated equal those that are."""

from __future__ import annotations

from typing import Any

import pytest
from google.adk.sessions.session import Session as AdkSession
from pydantic import BaseModel, ConfigDict, PrivateAttr, field_validator

from tiered_sessions.construction import SAMPLE, Constructor
from tiered_sessions.models import Event, Session
from tiered_sessions.records import Tag

FIELDS: dict[str, Any] = {
    "id": "s1",
    "app_name": "app",
    "user_id": "ann",
    "state": {"a": {"b": [1, None]}, "user:lang": "en"},
    "events": [],
    "last_update_time": 12.25,
}


class Newer(AdkSession):
    """A release that has more fields."""

    title: str | None = None
    _seen: bool = PrivateAttr(default=False)


class Validating(AdkSession):
    """A release that looks at its fields."""

    @field_validator("user_id")
    @classmethod
    def _in_capitals(cls, value: str) -> str:
        return value.upper()


class Open(AdkSession):
    """A release that takes any field."""

    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize(
    ("model", "mark", "value"),
    [
        (AdkSession, "_storage_update_marker", "tiered:1:2:3:4"),
        (Session, "_tag", Tag(1, 2, 3, 4)),
        (Newer, "_storage_update_marker", "tiered:1:2:3:4"),
        (Validating, "_storage_update_marker", "tiered:1:2:3:4"),
        (Open, "_storage_update_marker", "tiered:1:2:3:4"),
    ],
)
def test_they_are_the_same_in_every_respect(model: type[BaseModel], mark: str, value: object) -> None:
    made = Constructor(model, mark, SAMPLE)(FIELDS, value)
    validated = model(**FIELDS)
    setattr(validated, mark, value)
    assert made == validated
    assert list(made.__dict__) == list(validated.__dict__)
    assert made.model_fields_set == validated.model_fields_set
    assert made.__pydantic_extra__ == validated.__pydantic_extra__
    assert made.__pydantic_private__ == validated.__pydantic_private__
    assert made.model_dump_json() == validated.model_dump_json()
    assert made.model_copy(deep=True) == validated.model_copy(deep=True)
    assert repr(made) == repr(validated)


@pytest.mark.parametrize("model", [AdkSession, Validating])
def test_the_list_of_events_is_kept(model: type[AdkSession]) -> None:
    events: list[Event] = []
    make = Constructor(model, "_storage_update_marker", SAMPLE)
    assert make({**FIELDS, "events": events}, "").events is events


def test_two_objects_share_nothing() -> None:
    make = Constructor(Session, "_tag", SAMPLE)
    one, other = make(dict(FIELDS), None), make(dict(FIELDS), None)
    one.app_name = "another"
    one._tag = Tag(1, 1, 1, 1)
    assert (other.app_name, other._tag) == ("app", None)
    assert one.__pydantic_fields_set__ is not other.__pydantic_fields_set__
