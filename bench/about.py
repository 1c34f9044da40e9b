"""Where and with what a run was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
from datetime import UTC, datetime
from typing import Any

import redis.asyncio
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from . import loops
from .places import Servers
from .records import Family

_PACKAGES = (
    "tiered-sessions",
    "google-adk",
    "sqlalchemy",
    "asyncpg",
    "aiomysql",
    "redis",
    "hiredis",
    "pydantic",
    "orjson",
)


async def about(servers: Servers, families: tuple[Family, ...], mode: str) -> dict[str, Any]:
    """Returns versions of everything that takes part, and the machine."""
    found: dict[str, Any] = {
        "mode": mode,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "event loop": loops.chosen(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if "postgresql" in families:
        found["PostgreSQL"] = await _version(servers.postgresql, "postgresql+asyncpg")
    if "mariadb" in families:
        found["MariaDB"] = await _version(servers.mariadb, "mysql+aiomysql")
    if "sqlite" in families:
        found["SQLite"] = sqlite3.sqlite_version
    if families != ("sqlite",):
        async with redis.asyncio.Redis.from_url(servers.redis) as client:
            found["Redis"] = (await client.info("server"))["redis_version"]
    return found


async def _version(url: str, driver: str) -> str:
    engine = create_async_engine(make_url(url).set(drivername=driver))
    try:
        async with engine.connect() as connection:
            version = str((await connection.execute(text("SELECT VERSION()"))).scalar_one())
    finally:
        await engine.dispose()
    return version.removeprefix("PostgreSQL ").split()[0]
