"""The benchmark counts the round trips of calls on real servers; the awaited ones are figures of time."""

from __future__ import annotations

from bench.subjects.base import Address
from bench.subjects.catalogue import OURS, make
from bench.trips import TripCounter
from bench.workloads import TURN, WARM
from tests.servers import postgresql_database


async def test_round_trips_are_counted(redis_url: str, redis_namespace: str) -> None:
    with postgresql_database() as url:
        subject = make(OURS, Address("postgresql", url, redis_url, redis_namespace))
        try:
            await subject.fill([WARM])
            found = await TripCounter(subject, WARM, 0).count()
        finally:
            await subject.close()
    assert {call: trips["sql"] for call, trips in found.items()} == {"get": 0, "append": 1, "turn": TURN}
    assert found["get"]["redis"] == 1
    # An apply leaves with the next mask, or after a moment by itself.
    assert found["append"]["redis"] == 2
    assert 2 + TURN <= found["turn"]["redis"] <= 1 + 2 * TURN
    assert found["get"]["awaited_redis"] > 0
