"""The time-out of a command follows what the cache needs."""

from __future__ import annotations

import time

import pytest

from tiered_sessions.tier.breaker import LONGEST, Breaker


def test_it_is_patient_until_it_knows_the_cache() -> None:
    breaker = Breaker(time.monotonic)
    for _ in range(9):
        breaker.succeeded(0.000_2)
        assert breaker.timeout == LONGEST
    breaker.succeeded(0.000_2)
    assert breaker.timeout == 0.005


def test_the_opening_of_the_connection_says_nothing() -> None:
    breaker = Breaker(time.monotonic)
    breaker.succeeded(0.040)
    for _ in range(20):
        breaker.succeeded(0.002)
    assert breaker.timeout == pytest.approx(0.008, rel=0.05)


def test_a_slow_cache_is_given_time() -> None:
    breaker = Breaker(time.monotonic)
    for _ in range(20):
        breaker.succeeded(0.000_2)
    waited = []
    while breaker.timeout < 0.030:
        waited.append(breaker.timeout)
        assert not breaker.failed(time.monotonic()), "it was slow, not silent"
    assert waited == [0.005, 0.010, 0.020]
    breaker.succeeded(0.030)
    assert breaker.timeout == LONGEST


def test_after_an_outage_it_is_patient_again() -> None:
    breaker = Breaker(time.monotonic)
    for _ in range(20):
        breaker.succeeded(0.000_2)
    while not breaker.failed(time.monotonic()):
        pass
    assert breaker.open
    breaker.close(7)
    assert (breaker.open, breaker.probed, breaker.timeout) == (False, 7, LONGEST)


def test_what_was_under_way_together_is_one_failure() -> None:
    breaker = Breaker(time.monotonic)
    for _ in range(20):
        breaker.succeeded(0.000_2)
    for _ in range(4):
        sent = time.monotonic()
        assert not any(breaker.failed(sent) for _ in range(32)), "a pause of the server is no outage"
    assert breaker.failed(time.monotonic())
    assert breaker.open


def test_a_reply_that_nobody_waited_for_stretches_the_time_out_no_further_than_the_longest() -> None:
    breaker = Breaker(lambda: 0.0)
    for _ in range(10):
        breaker.succeeded(0.000_2)
    breaker.succeeded(0.9)
    assert breaker.timeout == LONGEST
    for _ in range(700):
        breaker.succeeded(0.000_2)
    assert breaker.timeout < LONGEST / 2
