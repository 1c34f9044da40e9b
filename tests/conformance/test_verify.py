"""The verifier on real servers: each planted fault is found, named and repaired; a write is no fault."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from tests.conformance.planted import Planted, planted
from tests.conformance.store_backends import BACKENDS, backend_url, created, open_store
from tests.protocol.doubles import ToyStore, TroubledCache, run, tier
from tests.protocol.simulation import KEY
from tests.protocol.test_tier import append
from tiered_sessions.config import TieredConfig
from tiered_sessions.records import Content, EventRecord, Query, SessionKey, Snapshot, Tag
from tiered_sessions.tier.verifier import Finding, Verdict, Verifier, difference

DELTA = 30_000


@pytest.fixture
async def fleet(store_url: str, valkey_url: str) -> AsyncIterator[Planted]:
    async with planted(store_url, valkey_url) as made:
        yield made


def verifier(fleet: Planted, max_staleness: int | None = DELTA) -> Verifier:
    return Verifier(fleet.cache, fleet.store.load, max_staleness)


async def verdicts(fleet: Planted, verifier_: Verifier | None = None) -> list[Finding]:
    """Returns what is found of session, user and app."""
    return await (verifier_ or verifier(fleet)).compare(fleet.key)


async def test_what_is_equal_is_found_equal(fleet: Planted) -> None:
    assert [finding.verdict for finding in await verdicts(fleet)] == [Verdict.EQUAL] * 3


@pytest.mark.parametrize("scope", [0, 1, 2])
async def test_wrong_content_at_an_equal_tag(fleet: Planted, scope: int) -> None:
    """I1 in each scope; a repair does not keep it for having SQL's tag."""
    key = fleet.key.scopes[scope]
    await fleet.plant(key, {"st": '{"planted":1}'})
    found = await verdicts(fleet)
    expected = [Verdict.EQUAL] * 3
    expected[scope] = Verdict.WRONG
    assert [finding.verdict for finding in found] == expected
    assert found[scope].reason == "its state"
    assert await verifier(fleet).repair(found[scope]) is True
    assert await fleet.entry(key) is None
    await fleet.fill()
    assert [finding.verdict for finding in await verdicts(fleet)] == [Verdict.EQUAL] * 3


async def test_numbers_are_compared_by_type(fleet: Planted) -> None:
    state = await fleet.field(fleet.key.app, "st")
    await fleet.plant(fleet.key.app, {"st": b" " + state.replace(b"1.5", b"1.50")})
    assert (await verdicts(fleet))[2].verdict is Verdict.EQUAL
    session = await fleet.field(fleet.key.session, "st")
    await fleet.plant(fleet.key.session, {"st": session.replace(b"2", b"2.0")})
    assert (await verdicts(fleet))[0].verdict is Verdict.WRONG


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"author"', b'"autho_"', "its event"),
        (b'"e1"', b'"e7"', "its event"),
        (b"{", b"nonsense", "its event"),
    ],
)
async def test_a_wrong_event(fleet: Planted, old: bytes, new: bytes, reason: str) -> None:
    chunk = await fleet.field(fleet.key.session, "c0")
    assert old in chunk
    await fleet.plant(fleet.key.session, {"c0": chunk.replace(old, new, 1)})
    (found, *_) = await verdicts(fleet)
    assert found.verdict is Verdict.WRONG
    assert found.reason.startswith(reason)


@pytest.mark.parametrize("events", [0, 60])
async def test_a_window_is_compared_as_far_as_it_reaches(
    store_url: str, valkey_url: str, events: int
) -> None:
    async with planted(store_url, valkey_url, events) as fleet:
        assert [finding.verdict for finding in await verdicts(fleet)] == [Verdict.EQUAL] * 3
        entry = await fleet.entry(fleet.key.session)
        assert entry is not None
        if events:
            assert 0 < len(entry.content.events) < events
            await fleet.plant(fleet.key.session, {"c": "1"})
            assert (await verdicts(fleet))[0].reason == "it denies that there are older events"
            await fleet.plant(fleet.key.session, {"c": "0", "mt": "1"})
            assert "too early" in (await verdicts(fleet))[0].reason


async def test_an_entry_older_than_sql(fleet: Planted) -> None:
    """Allowed while a read may be served from it; then beyond the bound."""
    await fleet.write_unheard()
    (found, *others) = await verdicts(fleet)
    assert [finding.verdict for finding in others] == [Verdict.EQUAL] * 2
    assert (found.verdict, found.reason) == (Verdict.STALE, "SQL has moved on")
    assert found.age + found.allowed == DELTA
    assert found.stored == (await fleet.store.tags(fleet.key)).session
    assert (await verdicts(fleet, verifier(fleet, None)))[0].allowed == float("inf")
    assert (await verdicts(fleet, verifier(fleet, 0)))[0].allowed == 0
    validated = int(await fleet.field(fleet.key.session, "va"))
    await fleet.plant(fleet.key.session, {"va": validated - DELTA})
    (found, *_) = await verdicts(fleet)
    assert found.age >= DELTA
    assert found.allowed == 0
    assert await verifier(fleet).repair(found) is True
    assert await fleet.entry(fleet.key.session) is None


async def test_an_entry_from_before_a_failover_is_never_served_unchecked(fleet: Planted) -> None:
    await fleet.write_unheard()
    await fleet.plant(fleet.key.session, {"sv": "another server"})
    (found, *_) = await verdicts(fleet)
    assert (found.verdict, found.allowed) == (Verdict.STALE, 0)


async def test_an_entry_ahead_of_sql(fleet: Planted) -> None:
    await fleet.lose_commit()
    (found, *_) = await verdicts(fleet)
    assert found.verdict is Verdict.STALE
    assert "lost commits" in found.reason


