"""Events read here equal those that ADK validates, whatever fields they have."""

from __future__ import annotations

import logging
import random
import warnings

import pytest
from google.adk.events.event import Event

from tests.unit.documents import documents
from tiered_sessions import adk
from tiered_sessions.codec import dumps, loads
from tiered_sessions.decoding import Decoder, _same

DECODERS = [adk._decode_shared, adk._decode_own]


@pytest.mark.parametrize("decode", DECODERS, ids=["shared", "own"])
def test_events_of_every_field_equal_validated_ones(
    decode: Decoder[Event], caplog: pytest.LogCaptureFixture
) -> None:
    """Each field of Event and of all that is in it, generated; twice, so that plans are used."""
    caplog.set_level(logging.ERROR)
    seen: set[str] = set()
    with warnings.catch_warnings():
        # Generated text is no valid member of an enum that warns of it.
        warnings.simplefilter("ignore")
        for document in documents(Event, random.Random(7), 1500):
            document = {"timestamp": 1.5, **document, "id": "e"}
            seen |= set(document)
            try:
                stored = dumps(Event.model_validate(document).model_dump(mode="json", exclude_none=True))
            except ValueError:
                continue
            for _ in range(2):
                assert _same(decode(loads(stored)), Event.model_validate(loads(stored))), stored
    assert seen == set(Event.model_fields)
    plans = [plan for node in decode._nodes.values() for plan in node._plans.values()]
    assert sum(plan is not None for plan in plans) > len(plans) / 2


@pytest.mark.parametrize("decode", DECODERS, ids=["shared", "own"])
def test_usual_events_are_planned(decode: Decoder[Event]) -> None:
    """What nearly every event is made of is not left to validation."""
    stored = {
        "content": {"parts": [{"text": "a"}], "role": "model"},
        "invocation_id": "i",
        "author": "a",
        "actions": {
            "state_delta": {"a": 1},
            "artifact_delta": {},
            "requested_auth_configs": {},
            "requested_tool_confirmations": {},
        },
        "id": "e",
        "timestamp": 1.5,
    }
    for _ in range(2):
        decode(loads(dumps(stored)))
    nodes = {model.__name__: node for model, node in decode._nodes.items()}
    for name in ("Event", "Content", "Part", "EventActions"):
        assert any(nodes[name]._plans.values()), name
