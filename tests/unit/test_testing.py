"""The public suites pass what is sound and fail what is not; docs/testing.md runs as printed."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from tests.unit import broken_caches, broken_stores
from tiered_sessions import Event, TieredSessionService
from tiered_sessions.cache.base import CacheLimits, FillReply, Hit, LeaseRefused, Masked, Unavailable
from tiered_sessions.cache.memory import MemoryCache
from tiered_sessions.testing import (
    CacheRules,
    CacheSuite,
    Clock,
    Fault,
    FaultyCache,
    ManualClock,
    StoreSuite,
    WaitingClock,
)
from tiered_sessions.testing.cache_samples import KEY, content, fill, granted, hit, look, tag

ROOT = Path(__file__).parents[2]
REFERENCE = "test_it_answers_as_the_reference"
SEEN_BY_CHANCE = (
    "NoMask",
    "ExpiredMaskUnmasks",
    "LeaseAlwaysGranted",
    "FillIgnoresTheGrantTime",
    "DropIgnoresKeep",
    "TouchIgnoresTheTag",
    "SessionsDoNotExpire",
    "ApplyMakesAnEntry",
    "ApplyBridgesAGap",
    "ApplyDoesNotPurge",
    "NothingIsMissing",
)


def rules(suite: type) -> set[str]:
    return {name for name in dir(suite) if name.startswith("test_")}


# --- the suites fail what is broken --------------------------------------------------------------


@dataclass
class Verdicts:
    """What became of the tests of a run: by kind of cache or store, the rules."""

    passed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    failed: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def run_pytest(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def judge(module: ModuleType, sound: type, chance: tuple[str, ...], report: Path) -> Verdicts:
    """Runs every rule on `sound`, and on each broken kind the rule that is about its mistake."""
    wanted = [f"({kind.caught_by} and {kind.__name__})" for kind in module.BROKEN]
    wanted += [f"({REFERENCE} and {name})" for name in chance]
    done = run_pytest(
        str(module.__file__), "-k", " or ".join((sound.__name__, *wanted)), f"--junitxml={report}", cwd=ROOT
    )
    assert done.returncode == 1, done.stdout + done.stderr
    verdicts = Verdicts()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        rule, _, parameters = str(case.get("name")).rstrip("]").partition("[")
        (kind,) = {kind.__name__ for kind in (sound, *module.BROKEN)} & set(parameters.split("-"))
        assert case.find("error") is None, done.stdout
        failure = case.find("failure")
        if failure is not None:
            assert str(failure.get("message")).lower().startswith("assert"), (case.get("name"), done.stdout)
        (verdicts.passed if failure is None else verdicts.failed)[kind].add(rule)
    return verdicts


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    report = tmp_path_factory.mktemp("caches") / "report.xml"
    return judge(broken_caches, MemoryCache, SEEN_BY_CHANCE, report)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    report = tmp_path_factory.mktemp("stores") / "report.xml"
    return judge(broken_stores, broken_stores.SqlSessionStore, (), report)


@pytest.mark.parametrize("kind", broken_caches.BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_cache_fails_the_rule_about_it(caches: Verdicts, kind: type[broken_caches.Broken]) -> None:
    assert kind.caught_by in caches.failed[kind.__name__]


@pytest.mark.parametrize("name", SEEN_BY_CHANCE)
def test_a_broken_cache_differs_from_the_reference(caches: Verdicts, name: str) -> None:
    assert REFERENCE in caches.failed[name]


@pytest.mark.parametrize("kind", broken_stores.BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_store_fails_the_rule_about_it(stores: Verdicts, kind: type[broken_stores.Broken]) -> None:
    assert kind.caught_by in stores.failed[kind.__name__]


def test_what_is_sound_passes_every_rule(caches: Verdicts, stores: Verdicts) -> None:
    assert caches.passed["MemoryCache"] == rules(CacheSuite)
    assert stores.passed["SqlSessionStore"] == rules(StoreSuite)
    assert "MemoryCache" not in caches.failed
    assert "SqlSessionStore" not in stores.failed


@pytest.mark.parametrize(("suite", "module"), [(CacheRules, broken_caches), (StoreSuite, broken_stores)])
def test_every_rule_is_about_some_mistake(suite: type, module: ModuleType) -> None:
    assert {kind.caught_by for kind in module.BROKEN} == rules(suite)


# --- clocks --------------------------------------------------------------------------------------


class DriftingClock(ManualClock):
    """Time also passes by itself, as it does on a server."""

    tick = 50

    def __call__(self) -> int:
        self.now += 1
        return self.now


class TestRulesUnderAServersClock(CacheRules):
    """The rules hold for a cache whose clock runs while they look."""

    @pytest.fixture
    def clock(self) -> Clock:
        return DriftingClock()

    @pytest.fixture
    def limits(self) -> CacheLimits:
        """Short lives, as for a suite that has to wait."""
        return CacheLimits(1_000, 5_000, window_events=40, window_bytes=5_000, mask_life=400, lease_life=200)

    @pytest.fixture
    def cache(self, clock: DriftingClock, limits: CacheLimits) -> MemoryCache:
        return MemoryCache(limits, clock=clock)


async def test_a_waiting_clock_waits() -> None:
    cache = MemoryCache()
    before = await cache.probe()
    await WaitingClock(tick=7).advance(20)
    after = await cache.probe()
    assert isinstance(before, int)
    assert isinstance(after, int)
    assert after - before >= 19


# --- the cache that fails on order ---------------------------------------------------------------


class TestHealthy(CacheSuite):
    """Nothing is spoiled: it is the cache behind it."""

    @pytest.fixture
    def cache(self, clock: ManualClock, limits: CacheLimits) -> FaultyCache:
        return FaultyCache(MemoryCache(limits, clock=clock))


@pytest.fixture
def faulty() -> FaultyCache:
    return FaultyCache(MemoryCache(shared=True, namespace="n"))


async def test_a_refused_step_is_not_performed(faulty: FaultyCache) -> None:
    await fill(faulty, content(1, 1))
    faulty.spoil(Fault.REFUSE, "intent", "drop")
    assert isinstance(await faulty.intent(KEY, "writer"), Unavailable)
    assert isinstance(await faulty.drop(KEY, None, None), Unavailable)
    assert (await hit(faulty)).content == content(1, 1)
    assert faulty.steps == ["lease", "fill", "intent", "drop", "lookup"]
    faulty.heal()
    await faulty.intent(KEY, "writer")
    assert isinstance(await look(faulty), Masked)


async def test_a_lost_step_is_performed(faulty: FaultyCache) -> None:
    at = await granted(faulty, "reader")
    faulty.spoil(Fault.LOSE, "fill")
    assert isinstance(await faulty.fill(KEY, "reader", at, "", content(1)), Unavailable)
    assert (await hit(faulty)).content == content(1)


async def test_a_held_step_is_performed_late(faulty: FaultyCache) -> None:
    at = await granted(faulty, "reader")
    faulty.spoil(Fault.HOLD, "fill")
    late = asyncio.create_task(faulty.fill(KEY, "reader", at, "", content(1)))
    await asyncio.sleep(0)
    assert await faulty.lease(KEY, "other") is LeaseRefused.WAIT
    assert not late.done()
    faulty.heal()
    assert await late is FillReply.STORED


async def test_without_names_every_step_is_spoiled(faulty: FaultyCache) -> None:
    faulty.spoil(Fault.REFUSE)
    replies = [
        *await faulty.lookup((KEY, KEY)),
        await faulty.intent(KEY, "t"),
        await faulty.release(KEY, "t"),
        await faulty.lease(KEY, "t"),
        await faulty.fill(KEY, "t", 0, "", content(1)),
        await faulty.apply(KEY, "t", tag(1), tag(2), (), None, 0),
        await faulty.drop(KEY, None, None),
        await faulty.touch(KEY, tag(1), 0, ""),
        await faulty.elect("one", 1),
        await faulty.probe(),
    ]
    assert [type(reply) for reply in replies] == [Unavailable] * 11
    with pytest.raises(ValueError, match="no step of a cache: fils"):
        faulty.spoil(Fault.REFUSE, "fill", "fils")


async def test_it_stands_for_the_cache_behind_it(faulty: FaultyCache) -> None:
    assert faulty.shared
    faulty.namespace, faulty.shared = "m", False
    assert (faulty.inner.namespace, faulty.inner.shared, faulty.namespace) == ("m", False, "m")
    await fill(faulty, content(1))
    await faulty.close()
    assert not isinstance(await look(faulty), Hit)


@pytest.mark.parametrize("fault", Fault)
async def test_a_service_lives_with_any_fault(faulty: FaultyCache, sqlite_url: str, fault: Fault) -> None:
    """I7: no cache condition makes a read or a write fail."""
    async with TieredSessionService(sqlite_url, cache=faulty) as service:
        session = await service.create_session("app", "user")
        faulty.spoil(fault)
        await service.append_event(session, Event(author="user"))
        for _ in range(2):
            assert await service.get_session("app", "user", session.id) == session
            faulty.heal()
    assert {"intent", "lookup"} <= set(faulty.steps)


# --- the package and its page --------------------------------------------------------------------


def test_without_pytest_the_import_says_what_to_install() -> None:
    for module in ("pytest", "pytest_asyncio"):
        code = f"import sys; sys.modules[{module!r}] = None; import tiered_sessions.testing"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert "ImportError: tiered_sessions.testing needs pytest" in done.stderr
        assert "pip install pytest pytest-asyncio" in done.stderr


def blocks(language: str) -> Iterator[str]:
    text = (ROOT / "docs" / "testing.md").read_text()
    return (block for block in re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def test_the_page_runs_as_printed(tmp_path: Path) -> None:
    (ini,) = blocks("ini")
    (tmp_path / "pytest.ini").write_text(ini)
    for number, block in enumerate(blocks("python")):
        (tmp_path / f"test_page_{number}.py").write_text(block)
    done = run_pytest("-W", "error", "--junitxml=report.xml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [str(case.get("name")) for case in ElementTree.parse(tmp_path / "report.xml").iter("testcase")]
    assert {case.partition("[")[0] for case in cases} >= rules(CacheSuite) | rules(StoreSuite)


def test_a_suite_without_a_fixture_says_so(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from tiered_sessions.testing import CacheSuite\n\n\nclass TestMine(CacheSuite):\n    pass\n"
    )
    done = run_pytest("-x", "-o", "asyncio_mode=strict", cwd=tmp_path)
    assert done.returncode == 1
    assert "give your subclass of the suite a fixture `cache`" in done.stdout
