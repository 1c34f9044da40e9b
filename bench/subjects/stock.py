"""Stock google-adk's own services."""

from __future__ import annotations

from typing import Any

from google.adk.sessions.base_session_service import BaseSessionService
from sqlalchemy import make_url

from .. import population
from ..records import Group
from .base import Subject


class StockDatabase(Subject):
    """`DatabaseSessionService`, with its defaults, on tables it made itself."""

    def connect(self) -> BaseSessionService:
        from google.adk.sessions.database_session_service import DatabaseSessionService

        return DatabaseSessionService(db_url=self.address.database)

    async def fill(self, groups: list[Group]) -> None:
        await population.fill_stock(self.address.database, groups)


class StockSqlite(Subject):
    """`SqliteSessionService`, with its defaults, on tables it made itself."""

    def connect(self) -> BaseSessionService:
        from google.adk.sessions.sqlite_session_service import SqliteSessionService

        return SqliteSessionService(make_url(self.address.database).database or "")

    async def fill(self, groups: list[Group]) -> None:
        await population.fill_stock_sqlite(self.address.database, groups)


class StockRedis(Subject):
    """ADK's Redis service. It stores nothing durably and refuses no stale append."""

    def connect(self) -> BaseSessionService:
        from google.adk.integrations.redis import RedisSessionService, RedisSessionServiceConfig

        config = RedisSessionServiceConfig(uri=self.address.redis, key_prefix=self.address.prefix)
        return RedisSessionService(config)

    async def close_service(self, service: Any) -> None:
        client = service._redis_client
        if client is not None:
            await client.aclose()

    async def fill(self, groups: list[Group]) -> None:
        await population.fill_stock_redis(self.address.redis, self.address.prefix, groups)
