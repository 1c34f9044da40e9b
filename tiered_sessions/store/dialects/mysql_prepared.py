"""MariaDB: what a connection sends often, its server parses once.

To parse a compound statement takes the server longer than to perform it, and each parameter has to be
written once only. What is prepared belongs to the connection and ends with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ..failures import number
from ..steps import Reply

# A connection beyond those that the pool keeps seldom comes so far.
_USES: Final = 5
# Each takes memory of the server's.
_MOST: Final = 30
_UNKNOWN: Final = 1243
# Too many of all clients together; a statement of a kind that this server does not prepare.
_REFUSED: Final = (1461, 1295)

Run = Callable[[Any, str, list[Any] | None], Awaitable[Reply]]
"""Executes a text with its parameters on a driver's connection."""


class Prepared:
    """The statements of one connection."""

    def __init__(self) -> None:
        self._uses: dict[str, int] = {}
        self._names: dict[str, str] = {}

    async def run(self, run: Run, driver: Any, statement: str, values: list[Any]) -> Reply:
        """Executes a statement, from its fifth use on by the name it has been given."""
        name = self._names.get(statement)
        if name is None:
            uses = self._uses[statement] = self._uses.get(statement, 0) + 1
            if uses < _USES or len(self._names) == _MOST:
                return await run(driver, statement, values)
            name = await self._prepare(run, driver, statement)
        if not name:
            return await run(driver, statement, values)
        written = {value: driver.escape(value) for value in set(values)}
        try:
            return await run(
                driver, f"EXECUTE {name} USING {', '.join([written[value] for value in values])}", None
            )
        except Exception as error:
            if number(error) != _UNKNOWN:
                raise
        # Somebody between us and the server has given this connection another one's place.
        self._names[statement] = ""
        return await run(driver, statement, values)

    async def _prepare(self, run: Run, driver: Any, statement: str) -> str:
        # Wherever a proxy takes the name it means this text.
        name = f"ts_{hashlib.blake2s(statement.encode(), digest_size=12).hexdigest()}"
        text = driver.escape(statement.replace("%s", "?").replace("%%", "%"))
        try:
            await run(driver, f"PREPARE {name} FROM {text}", None)
        except Exception as error:
            if number(error) not in _REFUSED:
                raise
            name = ""
        self._names[statement] = name
        return name