async def test_a_repair_keeps_what_was_right_by_then(fleet: Planted) -> None:
    await fleet.write_unheard()
    (found, *_) = await verdicts(fleet)
    await fleet.cache.drop(fleet.key.session, None, None)
    await fleet.fill()
    assert await verifier(fleet).repair(found) is True
    assert await fleet.entry(fleet.key.session) is not None


async def test_a_session_that_is_gone_from_sql(fleet: Planted) -> None:
    writer = await fleet.store.writer()
    assert await writer.delete(fleet.key) is True
    await writer.release()
    found = await verdicts(fleet)
    assert [finding.verdict for finding in found] == [Verdict.STALE, Verdict.UNSETTLED, Verdict.UNSETTLED]
    assert found[0].reason == "SQL has no such row"


async def test_masked_and_absent(fleet: Planted) -> None:
    await fleet.cache.intent(fleet.key.session, "writer")
    await fleet.cache.drop(fleet.key.user, None, None)
    found = [finding.verdict for finding in await verdicts(fleet)]
    assert found == [Verdict.MASKED, Verdict.ABSENT, Verdict.EQUAL]


# --- what lies between the looks -----------------------------------------------------------------


def compared(between: Mapping[str, Any]) -> list[Finding]:
    """Compares on a toy store while `between` happens before, or after, its read."""

    async def main() -> list[Finding]:
        store, cache = ToyStore(), TroubledCache()
        sessions = tier(store, cache, TieredConfig(sample_rate=0))
        await append(sessions, "a")
        assert await sessions.get(KEY, Query()) is not None
        await sessions.flush()
        appended = 0

        async def load(key: SessionKey, query: Query) -> Snapshot | None:
            nonlocal appended
            if appended < between.get("appends", 1) and not between.get("after"):
                appended += 1
                await append(sessions, f"b{appended}")
                await sessions.flush()
            if between.get("commits"):
                await cache.intent(KEY.session, "writer")
                await append(tier(store, None), "c")
            found = await store.load(key, query)
            if between.get("after"):
                await append(sessions, "b")
                await sessions.flush()
            return found

        found = await Verifier(cache, load, DELTA).compare(KEY)
        await sessions.close()
        return found

    return run(main())


@pytest.mark.parametrize(
    ("between", "verdict"),
    [
        ({}, Verdict.EQUAL),
        ({"after": True}, Verdict.EQUAL),
        ({"appends": 0, "commits": True}, Verdict.MASKED),
        ({"appends": 4}, Verdict.EQUAL),
        ({"appends": 100}, Verdict.UNSETTLED),
    ],
)
def test_a_write_between_the_looks_is_no_fault(between: Mapping[str, Any], verdict: Verdict) -> None:
    assert compared(between)[0].verdict is verdict


def test_a_cache_that_does_not_answer() -> None:
    async def main() -> list[Finding]:
        cache = TroubledCache()
        cache.refusing = True
        return await Verifier(cache, ToyStore().load, DELTA).compare(KEY)

    assert {finding.verdict for finding in run(main())} == {Verdict.UNREACHABLE}


# --- contents ------------------------------------------------------------------------------------

EVENTS = tuple(EventRecord(number, f"e{number}", number, b"{}") for number in range(1, 6))
STORED = Content(Tag(1, 5, 1, 5), b"{}", EVENTS)
LAST_TWO = replace(STORED, events=EVENTS[3:], complete=False, before=3)
LAST_ONE = replace(STORED, events=EVENTS[4:], complete=False, before=4)


@pytest.mark.parametrize(
    ("entry", "stored", "reason"),
    [
        (STORED, STORED, ""),
        (LAST_TWO, STORED, ""),
        (replace(LAST_TWO, before=None), STORED, ""),
        (replace(LAST_TWO, before=4), STORED, ""),
        (replace(LAST_TWO, before=2), STORED, "too early"),
        (replace(LAST_TWO, complete=True), STORED, "older events"),
        (LAST_TWO, LAST_TWO, ""),
        (replace(LAST_TWO, before=2), LAST_TWO, "too early"),
        (replace(LAST_TWO, events=(), before=5), LAST_ONE, ""),
        (replace(LAST_TWO, events=(), before=4), LAST_ONE, "too"),
        (replace(STORED, events=()), STORED, "older events"),
        (STORED, LAST_TWO, "it holds 3 events"),
        (replace(STORED, events=(*EVENTS[1:], EVENTS[0])), STORED, "its event 1"),
    ],
)
def test_windows_that_differ(entry: Content, stored: Content, reason: str) -> None:
    found = difference(entry, stored)
    assert reason in found
    assert bool(reason) == bool(found)


# --- walking over all sessions -------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_a_walk_meets_every_session_once(
    request: pytest.FixtureRequest, backend: str, limit: int
) -> None:
    mark = uuid4().hex
    apps, users, ids = (f"{mark}-a", f"{mark}-b"), ("", "u", "v"), ("1", "2", "3")
    async with open_store(backend_url(request, backend), backend) as store:
        wanted = [SessionKey(app, user, name) for app in apps for user in users for name in ids]
        for key in wanted:
            await created(store, key)

        async def walk(size: int, *within: str) -> list[SessionKey]:
            found: list[SessionKey] = []
            while page := await store.keys(found[-1] if found else None, size, *within):
                assert len(page) <= size
                found += page
            return found

        assert [key for key in await walk(max(limit, 7)) if key.app_name in apps] == wanted
        assert await walk(limit, apps[0]) == wanted[:9]
        assert await walk(limit, apps[1], "u") == wanted[12:15]
        assert await walk(limit, "nobody") == []
