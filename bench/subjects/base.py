"""What every implementation under measurement can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from google.adk.sessions.base_session_service import BaseSessionService

from ..records import Family, Group


@dataclass(frozen=True, slots=True)
class Address:
    """Where a subject's data are.

    Attributes:
        database: SQLAlchemy address of the subject's own database.
        redis: Address of the Redis server.
        prefix: What keys of services without namespaces begin with.
    """

    family: Family
    database: str
    redis: str
    prefix: str


class Subject(ABC):
    """An implementation: a session service, and what a benchmark must be able to do to it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.service: BaseSessionService = self.connect()

    @abstractmethod
    def connect(self) -> BaseSessionService:
        """Makes a service as another server process has one: it knows no session yet."""

    async def close_service(self, service: BaseSessionService) -> None:
        """Closes one service."""
        close: Any = getattr(service, "close", None)
        if close is not None:
            await close()

    async def restart(self) -> None:
        """Replaces the service by one that knows no session."""
        await self.close_service(self.service)
        self.service = self.connect()

    async def warm_elsewhere(self, group: Group) -> None:  # noqa: B027
        """Has another server read every session of the group first. For stock that changes nothing."""

    async def ready(self, group: Group) -> None:  # noqa: B027
        """Comes into the state that is measured; `group` has sessions to call for."""

    async def forget(self) -> None:  # noqa: B027
        """Empties the cache shared between servers, if there is one."""

    async def settle(self) -> None:  # noqa: B027
        """Waits for background work that finished calls have left."""

    def counters(self) -> dict[str, int]:
        """Returns what was counted since the last call."""
        return {}

    @asynccontextmanager
    async def auditor(self) -> AsyncIterator[BaseSessionService]:
        """Yields a service of the same kind that reads what is stored durably, and no cache."""
        service = self.connect()
        try:
            yield service
        finally:
            await self.close_service(service)

    @abstractmethod
    async def fill(self, groups: list[Group]) -> None:
        """Stores the sessions that are there before anything is measured."""

    async def close(self) -> None:
        """Ends the subject."""
        await self.close_service(self.service)
