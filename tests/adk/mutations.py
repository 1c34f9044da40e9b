"""A pytest plugin that takes one rule out of the service: `TIERED_SESSIONS_MUTATION=<name> pytest -p ...`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from tiered_sessions import core, session_writer
from tiered_sessions.records import Append
from tiered_sessions.state import TEMP, Scopes
from tiered_sessions.tier.tier import SessionTier


def tag_check() -> None:
    """Appends whatever the caller's object has seen."""
    append = SessionTier.append

    async def unchecked(self: SessionTier, command: Append) -> Any:
        return await append(self, dataclasses.replace(command, expected=None))

    SessionTier.append = unchecked  # type: ignore[method-assign]


def temp_trimming() -> None:
    """Leaves `temp:` keys in the delta that is stored."""

    def keep(self: object, session: Any, event: Any) -> None:
        delta = event.actions.state_delta
        session.state.update({key: value for key, value in delta.items() if key.startswith(TEMP)})

    core.BaseTieredSessionService._keep_temporary = keep  # type: ignore[method-assign]


def scope_split() -> None:
    """Stores every key in the session's own state."""

    def unsplit(state: Mapping[str, Any]) -> Scopes:
        return Scopes({key: value for key, value in state.items() if not key.startswith(TEMP)}, {}, {})

    core.split = session_writer.split = unsplit  # type: ignore[assignment]


MUTATIONS = {"tag check": tag_check, "trimming of temp:": temp_trimming, "scope split": scope_split}

if mutation := os.environ.get("TIERED_SESSIONS_MUTATION"):
    MUTATIONS[mutation]()
