"""An engine for one command: no pool, no time-outs that a long index build would run into."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import DBAPIError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from ...errors import ConfigurationError, StoreUnavailableError
from ...urls import missing_driver_error, normalise_database_url, redact
from ..failures import is_bare


@asynccontextmanager
async def database(url: str) -> AsyncIterator[AsyncEngine]:
    """Opens the database at `url`.

    Raises:
        ConfigurationError: The URL cannot be used, or its driver is not installed.
        StoreUnavailableError: The database does not answer, or refused a statement.
    """
    address = normalise_database_url(url)
    if address.memory:
        raise ConfigurationError("A database in memory ends with this process; there is nothing to migrate.")
    try:
        engine = create_async_engine(address.url, connect_args=address.connect_args, poolclass=NullPool)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise missing_driver_error(address.driver) from error
    try:
        yield engine
    except Exception as error:
        if not isinstance(error, DBAPIError | OSError) and not is_bare(error):
            raise
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise StoreUnavailableError(f"{redact(url)}: {redact(str(reason))}") from error
    finally:
        await engine.dispose()
