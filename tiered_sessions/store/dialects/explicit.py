"""Transactions begun by hand, for connections on which single statements commit by themselves."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from ...records import Failed, Unknown
from ..failures import DRIVER_ERRORS, is_disconnect, is_retryable, unknown
from ..steps import Unit
from .portable import InCommit, Make, PortableDialect, bounded, drive

T = TypeVar("T")


class ExplicitDialect(PortableDialect):
    """Reads without a transaction, writes in one that BEGIN and COMMIT surround."""

    begin = "BEGIN"

    async def limits(self, connection: AsyncConnection, patience: int) -> None:
        """Sets the time-outs of the transaction just begun."""

    async def read(self, connection: AsyncConnection, make: Make[T]) -> T:
        return await drive(connection, make())

    async def transaction(self, connection: AsyncConnection, unit: Unit[T]) -> T:
        async with bounded(self.config):
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
