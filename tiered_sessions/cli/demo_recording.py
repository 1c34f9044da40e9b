"""The recorded conversation that the demo serves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """One user message and everything the agents did about it, as ADK's Runner stored it."""

    events: tuple[JsonObject, ...]

    @property
    def agents(self) -> str:
        """Names who acted, in order: `coordinator > orders`."""
        authors = [event["author"] for event in self.events if event["author"] != "user"]
        return " > ".join(dict.fromkeys(authors))

    @property
    def tools(self) -> tuple[str, ...]:
        """Names the tools that were called, transfers between agents left out."""
        parts = [part for event in self.events for part in event.get("content", {}).get("parts", [])]
        names = [part["function_call"]["name"] for part in parts if "function_call" in part]
        return tuple(name for name in names if name != "transfer_to_agent")


@dataclass(frozen=True, slots=True)
class Recording:
    """A conversation: the state its session starts with, and its turns."""

    state: JsonObject
    turns: tuple[Turn, ...]


def load_recording() -> Recording:
    """Reads the recording shipped with the package (made by examples/record_conversation.py)."""
    text = files(__package__).joinpath("data", "conversation.json").read_text(encoding="utf-8")
    document = json.loads(text)
    return Recording(document["state"], tuple(Turn(tuple(turn)) for turn in document["turns"]))


def with_delta(state: Mapping[str, Any], event: Mapping[str, Any]) -> JsonObject:
    """Returns the state that must be read once `event` is stored. `temp:` is never stored."""
    delta = event.get("actions", {}).get("state_delta", {})
    return {**state, **{key: value for key, value in delta.items() if not key.startswith("temp:")}}
