"""Splits a state into its scopes, merges them, and makes it JSON."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

from pydantic_core import PydanticSerializationError, to_jsonable_python

from .errors import InvalidValueError

APP: Final = "app:"
USER: Final = "user:"
TEMP: Final = "temp:"

logger = logging.getLogger("tiered_sessions")


class Scopes(NamedTuple):
    """A state by scope, keys without their prefix."""

    session: dict[str, Any]
    user: dict[str, Any]
    app: dict[str, Any]


def split(state: Mapping[str, Any]) -> Scopes:
    """Sorts the keys of `state` by prefix; `temp:` keys are left out."""
    scopes = Scopes({}, {}, {})
    for key, value in state.items():
        if key.startswith(APP):
            scopes.app[key[len(APP) :]] = value
        elif key.startswith(USER):
            scopes.user[key[len(USER) :]] = value
        elif not key.startswith(TEMP):
            scopes.session[key] = value
    return scopes


def merge(session: Mapping[str, Any], user: Mapping[str, Any], app: Mapping[str, Any]) -> dict[str, Any]:
    """Joins the scopes into one state, with prefixes: the inverse of `split`."""
    return {
        **session,
        **{APP + key: value for key, value in app.items()},
        **{USER + key: value for key, value in user.items()},
    }


def temporary(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `temp:` part of `state`, with prefixes."""
    return {key: value for key, value in state.items() if key.startswith(TEMP)}


def json_safe(state: Mapping[str, Any]) -> dict[str, Any]:
    """Copies a state into JSON values, as ADK does: datetimes to ISO text, sets and tuples to lists.

    What JSON has no form for (functions, open files) becomes its `repr`, with a warning.

    Raises:
        InvalidValueError: The state contains itself, or bytes that are not UTF-8.
    """
    try:
        try:
            return cast("dict[str, Any]", to_jsonable_python(state))
        except PydanticSerializationError:
            safe = to_jsonable_python(state, serialize_unknown=True)
    except ValueError as error:
        raise InvalidValueError("The state cannot be written as JSON; nothing was written") from error
    # The values are the user's: they stay out of the log.
    logger.warning("Some values of a session's state are not JSON values; their repr was stored instead")
    return cast("dict[str, Any]", safe)
