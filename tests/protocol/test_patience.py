"""A loop that was held up reads what has arrived before it says that nothing came."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tiered_sessions.tier.patience import Patience, first_of


async def _within(command: Awaitable[bytes], limit: float) -> bytes:
    return await Patience().within(command, limit)


async def _first_of(command: Any, limit: float) -> bytes:
    task = asyncio.create_task(command)
    if not await first_of([task], limit):
        task.cancel()
        raise TimeoutError
    return bytes(await task)


ways = pytest.mark.parametrize("wait", [_within, _first_of])


@ways
async def test_a_reply_that_lies_in_the_socket_is_read(wait: Callable[..., Awaitable[bytes]]) -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)

    def hold_up() -> None:
        theirs.send(b"reply")
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            pass

    # As on a shared connection: one task reads, the callers wait for what it finds.
    found: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def read() -> None:
        found.set_result(await reader.readexactly(5))

    async def command() -> bytes:
        return await found

    reading = asyncio.create_task(read())
    asyncio.get_running_loop().call_soon(hold_up)
    assert await wait(command(), 0.02) == b"reply"
    await reading
    writer.close()
    theirs.close()


@ways
async def test_a_reply_that_does_not_come_is_not_waited_for(wait: Callable[..., Awaitable[bytes]]) -> None:
    for held_up in (0.0, 0.1):
        asyncio.get_running_loop().call_soon(time.sleep, held_up)
        nothing: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def command(nothing: asyncio.Future[bytes] = nothing) -> bytes:
            return await nothing

        with pytest.raises(TimeoutError):
            await wait(command(), 0.02)
        assert nothing.cancelled() or not nothing.done()


async def test_a_caller_that_is_cancelled_is_cancelled() -> None:
    task = asyncio.create_task(Patience().within(asyncio.Event().wait(), 60.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
