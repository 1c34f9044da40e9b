"""A row of google-adk's V0 `events` table, as the event that its V1 layout holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any, Final

from ... import codec
from ...errors import InvalidValueError, UnknownPickleError
from ..values import check_jsonb, to_time
from .unpickle import read_actions

TEXTS: Final = ("author", "branch", "error_code", "error_message")
FLAGS: Final = ("partial", "turn_complete", "interrupted")
DOCUMENTS: Final = (
    "content",
    "grounding_metadata",
    "custom_metadata",
    "usage_metadata",
    "citation_metadata",
    "input_transcription",
    "output_transcription",
)

_EMPTY_ACTIONS: Final = ("state_delta", "artifact_delta", "requested_auth_configs")


@dataclass(frozen=True)
class Reading:
    """How V0 rows are read.

    Attributes:
        zone: The local time of the programs that wrote them; None: of this machine.
        unknown_as_text: Whether an object of an unknown class becomes its class's name.
        utc_sessions: Whether `sessions.update_time` is in UTC already, as it is in SQLite.
        jsonb: Whether the target is PostgreSQL, whose JSONB refuses some values.
    """

    zone: tzinfo | None = None
    unknown_as_text: bool = False
    utc_sessions: bool = False
    jsonb: bool = False

    def seconds(self, local: datetime) -> float:
        """Turns a local time of the writers into seconds since 1970."""
        return (local if local.tzinfo or self.zone is None else local.replace(tzinfo=self.zone)).timestamp()

    def session(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Turns a V0 session into a V1 one: only its time of update differs."""
        moment = row["update_time"]
        if not self.utc_sessions:
            moment = datetime.fromtimestamp(self.seconds(moment), UTC).replace(tzinfo=None)
        return {**self.state(row), "update_time": moment}

    def state(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Checks a row that holds a state.

        Raises:
            InvalidValueError: It is not JSON, or the target cannot store it.
        """
        where = f"state of {' / '.join(row[name] for name in ('app_name', 'user_id', 'id') if name in row)}"
        try:
            codec.loads(row["state"])
        except ValueError as error:
            raise InvalidValueError(f"The {where} is not JSON") from error
        if self.jsonb:
            check_jsonb(where, row["state"].encode())
        return dict(row)

    def event(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Turns a V0 event into a V1 one.

        Raises:
            UnknownPickleError: Its actions name an unknown class, or are damaged.
            InvalidValueError: It holds what is not JSON, or what the target cannot store.
        """
        where = f"event {row['id']!r} of session {row['session_id']!r} of app {row['app_name']!r}"
        seconds = self.seconds(row["timestamp"])
        try:
            payload = codec.dumps(self._payload(row, seconds))
        except UnknownPickleError as error:
            raise UnknownPickleError(
                f"The {where} names {error}, which google-adk's actions cannot hold, so it was not loaded. "
                "--unknown-as-text stores the name in its place."
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidValueError(f"The {where} cannot be read: {error}") from error
        if self.jsonb:
            check_jsonb(where, payload)
        keys = ("id", "app_name", "user_id", "session_id", "invocation_id")
        return {
            **{name: row[name] for name in keys},
            "timestamp": to_time(round(seconds * 1e6)),
            "event_data": payload.decode(),
        }

    def _payload(self, row: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        event: dict[str, Any] = {"id": row["id"], "invocation_id": row["invocation_id"], "timestamp": seconds}
        event |= {name: row[name] for name in (*TEXTS, *FLAGS) if row.get(name) is not None}
        for name in DOCUMENTS:
            document = codec.loads(row[name]) if row.get(name) is not None else None
            if document is not None:
                event[name] = document
        if "content" in event:
            _restore_alphabet(event["content"])
        pickled = row["actions"]
        actions = read_actions(pickled, unknown_as_text=self.unknown_as_text) if pickled else {}
        event["actions"] = {**{name: {} for name in _EMPTY_ACTIONS}, **actions}
        # What those releases read back where the column is NULL.
        event["long_running_tool_ids"] = codec.loads(row.get("long_running_tool_ids_json") or "[]")
        return event


def _restore_alphabet(content: Any) -> None:
    """Writes bytes in the URL-safe alphabet, as every release since 1.5 does."""
    for part in content.get("parts") or ():
        blob = part.get("inline_data")
        if blob and isinstance(blob.get("data"), str):
            blob["data"] = blob["data"].replace("+", "-").replace("/", "_")
