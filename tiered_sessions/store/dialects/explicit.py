"""Transactions begun by hand, for connections on which single statements commit by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from ...records import Failed, Unknown
from ..failures import DRIVER_ERRORS, is_disconnect, is_retryable, unknown
from ..lent import Lent
from ..steps import Unit
from .portable import InCommit, Make, PortableDialect, drive

T = TypeVar("T")


class ExplicitDialect(PortableDialect):
    """Reads without a transaction, writes in one that BEGIN and COMMIT surround."""

    begin = "BEGIN"

    async def limits(self, connection: AsyncConnection, patience: int) -> None:
        """Sets the time-outs of the transaction just begun."""

    def cut_later(self, driver: Any, patience: int = 1) -> asyncio.TimerHandle:
        seconds = self.config.statement_timeout * patience + 0.5
        return asyncio.get_running_loop().call_later(seconds, _cut, driver)

    async def read(self, lent: Lent, make: Make[T]) -> T:
        timer = self.cut_later(lent.driver, patience=10)
        try:
            return await drive(await lent.whole(), make())
        finally:
            timer.cancel()

    async def transaction(self, lent: Lent, unit: Unit[T]) -> T:
        timer = self.cut_later(lent.driver)
        try:
            return await self.explicit(await lent.whole(), unit)
        finally:
            timer.cancel()

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
