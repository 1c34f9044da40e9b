"""Transactions begun by hand, for connections on which single statements commit by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from ...records import Failed, Unknown
from ..failures import DRIVER_ERRORS, is_disconnect, is_retryable, unknown
from ..steps import Unit
from .portable import InCommit, Make, PortableDialect, drive

T = TypeVar("T")


class ExplicitDialect(PortableDialect):
    """Reads without a transaction, writes in one that BEGIN and COMMIT surround."""

    begin = "BEGIN"

    async def limits(self, connection: AsyncConnection, patience: int) -> None:
        """Sets the time-outs of the transaction just begun."""

    @contextlib.contextmanager
    def cutting(self, driver: Any, patience: int = 1) -> Iterator[None]:
        """Cuts the connection if the server has long been due to answer."""
        seconds = self.config.statement_timeout * patience + 0.5
        timer = asyncio.get_running_loop().call_later(seconds, _cut, driver)
        try:
            yield
        finally:
            timer.cancel()

    @contextlib.asynccontextmanager
    async def bounded(self, connection: AsyncConnection, patience: int = 1) -> AsyncIterator[None]:
        """As `cutting`, for SQLAlchemy's connection."""
        with self.cutting((await connection.get_raw_connection()).driver_connection, patience):
            yield

    async def read(self, connection: AsyncConnection, make: Make[T]) -> T:
        async with self.bounded(connection, patience=10):
            return await drive(connection, make())

    async def transaction(self, connection: AsyncConnection, unit: Unit[T]) -> T:
        async with self.bounded(connection):
            return await self.explicit(connection, unit)

    async def explicit(self, connection: AsyncConnection, unit: Unit[T], patience: int = 1) -> T:
        """Performs a unit between BEGIN and COMMIT, `patience` times the usual time-out long."""
        await connection.exec_driver_sql(self.begin)
        committing = False
        try:
            await self.limits(connection, patience)
            result = await drive(connection, unit)
            committing = True
            await connection.exec_driver_sql("COMMIT")
        except asyncio.CancelledError:
            await connection.invalidate()
            raise
        except DRIVER_ERRORS as error:
            if not is_disconnect(error):
                await connection.exec_driver_sql("ROLLBACK")
            if committing and not is_retryable(error):
                raise InCommit from error
            raise
        except BaseException:
            await connection.exec_driver_sql("ROLLBACK")
            raise
        return result

    def failed(self, error: Exception) -> Failed | Unknown:
        # A lone statement commits by itself: without its answer nothing is known.
        if is_disconnect(error):
            return Unknown(unknown(error))
        return super().failed(error)


def _cut(driver: Any) -> None:
    """Closes a driver's socket, so that whoever waits for an answer hears of it at once.

    Cancelling instead would have the drivers ask the server to cancel, and wait for that answer.
    """
    if hasattr(driver, "terminate"):  # asyncpg
        driver.terminate()
    elif hasattr(driver, "pgconn"):  # psycopg
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(driver.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)
    else:
        driver.close()
