"""R29: what must not be cut short is not, and who was cancelled meanwhile hears of it afterwards."""

from __future__ import annotations

import asyncio

import pytest

from tiered_sessions.uncut import Uncut, uncut

TURNS = 5


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_a_cancelled_waiter_hears_of_it_when_it_is_done() -> None:
    outcome: Uncut[int] = Uncut()
    heard: list[object] = []

    async def wait() -> None:
        try:
            heard.append(await outcome)
        except asyncio.CancelledError:
            heard.append("cancelled")
            assert outcome.result() == 1
            raise

    waiter = asyncio.create_task(wait())
    await turns()
    for _ in range(3):
        waiter.cancel()
        await turns()
    assert (heard, waiter.done(), outcome.done()) == ([], False, False)
    outcome.set_result(1)
    await turns()
    assert heard == ["cancelled"]
    assert waiter.cancelled()


async def test_a_time_out_is_one_afterwards() -> None:
    outcome: Uncut[int] = Uncut()

    async def wait() -> None:
        async with asyncio.timeout(0.001):
            asyncio.get_running_loop().call_later(0.01, outcome.set_result, 1)
            await outcome

    with pytest.raises(TimeoutError):
        await wait()
    assert outcome.result() == 1


async def test_what_is_lost_cancels_its_waiter() -> None:
    outcome: Uncut[int] = Uncut()
    asyncio.get_running_loop().call_soon(outcome.lose)
    with pytest.raises(asyncio.CancelledError):
        await outcome


async def test_work_goes_on_in_a_task_of_its_own() -> None:
    gate = asyncio.Event()
    done: list[str] = []

    async def work() -> str:
        await gate.wait()
        done.append("work")
        return "result"

    async def wait() -> str:
        return await uncut(work())

    waiter = asyncio.create_task(wait())
    await turns()
    waiter.cancel()
    await turns()
    assert not waiter.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert done == ["work"]
    assert await uncut(work()) == "result"


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_how_the_work_ends_is_how_it_ends(error: type[BaseException]) -> None:
    async def work() -> None:
        raise error

    with pytest.raises(error):
        await uncut(work())


async def test_work_that_was_cancelled_before_it_began_is_lost() -> None:
    """As at the end of an event loop; else whoever waits would wait for ever."""

    async def work() -> None:
        raise AssertionError

    outcome = uncut(work())
    outcome.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outcome
