"""Callers wait for the connections that the pool keeps, unless these are stuck."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from tiered_sessions.store.turns import PATIENCE, Turns


@pytest.fixture
async def turns() -> AsyncIterator[Turns]:
    engine = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/none", pool_size=1, pool_timeout=5)
    yield Turns(engine)
    await engine.dispose()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_turns_are_taken_in_order(turns: Turns) -> None:
    order: list[int] = []

    async def caller(number: int) -> None:
        ended = await turns.take()
        order.append(number)
        await asyncio.sleep(0)
        ended()

    await asyncio.gather(*map(caller, range(20)))
    assert order == list(range(20))


async def test_who_is_cancelled_while_he_waits_takes_no_turn(turns: Turns) -> None:
    ended = await turns.take()
    for given in (False, True):
        waiting = asyncio.create_task(turns.take())
        await settle()
        if given:
            ended()
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert waiting.cancelled()
    async with asyncio.timeout(PATIENCE):
        await turns.take()


async def test_nobody_waits_for_long_while_no_turn_ends(turns: Turns) -> None:
    ended = await turns.take()
    beyond = await asyncio.gather(turns.take(), turns.take())
    later: asyncio.Task[Callable[[], None]] = asyncio.create_task(turns.take())
    await settle()
    for end in beyond:
        end()
    # Theirs were none, so nobody's begins with their end.
    await settle()
    assert not later.done()
    ended()
    await settle()
    assert later.done()
