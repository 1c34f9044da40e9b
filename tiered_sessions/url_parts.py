"""The parts of an address as users write it: a password may hold what other parts are told apart by."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from .errors import ConfigurationError

BOOLEANS: Final = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_KINDS: Final[dict[type, str]] = {int: "an integer", float: "a number", bool: "true or false"}


@dataclass(slots=True)
class Parts:
    """An address, taken apart: nothing in it is percent-encoded but host and database."""

    scheme: str
    user: str | None
    password: str | None
    host: str
    port: str | None
    database: str | None
    query: list[tuple[str, str]] = field(default_factory=list)

    def pop(self, *names: str) -> str | None:
        """Takes the last value of a query parameter out, under any of its names."""
        values = [value for name, value in self.query if name in names]
        self.query = [(name, value) for name, value in self.query if name not in names]
        return values[-1] if values else None

    def render(self) -> str:
        """Returns the address, user and password encoded."""
        user = "" if self.user is None else quote(self.user, safe="")
        if self.password is not None:
            user += ":" + quote(self.password, safe="")
        at = "@" if self.user is not None or self.password is not None else ""
        port = f":{self.port}" if self.port else ""
        path = "" if self.database is None else "/" + self.database
        query = "?" + urlencode(self.query, safe="/") if self.query else ""
        return f"{self.scheme}://{user}{at}{self.host}{port}{path}{query}"


# A raw @, / or ? in a password is ambiguous: the narrowest reading that parses whole wins, and where
# two do, the one that takes more for the password.
_USERS: Final = (
    *(rf"(?P<user>[^:/?@]*)(?::(?P<password>{secret}))?@" for secret in ("[^@/?]*", "[^@]*", "[^?]*", ".*")),
    "(?P<user>(?!))?(?P<password>(?!))?",
)
_SHAPES: Final = tuple(
    re.compile(
        rf"(?P<scheme>[A-Za-z][\w+.-]*)://{user}(?P<host>\[[^\]/?@]*\]|[^/?@]*?)(?P<port>:\d*)?"
        rf"(?:/(?P<database>{'[^?@]*' if user is not _USERS[-1] else '[^?]*'}))?"
        r"(?:\?(?P<query>(?:[\w.-]+=[^&]*&?)*))?",
        re.DOTALL,
    )
    for user in _USERS
)


def parse(text: str) -> Parts | None:
    """Takes an address apart; None: it has not the shape of one."""
    for shape in _SHAPES:
        if match := shape.fullmatch(text.strip()):
            part = match.groupdict()
            return Parts(
                part["scheme"].lower(),
                None if part["user"] is None else unquote(part["user"]),
                None if part["password"] is None else unquote(part["password"]),
                part["host"],
                (part["port"] or ":")[1:] or None,
                part["database"],
                parse_qsl(part["query"] or "", keep_blank_values=True),
            )
    return None


def take_typed(parts: Parts, types: dict[str, type]) -> dict[str, Any]:
    """Takes out the query parameters named in `types`, each as a value of its type.

    Raises:
        ConfigurationError: A value is not of its type; the message does not repeat it.
    """
    taken: dict[str, Any] = {}
    for name, kind in types.items():
        if (value := parts.pop(name)) is not None:
            try:
                taken[name] = BOOLEANS[value.lower()] if kind is bool else kind(value)
            except (ValueError, KeyError):
                message = f"{name} in the database URL must be {_KINDS[kind]}"
                raise ConfigurationError(message) from None
    return taken
